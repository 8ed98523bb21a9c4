// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {Account, AccountView, ISettlement, Item, Permit, Skip} from "../src/interfaces/ISettlement.sol";
import {Signature} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";
import {ContractWallet, HostileWallet} from "./support/Wallets.sol";

/// @dev Paid work: deposits, thaws, and what a settlement may and may not do.
contract SettlementTest is Kit {
    address private key = vm.addr(SESSION_KEY);

    function setUp() public override {
        super.setUp();
        register(OPERATOR_KEY, owner, payout, 0);
    }

    function expectSkip(address client_, uint256 index, Skip reason) private {
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Skipped(node, client_, index, reason);
    }

    /// @dev Settles one item and demands that it is skipped for that reason, and changes nothing.
    function skipped(Item memory it, Skip reason) private {
        bytes32 before = keccak256(abi.encode(settlement.account(it.client, node), token.totalSupply()));
        expectSkip(it.client, 0, reason);
        settleOne(it);
        eq(keccak256(abi.encode(settlement.account(it.client, node), token.totalSupply())), before, "nothing changed");
    }

    // ---- fund

    function testFuzz_fundManyNodes(address c, uint96[4] memory amounts_, address[4] memory nodes_) external {
        vm.assume(c != address(0));
        (address[] memory nodes, uint96[] memory amounts) = (new address[](4), new uint96[](4));
        uint256 sum;
        for (uint256 i; i < 4; ++i) {
            (nodes[i], amounts[i]) = (nodes_[i], uint96(within(amounts_[i], 1, type(uint96).max / 4)));
            sum += amounts[i];
        }
        give(client, sum);
        vm.startPrank(client);
        token.approve(address(settlement), sum);
        settlement.fund(c, nodes, amounts, noPermit());
        vm.stopPrank();
        for (uint256 i; i < 4; ++i) {
            uint256 expected;
            for (uint256 j; j < 4; ++j) {
                if (nodes[j] == nodes[i]) expected += amounts[j];
            }
            eq(balanceOf(c, nodes[i]), expected, "account");
        }
        eq(token.balanceOf(address(settlement)), sum, "P1: the escrow holds them all");
        eq(token.balanceOf(client), 0, "paid by the caller");
    }

    function test_fundSaysWhoPaid() external {
        give(owner, 7);
        vm.prank(owner);
        token.approve(address(settlement), 7);
        (address[] memory nodes, uint96[] memory amounts) = (new address[](1), new uint96[](1));
        (nodes[0], amounts[0]) = (node, 7);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Funded(client, node, owner, 7, 7);
        vm.prank(owner);
        settlement.fund(client, nodes, amounts, noPermit());
    }

    function test_fundRefuses() external {
        (address[] memory nodes, uint96[] memory amounts) = (new address[](2), new uint96[](1));
        (nodes[0], nodes[1], amounts[0]) = (node, node, 7);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.LengthMismatch.selector, 2, 1));
        settlement.fund(client, nodes, amounts, noPermit());
        amounts = new uint96[](2);
        amounts[0] = 7;
        vm.expectRevert(abi.encodeWithSelector(ISettlement.ZeroAmount.selector, 1));
        settlement.fund(client, nodes, amounts, noPermit());
        vm.expectRevert(ISettlement.ZeroAddress.selector);
        settlement.fund(address(0), nodes, amounts, noPermit());
        amounts[1] = 7;
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(settlement), 0, 14)
        );
        settlement.fund(client, nodes, amounts, noPermit());
        amounts[1] = type(uint96).max;
        vm.expectRevert();
        settlement.fund(client, nodes, amounts, noPermit());
    }

    function permitOf(uint256 value) private view returns (Permit memory p) {
        p.value = value;
        p.deadline = vm.getBlockTimestamp() + 1 hours;
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 inner = keccak256(
            abi.encode(typeHash, client, address(settlement), value, token.nonces(client), p.deadline)
        );
        (p.v, p.r, p.s) = vm.sign(CLIENT_KEY, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), inner)));
    }

    function testFuzz_fundWithPermit(uint96 amount, bool usedBefore) external {
        amount = uint96(within(amount, 1, type(uint96).max));
        give(client, amount);
        (address[] memory nodes, uint96[] memory amounts) = (new address[](1), new uint96[](1));
        (nodes[0], amounts[0]) = (node, amount);
        Permit memory p = permitOf(amount);
        if (usedBefore) token.permit(client, address(settlement), p.value, p.deadline, p.v, p.r, p.s);
        vm.prank(client);
        settlement.fund(client, nodes, amounts, p);
        eq(balanceOf(client, node), amount, "funded");
    }

    function test_pauseStopsFundAlone() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        give(client, 10);
        vm.prank(admin);
        parameters.pause();
        vm.expectRevert(ISettlement.FundingPaused.selector);
        vm.prank(client);
        settlement.fund(client, new address[](0), new uint96[](0), noPermit());
        vm.startPrank(client);
        settlement.authorize(key, uint64(vm.getBlockTimestamp() + 1));
        settlement.revoke(key);
        settlement.thaw(node);
        settlement.cancelThaw(node);
        settlement.thaw(node);
        vm.stopPrank();
        settleOne(it);
        pass(THAW + 1);
        vm.prank(client);
        settlement.withdraw(node);
        eq(token.balanceOf(client), 50, "settled and left while paused");
    }

    // ---- thaw, withdraw

    function testFuzz_P6_noWithdrawalBeforeTheThawEnds(uint96 amount, uint256 wait) external {
        amount = uint96(within(amount, 1, type(uint96).max));
        wait = within(wait, 0, 2 * THAW);
        fill(client, node, amount);
        uint64 end = uint64(vm.getBlockTimestamp() + THAW);
        vm.startPrank(client);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Thawing(client, node, end);
        settlement.thaw(node);
        pass(wait);
        if (wait <= THAW) {
            vm.expectRevert(abi.encodeWithSelector(ISettlement.StillThawing.selector, end));
            settlement.withdraw(node);
        } else {
            vm.expectEmit(true, true, true, true, address(settlement));
            emit ISettlement.Withdrawn(client, node, amount);
            settlement.withdraw(node);
            eq(token.balanceOf(client), amount, "all of it");
            eq(balanceOf(client, node), 0, "nothing left");
            eq(settlement.account(client, node).thawEnd, 0, "open again");
            vm.expectRevert(ISettlement.NotThawing.selector);
            settlement.withdraw(node);
        }
        vm.stopPrank();
    }

    function test_P6_theLastSecondBelongsToTheNode() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 100);
        vm.prank(client);
        settlement.thaw(node);
        pass(THAW);
        vm.expectRevert();
        vm.prank(client);
        settlement.withdraw(node);
        (uint256 burned,) = settleOne(it);
        eq(burned, 100, "settled in the thaw's last second");
    }

    /// @dev P6: a chain that stood still for the whole thaw gives nodes their blocks first, however late it is.
    function testFuzz_P6_aThawLastsItsBlocksToo(uint256 blocks, uint256 time) external {
        (blocks, time) = (within(blocks, 0, 2 * THAW_BLOCKS), within(time, THAW + 1, 100 * THAW));
        fill(client, node, 100);
        vm.roll(1_000);
        eq(settlement.thawEndBlock(client, node), 0, "does not thaw");
        vm.startPrank(client);
        settlement.thaw(node);
        eq(settlement.thawEndBlock(client, node), 1_000 + THAW_BLOCKS, "the first block");
        vm.warp(vm.getBlockTimestamp() + time);
        vm.roll(1_000 + blocks);
        bool few = blocks < THAW_BLOCKS;
        if (few) vm.expectRevert(abi.encodeWithSelector(ISettlement.TooFewBlocks.selector, 1_000 + THAW_BLOCKS));
        settlement.withdraw(node);
        eq(token.balanceOf(client), few ? 0 : 100, "all, or nothing yet");
        vm.stopPrank();
    }

    /// @dev P6: the blocks of an earlier thaw count for nothing.
    function test_P6_theNextThawCountsItsOwnBlocks() external {
        fill(client, node, 100);
        vm.startPrank(client);
        settlement.thaw(node);
        pass(THAW + 1);
        settlement.cancelThaw(node);
        eq(settlement.thawEndBlock(client, node), 0, "open");
        settlement.thaw(node);
        uint256 first = vm.getBlockNumber() + THAW_BLOCKS;
        vm.warp(vm.getBlockTimestamp() + THAW + 1);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.TooFewBlocks.selector, first));
        settlement.withdraw(node);
        vm.roll(first);
        settlement.withdraw(node);
        vm.stopPrank();
        eq(token.balanceOf(client), 100, "all");
    }

    function test_thawOnceAndCancel() external {
        vm.startPrank(client);
        vm.expectRevert(ISettlement.NotThawing.selector);
        settlement.withdraw(node);
        vm.expectRevert(ISettlement.NotThawing.selector);
        settlement.cancelThaw(node);
        settlement.thaw(node);
        uint64 end = settlement.account(client, node).thawEnd;
        pass(1);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.AlreadyThawing.selector, end));
        settlement.thaw(node);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.ThawCancelled(client, node);
        settlement.cancelThaw(node);
        eq(settlement.account(client, node).thawEnd, 0, "open");
        settlement.thaw(node);
        vm.stopPrank();
        fill(client, node, 5);
        eq(settlement.account(client, node).thawEnd, end + 1, "a deposit does not touch a thaw");
    }

    /// @dev P6: a thaw that was taken back counts for nothing; the next one is a whole one.
    function testFuzz_P6_cancelledThawStartsAnew(uint96 amount, uint256 first, uint256 second) external {
        amount = uint96(within(amount, 1, type(uint96).max));
        fill(client, node, amount);
        vm.startPrank(client);
        settlement.thaw(node);
        pass(within(first, 0, 10 * THAW));
        settlement.cancelThaw(node);
        vm.expectRevert(ISettlement.NotThawing.selector);
        settlement.withdraw(node);
        settlement.thaw(node);
        uint256 end = vm.getBlockTimestamp() + THAW;
        pass(within(second, 0, 2 * THAW));
        bool over = vm.getBlockTimestamp() > end;
        if (!over) vm.expectRevert(abi.encodeWithSelector(ISettlement.StillThawing.selector, uint64(end)));
        settlement.withdraw(node);
        vm.stopPrank();
        eq(token.balanceOf(client), over ? amount : 0, "all, or nothing yet");
    }

    function test_P3_othersCannotMoveAnAccount() external {
        fill(client, node, 100);
        vm.prank(client);
        settlement.thaw(node);
        pass(THAW + 1);
        vm.startPrank(owner);
        vm.expectRevert(ISettlement.NotThawing.selector);
        settlement.withdraw(node);
        vm.expectRevert(ISettlement.NotThawing.selector);
        settlement.cancelThaw(node);
        vm.stopPrank();
        eq(balanceOf(client, node), 100, "untouched");
    }

    function test_P6_debtOutlivesAWithdrawal() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 80);
        vm.startPrank(client);
        settlement.thaw(node);
        pass(THAW + 1);
        settlement.withdraw(node);
        vm.stopPrank();
        skipped(it, Skip.EmptyAccount);
        fill(client, node, 30);
        (uint256 burned,) = settleOne(it);
        eq(burned, 30, "collected from the next deposit");
    }

    // ---- settle

    function testFuzz_settle(uint96 funds, uint96 total) external {
        funds = uint96(within(funds, 1, type(uint96).max));
        total = uint96(within(total, 1, type(uint96).max));
        fill(client, node, funds);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, total);
        uint256 due = total < funds ? total : funds;
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Settled(node, client, it.sessionId, it.step, it.tokens, due, m(due), total);
        (uint256 burned, uint256 minted) = settleOne(it);
        eq(burned, due, "burned");
        eq(minted, m(due), "minted");
        ok(minted * 10_000 <= burned * 9_500, "minted <= burned - fee");
        eq(token.balanceOf(payout), m(due), "to the payout address");
        eq(token.totalSupply(), funds - due + m(due), "P1: supply");
        eq(token.balanceOf(address(settlement)), funds - due, "P1: escrow");
        eq(balanceOf(client, node), funds - due, "balance");
        eq(collectedOf(client, node), due, "collected");
        eq(settlement.feesBurned(today()), due - m(due), "fees of the epoch");
    }

    function test_settleNeedsARegisteredNode() external {
        vm.expectRevert(abi.encodeWithSelector(ISettlement.NotRegistered.selector, client));
        settlement.settle(client, new Item[](0));
    }

    function testFuzz_anyoneSettles(address sender) external {
        fill(client, node, 100);
        vm.prank(sender);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 60));
        eq(token.balanceOf(payout), 57, "the node's payout, whoever sends");
    }

    function test_partialCollection() external {
        fill(client, node, 40);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 100);
        settleOne(it);
        skipped(it, Skip.EmptyAccount);
        fill(client, node, 100);
        (uint256 burned,) = settleOne(it);
        eq(burned, 60, "P4: the rest after a top-up");
        eq(balanceOf(client, node), 40, "left");
        eq(token.balanceOf(payout), m(100), "path independent");
    }

    /// @dev P4: any splitting of one total into rising vouchers mints the same sum, to the wei.
    function testFuzz_P4_splittingChangesNothing(uint96[5] memory cuts, uint96 funds) external {
        funds = uint96(within(funds, 1, type(uint96).max));
        fill(client, node, funds);
        uint96 highest;
        uint256 burned;
        uint256 minted;
        for (uint256 i; i < 5; ++i) {
            if (cuts[i] == 0) cuts[i] = 1;
            (uint256 b, uint256 n) = settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, cuts[i]));
            burned += b;
            minted += n;
            if (cuts[i] > highest) highest = cuts[i];
        }
        uint256 due = highest < funds ? highest : funds;
        eq(burned, due, "burned");
        eq(minted, m(due), "minted");
        eq(collectedOf(client, node), due, "collected");
        eq(settlement.feesBurned(today()), due - m(due), "fees");
    }

    /// @dev P4: order and batching change nothing either.
    function testFuzz_P4_orderAndBatching(uint96[4] memory totals, uint256 shuffle, uint96 funds) external {
        funds = uint96(within(funds, 1, type(uint96).max));
        fill(client, node, funds);
        Item[] memory items = new Item[](4);
        for (uint256 i; i < 4; ++i) {
            if (totals[i] == 0) totals[i] = 1;
            items[i] = item(OPERATOR_KEY, client, CLIENT_KEY, totals[i]);
        }
        uint256 id = vm.snapshotState();
        settlement.settle(node, items);
        bytes32 batched = keccak256(abi.encode(settlement.account(client, node), token.totalSupply()));
        vm.revertToState(id);
        for (uint256 i; i < 4; ++i) {
            settleOne(items[(i + shuffle % 4) % 4]);
        }
        for (uint256 i; i < 4; ++i) {
            settleOne(items[i]);
        }
        bytes32 single = keccak256(abi.encode(settlement.account(client, node), token.totalSupply()));
        eq(single, batched, "same end");
    }

    function test_P4_replayIsSkipped() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        settleOne(it);
        skipped(it, Skip.NothingOwed);
        skipped(item(OPERATOR_KEY, client, CLIENT_KEY, 59), Skip.NothingOwed);
        Item[] memory twice = new Item[](2);
        twice[0] = twice[1] = item(OPERATOR_KEY, client, CLIENT_KEY, 70);
        expectSkip(client, 1, Skip.NothingOwed);
        (uint256 burned,) = settlement.settle(node, twice);
        eq(burned, 10, "once");
    }

    function test_P4_boundToChainAndContract() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        vm.chainId(4242);
        skipped(it, Skip.BadReceipt);
        signItem(it, OPERATOR_KEY, CLIENT_KEY);
        settleOne(it);
        eq(collectedOf(client, node), 60, "signed for this chain");
        Item memory old = item(OPERATOR_KEY, client, CLIENT_KEY, 90);
        deploy();
        register(OPERATOR_KEY, owner, payout, 0);
        fill(client, node, 100);
        skipped(old, Skip.BadReceipt);
    }

    function test_everyFieldIsSigned() external {
        fill(client, node, 100);
        fill(owner, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        it.client = owner;
        skipped(it, Skip.BadReceipt);
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        it.sessionId = keccak256("another");
        skipped(it, Skip.BadReceipt);
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        it.step++;
        skipped(it, Skip.BadReceipt);
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        it.tokens++;
        skipped(it, Skip.BadReceipt);
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        it.head = 0;
        skipped(it, Skip.BadReceipt);
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        it.total++;
        skipped(it, Skip.UnknownKey);
    }

    function testFuzz_forgedSignatures(uint256 forger, bytes32 r, bytes32 vs) external {
        forger = within(forger, 1, type(uint128).max);
        vm.assume(forger != OPERATOR_KEY && forger != CLIENT_KEY);
        fill(client, node, 100);
        skipped(item(forger, client, CLIENT_KEY, 60), Skip.BadReceipt);
        skipped(item(OPERATOR_KEY, client, forger, 60), Skip.UnknownKey);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        (it.voucherR, it.voucherVs) = (r, vs);
        skipped(it, Skip.UnknownKey);
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        (it.receiptR, it.receiptVs) = (r, vs);
        skipped(it, Skip.BadReceipt);
    }

    function test_noSignatureAtAll() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        (it.voucherR, it.voucherVs) = (0, 0);
        skipped(it, Skip.UnknownKey);
        it.client = address(0);
        skipped(it, Skip.EmptyAccount);
    }

    function test_P3_anothersVoucherPaysNothing() external {
        fill(client, node, 100);
        fill(owner, node, 100);
        Item memory it = item(OPERATOR_KEY, owner, CLIENT_KEY, 60);
        skipped(it, Skip.UnknownKey);
        address other = register(0xC0FFEE, owner, payout, 0);
        Item memory foreign = item(0xC0FFEE, client, CLIENT_KEY, 60);
        skipped(foreign, Skip.BadReceipt);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Skipped(other, client, 0, Skip.EmptyAccount);
        settlement.settle(other, one(foreign));
        eq(balanceOf(client, node), 100, "untouched");
    }

    // ---- session keys in settlements

    function testFuzz_P6_keysVoucherLivesThawLonger(uint256 life, uint256 wait) external {
        life = within(life, 1, 90 days);
        wait = within(wait, 0, 120 days);
        fill(client, node, 100);
        vm.prank(client);
        settlement.authorize(key, uint64(vm.getBlockTimestamp() + life));
        Item memory it = item(OPERATOR_KEY, client, SESSION_KEY, 60);
        pass(wait);
        if (wait > life + THAW) {
            skipped(it, Skip.KeyOver);
        } else {
            (uint256 burned,) = settleOne(it);
            eq(burned, 60, "collectable");
        }
    }

    function test_P6_theKeysLastSecond() external {
        fill(client, node, 100);
        vm.prank(client);
        settlement.authorize(key, uint64(vm.getBlockTimestamp() + 1 days));
        Item memory it = item(OPERATOR_KEY, client, SESSION_KEY, 60);
        pass(1 days + THAW + 1);
        skipped(it, Skip.KeyOver);
        vm.warp(vm.getBlockTimestamp() - 1);
        (uint256 burned,) = settleOne(it);
        eq(burned, 60, "in its last second");
    }

    function testFuzz_P6_revocationVoidsNothing(uint256 wait) external {
        wait = within(wait, 0, 2 * THAW);
        fill(client, node, 100);
        vm.startPrank(client);
        settlement.authorize(key, uint64(vm.getBlockTimestamp() + 30 days));
        Item memory it = item(OPERATOR_KEY, client, SESSION_KEY, 60);
        settlement.revoke(key);
        vm.stopPrank();
        pass(wait);
        if (wait > THAW) {
            skipped(it, Skip.KeyOver);
        } else {
            (uint256 burned,) = settleOne(it);
            eq(burned, 60, "collectable until THAW after the revocation");
        }
    }

    /// @dev A stolen key that was never set gets no window by being revoked.
    function test_aKeyRevokedBeforeItWasSetNeverPays() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, SESSION_KEY, 60);
        skipped(it, Skip.UnknownKey);
        vm.prank(client);
        settlement.revoke(key);
        skipped(it, Skip.UnknownKey);
    }

    function test_aKeyServesItsClientOnly() external {
        fill(client, node, 100);
        vm.prank(owner);
        settlement.authorize(key, uint64(vm.getBlockTimestamp() + 30 days));
        skipped(item(OPERATOR_KEY, client, SESSION_KEY, 60), Skip.UnknownKey);
    }

    function test_ownKeyHasNoTimeLimit() external {
        fill(client, node, 100);
        Item memory it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        pass(3650 days);
        (uint256 burned,) = settleOne(it);
        eq(burned, 60, "no record, no limit");
    }

    function test_contractWalletPays() external {
        ContractWallet wallet = new ContractWallet();
        uint64 end = uint64(vm.getBlockTimestamp() + 1 days);
        wallet.approve(delegationDigest(address(wallet), key, end));
        settlement.authorizeBySig(address(wallet), key, end, "");
        fill(address(wallet), node, 100);
        settleOne(item(OPERATOR_KEY, address(wallet), SESSION_KEY, 60));
        wallet.run(address(settlement), abi.encodeCall(settlement.thaw, (node)));
        pass(THAW + 1);
        wallet.run(address(settlement), abi.encodeCall(settlement.withdraw, (node)));
        eq(token.balanceOf(address(wallet)), 40, "the rest");
    }

    function test_P5_hostilePayoutAndClientStopNobody() external {
        HostileWallet hostile = new HostileWallet();
        hostile.setBurnsGas(true);
        vm.prank(owner);
        registry.setPayout(node, address(hostile));
        fill(client, node, 100);
        fill(address(hostile), node, 100);
        Item[] memory items = new Item[](2);
        items[0] = item(OPERATOR_KEY, address(hostile), SESSION_KEY, 50);
        items[1] = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        expectSkip(address(hostile), 0, Skip.UnknownKey);
        settlement.settle(node, items);
        eq(token.balanceOf(address(hostile)), 57, "paid");
    }

    /// @dev P5: a bad item of any kind, anywhere, leaves the others what they get alone.
    function testFuzz_P5_oneBadItemNeverAffectsTheOthers(uint256 place, uint8 kind, uint96[3] memory totals) external {
        Item[] memory items = new Item[](4);
        place %= 4;
        uint256 expected;
        for (uint256 i; i < 3; ++i) {
            uint256 wallet = 0xC11E47 + i;
            uint96 total = uint96(within(totals[i], 1, 1e24));
            fill(vm.addr(wallet), node, 1e24);
            items[i < place ? i : i + 1] = item(OPERATOR_KEY, vm.addr(wallet), wallet, total);
            expected += m(total);
        }
        fill(client, node, 100);
        items[place] = badItem(kind % 5);
        expectSkip(items[place].client, place, Skip(1 + kind % 5));
        (, uint256 minted) = settlement.settle(node, items);
        eq(minted, expected, "the others");
    }

    /// @dev P5: nor does it cost more than its own checks, even where the client is a contract that burns all gas.
    function testFuzz_P5_aBadItemCostsItsOwnChecksOnly(uint8 kind, bool hostile) external {
        fill(client, node, 100);
        Item[] memory items = new Item[](2);
        items[0] = badItem(kind % 5);
        if (hostile) {
            HostileWallet wallet = new HostileWallet();
            wallet.setBurnsGas(true);
            fill(address(wallet), node, 100);
            items[0] = item(OPERATOR_KEY, address(wallet), SESSION_KEY, 50);
        }
        fill(owner, node, 100);
        vm.prank(owner);
        settlement.authorize(vm.addr(0xB1), uint64(vm.getBlockTimestamp() + 1 days));
        items[1] = item(OPERATOR_KEY, owner, 0xB1, 60);
        uint256 id = vm.snapshotState();
        uint256 before = gasleft();
        settleOne(items[1]);
        uint256 alone = before - gasleft();
        vm.revertToState(id);
        before = gasleft();
        (uint256 burned,) = settlement.settle(node, items);
        uint256 both = before - gasleft();
        eq(burned, 60, "the good one settles");
        atMost(both, alone + 25_000, "gas");
    }

    function badItem(uint256 kind) private returns (Item memory it) {
        it = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        if (kind == 0) it.total = 0;
        if (kind == 1) it = item(OPERATOR_KEY, admin, CLIENT_KEY, 60);
        if (kind == 2) it.receiptR = bytes32(uint256(it.receiptR) ^ 1);
        if (kind == 3) it = item(OPERATOR_KEY, client, 0xBAD, 60);
        if (kind == 4) {
            vm.prank(client);
            settlement.authorize(key, uint64(vm.getBlockTimestamp() + 1));
            it = item(OPERATOR_KEY, client, SESSION_KEY, 60);
            pass(THAW + 2);
        }
    }

    function test_feesBelongToTheEpochOfTheSettlement() external {
        fill(client, node, 300);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 100));
        toEpoch(today() + 1);
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 300));
        eq(settlement.feesBurned(today() - 1), 5, "first");
        eq(settlement.feesBurned(today()), 10, "second");
        eq(settlement.currentEpoch(), today(), "epoch");
    }

    /// @dev Whatever the gaps, the fees of this epoch and the last are known, and no others are taken for theirs.
    function testFuzz_feesAreKeptForTwoEpochs(uint96[6] memory amounts, uint8[6] memory gaps) external {
        uint96 total;
        uint256[] memory lost = new uint256[](40);
        uint256 first = today();
        for (uint256 i; i < 6; ++i) {
            toEpoch(today() + gaps[i] % 4);
            uint96 amount = uint96(within(amounts[i], 1, 1_000 ether));
            fill(client, node, amount);
            total += amount;
            (uint256 burned, uint256 minted) = settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, total));
            lost[today() - first] += burned - minted;
            eq(settlement.feesBurned(today()), lost[today() - first], "this epoch");
            eq(settlement.feesBurned(today() - 1), today() == first ? 0 : lost[today() - first - 1], "the last");
            eq(settlement.feesBurned(today() + 1), 0, "the next");
            for (uint256 old = 2; old < 5; ++old) {
                eq(settlement.feesBurned(today() - old), 0, "no longer kept");
            }
        }
        toEpoch(today() + 1);
        eq(settlement.feesBurned(today() - 1), lost[today() - first - 1], "the last, with none in this one");
        eq(settlement.feesBurned(today()), 0, "none in this one");
    }

    function test_feesBeyondEveryCapStopNoSettlement() external {
        fill(client, node, 300);
        // The slot of `_fees`, as its constructor left it: this epoch's number and no fees.
        bytes32 slot = bytes32(uint256(4));
        eq(uint256(vm.load(address(settlement), slot)), today(), "the slot of the fees");
        uint256 nearlyFull = today() | uint256(type(uint104).max - 3) << 48;
        vm.store(address(settlement), slot, bytes32(nearlyFull));
        (uint256 burned,) = settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 100));
        eq(burned, 100, "settled");
        eq(settlement.feesBurned(today()), type(uint104).max, "cut off");
        eq(settlement.feesBurned(today() - 1), 0, "nothing ran over");
        eq(emission.budget(today()), CAP, "E is the cap");
    }

    function test_retiredNodeStillCollects() external {
        fill(client, node, 100);
        vm.prank(address(disputes));
        registry.retire(node);
        (uint256 burned,) = settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 60));
        eq(burned, 60, "paid work waits for no verdict");
    }

    function testFuzz_tinySettlementsRoundTheFeeUp(uint96 total) external {
        total = uint96(within(total, 1, 20));
        fill(client, node, 20);
        (uint256 burned, uint256 minted) = settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, total));
        eq(burned, total, "burned");
        eq(minted, total - 1, "a whole wei of fee");
    }

    // ---- views

    function test_accountsForManyClients() external {
        fill(client, node, 100);
        fill(owner, node, 50);
        vm.startPrank(owner);
        settlement.authorize(key, uint64(vm.getBlockTimestamp() + 5 days));
        settlement.thaw(node);
        vm.stopPrank();
        settleOne(item(OPERATOR_KEY, client, CLIENT_KEY, 60));
        vm.prank(admin);
        settlement.revoke(key);
        (address[] memory clients, address[] memory keys) = (new address[](4), new address[](4));
        (clients[0], keys[0]) = (client, client);
        (clients[1], keys[1]) = (owner, key);
        (clients[2], keys[2]) = (payout, key);
        (clients[3], keys[3]) = (admin, key);
        AccountView[] memory views = settlement.accounts(node, clients, keys);
        same(views[0], 40, 60, 0, type(uint64).max);
        same(views[1], 50, 0, uint64(vm.getBlockTimestamp() + THAW), uint64(vm.getBlockTimestamp() + 5 days));
        same(views[2], 0, 0, 0, 0);
        same(views[3], 0, 0, 0, 0);
        ok(!views[0].keyRevoked && !views[1].keyRevoked && !views[2].keyRevoked, "never revoked");
        ok(views[3].keyRevoked, "revoked before it was ever set");
        vm.prank(owner);
        settlement.revoke(key);
        views = settlement.accounts(node, clients, keys);
        same(views[1], 50, 0, uint64(vm.getBlockTimestamp() + THAW), uint64(vm.getBlockTimestamp()));
        ok(!views[1].keyRevoked, "one that was set has an end");
        Account memory a = settlement.account(client, node);
        eq(a.balance, 40, "balance");
        eq(a.collected, 60, "collected");
        vm.expectRevert(abi.encodeWithSelector(ISettlement.LengthMismatch.selector, 4, 0));
        settlement.accounts(node, clients, new address[](0));
    }

    function same(AccountView memory v, uint96 balance, uint96 collected, uint64 thawEnd, uint64 keyEnd) private pure {
        eq(v.balance, balance, "balance");
        eq(v.collected, collected, "collected");
        eq(v.thawEnd, thawEnd, "thawEnd");
        eq(v.keyValidUntil, keyEnd, "keyValidUntil");
    }

    function test_knowsItsDeployment() external view {
        eq(address(settlement.PARAMETERS()), address(parameters), "parameters");
        eq(address(settlement.TOKEN()), address(token), "token");
        eq(address(settlement.REGISTRY()), address(registry), "registry");
        eq(settlement.FEE(), 500, "fee");
        eq(settlement.THAW(), THAW, "thaw");
        eq(settlement.THAW_BLOCKS(), THAW_BLOCKS, "blocks of a thaw");
        eq(settlement.EPOCH(), EPOCH, "epoch");
    }
}
