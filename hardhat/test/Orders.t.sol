// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISettlement, Order, Permit} from "../src/interfaces/ISettlement.sol";
import {Kit} from "./support/Kit.sol";
import {ContractWallet, HostileWallet} from "./support/Wallets.sol";

/// @dev What a wallet orders by its signature alone: once, in its order, in time, by nobody else.
contract OrdersTest is Kit {
    address private key = vm.addr(SESSION_KEY);
    address private relayer = address(0xBEEF);

    function setUp() public override {
        super.setUp();
        register(OPERATOR_KEY, owner, payout, 0);
        vm.startPrank(relayer);
    }

    function soon() private view returns (uint64) {
        return uint64(vm.getBlockTimestamp() + 1 hours);
    }

    function signed(string memory order, address subject, uint256 nonce, uint64 end)
        private
        view
        returns (bytes memory)
    {
        return packed(sign(CLIENT_KEY, orderDigest(order, client, subject, nonce, end)));
    }

    function filled(uint96 amount) private {
        vm.stopPrank();
        fill(client, node, amount);
        vm.startPrank(relayer);
    }

    function badOrder(uint256 nonce) private {
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, client, nonce));
    }

    // ---- the five that name a node or a key

    /// @dev A whole life without a coin: thawed, opened again, thawed, withdrawn.
    function test_leavingByOthersTransactions() external {
        filled(100);
        uint64 end = uint64(vm.getBlockTimestamp() + 30 days);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Thawing(client, node, uint64(vm.getBlockTimestamp() + THAW));
        settlement.thawBySig(client, node, end, signed("Thaw", node, 0, end));
        settlement.cancelThawBySig(client, node, end, signed("CancelThaw", node, 1, end));
        eq(settlement.account(client, node).thawEnd, 0, "open again");
        settlement.thawBySig(client, node, end, signed("Thaw", node, 2, end));
        bytes memory order = signed("Withdraw", node, 3, end);
        uint64 thawEnd = settlement.account(client, node).thawEnd;
        vm.expectRevert(abi.encodeWithSelector(ISettlement.StillThawing.selector, thawEnd));
        settlement.withdrawBySig(client, node, end, order);
        eq(settlement.nonces(client), 3, "a refused order is not spent");
        vm.warp(thawEnd + 1);
        vm.expectRevert(
            abi.encodeWithSelector(ISettlement.TooFewBlocks.selector, settlement.thawEndBlock(client, node))
        );
        settlement.withdrawBySig(client, node, end, order);
        vm.roll(settlement.thawEndBlock(client, node));
        settlement.withdrawBySig(client, node, end, order);
        eq(token.balanceOf(client), 100, "to the client, not to who sent it");
        eq(token.balanceOf(relayer), 0, "nothing for that");
        eq(settlement.nonces(client), 4, "four orders");
    }

    function test_revokeBySig() external {
        uint64 end = soon();
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Revoked(client, key, uint64(vm.getBlockTimestamp()));
        settlement.revokeBySig(client, key, end, signed("Revoke", key, 0, end));
        eq(settlement.sessionKey(client, key).validUntil, vm.getBlockTimestamp(), "ended");
    }

    function test_replayedOrders() external {
        uint64 end = soon();
        bytes memory thaw = signed("Thaw", node, 0, end);
        settlement.thawBySig(client, node, end, thaw);
        badOrder(1);
        settlement.thawBySig(client, node, end, thaw);
        settlement.cancelThawBySig(client, node, end, signed("CancelThaw", node, 1, end));
        badOrder(2);
        settlement.thawBySig(client, node, end, thaw);
        eq(settlement.account(client, node).thawEnd, 0, "stays open");
    }

    /// @dev Another order with the same number takes an unsent one's place.
    function test_aLaterOrderOverridesAnUnsentOne() external {
        uint64 end = soon();
        bytes memory thaw = signed("Thaw", node, 0, end);
        settlement.revokeBySig(client, key, end, signed("Revoke", key, 0, end));
        badOrder(1);
        settlement.thawBySig(client, node, end, thaw);
    }

    function testFuzz_anOrderEndsWithItsTime(uint64 end, uint256 time) external {
        time = within(time, 1, type(uint32).max);
        vm.warp(time);
        bytes memory order = signed("Revoke", key, 0, end);
        if (time > end) vm.expectRevert(abi.encodeWithSelector(ISettlement.OrderOver.selector, end));
        settlement.revokeBySig(client, key, end, order);
    }

    /// @dev No order passes for another kind, client, subject, number, time, chain or contract.
    function test_anOrderIsGoodForNothingElse() external {
        uint64 end = soon();
        string[5] memory names = ["Thaw", "CancelThaw", "Withdraw", "Revoke", "Close"];
        for (uint256 i; i < 5; ++i) {
            bytes memory order = signed(names[i], node, 0, end);
            if (i != 0) refused(abi.encodeCall(settlement.thawBySig, (client, node, end, order)));
            if (i != 1) refused(abi.encodeCall(settlement.cancelThawBySig, (client, node, end, order)));
            if (i != 2) refused(abi.encodeCall(settlement.withdrawBySig, (client, node, end, order)));
            if (i != 3) refused(abi.encodeCall(settlement.revokeBySig, (client, node, end, order)));
        }
        bytes memory thaw = signed("Thaw", node, 0, end);
        refused(abi.encodeCall(settlement.thawBySig, (client, owner, end, thaw)));
        refused(abi.encodeCall(settlement.thawBySig, (client, node, end + 1, thaw)));
        refused(abi.encodeCall(settlement.thawBySig, (client, node, end, signed("Thaw", node, 1, end))));
        bytes memory foreign = packed(sign(SESSION_KEY, orderDigest("Thaw", client, node, 0, end)));
        refused(abi.encodeCall(settlement.thawBySig, (client, node, end, foreign)));
        // Another client's, shown as one's own.
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, key, 0));
        settlement.thawBySig(key, node, end, thaw);
        vm.chainId(77);
        refused(abi.encodeCall(settlement.thawBySig, (client, node, end, thaw)));
    }

    function refused(bytes memory data) private {
        (bool done, bytes memory answer) = address(settlement).call(data);
        ok(!done && bytes4(answer) == ISettlement.BadOrder.selector, "refused");
    }

    /// @dev A session key can neither deposit nor leave, by signature neither.
    function test_aSessionKeyOrdersNothing() external {
        vm.stopPrank();
        vm.prank(client);
        settlement.authorize(key, soon());
        uint64 end = soon();
        badOrder(0);
        settlement.thawBySig(client, node, end, packed(sign(SESSION_KEY, orderDigest("Thaw", client, node, 0, end))));
    }

    function test_nobodysOrder() external {
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, address(0), 0));
        settlement.thawBySig(address(0), node, soon(), new bytes(64));
    }

    function test_contractWallets() external {
        ContractWallet wallet = new ContractWallet();
        uint64 end = soon();
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, address(wallet), 0));
        settlement.thawBySig(address(wallet), node, end, "");
        wallet.approve(orderDigest("Thaw", address(wallet), node, 0, end));
        settlement.thawBySig(address(wallet), node, end, "");
        ok(settlement.account(address(wallet), node).thawEnd != 0, "thaws");
        // What it says yes to is one order, not the next.
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, address(wallet), 1));
        settlement.thawBySig(address(wallet), node, end, "");
        HostileWallet hostile = new HostileWallet();
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadOrder.selector, address(hostile), 0));
        settlement.thawBySig(address(hostile), node, end, "");
    }

    // ---- deposits

    function deposits(uint96 first, uint96 second) private view returns (address[] memory n, uint96[] memory a) {
        (n, a) = (new address[](2), new uint96[](2));
        (n[0], n[1], a[0], a[1]) = (node, owner, first, second);
    }

    function permitOf(uint256 value) private view returns (Permit memory p) {
        (p.value, p.deadline) = (value, vm.getBlockTimestamp() + 1 hours);
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 inner = keccak256(
            abi.encode(typeHash, client, address(settlement), value, token.nonces(client), p.deadline)
        );
        (p.v, p.r, p.s) = vm.sign(CLIENT_KEY, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), inner)));
    }

    /// @dev Permit and order, both signed: a wallet without coin or allowance funds two nodes.
    function testFuzz_fundBySig(uint96 first, uint96 second, bool permitUsed) external {
        (first, second) = (uint96(within(first, 1, 1e24)), uint96(within(second, 1, 1e24)));
        vm.stopPrank();
        give(client, uint256(first) + second);
        (address[] memory n, uint96[] memory a) = deposits(first, second);
        uint64 end = soon();
        bytes memory order = packed(sign(CLIENT_KEY, fundDigest(client, n, a, 0, end)));
        Permit memory p = permitOf(uint256(first) + second);
        if (permitUsed) token.permit(client, address(settlement), p.value, p.deadline, p.v, p.r, p.s);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Funded(client, node, client, first, first);
        vm.startPrank(relayer);
        settlement.fundBySig(client, n, a, p, end, order);
        eq(balanceOf(client, node), first, "first");
        eq(balanceOf(client, owner), second, "second");
        eq(token.balanceOf(client), 0, "its own credits");
        badOrder(1);
        settlement.fundBySig(client, n, a, p, end, order);
    }

    /// @dev The client's allowance is for what it signed: no other nodes, amounts or time.
    function test_fundBySigRefuses() external {
        vm.stopPrank();
        give(client, 100);
        vm.prank(client);
        token.approve(address(settlement), 100);
        vm.startPrank(relayer);
        (address[] memory n, uint96[] memory a) = deposits(30, 20);
        uint64 end = soon();
        bytes memory order = packed(sign(CLIENT_KEY, fundDigest(client, n, a, 0, end)));
        n[1] = relayer;
        refused(abi.encodeCall(settlement.fundBySig, (client, n, a, noPermit(), end, order)));
        (n[1], a[1]) = (owner, 21);
        refused(abi.encodeCall(settlement.fundBySig, (client, n, a, noPermit(), end, order)));
        a[1] = 20;
        refused(abi.encodeCall(settlement.fundBySig, (client, n, a, noPermit(), end + 1, order)));
        // A word moved from one list to the other.
        (address[] memory n3, uint96[] memory a1) = (new address[](3), new uint96[](1));
        (n3[0], n3[1], n3[2], a1[0]) = (node, owner, address(30), 20);
        refused(abi.encodeCall(settlement.fundBySig, (client, n3, a1, noPermit(), end, order)));
        settlement.fundBySig(client, n, a, noPermit(), end, order);
        eq(token.balanceOf(client), 50, "what it signed");
        vm.warp(end + 1);
        order = packed(sign(CLIENT_KEY, fundDigest(client, n, a, 1, end)));
        vm.expectRevert(abi.encodeWithSelector(ISettlement.OrderOver.selector, end));
        settlement.fundBySig(client, n, a, noPermit(), end, order);
    }

    function test_aPauseStopsFundBySigToo() external {
        vm.stopPrank();
        vm.prank(admin);
        parameters.pause();
        (address[] memory n, uint96[] memory a) = deposits(1, 1);
        bytes memory order = packed(sign(CLIENT_KEY, fundDigest(client, n, a, 0, soon())));
        vm.expectRevert(ISettlement.FundingPaused.selector);
        settlement.fundBySig(client, n, a, noPermit(), soon(), order);
    }

    function test_whatIsNoOrder() external view {
        // The kinds have five digests, and each is the one that its call asks for (P13 in Signed.t.sol).
        ok(uint8(type(Order).max) == 4, "five kinds");
    }
}
