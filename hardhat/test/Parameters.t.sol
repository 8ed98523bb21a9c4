// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Parameters} from "../src/Parameters.sol";
import {Fixed, IParameters, Setting} from "../src/interfaces/IParameters.sol";
import {Kit} from "./support/Kit.sol";

contract ParametersTest is Kit {
    function test_firstValues() external view {
        Fixed memory f = parameters.fixedNumbers();
        eq(keccak256(abi.encode(f)), keccak256(abi.encode(fixedNumbers())), "fixed numbers");
        for (uint256 i; i < 6; ++i) {
            eq(parameters.valueAt(Setting(i), today()), settings()[i], "setting");
        }
        eq(parameters.rateAt(MODEL, today()), RATE, "rate");
        eq(parameters.rateAt(keccak256("other"), today()), 0, "no rate");
        ok(parameters.isAuditor(vm.addr(auditorKey(0)), today()), "auditor");
        ok(!parameters.isAuditor(client, today()), "no auditor");
        eq(parameters.GENESIS(), START / EPOCH, "genesis");
        eq(parameters.currentEpoch(), today(), "epoch");
        eq(parameters.owner(), admin, "owner");
    }

    /// @dev No change reaches an epoch that has begun, or that begins before the delay is over.
    function testFuzz_timelock(uint32 wait, uint8 which, uint32 value) external {
        vm.warp(START + wait);
        Setting setting = Setting(which % 5);
        if (setting == Setting.StrikeLimit || setting == Setting.StrikeWindow) value = uint32(within(value, 4, 20));
        else value = uint32(within(value, 3, type(uint32).max));
        uint256 old = parameters.valueAt(setting, today());
        uint256 from = (START + wait + DELAY) / EPOCH + 1;
        ok(from * EPOCH > START + wait + DELAY, "the epoch begins after the delay");
        ok((from - 1) * EPOCH <= START + wait + DELAY, "and it is the first one");
        eq(parameters.nextChange(), from, "nextChange");
        vm.expectEmit(true, true, true, true, address(parameters));
        emit IParameters.Scheduled(setting, value, from);
        vm.prank(admin);
        parameters.schedule(setting, value);
        eq(parameters.valueAt(setting, today()), old, "not now");
        eq(parameters.valueAt(setting, from - 1), old, "not before");
        eq(parameters.valueAt(setting, from), value, "then");
        eq(parameters.valueAt(setting, from + 1000), value, "and after");
    }

    function testFuzz_timelockOfRatesAndAuditors(uint64 rate, bytes32 model, address auditor, uint32 wait) external {
        vm.assume(model != MODEL);
        for (uint256 i; i < 5; ++i) {
            vm.assume(auditor != vm.addr(auditorKey(i)));
        }
        vm.warp(START + wait);
        uint256 from = parameters.nextChange();
        vm.startPrank(admin);
        parameters.scheduleRate(model, rate);
        parameters.scheduleAuditor(auditor, true);
        parameters.scheduleAuditor(vm.addr(auditorKey(0)), false);
        vm.stopPrank();
        eq(parameters.rateAt(model, from - 1), 0, "rate not before");
        eq(parameters.rateAt(model, from), rate, "rate then");
        ok(!parameters.isAuditor(auditor, from - 1), "auditor not before");
        ok(parameters.isAuditor(auditor, from), "auditor then");
        ok(parameters.isAuditor(vm.addr(auditorKey(0)), from - 1), "removed not before");
        ok(!parameters.isAuditor(vm.addr(auditorKey(0)), from), "removed then");
    }

    function test_aSecondThoughtOverwrites() external {
        vm.startPrank(admin);
        parameters.schedule(Setting.Quorum, 9);
        parameters.schedule(Setting.Quorum, 4);
        vm.stopPrank();
        eq(parameters.valueAt(Setting.Quorum, parameters.nextChange()), 4, "the last word");
    }

    function testFuzz_onlyTheOwner(address caller) external {
        vm.assume(caller != admin);
        bytes memory refusal = abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, caller);
        vm.startPrank(caller);
        vm.expectRevert(refusal);
        parameters.schedule(Setting.Quorum, 1);
        vm.expectRevert(refusal);
        parameters.scheduleRate(MODEL, 1);
        vm.expectRevert(refusal);
        parameters.scheduleAuditor(caller, true);
        vm.expectRevert(refusal);
        parameters.pause();
        vm.expectRevert(refusal);
        parameters.unpause();
        vm.expectRevert(refusal);
        parameters.renounceOwnership();
        vm.expectRevert(refusal);
        parameters.transferOwnership(caller);
        vm.stopPrank();
    }

    function test_ranges() external {
        uint256 maxAppeal = UNBOND / EPOCH - 3;
        refused(Setting.Quorum, uint256(type(uint32).max) + 1, 3, type(uint32).max);
        refused(Setting.Appeal, 0, 1, maxAppeal);
        refused(Setting.Appeal, maxAppeal + 1, 1, maxAppeal);
        refused(Setting.UnitsPerCoin, uint256(type(uint96).max) + 1, 0, type(uint96).max);
        refused(Setting.MaxPerUnit, uint256(type(uint96).max) + 1, 0, type(uint96).max);
        vm.startPrank(admin);
        parameters.schedule(Setting.Appeal, maxAppeal);
        parameters.schedule(Setting.UnitsPerCoin, 0);
        parameters.schedule(Setting.MaxPerUnit, type(uint96).max);
        vm.stopPrank();
    }

    /// @dev P10: an owner with auditors of its own needs as many as the deployment did.
    function test_P10_theQuorumIsNeverBelowTheDeployedOne() external {
        refused(Setting.Quorum, 2, 3, type(uint32).max);
        change(Setting.Quorum, 5);
        toEpoch(parameters.nextChange());
        refused(Setting.Quorum, 2, 3, type(uint32).max);
        change(Setting.Quorum, 3);
    }

    /// @dev P9: no fewer strikes, no longer window than at the deployment, and a window that fits the strikes.
    function test_P9_theStrikeRuleIsNeverHarderThanTheDeployedOne() external {
        refused(Setting.StrikeLimit, 3, 4, 20);
        refused(Setting.StrikeLimit, 21, 4, 20);
        refused(Setting.StrikeWindow, 21, 4, 20);
        refused(Setting.StrikeWindow, 3, 4, 20);
        change(Setting.StrikeLimit, 6);
        refused(Setting.StrikeWindow, 5, 6, 20);
        change(Setting.StrikeWindow, 7);
        refused(Setting.StrikeLimit, 8, 4, 7);
        toEpoch(parameters.nextChange());
        refused(Setting.StrikeLimit, 3, 4, 7);
        change(Setting.StrikeWindow, 20);
        change(Setting.StrikeLimit, 4);
    }

    /// @dev Whatever the owner tries, in whatever order and time: what counts in any epoch is as mild as the deployment.
    function testFuzz_P9_P10_noScheduleIsHarder(uint256 tries) external {
        uint256[6] memory first = settings();
        for (uint256 i; i < 12; ++i) {
            Setting setting = Setting(2 + (tries >> (20 * i)) % 3);
            uint256 value = (tries >> (20 * i + 4)) % 24;
            vm.prank(admin);
            try parameters.schedule(setting, value) {} catch {}
            vm.warp(vm.getBlockTimestamp() + (tries >> (20 * i + 10)) % 3 * 12 hours);
        }
        for (uint256 epoch = START / EPOCH; epoch < today() + 5; ++epoch) {
            uint256 limit = parameters.valueAt(Setting.StrikeLimit, epoch);
            uint256 window = parameters.valueAt(Setting.StrikeWindow, epoch);
            atMost(first[2], parameters.valueAt(Setting.Quorum, epoch), "quorum");
            atMost(first[3], limit, "strikes");
            atMost(window, first[4], "window");
            atMost(limit, window, "they fit");
        }
    }

    /// @dev A deployment may start out milder than 4 in 20, and is then held to that.
    function testFuzz_P9_deployedStrikeRule(uint256 limit, uint256 window, uint256 quorum) external {
        uint256[6] memory chosen = settings();
        (chosen[2], chosen[3], chosen[4]) = (within(quorum, 0, 9), within(limit, 0, 24), within(window, 0, 24));
        bytes memory refusal;
        if (chosen[2] < 1) refusal = badSetting(Setting.Quorum, 0, 1, type(uint32).max);
        else if (chosen[3] < 4 || chosen[3] > 20) refusal = badSetting(Setting.StrikeLimit, chosen[3], 4, 20);
        else if (chosen[4] < chosen[3] || chosen[4] > 20) {
            refusal = badSetting(Setting.StrikeWindow, chosen[4], chosen[3], 20);
        }
        if (refusal.length != 0) vm.expectRevert(refusal);
        parameters = make(chosen);
        if (refusal.length != 0) return;
        if (chosen[2] > 1) refused(Setting.Quorum, chosen[2] - 1, chosen[2], type(uint32).max);
        refused(Setting.StrikeLimit, chosen[3] - 1, chosen[3], chosen[4]);
        refused(Setting.StrikeWindow, chosen[4] + 1, chosen[3], chosen[4]);
    }

    function test_P9_deployedStrikeRuleAtItsEdges() external {
        uint256[6] memory chosen = settings();
        (chosen[3], chosen[4]) = (3, 20);
        vm.expectRevert(badSetting(Setting.StrikeLimit, 3, 4, 20));
        make(chosen);
        (chosen[3], chosen[4]) = (4, 21);
        vm.expectRevert(badSetting(Setting.StrikeWindow, 21, 4, 20));
        make(chosen);
        (chosen[3], chosen[4]) = (5, 4);
        vm.expectRevert(badSetting(Setting.StrikeWindow, 4, 5, 20));
        make(chosen);
        (chosen[3], chosen[4]) = (20, 20);
        make(chosen);
    }

    function make(uint256[6] memory chosen) private returns (Parameters) {
        return new Parameters(admin, fixedNumbers(), chosen, new bytes32[](0), new uint64[](0), new address[](0));
    }

    function change(Setting setting, uint256 value) private {
        vm.prank(admin);
        parameters.schedule(setting, value);
        eq(parameters.valueAt(setting, parameters.nextChange()), value, "changed");
    }

    function badSetting(Setting setting, uint256 value, uint256 low, uint256 high) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IParameters.BadSetting.selector, setting, value, low, high);
    }

    function refused(Setting setting, uint256 value, uint256 low, uint256 high) private {
        vm.expectRevert(badSetting(setting, value, low, high));
        vm.prank(admin);
        parameters.schedule(setting, value);
    }

    function test_badFixedNumbers() external {
        Fixed memory f = fixedNumbers();
        f.fee = 0;
        refusedFixed(f, "fee");
        f.fee = 10_001;
        refusedFixed(f, "fee");
        f = fixedNumbers();
        f.epoch = 0;
        refusedFixed(f, "epoch");
        f = fixedNumbers();
        f.thaw = 0;
        refusedFixed(f, "thaw");
        f = fixedNumbers();
        f.thawBlocks = 0;
        refusedFixed(f, "thawBlocks");
        f = fixedNumbers();
        f.halving = 0;
        refusedFixed(f, "halving");
        f = fixedNumbers();
        f.unbond = uint32(4 * EPOCH - 1);
        refusedFixed(f, "unbond");
        f.unbond = uint32(4 * EPOCH);
        make(f, 0);
        vm.expectRevert(abi.encodeWithSelector(IParameters.LengthMismatch.selector, 1, 0));
        make(f, 1);
    }

    function refusedFixed(Fixed memory f, bytes32 name) private {
        vm.expectRevert(abi.encodeWithSelector(IParameters.BadFixed.selector, name));
        make(f, 0);
    }

    function make(Fixed memory f, uint256 models) private returns (Parameters) {
        return new Parameters(admin, f, settings(), new bytes32[](models), new uint64[](0), new address[](0));
    }

    function test_pauseEndsByItself() external {
        uint256 end = vm.getBlockTimestamp() + 7 days;
        ok(!parameters.paused(), "not yet");
        vm.expectEmit(true, true, true, true, address(parameters));
        emit IParameters.Paused(end);
        vm.prank(admin);
        parameters.pause();
        ok(parameters.paused(), "paused");
        vm.warp(end - 1);
        ok(parameters.paused(), "to the last second");
        vm.warp(end);
        ok(!parameters.paused(), "over");
    }

    /// @dev A pause is followed by as long without one, however it ended: it can't be renewed.
    function testFuzz_noPauseSoonAfterAnother(uint256 lifted, uint256 wait) external {
        lifted = within(lifted, 0, 8 days);
        wait = within(wait, 0, 10 days);
        uint256 end = vm.getBlockTimestamp() + 7 days;
        vm.startPrank(admin);
        parameters.pause();
        vm.warp(vm.getBlockTimestamp() + lifted);
        if (vm.getBlockTimestamp() < end) {
            vm.expectEmit(true, true, true, true, address(parameters));
            emit IParameters.Unpaused();
            end = vm.getBlockTimestamp();
        }
        parameters.unpause();
        ok(!parameters.paused(), "goes on");
        eq(parameters.pausedUntil(), end, "no later");
        vm.warp(vm.getBlockTimestamp() + wait);
        bool free = vm.getBlockTimestamp() >= end + 7 days;
        if (!free) vm.expectRevert(abi.encodeWithSelector(IParameters.PausedLately.selector, end + 7 days));
        parameters.pause();
        eq(parameters.paused() ? 1 : 0, free ? 1 : 0, "again after a week");
        vm.stopPrank();
    }

    function test_aPauseIsNotRenewedWhileItRuns() external {
        uint256 free = vm.getBlockTimestamp() + 14 days;
        vm.startPrank(admin);
        parameters.pause();
        vm.warp(vm.getBlockTimestamp() + 1 days);
        vm.expectRevert(abi.encodeWithSelector(IParameters.PausedLately.selector, free));
        parameters.pause();
        vm.stopPrank();
    }

    function test_renouncingLiftsThePause() external {
        vm.startPrank(admin);
        parameters.pause();
        parameters.renounceOwnership();
        vm.stopPrank();
        ok(!parameters.paused(), "no pause for ever");
        eq(parameters.owner(), address(0), "nobody");
    }

    /// @dev A timelock of nothing is for development chains alone.
    function test_noDelayIsForDevelopmentAlone() external {
        Fixed memory f = fixedNumbers();
        f.delay = 0;
        vm.chainId(31_337);
        make(f, 0);
        vm.chainId(31_338);
        refusedFixed(f, "delay");
        f.delay = 1;
        make(f, 0);
    }

    function test_handedOverInTwoSteps() external {
        vm.prank(admin);
        parameters.transferOwnership(client);
        eq(parameters.owner(), admin, "not before it is accepted");
        vm.prank(client);
        parameters.acceptOwnership();
        eq(parameters.owner(), client, "accepted");
    }
}
