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
        value = uint32(within(value, 1, type(uint32).max));
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
        parameters.setPause(true);
        vm.expectRevert(refusal);
        parameters.renounceOwnership();
        vm.expectRevert(refusal);
        parameters.transferOwnership(caller);
        vm.stopPrank();
    }

    function test_ranges() external {
        uint256 maxAppeal = UNBOND / EPOCH - 3;
        refused(Setting.Quorum, 0, 1, type(uint32).max);
        refused(Setting.StrikeLimit, 0, 1, type(uint32).max);
        refused(Setting.StrikeWindow, uint256(type(uint32).max) + 1, 1, type(uint32).max);
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

    function refused(Setting setting, uint256 value, uint256 low, uint256 high) private {
        vm.expectRevert(abi.encodeWithSelector(IParameters.BadSetting.selector, setting, value, low, high));
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

    function test_pause() external {
        vm.expectEmit(true, true, true, true, address(parameters));
        emit IParameters.PauseSet(true);
        vm.prank(admin);
        parameters.setPause(true);
        ok(parameters.paused(), "paused");
        vm.prank(admin);
        parameters.setPause(false);
        ok(!parameters.paused(), "goes on");
    }

    function test_renouncingLiftsThePause() external {
        vm.startPrank(admin);
        parameters.setPause(true);
        parameters.renounceOwnership();
        vm.stopPrank();
        ok(!parameters.paused(), "no pause for ever");
        eq(parameters.owner(), address(0), "nobody");
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
