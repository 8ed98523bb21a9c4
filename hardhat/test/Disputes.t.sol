// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IDisputes, Statement, StrikeRecord} from "../src/interfaces/IDisputes.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Setting} from "../src/interfaces/IParameters.sol";
import {Signature} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";

contract DisputesTest is Kit {
    bytes32 private constant EVIDENCE = keccak256("evidence");
    bytes32 private constant ID = keccak256("session");
    address private accuser;

    function setUp() public override {
        super.setUp();
        register(OPERATOR_KEY, owner, payout, 10 ether);
        accuser = vm.addr(auditorKey(0));
    }

    /// @dev What is shown against the node for `epoch`.
    function shown(uint256 epoch) private pure returns (bytes32) {
        return keccak256(abi.encode(EVIDENCE, epoch));
    }

    function strikeSigs(uint256 epoch, uint256[] memory who) private view returns (Signature[] memory) {
        return signAll(who, strikeDigest(node, uint64(epoch), shown(epoch), accuser));
    }

    function pardonSigs(uint256 epoch, uint256[] memory who) private view returns (Signature[] memory) {
        return signAll(who, pardonDigest(node, uint64(epoch), shown(epoch)));
    }

    function strikeFor(uint256 epoch) private {
        disputes.strike(node, epoch, shown(epoch), accuser, strikeSigs(epoch, three(1, 2, 3)));
    }

    function strikeBy(uint256 epoch, bytes32 evidence) private {
        Signature[] memory sigs = signAll(three(1, 2, 3), strikeDigest(node, uint64(epoch), evidence, accuser));
        disputes.strike(node, epoch, evidence, accuser, sigs);
    }

    function pardonFor(uint256 epoch) private {
        disputes.pardon(node, epoch, shown(epoch), pardonSigs(epoch, three(1, 2, 3)));
    }

    // ---- equivocation

    function testFuzz_equivocation(uint64 step, uint64 tokens, bytes32 head, address other, address reporter) external {
        vm.assume(reporter != address(0));
        vm.assume(tokens != 8 || head != EVIDENCE || other != client);
        Statement memory a = statement(OPERATOR_KEY, ID, step, client, 8, EVIDENCE);
        Statement memory b = statement(OPERATOR_KEY, ID, step, other, tokens, head);
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputes.Equivocated(node, ID, step, reporter);
        vm.prank(reporter);
        disputes.proveEquivocation(node, ID, step, a, b);
        eq(registry.nodeOf(node).bonded, 5 ether, "half is lost");
        eq(registry.rewardOf(reporter), 0.5 ether, "a tenth of that to the reporter");
        ok(registry.isRetired(node), "retired");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.IsRetired.selector, node));
        disputes.proveEquivocation(node, ID, step, a, b);
        eq(registry.nodeOf(node).bonded, 5 ether, "once");
    }

    function test_equivocationRefuses() external {
        Statement memory a = statement(OPERATOR_KEY, ID, 4, client, 8, EVIDENCE);
        bytes32 da = receiptDigest(node, client, ID, 4, 8, EVIDENCE);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.SameReceipt.selector, da));
        disputes.proveEquivocation(node, ID, 4, a, a);
        // Another step, another session, another signer: each honest.
        badSecond(a, statement(OPERATOR_KEY, ID, 5, client, 9, EVIDENCE), 9);
        badSecond(a, statement(OPERATOR_KEY, keccak256("other"), 4, client, 9, EVIDENCE), 9);
        badSecond(a, statement(CLIENT_KEY, ID, 4, client, 9, EVIDENCE), 9);
        vm.expectRevert();
        disputes.proveEquivocation(node, ID, 4, statement(CLIENT_KEY, ID, 4, client, 9, EVIDENCE), a);
        Statement memory b = statement(CLIENT_KEY, ID, 4, client, 9, EVIDENCE);
        a = statement(CLIENT_KEY, ID, 4, client, 8, EVIDENCE);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotRegistered.selector, client));
        disputes.proveEquivocation(client, ID, 4, a, b);
        (a.signature, b.signature) = (Signature(0, 0), Signature(0, 0));
        vm.expectPartialRevert(IDisputes.BadReceipt.selector);
        disputes.proveEquivocation(address(0), ID, 4, a, b);
        eq(registry.nodeOf(node).bonded, 10 ether, "untouched");
    }

    function badSecond(Statement memory a, Statement memory b, uint64 tokens) private {
        bytes32 db = receiptDigest(node, client, ID, 4, tokens, EVIDENCE);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.BadReceipt.selector, db));
        disputes.proveEquivocation(node, ID, 4, a, b);
    }

    /// @dev A receipt shown with a malleated signature is the same receipt.
    function testFuzz_honestNodeCannotBeFramed(bytes32 r, bytes32 vs, uint64 tokens) external {
        Statement memory a = statement(OPERATOR_KEY, ID, 4, client, 8, EVIDENCE);
        Statement memory b = Statement(client, tokens, EVIDENCE, Signature(r, vs));
        vm.expectRevert();
        disputes.proveEquivocation(node, ID, 4, a, b);
    }

    function test_P8_equivocationReachesUnbondingStake() external {
        vm.prank(owner);
        registry.unbond(node);
        vm.warp(vm.getBlockTimestamp() + UNBOND + 1);
        disputes.proveEquivocation(
            node,
            ID,
            4,
            statement(OPERATOR_KEY, ID, 4, client, 8, EVIDENCE),
            statement(OPERATOR_KEY, ID, 4, client, 9, EVIDENCE)
        );
        eq(registry.nodeOf(node).unbonding, 5 ether, "half of what leaves");
    }

    // ---- strikes

    function test_strike() external {
        uint256 epoch = today();
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputes.Struck(node, epoch, shown(epoch), accuser, epoch + 1);
        strikeFor(epoch);
        StrikeRecord memory record = disputes.strikeOf(node, epoch);
        eq(record.evidence, shown(epoch), "evidence");
        eq(record.accuser, accuser, "accuser");
        eq(record.appealEpoch, epoch + 1, "appeal");
        ok(disputes.struck(node, epoch), "struck");
        ok(!disputes.struck(node, epoch - 1), "that epoch only");
        eq(registry.nodeOf(node).bonded, 10 ether, "a single strike costs no stake");
        Signature[] memory sigs = strikeSigs(epoch, three(1, 2, 4));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyStruck.selector, node, epoch));
        disputes.strike(node, epoch, shown(epoch), accuser, sigs);
    }

    function testFuzz_strikeForThisOrTheLastEpoch(uint256 epoch) external {
        epoch = within(epoch, today() - 5, today() + 5);
        Signature[] memory sigs = strikeSigs(epoch, three(1, 2, 3));
        if (epoch != today() && epoch + 1 != today()) {
            vm.expectRevert(abi.encodeWithSelector(IDisputes.WrongEpoch.selector, epoch, today()));
        }
        disputes.strike(node, epoch, shown(epoch), accuser, sigs);
    }

    function test_strikeRefuses() external {
        uint256 epoch = today();
        Signature[] memory sigs = strikeSigs(epoch, three(1, 2, 3));
        vm.expectRevert(IDisputes.NoEvidence.selector);
        disputes.strike(node, epoch, 0, accuser, sigs);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotRegistered.selector, client));
        disputes.strike(client, epoch, shown(epoch), accuser, sigs);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 0, 3));
        disputes.strike(node, epoch, shown(epoch), accuser, new Signature[](0));
        uint256[] memory two = new uint256[](2);
        (two[0], two[1]) = (1, 2);
        Signature[] memory few = strikeSigs(epoch, two);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 2, 3));
        disputes.strike(node, epoch, shown(epoch), accuser, few);
        Signature[] memory doubled = new Signature[](3);
        (doubled[0], doubled[1], doubled[2]) = (few[0], few[0], few[1]);
        vm.expectPartialRevert(IDisputes.SignersNotRising.selector);
        disputes.strike(node, epoch, shown(epoch), accuser, doubled);
        (doubled[0], doubled[1], doubled[2]) = (few[1], few[0], few[0]);
        vm.expectPartialRevert(IDisputes.SignersNotRising.selector);
        disputes.strike(node, epoch, shown(epoch), accuser, doubled);
        // Over other words: the accuser changed, so these are no auditors' signatures.
        vm.expectRevert();
        disputes.strike(node, epoch, shown(epoch), admin, sigs);
        vm.expectRevert();
        disputes.strike(node, epoch - 1, shown(epoch - 1), accuser, sigs);
    }

    function test_strikeByAStranger() external {
        uint256[] memory keys = new uint256[](4);
        (keys[0], keys[1], keys[2], keys[3]) = (auditorKey(1), auditorKey(2), auditorKey(3), CLIENT_KEY);
        Signature[] memory sigs = signSorted(keys, strikeDigest(node, uint64(today()), shown(today()), accuser));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAuditor.selector, client));
        disputes.strike(node, today(), shown(today()), accuser, sigs);
    }

    /// @dev P10: accuser, owner and operator may be auditors; their signatures do not count.
    function test_P10_neitherAccusedNorAccuserDecides() external {
        uint256 epoch = today();
        Signature[] memory sigs = strikeSigs(epoch, three(0, 1, 2));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 2, 3));
        disputes.strike(node, epoch, shown(epoch), accuser, sigs);
        // The node's operator, and then the owner of another node, become auditors.
        address ownerAuditor = vm.addr(auditorKey(1));
        address second = register(0xC0FFEE, ownerAuditor, payout, 0);
        vm.prank(admin);
        parameters.scheduleAuditor(node, true);
        toEpoch(parameters.nextChange());
        epoch = today();
        uint256[] memory keys = three(auditorKey(1), auditorKey(2), OPERATOR_KEY);
        sigs = signSorted(keys, strikeDigest(node, uint64(epoch), shown(epoch), accuser));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 2, 3));
        disputes.strike(node, epoch, shown(epoch), accuser, sigs);
        sigs = signAll(three(1, 2, 3), strikeDigest(second, uint64(epoch), shown(epoch), accuser));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 2, 3));
        disputes.strike(second, epoch, shown(epoch), accuser, sigs);
        strikeFor(epoch);
        sigs = pardonSigs(epoch, three(0, 1, 2));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 2, 3));
        disputes.pardon(node, epoch, shown(epoch), sigs);
        sigs = signSorted(three(auditorKey(1), auditorKey(2), OPERATOR_KEY), pardonDigest(node, uint64(epoch), shown(epoch)));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 2, 3));
        disputes.pardon(node, epoch, shown(epoch), sigs);
    }

    function test_auditorsOfTheDayCount() external {
        vm.prank(admin);
        parameters.scheduleAuditor(vm.addr(auditorKey(3)), false);
        strikeFor(today());
        toEpoch(parameters.nextChange());
        Signature[] memory sigs = strikeSigs(today(), three(1, 2, 3));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAuditor.selector, vm.addr(auditorKey(3))));
        disputes.strike(node, today(), shown(today()), accuser, sigs);
    }

    // ---- pardons

    function testFuzz_pardon(uint256 wait) external {
        uint256 epoch = today();
        wait = within(wait, 0, 3);
        strikeFor(epoch);
        toEpoch(epoch + wait);
        Signature[] memory sigs = pardonSigs(epoch, three(2, 3, 4));
        if (wait > 1) {
            vm.expectRevert(abi.encodeWithSelector(IDisputes.AppealOver.selector, epoch + 1, epoch + wait));
            disputes.pardon(node, epoch, shown(epoch), sigs);
            ok(disputes.struck(node, epoch), "stays");
            return;
        }
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputes.Pardoned(node, epoch, shown(epoch));
        disputes.pardon(node, epoch, shown(epoch), sigs);
        ok(!disputes.struck(node, epoch), "taken back");
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoStrike.selector, node, epoch));
        disputes.pardon(node, epoch, shown(epoch), sigs);
        if (wait == 0) {
            sigs = strikeSigs(epoch, three(1, 2, 3));
            vm.expectRevert(abi.encodeWithSelector(IDisputes.EvidenceUsed.selector, node, shown(epoch)));
            disputes.strike(node, epoch, shown(epoch), accuser, sigs);
        }
    }

    function test_pardonRefuses() external {
        uint256 epoch = today();
        Signature[] memory sigs = pardonSigs(epoch, three(2, 3, 4));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoStrike.selector, node, epoch));
        disputes.pardon(node, epoch, shown(epoch), sigs);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoStrike.selector, node, epoch));
        disputes.pardon(node, epoch, 0, sigs);
        strikeFor(epoch);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoStrike.selector, node, epoch));
        disputes.pardon(node, epoch, keccak256("other evidence"), sigs);
        sigs = strikeSigs(epoch, three(1, 2, 3));
        vm.expectRevert();
        disputes.pardon(node, epoch, shown(epoch), sigs);
        ok(disputes.struck(node, epoch), "stays");
    }

    /// @dev Auditors and appeal are those of the epoch in which the call comes, not those of the struck one.
    function test_auditorsAndAppealOfTheDayCount() external {
        vm.startPrank(admin);
        parameters.scheduleAuditor(vm.addr(auditorKey(3)), false);
        parameters.scheduleAuditor(vm.addr(auditorKey(5)), true);
        parameters.schedule(Setting.Appeal, 3);
        vm.stopPrank();
        uint256 epoch = parameters.nextChange() - 1;
        toEpoch(epoch + 1);
        Signature[] memory old = strikeSigs(epoch, three(1, 2, 3));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAuditor.selector, vm.addr(auditorKey(3))));
        disputes.strike(node, epoch, shown(epoch), accuser, old);
        disputes.strike(node, epoch, shown(epoch), accuser, strikeSigs(epoch, three(1, 2, 5)));
        eq(disputes.strikeOf(node, epoch).appealEpoch, epoch + 4, "the appeal of the day of the verdict");
        old = pardonSigs(epoch, three(1, 2, 3));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAuditor.selector, vm.addr(auditorKey(3))));
        disputes.pardon(node, epoch, shown(epoch), old);
        disputes.pardon(node, epoch, shown(epoch), pardonSigs(epoch, three(1, 2, 5)));
    }

    // ---- evidence

    /// @dev A pardoned strike shields from nothing but its own evidence.
    function test_otherEvidenceStrikesAfterAPardon() external {
        uint256 epoch = today();
        strikeFor(epoch);
        pardonFor(epoch);
        bytes32 other = keccak256("real evidence");
        toEpoch(epoch + 1);
        strikeBy(epoch, other);
        ok(disputes.struck(node, epoch), "struck anew");
        eq(disputes.strikeOf(node, epoch).evidence, other, "by the other evidence");
        eq(disputes.strikeOf(node, epoch).appealEpoch, epoch + 2, "with an appeal of its own");
        Signature[] memory sigs = pardonSigs(epoch, three(1, 2, 3));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoStrike.selector, node, epoch));
        disputes.pardon(node, epoch, shown(epoch), sigs);
        sigs = signAll(three(1, 2, 3), strikeDigest(node, uint64(epoch), keccak256("more"), accuser));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyStruck.selector, node, epoch));
        disputes.strike(node, epoch, keccak256("more"), accuser, sigs);
    }

    function test_evidenceIsGoodForOneStrikeOfANode() external {
        uint256 epoch = today();
        strikeBy(epoch, EVIDENCE);
        toEpoch(epoch + 1);
        Signature[] memory sigs = signAll(three(1, 2, 3), strikeDigest(node, uint64(epoch + 1), EVIDENCE, accuser));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.EvidenceUsed.selector, node, EVIDENCE));
        disputes.strike(node, epoch + 1, EVIDENCE, accuser, sigs);
        // Two nodes that agreed on wrong numbers are shown wrong by the same prompt.
        address second = register(0xC0FFEE, owner, payout, 0);
        sigs = signAll(three(1, 2, 3), strikeDigest(second, uint64(epoch + 1), EVIDENCE, accuser));
        disputes.strike(second, epoch + 1, EVIDENCE, accuser, sigs);
        ok(disputes.struck(second, epoch + 1), "another node");
    }

    // ---- m strikes within K

    function strikesAt(uint256[] memory gaps) private returns (uint256[] memory epochs) {
        epochs = new uint256[](gaps.length);
        uint256 epoch = today();
        for (uint256 i; i < gaps.length; ++i) {
            epoch += gaps[i];
            toEpoch(epoch);
            strikeFor(epoch);
            epochs[i] = epoch;
        }
        toEpoch(epoch + 2);
    }

    function four(uint256 a, uint256 b, uint256 c, uint256 d) private pure returns (uint256[] memory list) {
        list = new uint256[](4);
        (list[0], list[1], list[2], list[3]) = (a, b, c, d);
    }

    function notEnough(uint256 counted) private {
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotEnoughStrikes.selector, counted, 4));
        disputes.slashStruck(node);
    }

    function test_fourStrikesCostAFifth() external {
        uint256[] memory epochs = strikesAt(four(0, 1, 5, 12));
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputes.StrikesSpent(node, epochs);
        disputes.slashStruck(node);
        eq(registry.nodeOf(node).bonded, 8 ether, "20 %");
        eq(registry.rewardOf(address(this)), 0, "nobody earns by a verdict");
        ok(!registry.isRetired(node), "still in use");
        eq(disputes.spentThrough(node), epochs[3], "cleared");
        ok(disputes.struck(node, epochs[3]), "its mint stays void");
        notEnough(0);
    }

    /// @dev The first of them counts until K epochs after its own; the last from the epoch after its appeal.
    function testFuzz_theyMustLieWithinK(uint256 a, uint256 b, uint256 c, uint256 wait) external {
        (a, b, c, wait) = (within(a, 1, 10), within(b, 1, 10), within(c, 1, 10), within(wait, 0, 6));
        uint256[] memory epochs = strikesAt(four(0, a, b, c));
        toEpoch(epochs[3] + 2 + wait);
        uint256 age = today() - epochs[0];
        if (age > 20) return notEnough(today() - epochs[1] > 20 ? today() - epochs[2] > 20 ? 1 : 2 : 3);
        disputes.slashStruck(node);
        eq(disputes.spentThrough(node), epochs[3], "spent");
    }

    /// @dev Of seven, the oldest four are spent; three go on counting, and a fifth of stake is due at the next.
    function test_theOldestAreSpentFirst() external {
        uint256[] memory gaps = new uint256[](7);
        for (uint256 i = 1; i < 7; ++i) {
            gaps[i] = 1;
        }
        uint256[] memory epochs = strikesAt(gaps);
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputes.StrikesSpent(node, four(epochs[0], epochs[1], epochs[2], epochs[3]));
        disputes.slashStruck(node);
        notEnough(3);
        strikeFor(today());
        toEpoch(today() + 2);
        disputes.slashStruck(node);
        eq(registry.nodeOf(node).bonded, 6.4 ether, "20 % of the rest");
        eq(disputes.spentThrough(node), epochs[6] + 2, "the eighth");
    }

    /// @dev Stake that is bonded long after is not slashed for old strikes.
    function test_strikesAge() external {
        uint256[] memory epochs = strikesAt(four(0, 1, 1, 1));
        toEpoch(epochs[0] + 21);
        notEnough(3);
        toEpoch(epochs[0] + 397);
        vm.deal(owner, 5 ether);
        vm.prank(owner);
        registry.bond{value: 5 ether}(node);
        notEnough(0);
        eq(registry.nodeOf(node).bonded, 15 ether, "untouched");
    }

    function test_pardonedStrikesDoNotCount() external {
        uint256[] memory epochs = strikesAt(four(0, 1, 1, 1));
        toEpoch(epochs[3] + 1);
        notEnough(3);
        pardonFor(epochs[3]);
        toEpoch(epochs[3] + 2);
        notEnough(3);
        eq(registry.nodeOf(node).bonded, 10 ether, "untouched");
    }

    /// @dev A strike whose appeal still runs holds back the later ones: nobody picks which are spent.
    function test_aStrikeUnderAppealHoldsBackLaterOnes() external {
        vm.prank(admin);
        parameters.schedule(Setting.Appeal, 6);
        uint256 change = parameters.nextChange();
        toEpoch(change - 1);
        strikeFor(change - 1);
        vm.prank(admin);
        parameters.schedule(Setting.Appeal, 1);
        toEpoch(change);
        strikeFor(change);
        uint256 short = parameters.nextChange();
        for (uint256 epoch = short; epoch < short + 4; ++epoch) {
            toEpoch(epoch);
            strikeFor(epoch);
        }
        toEpoch(change + 6);
        notEnough(1);
        toEpoch(change + 7);
        vm.expectEmit(true, true, true, true, address(disputes));
        emit IDisputes.StrikesSpent(node, four(change - 1, change, short, short + 1));
        disputes.slashStruck(node);
    }

    function test_changedNumbersCountFromTheirEpoch() external {
        vm.startPrank(admin);
        parameters.schedule(Setting.StrikeLimit, 5);
        parameters.schedule(Setting.StrikeWindow, 9);
        parameters.schedule(Setting.Appeal, 3);
        parameters.schedule(Setting.Quorum, 4);
        vm.stopPrank();
        toEpoch(parameters.nextChange());
        uint256 epoch = today();
        Signature[] memory few = strikeSigs(epoch, three(1, 2, 3));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.QuorumMissed.selector, 3, 4));
        disputes.strike(node, epoch, shown(epoch), accuser, few);
        uint256[] memory who = new uint256[](4);
        (who[0], who[1], who[2], who[3]) = (1, 2, 3, 4);
        uint256[] memory epochs = new uint256[](5);
        for (uint256 i; i < 5; ++i) {
            epochs[i] = epoch + i;
            toEpoch(epochs[i]);
            disputes.strike(node, epochs[i], shown(epochs[i]), accuser, strikeSigs(epochs[i], who));
        }
        eq(disputes.strikeOf(node, epoch).appealEpoch, epoch + 3, "appeal");
        toEpoch(epoch + 7);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotEnoughStrikes.selector, 4, 5));
        disputes.slashStruck(node);
        toEpoch(epoch + 8);
        disputes.slashStruck(node);
        eq(registry.nodeOf(node).bonded, 8 ether, "five were enough");
    }

    /// @dev An owner names auditors of its own; the node unbonds before they count. They strike each epoch and spend
    /// each four strikes at once: that reaches it twice, or thrice, never a fourth time.
    function testFuzz_P9_anOwnersAuditorsAgainstANodeThatLeaves(uint256 second, uint256 wait) external {
        vm.warp(START / EPOCH * EPOCH + within(second, 0, EPOCH - 1));
        vm.startPrank(admin);
        for (uint256 i = 5; i < 8; ++i) {
            parameters.scheduleAuditor(vm.addr(auditorKey(i)), true);
        }
        vm.stopPrank();
        uint256 first = parameters.nextChange();
        vm.warp(within(wait, vm.getBlockTimestamp(), first * EPOCH - 1));
        vm.prank(owner);
        registry.unbond(node);
        uint256 free = vm.getBlockTimestamp() + UNBOND + 1;
        uint256 spent = first - 2;
        for (uint256 epoch = first; epoch * EPOCH < free; ++epoch) {
            vm.warp(epoch * EPOCH);
            if (epoch == first) disputes.strike(node, epoch - 1, shown(epoch - 1), accuser, strikeSigs(epoch - 1, three(5, 6, 7)));
            disputes.strike(node, epoch, shown(epoch), accuser, strikeSigs(epoch, three(5, 6, 7)));
            if (epoch != spent + 6) continue;
            disputes.slashStruck(node);
            spent += 4;
            eq(disputes.spentThrough(node), spent, "four at once");
        }
        vm.warp(free);
        eq(registry.nodeOf(node).unbonding, (first + 12) * EPOCH < free ? 5.12 ether : 6.4 ether, "36 or 48.8 %");
        vm.prank(owner);
        registry.withdrawStake(node, owner);
    }

    function test_knowsItsDeployment() external view {
        eq(address(disputes.PARAMETERS()), address(parameters), "parameters");
        eq(address(disputes.REGISTRY()), address(registry), "registry");
    }
}
