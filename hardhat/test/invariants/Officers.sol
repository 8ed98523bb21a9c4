// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Statement} from "../../src/interfaces/IDisputes.sol";
import {Node} from "../../src/interfaces/INodeRegistry.sol";
import {Setting} from "../../src/interfaces/IParameters.sol";
import {Signature} from "../../src/Signed.sol";
import {World} from "./World.sol";

/// @dev What owners of nodes, auditors and the owner of the parameters do, and the model of it.
abstract contract Officers is World {
    struct Verdict {
        bytes32 evidence;
        uint256 appealEpoch;
        bool lives;
    }

    struct Plan {
        uint256 epoch;
        uint256 value;
    }

    mapping(address node => mapping(uint256 epoch => Verdict)) internal verdicts;
    mapping(address node => mapping(bytes32 evidence => bool)) internal shown;
    mapping(address node => uint256) internal spent;
    mapping(address node => uint256) internal lastStruck;
    mapping(Setting setting => Plan[]) private _plans;
    uint256 public coinIn;
    uint256 public coinOut;

    function setUp() public override {
        super.setUp();
        coinIn = address(registry).balance;
    }

    // ---- stake

    function bond(uint256 n, uint96 amount) external {
        (address node_, address owner_) = (nodes[n % NODES], owners[n % NODES]);
        amount = uint96(within(amount, 1, 100 ether));
        Node memory state = registry.nodeOf(node_);
        bool allowed = !state.retired && state.unbonding == 0 && state.bonded + amount >= MIN_STAKE;
        vm.deal(owner_, amount);
        vm.prank(owner_);
        (bool done,) = address(registry).call{value: amount}(abi.encodeCall(registry.bond, (node_)));
        ok(done == allowed, "bond");
        count("bond", done);
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
        bytes memory call_ = abi.encodeCall(registry.withdrawStake, (node_, to)); // P8: when its time is over
        act(owner_, address(registry), call_, allowed, "withdrawStake");
        if (allowed) coinOut += state.unbonding;
    }

    function setPayout(uint256 n, uint256 to) external {
        (address node_, address payout_) = (nodes[n % NODES], [clients[0], clients[4], address(0xFA02)][to % 3]);
        vm.prank(owners[n % NODES]);
        registry.setPayout(node_, payout_);
        eq(registry.payoutOf(node_), payout_, "payout");
        count("setPayout", true);
    }

    function setPeer(uint256 n, bytes32 peer, bool consents) external {
        (address node_, address owner_) = (nodes[n % NODES], owners[n % NODES]);
        Signature memory s = sign(consents ? NODE_KEY + n % NODES : WALLET_KEY, operatorDigest(owner_, node_, peer));
        bytes memory data = abi.encodeCall(registry.setPeer, (node_, peer, s));
        act(owner_, address(registry), data, consents, "setPeer");
    }

    /// @dev A node goes to another owner, or is accepted by somebody to whom it was not offered.
    function handOver(uint256 n, uint256 to, bool offered) external {
        (address node_, address next) = (nodes[n % NODES], address(uint160(0x0E0F00 + to % 3)));
        vm.prank(owners[n % NODES]);
        registry.offerOwnership(node_, offered ? next : clients[1]);
        act(next, address(registry), abi.encodeCall(registry.acceptOwnership, (node_)), offered, "acceptOwnership");
        if (offered) owners[n % NODES] = next;
    }

    // ---- strikes

    function strike(uint256 n, bool last, uint256 rarely) external {
        if (rarely % 2 != 0) return;
        (address node_, uint256 epoch) = (nodes[n % NODES], last ? today() - 1 : today());
        bytes32 evidence = keccak256(abi.encode(rarely % 400));
        bool allowed = !isStruck(node_, epoch) && !shown[node_][evidence];
        bytes32 hash = strikeDigest(node_, uint64(epoch), evidence, admin);
        bytes memory data =
            abi.encodeCall(disputes.strike, (node_, epoch, evidence, admin, signAll(three(0, 1, 2), hash)));
        act(clients[0], address(disputes), data, allowed, "strike");
        if (!allowed) return;
        shown[node_][evidence] = true;
        lastStruck[node_] = epoch;
        verdicts[node_][epoch] = Verdict(evidence, today() + planned(Setting.Appeal, today()), true);
    }

    /// @dev For each of the last three days.
    function strikeOften(uint256 n, uint256 salt) external {
        for (uint256 i; i < 3; ++i) {
            toEpoch(today() + 1);
            this.strike(n, false, 2 * (salt % 1_000 + i));
        }
    }

    /// @dev Strikes day after day until enough live, sometimes one too few, and asks for the slash when their appeal is
    /// over. One after the other, such moves would hardly ever come together within K epochs.
    function condemn(uint256 n, uint256 salt) external {
        uint256 count = planned(Setting.StrikeLimit, today()) - salt % 2;
        for (uint256 i; i < count; ++i) {
            toEpoch(today() + 1);
            this.strike(n, false, 2 * (salt % 1_000 + i));
        }
        toEpoch(today() + planned(Setting.Appeal, today()) + 1);
        this.slashStruck(n, 1);
    }

    function strikeAndPardon(uint256 n, uint256 salt) external {
        this.strike(n, salt % 2 == 0, 2 * (salt % 1_000));
        this.pardon(n, 1);
    }

    /// @dev Mostly of the newest strike, else of any of the last days.
    function pardon(uint256 n, uint256 back) external {
        (address node_, uint256 epoch) = (nodes[n % NODES], today() - back % 4);
        if (back % 3 != 0 && lastStruck[node_] != 0) epoch = lastStruck[node_];
        Verdict storage v = verdicts[node_][epoch];
        bytes32 hash = pardonDigest(node_, uint64(epoch), v.evidence);
        bool allowed = v.lives && today() <= v.appealEpoch;
        bytes memory data =
            abi.encodeCall(disputes.pardon, (node_, epoch, v.evidence, signAll(three(2, 3, 4), hash)));
        act(clients[0], address(disputes), data, allowed, "pardon");
        if (allowed) v.lives = false;
    }

    /// @dev The m oldest that live, none of them under appeal, spent or older than K epochs; else nothing.
    function slashStruck(uint256 n, uint256 wait) external {
        address node_ = nodes[n % NODES];
        if (wait % 2 == 0) toEpoch(today() + 2);
        (uint256 day, uint256 limit) = (today(), planned(Setting.StrikeLimit, today()));
        (uint256 count, uint256 last, bool held) = (0, 0, false);
        for (uint256 age = planned(Setting.StrikeWindow, day); age > 0; --age) {
            Verdict storage v = verdicts[node_][day - age];
            if (!v.lives || day - age <= spent[node_] || held || count == limit) continue;
            if (day <= v.appealEpoch) held = true;
            else (count, last) = (count + 1, day - age);
        }
        Node memory before = registry.nodeOf(node_);
        bytes memory data = abi.encodeCall(disputes.slashStruck, (node_));
        act(clients[0], address(disputes), data, count == limit, "slashStruck");
        if (count != limit) return;
        spent[node_] = last;
        Node memory later = registry.nodeOf(node_);
        eq(later.bonded, before.bonded - before.bonded / 5, "P9: a fifth of the bonded stake");
        eq(later.unbonding, before.unbonding - before.unbonding / 5, "P9: a fifth of the unbonding stake");
        eq(disputes.spentThrough(node_), last, "P9: the oldest are spent");
    }

    function isStruck(address node_, uint256 epoch) internal view returns (bool) {
        return verdicts[node_][epoch].lives;
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
        act(clients[1], address(disputes), data, !before.retired, "proveEquivocation");
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
        count("pullReward", true);
    }

    // ---- the owner of the parameters

    /// @dev Milder and harder numbers, within what a deployment allows; they count from the third epoch on.
    function schedule(uint256 which, uint256 value) external {
        Setting setting = [Setting.UnitsPerCoin, Setting.MaxPerUnit, Setting.StrikeLimit, Setting.Appeal][which % 4];
        if (setting == Setting.UnitsPerCoin || setting == Setting.MaxPerUnit) value = within(value, 0, 1e22);
        if (setting == Setting.StrikeLimit) value = within(value, 4, 6);
        if (setting == Setting.Appeal) value = within(value, 1, 4);
        vm.prank(admin);
        parameters.schedule(setting, value);
        count("schedule", true);
        _plans[setting].push(Plan((vm.getBlockTimestamp() + DELAY) / EPOCH + 1, value));
    }

    /// @dev A pause lasts a week at most, and is followed by one without.
    function pause(uint256 rarely) external {
        if (rarely % 3 != 0) return;
        bool allowed = vm.getBlockTimestamp() >= pausedUntil + 7 days;
        act(admin, address(parameters), abi.encodeCall(parameters.pause, ()), allowed, "pause");
        if (!allowed) return;
        pausedUntil = vm.getBlockTimestamp() + 7 days;
        act(admin, address(parameters), abi.encodeCall(parameters.pause, ()), false, "pause");
    }

    function unpause() external {
        vm.prank(admin);
        parameters.unpause();
        count("unpause", isPaused());
        if (isPaused()) pausedUntil = vm.getBlockTimestamp();
    }

    /// @dev A setting as it counts in `epoch`, by what was scheduled.
    function planned(Setting setting, uint256 epoch) internal view returns (uint256 value) {
        value = settings()[uint256(setting)];
        for (uint256 i; i < _plans[setting].length; ++i) {
            if (_plans[setting][i].epoch <= epoch) value = _plans[setting][i].value;
        }
    }
}
