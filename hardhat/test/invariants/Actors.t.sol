// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ClaimItem, ClaimRecord} from "../../src/interfaces/IEmission.sol";
import {Statement} from "../../src/interfaces/IDisputes.sol";
import {Node} from "../../src/interfaces/INodeRegistry.sol";
import {Item} from "../../src/interfaces/ISettlement.sol";
import {Session} from "../../src/Signed.sol";
import {World} from "./World.sol";

/// @dev What actors do, in any order. Each move is predicted by the model and compared at once; the invariants of
/// Invariants.t.sol are compared after each.
contract Actors is World {
    Item[] private _items;
    mapping(address node => mapping(uint256 epoch => ClaimItem[])) private _work;
    mapping(bytes32 sessionId => bool) private _counted;
    mapping(address node => mapping(uint256 epoch => uint256)) public unitsOf;
    mapping(uint256 epoch => uint256) public mintedOf;
    uint256[] private _epochs;
    uint256 private _nonce;
    uint256 public coinIn;
    uint256 public coinOut;

    function setUp() public override {
        super.setUp();
        coinIn = address(registry).balance;
    }

    // ---- lane A

    function fund(uint256 c, uint256 n, uint96 amount, uint256 payer) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        amount = uint96(within(amount, 1, 1e24));
        address from = clients[payer % CLIENTS];
        give(from, amount);
        given += amount;
        fundFrom(from, client_, node_, amount);
        book[client_][node_].balance += amount;
        book[client_][node_].deposits += amount;
    }

    function thaw(uint256 c, uint256 n) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        bool allowed = book[client_][node_].thawEnd == 0;
        act(client_, address(settlement), abi.encodeCall(settlement.thaw, (node_)), allowed, "thaw");
        if (allowed) book[client_][node_].thawEnd = vm.getBlockTimestamp() + THAW;
    }

    function cancelThaw(uint256 c, uint256 n) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        bool allowed = book[client_][node_].thawEnd != 0;
        act(client_, address(settlement), abi.encodeCall(settlement.cancelThaw, (node_)), allowed, "cancelThaw");
        book[client_][node_].thawEnd = 0;
    }

    /// @dev P6: a withdrawal works exactly when a thaw has ended. Often tried in its last second or just after it.
    function withdraw(uint256 c, uint256 n, uint256 when) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        uint256 end = book[client_][node_].thawEnd;
        if (when % 3 != 0 && end > vm.getBlockTimestamp()) vm.warp(end + when % 3 - 1);
        bool allowed = end != 0 && vm.getBlockTimestamp() > end;
        uint256 before = token.balanceOf(client_);
        act(client_, address(settlement), abi.encodeCall(settlement.withdraw, (node_)), allowed, "P6: withdraw");
        if (!allowed) return;
        uint256 amount = book[client_][node_].balance;
        eq(token.balanceOf(client_) - before, amount, "P3: all that is left, no more");
        book[client_][node_].withdrawals += amount;
        (book[client_][node_].balance, book[client_][node_].thawEnd) = (0, 0);
    }

    function authorize(uint256 c, uint256 k, uint256 life) external {
        address client_ = clients[c % CLIENTS];
        address key = vm.addr(sessionKeyOf(k % CLIENTS));
        uint64 end = uint64(vm.getBlockTimestamp() + within(life, 1, 90 days));
        ModelKey storage record = keyBook[client_][key];
        bool allowed = !record.known;
        act(client_, address(settlement), abi.encodeCall(settlement.authorize, (key, end)), allowed, "authorize");
        if (allowed) (record.validUntil, record.set, record.known) = (end, true, true);
    }

    function revoke(uint256 c, uint256 k) external {
        address client_ = clients[c % CLIENTS];
        address key = vm.addr(sessionKeyOf(k % CLIENTS));
        vm.prank(client_);
        settlement.revoke(key);
        ModelKey storage record = keyBook[client_][key];
        uint256 time = vm.getBlockTimestamp();
        if (!record.known || record.validUntil > time) record.validUntil = time;
        record.known = true;
    }

    /// @dev One fresh item, by one of five signers, settled by anyone and kept for replays.
    function settle(uint256 c, uint256 n, uint96 total, uint256 signer) external {
        uint256 k = signer % (CLIENTS + 1);
        uint256 key = k == CLIENTS ? ownKey(c % CLIENTS) : sessionKeyOf(k);
        if (key == 0) return;
        total = uint96(within(total, 1, 3e24));
        Item memory it = item(NODE_KEY + n % NODES, clients[c % CLIENTS], key, total);
        _items.push(it);
        _settle(n % NODES, one(it));
    }

    /// @dev P4: any two kept items again, in any order, at any node.
    function replay(uint256 first, uint256 second, uint256 n) external {
        if (_items.length == 0) return;
        Item[] memory items = new Item[](2);
        items[0] = _items[first % _items.length];
        items[1] = _items[second % _items.length];
        _settle(n % NODES, items);
    }

    function _settle(uint256 n, Item[] memory items) private {
        uint256 expectedBurn;
        uint256 expectedMint;
        for (uint256 i; i < items.length; ++i) {
            (uint256 b, uint256 m_) = _predict(n, items[i]);
            expectedBurn += b;
            expectedMint += m_;
        }
        uint256 supply = token.totalSupply();
        (uint256 b_, uint256 minted_) = settlement.settle(nodes[n], items);
        eq(b_, expectedBurn, "burned as the model says");
        eq(minted_, expectedMint, "minted as the model says");
        atMost(token.totalSupply(), supply, "P2: lane A never makes credits");
        burned += b_;
        settledMints += minted_;
        lostIn[today()] += b_ - minted_;
    }

    function _predict(uint256 n, Item memory it) private returns (uint256 burned_, uint256 minted_) {
        ModelAccount storage a = book[it.client][nodes[n]];
        bytes32 receipt = receiptDigest(nodes[n], it.client, it.sessionId, it.step, it.tokens, it.head);
        bool byNode = _recover(receipt, it.receiptR, it.receiptVs) == nodes[n];
        address signer = _recover(voucherDigest(receipt, it.total), it.voucherR, it.voucherVs);
        if (!byNode || !pays(it.client, signer) || it.total <= a.collected) return (0, 0);
        burned_ = it.total - a.collected < a.balance ? it.total - a.collected : a.balance;
        minted_ = m(a.collected + burned_) - m(a.collected);
        a.balance -= burned_;
        a.collected += burned_;
        a.minted += minted_;
        if (burned_ != 0 && it.total > a.highestVoucher) a.highestVoucher = it.total;
    }

    function _recover(bytes32 hash, bytes32 r, bytes32 vs) private pure returns (address) {
        return ecrecover(hash, uint8(uint256(vs) >> 255) + 27, r, vs & bytes32(type(uint256).max >> 1));
    }

    // ---- lane B

    /// @dev A free session of this epoch; some with faults that make it count nothing.
    function work(uint256 n, uint64 tokens, uint256 fault) external {
        uint256 epoch = today();
        Session memory s = freeSession(nodes[n % NODES], ++_nonce, epoch);
        if (fault % 6 == 1) s.price = 1;
        if (fault % 6 == 2) s.expiry += uint64(EPOCH);
        ClaimItem memory it = claimItem(NODE_KEY + n % NODES, s, uint64(within(tokens, 1, 1e12)));
        if (fault % 6 == 3) it.tokens++;
        _work[nodes[n % NODES]][epoch].push(it);
    }

    /// @dev Claims all kept sessions of the last epoch, or a random one of them once more.
    function claim(uint256 n, uint256 again) external {
        address node_ = nodes[n % NODES];
        uint256 epoch = today() - 1;
        ClaimItem[] storage kept = _work[node_][epoch];
        if (kept.length == 0) return;
        bool single = again % 3 == 0;
        ClaimItem[] memory items = new ClaimItem[](single ? 1 : kept.length);
        for (uint256 i; i < items.length; ++i) {
            items[i] = kept[single ? again % kept.length : i];
        }
        sortClaims(items);
        bool allowed = !registry.isRetired(node_);
        bytes32 last = emission.claimOf(node_, epoch).lastSessionId;
        act(node_, address(emission), abi.encodeCall(emission.claim, (node_, epoch, items)), allowed, "claim");
        if (!allowed) return;
        for (uint256 i; i < items.length; ++i) {
            bytes32 id = sessionId(items[i].session);
            bool counts = items[i].session.price == 0 && items[i].session.expiry / EPOCH == epoch && id > last
                && _signedAsSaid(node_, items[i]);
            if (!counts) continue;
            ok(!_counted[id], "P7: no session counts twice");
            _counted[id] = true;
            last = id;
            unitsOf[node_][epoch] += uint256(items[i].tokens) * 15 * RATE;
        }
        _note(epoch);
        ClaimRecord memory record = emission.claimOf(node_, epoch);
        eq(record.units, unitsOf[node_][epoch], "P7: units as the model says");
        uint256 most = registry.stakeFor(node_, epoch) * UNITS_PER_COIN / 1e18;
        eq(record.weight, record.units < most ? record.units : most, "P7: weight bounded by stake");
    }

    function _signedAsSaid(address node_, ClaimItem memory it) private view returns (bool) {
        bytes32 id = sessionId(it.session);
        bytes32 receipt = receiptDigest(node_, it.session.client, id, it.step, it.tokens, it.head);
        return _recover(receipt, it.receiptR, it.receiptVs) == node_;
    }

    /// @dev Works, waits for the next epoch, and claims.
    function donate(uint256 n, uint64 tokens) external {
        this.work(n, tokens, 0);
        this.work(n, tokens / 2, 4);
        toEpoch(today() + 1);
        this.claim(n, 1);
    }

    function mintShare(uint256 n, uint256 back, bool patient) external {
        address node_ = nodes[n % NODES];
        if (_epochs.length == 0) return;
        uint256 epoch = _epochs[back % 4 == 0 ? back % _epochs.length : _epochs.length - 1];
        if (patient && today() < epoch + 2) toEpoch(epoch + 2);
        ClaimRecord memory record = emission.claimOf(node_, epoch);
        Node memory state = registry.nodeOf(node_);
        bool allowed = today() >= epoch + 2 && record.weight != 0 && !record.minted
            && (state.slashedEpoch == 0 || state.slashedEpoch < epoch) && !disputes.struck(node_, epoch);
        uint256 before = token.totalSupply();
        act(clients[0], address(emission), abi.encodeCall(emission.mint, (node_, epoch)), allowed, "P7: mint");
        if (!allowed) return;
        uint256 amount = token.totalSupply() - before;
        emitted += amount;
        mintedOf[epoch] += amount;
        atMost(amount, MAX_PER_UNIT * record.weight / 1e18, "P7: a node's mint is bounded");
    }

    function _note(uint256 epoch) private {
        if (_epochs.length == 0 || _epochs[_epochs.length - 1] < epoch) _epochs.push(epoch);
    }

    function epochs() external view returns (uint256[] memory) {
        return _epochs;
    }

    // ---- stake and disputes

    function bond(uint256 n, uint96 amount) external {
        (address node_, address owner_) = (nodes[n % NODES], owners[n % NODES]);
        amount = uint96(within(amount, 1, 100 ether));
        Node memory state = registry.nodeOf(node_);
        bool allowed = !state.retired && state.unbonding == 0 && state.bonded + amount >= MIN_STAKE;
        vm.deal(owner_, amount);
        vm.prank(owner_);
        (bool done,) = address(registry).call{value: amount}(abi.encodeCall(registry.bond, (node_)));
        ok(done == allowed, "bond");
        if (allowed) coinIn += amount;
    }

    function unbond(uint256 n) external {
        (address node_, address owner_) = (nodes[n % NODES], owners[n % NODES]);
        bool allowed = registry.nodeOf(node_).bonded != 0;
        act(owner_, address(registry), abi.encodeCall(registry.unbond, (node_)), allowed, "unbond");
        eq(registry.stakeFor(node_, today()), 0, "P8: no weight while it leaves");
    }

    function withdrawStake(uint256 n, bool toHostile, uint256 when) external {
        (address node_, address owner_) = (nodes[n % NODES], owners[n % NODES]);
        address to = toHostile ? clients[4] : clients[0];
        Node memory state = registry.nodeOf(node_);
        if (when % 3 != 0 && state.unbondEnd > vm.getBlockTimestamp()) vm.warp(state.unbondEnd + when % 3 - 1);
        bool allowed = state.unbonding != 0 && vm.getBlockTimestamp() > state.unbondEnd && !toHostile;
        bytes memory call_ = abi.encodeCall(registry.withdrawStake, (node_, to));
        act(owner_, address(registry), call_, allowed, "P8: stake leaves when its time is over");
        if (allowed) coinOut += state.unbonding;
    }

    function strike(uint256 n, bool last, uint256 rarely) external {
        if (rarely % 2 != 0) return;
        (address node_, uint256 epoch) = (nodes[n % NODES], last ? today() - 1 : today());
        bool allowed = disputes.strikeOf(node_, epoch).evidence == 0;
        bytes32 hash = strikeDigest(node_, uint64(epoch), PEER, admin);
        bytes memory data =
            abi.encodeCall(disputes.strike, (node_, epoch, PEER, admin, signAll(three(0, 1, 2), hash)));
        act(clients[0], address(disputes), data, allowed, "strike");
    }

    function pardon(uint256 n) external {
        (address node_, uint256 epoch) = (nodes[n % NODES], today());
        bytes32 hash = pardonDigest(node_, uint64(epoch), PEER);
        bool allowed = disputes.struck(node_, epoch);
        bytes memory data = abi.encodeCall(disputes.pardon, (node_, epoch, PEER, signAll(three(2, 3, 4), hash)));
        act(clients[0], address(disputes), data, allowed, "pardon");
    }

    /// @dev P8: a slash reaches bonded and unbonding stake alike.
    function equivocate(uint256 n, uint64 step, uint256 rarely) external {
        if (rarely % 3 != 0) return;
        uint256 key = NODE_KEY + n % NODES;
        address node_ = nodes[n % NODES];
        Statement memory a = statement(key, PEER, step, client, 1, PEER);
        Statement memory b = statement(key, PEER, step, client, 2, PEER);
        Node memory before = registry.nodeOf(node_);
        bytes memory data = abi.encodeCall(disputes.proveEquivocation, (node_, PEER, step, a, b));
        act(clients[1], address(disputes), data, !before.retired, "an operator key is slashed once");
        if (before.retired) return;
        Node memory later = registry.nodeOf(node_);
        eq(later.bonded, before.bonded - before.bonded / 2, "P8: half of the bonded stake");
        eq(later.unbonding, before.unbonding - before.unbonding / 2, "P8: half of the unbonding stake");
    }

    function pullReward() external {
        uint256 amount = registry.rewardOf(clients[1]);
        if (amount == 0) return;
        vm.prank(clients[1]);
        registry.pullReward(clients[1]);
        coinOut += amount;
    }

    // ---- the world

    function wait(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + within(time, 1, 20 hours));
    }

    function waitLong(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + within(time, 1 days, 5 days));
    }

    function rest() external view returns (address, address, address, address) {
        return (address(token), address(settlement), address(registry), address(emission));
    }
}
