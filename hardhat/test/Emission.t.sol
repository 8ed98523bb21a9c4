// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {CreditToken} from "../src/CreditToken.sol";
import {Disputes} from "../src/Disputes.sol";
import {Emission} from "../src/Emission.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {ClaimItem, ClaimRecord, ClaimSkip, IEmission, Status} from "../src/interfaces/IEmission.sol";
import {Setting} from "../src/interfaces/IParameters.sol";
import {Session, Signature} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";

/// @dev Says whatever it is told to say of its deployment.
contract Names {
    address[6] public named;

    function set(uint8 which, address value) external {
        named[which] = value;
    }

    function SETTLEMENT() external view returns (address) {
        return named[0];
    }

    function PARAMETERS() external view returns (address) {
        return named[1];
    }

    function REGISTRY() external view returns (address) {
        return named[2];
    }

    function TOKEN() external view returns (address) {
        return named[3];
    }

    function DISPUTES() external view returns (address) {
        return named[4];
    }

    function EMISSION() external view returns (address) {
        return named[5];
    }
}

/// @dev Donated work: what counts, what it is worth, and what voids it.
contract EmissionTest is Kit {
    uint256 private epoch;
    uint64 private constant SPAN = 15;

    function setUp() public override {
        super.setUp();
        register(OPERATOR_KEY, owner, payout, 10 ether);
        epoch = today() + 1;
        toEpoch(epoch + 1);
    }

    function claimAs(address sender, ClaimItem[] memory items) private {
        vm.prank(sender);
        emission.claim(node, epoch, items);
    }

    function claimSessions(uint256 count, uint64 tokens, uint256 salt) private {
        claimAs(node, claimItems(OPERATOR_KEY, epoch, count, tokens, salt));
    }

    function one(ClaimItem memory it) private pure returns (ClaimItem[] memory items) {
        items = new ClaimItem[](1);
        items[0] = it;
    }

    function good() private view returns (ClaimItem memory) {
        return claimItem(OPERATOR_KEY, donatedSession(node, 1, epoch), 100);
    }

    function skipped(ClaimItem memory it, ClaimSkip reason) private {
        ClaimRecord memory before = emission.claimOf(node, epoch);
        vm.expectEmit(true, true, true, true, address(emission));
        emit IEmission.ClaimSkipped(node, epoch, 0, reason);
        claimAs(node, one(it));
        eq(keccak256(abi.encode(emission.claimOf(node, epoch))), keccak256(abi.encode(before)), "moved nothing");
    }

    function signed(Session memory s) private view returns (ClaimItem memory) {
        return claimItem(OPERATOR_KEY, s, 100);
    }

    /// @dev A second node with stake since before the claimed epoch; returns to the current time.
    function another(uint256 key, uint256 stake) private returns (address a) {
        uint256 time = vm.getBlockTimestamp();
        toEpoch(epoch - 1);
        a = register(key, address(0x0B00), address(0xFB00), stake);
        vm.warp(time);
    }

    // ---- claims

    function testFuzz_claimCounts(uint64 tokens, uint32 first, uint32 end, uint256 hour) external {
        Session memory s = donatedSession(node, 1, epoch);
        first = uint32(within(first, 0, type(uint32).max - 1));
        (s.firstBlock, s.endBlock) = (first, uint32(within(end, uint256(first) + 1, type(uint32).max)));
        s.expiry = uint64(epoch * EPOCH + hour % EPOCH);
        uint256 units = uint256(tokens) * (s.endBlock - s.firstBlock) * RATE;
        uint256 most = 10 * UNITS_PER_COIN;
        uint256 weight = units < most ? units : most;
        vm.expectEmit(true, true, true, true, address(emission));
        emit IEmission.Claimed(node, epoch, 1, units, weight);
        claimAs(node, one(claimItem(OPERATOR_KEY, s, tokens)));
        ClaimRecord memory record = emission.claimOf(node, epoch);
        eq(record.units, units, "units");
        eq(record.weight, weight, "bounded by stake");
        eq(record.lastSessionId, sessionId(s), "last id");
        eq(emission.totalWeight(epoch), weight, "sum");
    }

    function testFuzz_onlyOperatorOrOwnerClaim(address sender) external {
        ClaimItem[] memory items = one(good());
        if (sender != node && sender != owner) {
            vm.expectRevert(abi.encodeWithSelector(IEmission.NotOperatorOrOwner.selector, node, sender));
        }
        claimAs(sender, items);
    }

    function test_ownerClaimsToo() external {
        claimAs(owner, one(good()));
        eq(emission.claimOf(node, epoch).units, 100 * SPAN * RATE, "counted");
    }

    function testFuzz_onlyDuringTheNextEpoch(uint256 now_) external {
        now_ = within(now_, epoch - 1, epoch + 5);
        ClaimItem[] memory items = one(good());
        toEpoch(now_);
        if (now_ != epoch + 1) vm.expectRevert(abi.encodeWithSelector(IEmission.WrongEpoch.selector, epoch, now_));
        claimAs(node, items);
    }

    function test_badItemsAreSkipped() external {
        Session memory s = donatedSession(address(0xBEEF), 1, epoch);
        skipped(signed(s), ClaimSkip.ForeignNode);
        s = donatedSession(node, 1, epoch);
        s.price = 1;
        skipped(signed(s), ClaimSkip.NotFree);
        s = donatedSession(node, 1, epoch);
        s.expiry = uint64((epoch + 1) * EPOCH);
        skipped(signed(s), ClaimSkip.WrongEpoch);
        s.expiry = uint64(epoch * EPOCH - 1);
        skipped(signed(s), ClaimSkip.WrongEpoch);
        s = donatedSession(node, 1, epoch);
        s.endBlock = s.firstBlock;
        skipped(signed(s), ClaimSkip.EmptySpan);
        s.endBlock = s.firstBlock - 1;
        skipped(signed(s), ClaimSkip.EmptySpan);
        s = donatedSession(node, 1, epoch);
        s.modelId = keccak256("unpaid");
        skipped(signed(s), ClaimSkip.UnknownModel);
        s.modelId = 0;
        skipped(signed(s), ClaimSkip.UnknownModel);
        ClaimItem memory it = good();
        it.tokens++;
        skipped(it, ClaimSkip.BadReceipt);
        it = good();
        it.step++;
        skipped(it, ClaimSkip.BadReceipt);
        it = good();
        it.head = 0;
        skipped(it, ClaimSkip.BadReceipt);
        it = good();
        it.session.maxTokens++;
        skipped(it, ClaimSkip.BadReceipt);
        skipped(claimItem(CLIENT_KEY, donatedSession(node, 1, epoch), 100), ClaimSkip.BadReceipt);
        it = good();
        signClaim(it, OPERATOR_KEY, CLIENT_KEY);
        skipped(it, ClaimSkip.BadVoucher);
        it = good();
        (it.voucherR, it.voucherVs) = (0, 0);
        skipped(it, ClaimSkip.BadVoucher);
        it.session.sessionKey = address(0);
        signClaim(it, OPERATOR_KEY, CLIENT_KEY);
        (it.voucherR, it.voucherVs) = (0, 0);
        skipped(it, ClaimSkip.BadVoucher);
        claimAs(node, one(good()));
    }

    function test_aVoucherOfPaidWorkIsNone() external {
        ClaimItem memory it = good();
        bytes32 receipt = receiptDigest(node, it.session.client, sessionId(it.session), it.step, it.tokens, it.head);
        Signature memory voucher = sign(SESSION_KEY, voucherDigest(receipt, 1));
        (it.voucherR, it.voucherVs) = (voucher.r, voucher.vs);
        skipped(it, ClaimSkip.BadVoucher);
    }

    /// @dev P7: no session counts twice, in one call or in two; bad items do not move the id.
    function testFuzz_P7_noSessionCountsTwice(uint256 salt, uint256 again) external {
        ClaimItem[] memory items = claimItems(OPERATOR_KEY, epoch, 5, 100, salt);
        claimAs(node, items);
        uint256 units = 5 * 100 * SPAN * RATE;
        eq(emission.claimOf(node, epoch).units, units, "five");
        skipped(items[again % 5], ClaimSkip.NotRising);
        ClaimItem[] memory doubled = new ClaimItem[](2);
        doubled[0] = doubled[1] = good();
        ok(emission.claimOf(node, epoch).units == units, "still five");
        claimAs(node, doubled);
        atMost(emission.claimOf(node, epoch).units, units + 100 * SPAN * RATE, "once at most");
    }

    function testFuzz_P7_batchesAddUp(uint256 salt, uint256 cut) external {
        ClaimItem[] memory items = claimItems(OPERATOR_KEY, epoch, 6, 100, salt);
        cut = cut % 7;
        (ClaimItem[] memory left, ClaimItem[] memory right) = (new ClaimItem[](cut), new ClaimItem[](6 - cut));
        for (uint256 i; i < 6; ++i) {
            if (i < cut) left[i] = items[i];
            else right[i - cut] = items[i];
        }
        claimAs(node, left);
        claimAs(owner, right);
        eq(emission.claimOf(node, epoch).units, 6 * 100 * SPAN * RATE, "all six");
    }

    function test_oneBadItemAmongGoodOnes() external {
        ClaimItem[] memory items = claimItems(OPERATOR_KEY, epoch, 5, 100, 1);
        items[2].tokens++;
        vm.expectEmit(true, true, true, true, address(emission));
        emit IEmission.ClaimSkipped(node, epoch, 2, ClaimSkip.BadReceipt);
        claimAs(node, items);
        eq(emission.claimOf(node, epoch).units, 4 * 100 * SPAN * RATE, "the other four");
    }

    function test_unitsSaturate() external {
        Session memory s = donatedSession(node, 1, epoch);
        (s.firstBlock, s.endBlock) = (0, type(uint32).max);
        vm.prank(admin);
        parameters.scheduleRate(MODEL, type(uint64).max);
        epoch = parameters.nextChange();
        toEpoch(epoch + 1);
        s.expiry = uint64(epoch * EPOCH);
        claimAs(node, one(claimItem(OPERATOR_KEY, s, type(uint64).max)));
        eq(emission.claimOf(node, epoch).units, type(uint120).max, "saturated");
        eq(emission.claimOf(node, epoch).weight, 10 * UNITS_PER_COIN, "and bounded");
    }

    function test_ratesPerModel() external {
        bytes32 second = keccak256("second model");
        vm.prank(admin);
        parameters.scheduleRate(second, 11);
        epoch = parameters.nextChange();
        toEpoch(epoch + 1);
        ClaimItem[] memory items = new ClaimItem[](4);
        for (uint256 i; i < 4; ++i) {
            Session memory s = donatedSession(node, i, epoch);
            if (i % 2 == 1) s.modelId = second;
            if (i == 3) s.modelId = keccak256("unpaid");
            items[i] = signed(s);
        }
        sortClaims(items);
        claimAs(node, items);
        eq(emission.claimOf(node, epoch).units, 100 * SPAN * (2 * uint256(RATE) + 11), "each by its rate");
    }

    function test_retiredClaimsNothing() external {
        ClaimItem[] memory items = one(good());
        vm.prank(address(disputes));
        registry.retire(node);
        vm.expectRevert(abi.encodeWithSelector(IEmission.IsRetired.selector, node));
        claimAs(node, items);
    }

    /// @dev A pause stops minting, which can wait; claims, which can't, go on. So it voids nothing.
    function test_aPauseStarvesNobody() external {
        ClaimItem[] memory items = one(good());
        toEpoch(epoch + 1);
        vm.prank(admin);
        parameters.pause();
        claimAs(node, items);
        toEpoch(epoch + 2);
        (uint256 amount, Status status) = emission.pending(node, epoch);
        ok(status == Status.Waiting, "waits");
        vm.expectRevert(IEmission.MintsPaused.selector);
        emission.mint(node, epoch);
        vm.warp(parameters.pausedUntil() - 1);
        vm.expectRevert(IEmission.MintsPaused.selector);
        emission.mint(node, epoch);
        vm.warp(parameters.pausedUntil());
        (, status) = emission.pending(node, epoch);
        ok(status == Status.Mintable, "by itself");
        eq(emission.mint(node, epoch), amount, "the same share");
    }

    function test_P8_stakeBondedLateOrGoneCountsNothing() external {
        uint256 time = vm.getBlockTimestamp();
        toEpoch(epoch);
        address late = register(0xC0FFEE, address(0x0B00), address(0xFB00), 10 ether);
        vm.warp(time);
        ClaimItem[] memory items = claimItems(0xC0FFEE, epoch, 2, 100, 1);
        vm.prank(late);
        emission.claim(late, epoch, items);
        eq(emission.claimOf(late, epoch).weight, 0, "bonded after the epoch began");
        claimSessions(1, 100, 1);
        uint256 before = emission.totalWeight(epoch);
        vm.prank(owner);
        registry.unbond(node);
        claimAs(node, new ClaimItem[](0));
        eq(emission.claimOf(node, epoch).weight, 0, "no longer bonded");
        eq(emission.totalWeight(epoch), before - 100 * SPAN * RATE, "taken out of the sum");
    }

    // ---- mints

    function test_mintFromTheSecondEpochOn() external {
        claimSessions(3, 1000, 1);
        vm.expectRevert(abi.encodeWithSelector(IEmission.TooEarly.selector, epoch, epoch + 1));
        emission.mint(node, epoch);
        (, Status status) = emission.pending(node, epoch);
        eq(uint8(status), uint8(Status.Waiting), "waiting");
        toEpoch(epoch + 2);
        (uint256 expected, Status next) = emission.pending(node, epoch);
        eq(uint8(next), uint8(Status.Mintable), "mintable");
        uint256 weight = 3 * 1000 * SPAN * RATE;
        eq(expected, weight * MAX_PER_UNIT / 1e18, "bounded by maxPerUnit");
        vm.expectEmit(true, true, true, true, address(emission));
        emit IEmission.Minted(node, epoch, payout, expected);
        vm.prank(client);
        eq(emission.mint(node, epoch), expected, "amount");
        eq(token.balanceOf(payout), expected, "to the payout address");
        eq(emission.mintedTotal(), expected, "sum");
        eq(token.totalSupply(), expected, "P1");
        vm.expectRevert(abi.encodeWithSelector(IEmission.AlreadyMinted.selector, node, epoch));
        emission.mint(node, epoch);
        (, next) = emission.pending(node, epoch);
        eq(uint8(next), uint8(Status.Minted), "minted");
    }

    function test_nothingClaimedNothingMinted() external {
        toEpoch(epoch + 2);
        (uint256 amount, Status status) = emission.pending(node, epoch);
        eq(amount, 0, "amount");
        eq(uint8(status), uint8(Status.Nothing), "nothing");
        vm.expectRevert(abi.encodeWithSelector(IEmission.NothingClaimed.selector, node, epoch));
        emission.mint(node, epoch);
    }

    function test_strikeVoidsUntilPardoned() external {
        claimSessions(3, 1000, 1);
        bytes32 evidence = keccak256("evidence");
        bytes32 strikeHash = strikeDigest(node, uint64(epoch), evidence, admin);
        disputes.strike(node, epoch, evidence, admin, signAll(three(1, 2, 3), strikeHash));
        toEpoch(epoch + 2);
        vm.expectRevert(abi.encodeWithSelector(IEmission.ShareVoid.selector, node, epoch));
        emission.mint(node, epoch);
        (uint256 amount, Status status) = emission.pending(node, epoch);
        eq(amount, 0, "void");
        eq(uint8(status), uint8(Status.Void), "void");
        disputes.pardon(node, epoch, evidence, signAll(three(1, 2, 3), pardonDigest(node, uint64(epoch), evidence)));
        ok(emission.mint(node, epoch) > 0, "pardoned");
    }

    function testFuzz_slashVoids(uint256 when) external {
        when = within(when, epoch - 1, epoch + 4);
        uint256 time = vm.getBlockTimestamp();
        toEpoch(when < epoch + 1 ? when : epoch - 1);
        if (when < epoch + 1) slash();
        vm.warp(time);
        claimSessions(3, 1000, 1);
        toEpoch(when > epoch + 2 ? when : epoch + 2);
        if (when > epoch) {
            vm.warp(when * EPOCH + 1);
            slash();
            if (when < epoch + 2) toEpoch(epoch + 2);
        }
        if (when >= epoch) vm.expectRevert(abi.encodeWithSelector(IEmission.ShareVoid.selector, node, epoch));
        emission.mint(node, epoch);
    }

    function slash() private {
        vm.prank(address(disputes));
        registry.slash(node, 2_000, address(0));
    }

    /// @dev P7: all mints of an epoch together stay within E and CAP, each within what its stake carries.
    function testFuzz_P7_emissionIsBounded(uint64[3] memory tokens, uint96[3] memory stakes, uint96 burned, bool tight)
        external
    {
        uint256[3] memory keys = [uint256(0xC0FFE0), 0xC0FFE1, 0xC0FFE2];
        uint256 maxPerUnit = tight ? MAX_PER_UNIT : type(uint96).max;
        if (!tight) liftMaxPerUnit();
        burned = uint96(within(burned, 1, 1e24));
        toEpoch(epoch);
        fill(client, node, burned);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, burned));
        toEpoch(epoch + 1);
        uint256 sum;
        for (uint256 i; i < 3; ++i) {
            stakes[i] = uint96(within(stakes[i], MIN_STAKE, 1e24));
            address a = another(keys[i], stakes[i]);
            ClaimItem[] memory items = claimItems(keys[i], epoch, 1, tokens[i], i);
            vm.prank(a);
            emission.claim(a, epoch, items);
        }
        toEpoch(epoch + 2);
        uint256 budget = emission.budget(epoch);
        uint256 fees = burned - m(burned);
        eq(budget, min(CAP, fees + BOOTSTRAP), "E = min(CAP, fees + bootstrap)");
        for (uint256 i; i < 3; ++i) {
            address a = vm.addr(keys[i]);
            if (emission.claimOf(a, epoch).weight == 0) continue;
            uint256 amount = emission.mint(a, epoch);
            sum += amount;
            atMost(amount, maxPerUnit * UNITS_PER_COIN / 1e18 * stakes[i] / 1e18 + 1, "within its stake");
        }
        atMost(sum, budget, "within E");
    }

    /// @dev Moves on to an epoch in which the budget is what binds.
    function liftMaxPerUnit() private {
        vm.prank(admin);
        parameters.schedule(Setting.MaxPerUnit, type(uint96).max);
        epoch = parameters.nextChange() + 1;
        toEpoch(epoch + 1);
    }

    /// @dev P7: splitting stake and work over two nodes never raises the sum.
    function testFuzz_P7_splittingRaisesNothing(
        uint96 stake,
        uint96 cutStake,
        uint64 tokens,
        uint64 cutTokens,
        bool tight
    ) external {
        if (!tight) liftMaxPerUnit();
        stake = uint96(within(stake, 2 * MIN_STAKE, 1e24));
        cutStake = uint96(within(cutStake, MIN_STAKE, stake - MIN_STAKE));
        cutTokens = uint64(within(cutTokens, 0, tokens));
        another(0xC0FFE0, stake);
        another(0xC0FFE3, 5 ether);
        claimFor(0xC0FFE3, 50_000_000);
        another(0xC0FFE1, cutStake);
        another(0xC0FFE2, stake - cutStake);
        uint256 id = vm.snapshotState();
        uint256 whole = earn(0xC0FFE0, tokens);
        uint256 total = emission.budget(epoch);
        vm.revertToState(id);
        claimFor(0xC0FFE1, cutTokens);
        claimFor(0xC0FFE2, tokens - cutTokens);
        toEpoch(epoch + 2);
        uint256 parts = mintFor(0xC0FFE1) + mintFor(0xC0FFE2);
        atMost(parts, whole, "no more than as one");
        atMost(whole, total, "within E");
    }

    function earn(uint256 key, uint64 tokens) private returns (uint256) {
        claimFor(key, tokens);
        toEpoch(epoch + 2);
        return mintFor(key);
    }

    function claimFor(uint256 key, uint64 tokens) private {
        ClaimItem[] memory items = claimItems(key, epoch, 1, tokens, 0);
        vm.prank(vm.addr(key));
        emission.claim(vm.addr(key), epoch, items);
    }

    function mintFor(uint256 key) private returns (uint256) {
        return emission.claimOf(vm.addr(key), epoch).weight == 0 ? 0 : emission.mint(vm.addr(key), epoch);
    }

    /// @dev P2: burning through one's own node costs the fee and gives back no more, even as the only node of donated work.
    function testFuzz_P2_selfDealingLoses(uint96 burned) external {
        vm.prank(admin);
        parameters.schedule(Setting.MaxPerUnit, type(uint96).max);
        epoch = parameters.nextChange();
        burned = uint96(within(burned, 1, 1e22));
        uint256 id = vm.snapshotState();
        uint256 without = wealthAfter(0);
        vm.revertToState(id);
        uint256 with = wealthAfter(burned);
        atMost(with, without, "dealing with oneself");
    }

    /// @dev The wealth of one who owns node and client, after an epoch in which it burned `burned` through itself.
    function wealthAfter(uint96 burned) private returns (uint256) {
        toEpoch(epoch);
        fill(client, node, 1e22);
        if (burned != 0) settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, burned));
        toEpoch(epoch + 1);
        claimSessions(1, 1_000_000, 3);
        toEpoch(epoch + 2);
        emission.mint(node, epoch);
        return token.balanceOf(payout) + balanceOf(client, node);
    }

    // ---- budget

    function testFuzz_bootstrapHalves(uint256 later) external view {
        later = within(later, 0, 5000);
        uint256 genesis = parameters.GENESIS();
        uint256 expected = BOOTSTRAP;
        for (uint256 i; i < later / HALVING && expected != 0; ++i) {
            expected /= 2;
        }
        eq(emission.bootstrap(genesis + later), expected, "halved");
        eq(emission.bootstrap(genesis - 1), 0, "none before");
    }

    function test_budgetIsFeesAndBootstrapUpToTheCap() external {
        eq(emission.budget(epoch), BOOTSTRAP, "bootstrap alone");
        uint96 volume = 1_000 ether;
        toEpoch(epoch);
        fill(client, node, 100_000 ether);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, volume));
        eq(emission.budget(epoch), BOOTSTRAP + volume / 20, "fees, not volume");
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 100_000 ether));
        eq(emission.budget(epoch), CAP, "never above the cap");
    }

    /// @dev The first claim fixes E; fees of later epochs, and forgetting those of this one, change nothing.
    function testFuzz_theFirstClaimFixesTheBudget(uint96 burned, uint8 wait) external {
        burned = uint96(within(burned, 1, 10_000 ether));
        toEpoch(epoch);
        fill(client, node, 100_000 ether);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, burned));
        uint256 expected = min(CAP, BOOTSTRAP + burned - m(burned));
        eq(emission.budget(epoch), expected, "so far");
        toEpoch(epoch + 1);
        eq(emission.budget(epoch), expected, "final");
        claimSessions(1, 10**9, 1);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, burned + 10_000 ether));
        claimSessions(1, 10**9, 0);
        eq(emission.budget(epoch), expected, "after fees of the next epoch");
        toEpoch(epoch + 2 + wait % 40);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, burned + 20_000 ether));
        eq(emission.budget(epoch), expected, "for ever");
        (uint256 pending,) = emission.pending(node, epoch);
        uint256 byStake = emission.claimOf(node, epoch).weight * MAX_PER_UNIT / 1e18;
        eq(pending, min(expected, byStake), "one node takes all that its stake carries");
        eq(emission.mint(node, epoch), pending, "minted");
    }

    function test_whatNobodyClaimedIsNoBudget() external {
        toEpoch(epoch + 1);
        eq(emission.budget(epoch), BOOTSTRAP, "as long as it can be claimed");
        toEpoch(epoch + 2);
        eq(emission.budget(epoch), 0, "then it has lapsed");
    }

    function test_settingsOfTheClaimedEpochCount() external {
        vm.startPrank(admin);
        parameters.schedule(Setting.UnitsPerCoin, 1);
        parameters.scheduleRate(MODEL, 0);
        parameters.schedule(Setting.MaxPerUnit, 0);
        vm.stopPrank();
        epoch = parameters.nextChange() - 1;
        toEpoch(epoch + 1);
        claimSessions(1, 1000, 1);
        eq(emission.claimOf(node, epoch).weight, 1000 * SPAN * RATE, "as they were then");
        toEpoch(epoch + 2);
        ok(emission.mint(node, epoch) > 0, "as it was then");
    }

    function min(uint256 a, uint256 b) private pure returns (uint256) {
        return a < b ? a : b;
    }

    // ---- the deployment

    function test_knowsItsDeployment() external view {
        eq(address(emission.PARAMETERS()), address(parameters), "parameters");
        eq(address(emission.TOKEN()), address(token), "token");
        eq(address(emission.REGISTRY()), address(registry), "registry");
        eq(address(emission.DISPUTES()), address(disputes), "disputes");
        eq(emission.CAP(), CAP, "cap");
        eq(emission.FIRST_BOOTSTRAP(), BOOTSTRAP, "bootstrap");
        eq(emission.HALVING(), HALVING, "halving");
        eq(emission.GENESIS(), START / EPOCH, "genesis");
        eq(emission.currentEpoch(), today(), "epoch");
    }

    function test_wrongBindingsAreRefused() external {
        vm.expectRevert(abi.encodeWithSelector(IEmission.WrongBinding.selector, address(token)));
        new Emission(parameters, address(settlement), token, registry, disputes);
        CreditToken own = tokenFor(address(settlement));
        vm.expectRevert(abi.encodeWithSelector(IEmission.WrongBinding.selector, address(settlement)));
        new Emission(parameters, address(settlement), own, registry, disputes);
        NodeRegistry strange = new NodeRegistry(parameters, address(settlement), admin);
        own = tokenFor(address(settlement));
        vm.expectRevert(abi.encodeWithSelector(IEmission.WrongBinding.selector, address(strange)));
        new Emission(parameters, address(settlement), own, strange, disputes);
        strange = new NodeRegistry(parameters, admin, address(disputes));
        own = tokenFor(address(settlement));
        vm.expectRevert(abi.encodeWithSelector(IEmission.WrongBinding.selector, address(strange)));
        new Emission(parameters, address(settlement), own, strange, disputes);
    }

    /// @dev All ten: each of the others names each of its own, or nothing is deployed.
    function test_eachBindingIsChecked() external {
        Names[4] memory all = [new Names(), new Names(), new Names(), new Names()];
        for (uint256 i; i < 4; ++i) {
            all[i].set(0, address(all[0]));
            all[i].set(1, address(parameters));
            all[i].set(2, address(all[1]));
            all[i].set(3, address(all[2]));
            all[i].set(4, address(all[3]));
        }
        // Escrow, registry, token, disputes, and what each is asked for.
        uint8[4][4] memory asked = [[0, 1, 2, 3], [0, 4, 4, 4], [0, 5, 5, 5], [0, 1, 2, 2]];
        for (uint256 i; i < 4; ++i) {
            for (uint256 j; j < 4; ++j) {
                address right = all[i].named(asked[i][j]);
                deployOver(all, i, asked[i][j]);
                all[i].set(asked[i][j], right);
            }
        }
        deployOver(all, 4, 0);
    }

    /// @dev With one wrong name at `all[bad]`, or none.
    function deployOver(Names[4] memory all, uint256 bad, uint8 which) private {
        all[2].set(5, vm.computeCreateAddress(address(this), vm.getNonce(address(this))));
        if (bad < 4) {
            all[bad].set(which, address(0xBAD));
            vm.expectRevert(abi.encodeWithSelector(IEmission.WrongBinding.selector, address(all[bad])));
        }
        new Emission(
            parameters,
            address(all[0]),
            CreditToken(address(all[2])),
            NodeRegistry(address(all[1])),
            Disputes(address(all[3]))
        );
    }

    /// @dev A token that names the contract that the next deployment but this one will be.
    function tokenFor(address settlement_) private returns (CreditToken) {
        uint256 n = vm.getNonce(address(this));
        return new CreditToken(settlement_, vm.computeCreateAddress(address(this), n + 1));
    }
}
