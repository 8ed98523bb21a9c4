// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Account, ISettlement, Item, Release} from "../src/interfaces/ISettlement.sol";
import {Signature} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";
import {ContractWallet} from "./support/Wallets.sol";

/// @dev Both sides agree to part: settled up to a total, the rest paid out at once.
contract CloseTest is Kit {
    function setUp() public override {
        super.setUp();
        register(OPERATOR_KEY, owner, payout, 0);
        fill(client, node, 100);
    }

    function soon() private view returns (uint64) {
        return uint64(vm.getBlockTimestamp() + 10 minutes);
    }

    function release(uint96 total, uint64 end) private view returns (Release memory) {
        return Release(total, end, sign(OPERATOR_KEY, releaseDigest(node, client, total, end)));
    }

    function none() private pure returns (Item[] memory) {
        return new Item[](0);
    }

    function testFuzz_closeSettlesAndPaysTheRest(uint96 funds, uint96 total, bool settledBefore, bool thaws) external {
        funds = uint96(within(funds, 100, 1e24));
        fill(client, node, funds - 99);
        (funds, total) = (funds + 1, uint96(within(total, 1, funds + 1)));
        Item[] memory items = one(item(OPERATOR_KEY, client, CLIENT_KEY, total));
        if (settledBefore) settlement.settle(node, items);
        vm.startPrank(client);
        if (thaws) settlement.thaw(node);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Closed(client, node, total);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Withdrawn(client, node, funds - total);
        settlement.close(node, release(total, soon()), settledBefore ? none() : items);
        vm.stopPrank();
        Account memory a = settlement.account(client, node);
        eq(a.balance, 0, "nothing left");
        eq(a.collected, total, "collected");
        eq(a.thawEnd, 0, "no thaw any more");
        eq(token.balanceOf(client), funds - total, "the rest at once");
        eq(token.balanceOf(payout), m(total), "the node has its pay");
        eq(settlement.feesBurned(today()), total - m(total), "the fee is lost as ever");
    }

    /// @dev What the node is owed must be there: a short or a stale item closes nothing.
    function test_whatIsNotSettledClosesNothing() external {
        vm.startPrank(client);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.NotSettled.selector, 0, 60));
        settlement.close(node, release(60, soon()), none());
        vm.expectRevert(abi.encodeWithSelector(ISettlement.NotSettled.selector, 59, 60));
        settlement.close(node, release(60, soon()), one(item(OPERATOR_KEY, client, CLIENT_KEY, 59)));
        eq(collectedOf(client, node), 0, "nor settles what it came with");
        vm.expectRevert(abi.encodeWithSelector(ISettlement.NotSettled.selector, 100, 101));
        settlement.close(node, release(101, soon()), one(item(OPERATOR_KEY, client, CLIENT_KEY, 101)));
        Item memory foreign = item(OPERATOR_KEY, client, SESSION_KEY, 60);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.NotSettled.selector, 0, 60));
        settlement.close(node, release(60, soon()), one(foreign));
        settlement.close(node, release(60, soon()), one(item(OPERATOR_KEY, client, CLIENT_KEY, 60)));
        vm.stopPrank();
        eq(token.balanceOf(client), 40, "then it does");
    }

    /// @dev It must be the node's word, for this client, total, time, chain.
    function test_theReleaseBindsEveryField() external {
        uint64 end = soon();
        Release memory r = release(0, end);
        bytes memory refusal = abi.encodeWithSelector(ISettlement.BadRelease.selector, node);
        vm.prank(owner);
        vm.expectRevert(refusal);
        settlement.close(node, r, none());
        vm.startPrank(client);
        r.signature = sign(CLIENT_KEY, releaseDigest(node, client, 0, end));
        vm.expectRevert(refusal);
        settlement.close(node, r, none());
        r = release(1, end);
        r.total = 0;
        vm.expectRevert(refusal);
        settlement.close(node, r, none());
        r = release(0, end);
        r.deadline = end + 1;
        vm.expectRevert(refusal);
        settlement.close(node, r, none());
        r = release(0, end);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadRelease.selector, owner));
        settlement.close(owner, r, none());
        r.signature = Signature(0, 0);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadRelease.selector, address(0)));
        settlement.close(address(0), r, none());
        r = release(0, end);
        vm.chainId(77);
        vm.expectRevert(refusal);
        settlement.close(node, r, none());
        vm.stopPrank();
        eq(balanceOf(client, node), 100, "untouched");
    }

    /// @dev A receipt or another message of the operator's is no release.
    function test_aReceiptIsNoRelease() external {
        uint64 end = soon();
        bytes32 receipt = receiptDigest(node, client, keccak256("session"), 1, 1, keccak256("head"));
        Release memory r = Release(0, end, sign(OPERATOR_KEY, receipt));
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadRelease.selector, node));
        vm.prank(client);
        settlement.close(node, r, none());
    }

    /// @dev Good to its last second, and never from further than an hour ahead.
    function testFuzz_aReleaseHasItsTime(uint64 end) external {
        vm.warp(50_000 days);
        end = uint64(within(end, 49_999 days, 50_001 days));
        bool good = end >= 50_000 days && end <= 50_000 days + 1 hours;
        Release memory r = release(0, end);
        if (!good) {
            vm.expectRevert(
                abi.encodeWithSelector(ISettlement.ReleaseOver.selector, end, uint256(50_000 days + 1 hours))
            );
        }
        vm.prank(client);
        settlement.close(node, r, none());
        eq(balanceOf(client, node), good ? 0 : 100, "closed or not");
    }

    function test_aReleaseEndsInTheSecondAfter() external {
        uint64 end = soon();
        Release memory r = release(0, end);
        vm.warp(end + 1);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.ReleaseOver.selector, end, uint256(end + 1 hours + 1)));
        vm.prank(client);
        settlement.close(node, r, none());
        vm.warp(end);
        vm.prank(client);
        settlement.close(node, r, none());
    }

    /// @dev The client's consent is needed: by its call, or by its signature, sent by anyone, once.
    function test_closeBySig() external {
        uint64 end = soon();
        Release memory r = release(60, end);
        Item[] memory items = one(item(OPERATOR_KEY, client, CLIENT_KEY, 60));
        bytes32 digest = orderDigest("Close", client, node, 0, end);
        bytes memory refusal = abi.encodeWithSelector(ISettlement.BadOrder.selector, client, 0);
        bytes memory byNode = packed(sign(OPERATOR_KEY, digest));
        vm.expectRevert(refusal);
        settlement.closeBySig(client, node, r, items, end, byNode);
        bytes memory forOwner = packed(sign(CLIENT_KEY, orderDigest("Close", client, owner, 0, end)));
        vm.expectRevert(refusal);
        settlement.closeBySig(client, node, r, items, end, forOwner);
        bytes memory order = packed(sign(CLIENT_KEY, digest));
        vm.prank(node);
        settlement.closeBySig(client, node, r, items, end, order);
        eq(token.balanceOf(client), 40, "to the client");
        fill(client, node, 10);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, client, 1));
        settlement.closeBySig(client, node, r, items, end, order);
        eq(balanceOf(client, node), 10, "a new deposit stays");
    }

    /// @dev Somebody settles the item first: the close that carries it works all the same.
    function test_frontRunBySettling() external {
        Item[] memory items = one(item(OPERATOR_KEY, client, CLIENT_KEY, 60));
        vm.prank(owner);
        settlement.settle(node, items);
        vm.prank(client);
        settlement.close(node, release(60, soon()), items);
        eq(token.balanceOf(client), 40, "the rest");
    }

    /// @dev A node can't be closed out of a voucher that its release counts on, whatever came before in the block.
    function test_frontRunByNothing() external {
        Release memory r = release(60, soon());
        vm.startPrank(client);
        settlement.thaw(node);
        pass(1 minutes);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.NotSettled.selector, 0, 60));
        settlement.close(node, r, none());
        vm.stopPrank();
    }

    function test_contractWalletCloses() external {
        ContractWallet wallet = new ContractWallet();
        fill(address(wallet), node, 30);
        uint64 end = soon();
        Release memory r = Release(0, end, sign(OPERATOR_KEY, releaseDigest(node, address(wallet), 0, end)));
        wallet.approve(orderDigest("Close", address(wallet), node, 0, end));
        settlement.closeBySig(address(wallet), node, r, none(), end, "");
        eq(token.balanceOf(address(wallet)), 30, "paid out");
    }

    /// @dev P5: other clients' items may travel along, and a bad one stops nobody.
    function test_othersItemsMayTravelAlong() external {
        fill(owner, node, 50);
        Item[] memory items = new Item[](2);
        items[0] = item(OPERATOR_KEY, owner, SESSION_KEY, 10);
        items[1] = item(OPERATOR_KEY, client, CLIENT_KEY, 60);
        vm.prank(client);
        settlement.close(node, release(60, soon()), items);
        eq(balanceOf(owner, node), 50, "P3: another's account is untouched");
        eq(token.balanceOf(client), 40, "closed");
    }

    function test_closingIsNeverPaused() external {
        vm.prank(admin);
        parameters.pause();
        vm.prank(client);
        settlement.close(node, release(0, soon()), none());
        eq(token.balanceOf(client), 100, "left");
    }
}
