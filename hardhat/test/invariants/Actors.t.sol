// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ClaimItem, ClaimRecord} from "../../src/interfaces/IEmission.sol";
import {Node} from "../../src/interfaces/INodeRegistry.sol";
import {Setting} from "../../src/interfaces/IParameters.sol";
import {Item, Permit, Release} from "../../src/interfaces/ISettlement.sol";
import {Session} from "../../src/Signed.sol";
import {Officers} from "./Officers.sol";

/// @dev What actors do, in any order. Each move is predicted by the model and compared at once; the invariants of
/// Invariants.t.sol are compared after each.
contract Actors is Officers {
    Item[] private _items;
    mapping(address node => mapping(uint256 epoch => ClaimItem[])) private _work;
    mapping(bytes32 sessionId => bool) private _counted;
    mapping(address node => mapping(uint256 epoch => uint256)) public unitsOf;
    mapping(uint256 epoch => uint256) public mintedOf;
    uint256[] private _epochs;
    uint256 private _nonce;
    // ---- paid work

    /// @dev By a call or, where the payer has a key, by its signature and permit alone.
    function fund(uint256 c, uint256 n, uint96 amount, uint256 payer, bool bySig) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        amount = uint96(within(amount, 1, 1e24));
        address from = clients[payer % CLIENTS];
        bySig = bySig && ownKey(payer % CLIENTS) != 0;
        if (bySig) client_ = from;
        give(from, amount);
        given += amount;
        (address[] memory nodes_, uint96[] memory amounts) = (new address[](1), new uint96[](1));
        (nodes_[0], amounts[0]) = (node_, amount);
        if (bySig) {
            act(clients[1], address(settlement), _fundBySig(payer % CLIENTS, nodes_, amounts), !isPaused(), "fundBySig");
            if (!isPaused()) ++orders[client_];
        } else {
            vm.prank(from);
            token.approve(address(settlement), amount);
            bytes memory data = abi.encodeCall(settlement.fund, (client_, nodes_, amounts, noPermit()));
            act(from, address(settlement), data, !isPaused(), "fund");
        }
        if (isPaused()) return;
        book[client_][node_].balance += amount;
        book[client_][node_].deposits += amount;
    }

    function _fundBySig(uint256 c, address[] memory nodes_, uint96[] memory amounts) private view returns (bytes memory) {
        (address client_, uint64 end) = (clients[c], uint64(vm.getBlockTimestamp() + 1));
        bytes memory order = packed(sign(ownKey(c), fundDigest(client_, nodes_, amounts, orders[client_], end)));
        Permit memory p = _permit(c, amounts[0]);
        return abi.encodeCall(settlement.fundBySig, (client_, nodes_, amounts, p, end, order));
    }

    function _permit(uint256 c, uint256 value) private view returns (Permit memory p) {
        (p.value, p.deadline) = (value, vm.getBlockTimestamp());
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        uint256 nonce = token.nonces(clients[c]);
        bytes32 inner = keccak256(abi.encode(typeHash, clients[c], address(settlement), value, nonce, p.deadline));
        bytes32 hash = keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), inner));
        (p.v, p.r, p.s) = vm.sign(ownKey(c), hash);
    }

    function thaw(uint256 c, uint256 n, bool bySig) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        ModelAccount storage a = book[client_][node_];
        bool allowed = a.thawEnd == 0;
        _order(c % CLIENTS, "thaw", "Thaw", node_, bySig, allowed);
        if (!allowed) return;
        (a.thawEnd, a.thawBlock) = (vm.getBlockTimestamp() + THAW, vm.getBlockNumber() + THAW_BLOCKS);
    }

    function cancelThaw(uint256 c, uint256 n, bool bySig) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        _order(c % CLIENTS, "cancelThaw", "CancelThaw", node_, bySig, book[client_][node_].thawEnd != 0);
        book[client_][node_].thawEnd = 0;
    }

    /// @dev P6: a withdrawal works exactly when a thaw has ended, in time and blocks. Often tried in its last second or
    /// just after it, in its last block or the next.
    function withdraw(uint256 c, uint256 n, uint256 when, bool bySig) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        ModelAccount storage a = book[client_][node_];
        if (when % 3 != 0 && a.thawEnd > vm.getBlockTimestamp()) vm.warp(a.thawEnd + when % 3 - 1);
        if (when / 3 % 4 != 0 && a.thawBlock > vm.getBlockNumber()) vm.roll(a.thawBlock - (when / 3 % 4 == 1 ? 1 : 0));
        bool over = vm.getBlockTimestamp() > a.thawEnd && vm.getBlockNumber() >= a.thawBlock;
        bool allowed = a.thawEnd != 0 && over;
        uint256 before = token.balanceOf(client_);
        _order(c % CLIENTS, "withdraw", "Withdraw", node_, bySig, allowed);
        if (allowed) _left(client_, node_, before);
    }

    /// @dev P6: with the node's release, at once; what it has not collected by then must come along.
    function close(uint256 c, uint256 n, uint96 total, uint256 what) external {
        (address client_, address node_) = (clients[c % CLIENTS], nodes[n % NODES]);
        ModelAccount storage a = book[client_][node_];
        total = uint96(within(total, 0, a.collected + a.balance + what % 2));
        Item[] memory items = new Item[](0);
        uint256 reached = a.collected;
        if (ownKey(c % CLIENTS) != 0 && what % 3 != 0) {
            items = one(item(NODE_KEY + n % NODES, client_, ownKey(c % CLIENTS), total));
            if (total > reached) reached = total;
            if (reached > a.collected + a.balance) reached = a.collected + a.balance;
        }
        bool allowed = what % 5 != 0 && reached >= total;
        (uint256 before, uint256 supply) = (token.balanceOf(client_), token.totalSupply());
        Release memory r = _release(client_, n % NODES, total, what);
        act(client_, address(settlement), abi.encodeCall(settlement.close, (node_, r, items)), allowed, "close");
        if (!allowed) return;
        uint256 minted_ = _collect(a, reached, supply);
        if (registry.payoutOf(node_) == client_) before += minted_;
        _left(client_, node_, before);
    }

    /// @dev One in five is signed by somebody else.
    function _release(address client_, uint256 n, uint96 total, uint256 what) private view returns (Release memory) {
        uint64 end = uint64(vm.getBlockTimestamp() + what % 3600);
        uint256 key = what % 5 != 0 ? NODE_KEY + n : WALLET_KEY;
        return Release(total, end, sign(key, releaseDigest(nodes[n], client_, total, end)));
    }

    /// @dev A close has settled up to `reached`.
    function _collect(ModelAccount storage a, uint256 reached, uint256 supply) private returns (uint256 minted_) {
        uint256 burned_ = reached - a.collected;
        minted_ = m(reached) - m(a.collected);
        eq(supply - token.totalSupply(), burned_ - minted_, "P2: the fee is lost");
        if (burned_ != 0 && reached > a.highestVoucher) a.highestVoucher = reached;
        (a.balance, a.collected, a.minted) = (a.balance - burned_, reached, a.minted + minted_);
        (burned, settledMints) = (burned + burned_, settledMints + minted_);
        lostIn[today()] += burned_ - minted_;
    }

    function _left(address client_, address node_, uint256 before) private {
        ModelAccount storage a = book[client_][node_];
        eq(token.balanceOf(client_) - before, a.balance, "P3: all that is left, no more");
        a.withdrawals += a.balance;
        (a.balance, a.thawEnd) = (0, 0);
    }

    /// @dev Every other one is sent by a stranger, for wallets that can sign.
    function _order(uint256 c, string memory call_, string memory name, address subject, bool bySig, bool allowed)
        private
    {
        if (!bySig || ownKey(c) == 0) {
            bytes memory plain = abi.encodeWithSignature(string.concat(call_, "(address)"), subject);
            return act(clients[c], address(settlement), plain, allowed, call_);
        }
        uint64 end = uint64(vm.getBlockTimestamp());
        bytes32 hash = orderDigest(name, clients[c], subject, orders[clients[c]], end);
        bytes memory data = abi.encodeWithSignature(
            string.concat(call_, "BySig(address,address,uint64,bytes)"), clients[c], subject, end, packed(sign(ownKey(c), hash))
        );
        act(clients[4], address(settlement), data, allowed, string.concat(call_, "BySig"));
        if (!allowed) return;
        ++orders[clients[c]];
        act(clients[4], address(settlement), data, false, "an order is good once");
    }

    function authorize(uint256 c, uint256 k, uint256 life, bool bySig, bool paid) external {
        c = c % CLIENTS;
        address client_ = clients[c];
        address key = vm.addr(sessionKeyOf(k % CLIENTS));
        uint64 end = uint64(vm.getBlockTimestamp() + within(life, 1, 90 days));
        ModelKey storage record = keyBook[client_][key];
        bool allowed = !record.known;
        bytes memory data = abi.encodeCall(settlement.authorize, (key, end));
        if (bySig && ownKey(c) != 0) {
            bytes memory signature = packed(sign(ownKey(c), delegationDigest(client_, key, end, paid)));
            data = abi.encodeCall(settlement.authorizeBySig, (client_, key, end, signature));
            allowed = allowed && paid;
            act(clients[4], address(settlement), data, allowed, "authorizeBySig");
        } else {
            act(client_, address(settlement), data, allowed, "authorize");
        }
        if (allowed) (record.validUntil, record.set, record.known) = (end, true, true);
    }

    function revoke(uint256 c, uint256 k, bool bySig) external {
        address client_ = clients[c % CLIENTS];
        address key = vm.addr(sessionKeyOf(k % CLIENTS));
        _order(c % CLIENTS, "revoke", "Revoke", key, bySig, true);
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
        count("settle", b_ != 0);
        eq(b_, expectedBurn, "burned as the model says");
        eq(minted_, expectedMint, "minted as the model says");
        atMost(token.totalSupply(), supply, "P2: paid work never makes credits");
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

    // ---- donated work

    /// @dev A donated session of this epoch; some with faults that make it count nothing.
    function work(uint256 n, uint64 tokens, uint256 fault) external {
        uint256 epoch = today();
        Session memory s = donatedSession(nodes[n % NODES], ++_nonce, epoch);
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
        uint256 most = registry.stakeFor(node_, epoch) * planned(Setting.UnitsPerCoin, epoch) / 1e18;
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
        bool allowed = !isPaused() && today() >= epoch + 2 && record.weight != 0 && !record.minted
            && (state.slashedEpoch == 0 || state.slashedEpoch < epoch) && !isStruck(node_, epoch);
        uint256 before = token.totalSupply();
        act(clients[0], address(emission), abi.encodeCall(emission.mint, (node_, epoch)), allowed, "mint");
        if (!allowed) return;
        uint256 amount = token.totalSupply() - before;
        emitted += amount;
        mintedOf[epoch] += amount;
        atMost(amount, planned(Setting.MaxPerUnit, epoch) * record.weight / 1e18, "P7: a node's mint is bounded");
    }

    function _note(uint256 epoch) private {
        if (_epochs.length == 0 || _epochs[_epochs.length - 1] < epoch) _epochs.push(epoch);
    }

    function epochs() external view returns (uint256[] memory) {
        return _epochs;
    }

    // ---- the world

    function wait(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + within(time, 1, 20 hours));
        vm.roll(vm.getBlockNumber() + time % 30);
    }

    function waitLong(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + within(time, 1 days, 5 days));
        vm.roll(vm.getBlockNumber() + time % 60);
    }

    function rest() external view returns (address, address, address, address) {
        return (address(token), address(settlement), address(registry), address(emission));
    }
}
