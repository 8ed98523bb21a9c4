// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ClaimItem} from "../../src/interfaces/IEmission.sol";
import {Statement} from "../../src/interfaces/IDisputes.sol";
import {Item, Release} from "../../src/interfaces/ISettlement.sol";
import {Kit} from "../support/Kit.sol";

/// @dev What a transaction costs, calldata and signatures included; run with `--test-profile gas`, where each call is
/// a transaction of its own. Each test holds its limit, and the snapshot the exact figure.
contract GasTest is Kit {
    uint96 private constant DEPOSIT = 1_000 ether;

    function setUp() public override {
        super.setUp();
        register(OPERATOR_KEY, owner, payout, 10 ether);
        // The node has settled before: its payout holds credits and the epoch has seen fees, as on any day.
        settleClients(0xF00D, 1, 1 ether);
    }

    function settleClients(uint256 firstKey, uint256 count, uint96 total) private returns (Item[] memory items) {
        items = batch(firstKey, count, total, true);
        settlement.settle(node, items);
    }

    /// @dev One item per client, signed by a session key; real sizes of every field.
    function batch(uint256 firstKey, uint256 count, uint96 total, bool fund) private returns (Item[] memory items) {
        items = new Item[](count);
        for (uint256 i; i < count; ++i) {
            address c = vm.addr(firstKey + i);
            if (fund) {
                fill(c, node, DEPOSIT);
                vm.prank(c);
                settlement.authorize(vm.addr(SESSION_KEY + i), uint64(vm.getBlockTimestamp() + 60 days));
            }
            items[i] = item(OPERATOR_KEY, c, SESSION_KEY + i, total + uint96(i * 12345678901234567));
        }
    }

    function measured(string memory name, uint256 each, uint256 most) private {
        uint256 gas = vm.snapshotGasLastCall(string.concat(name, " (transaction)")) / each;
        if (each > 1) vm.snapshotValue(string.concat(name, " (each)"), gas);
        atMost(gas, most, name);
    }

    function testGas_settleFirst() external {
        Item[] memory items = batch(0xCAFE, 1, 1 ether, true);
        settlement.settle(node, items);
        measured("settle one client, first", 1, 90_000);
    }

    function testGas_settleRepeat() external {
        settleClients(0xCAFE, 1, 1 ether);
        Item[] memory items = batch(0xCAFE, 1, 2 ether, false);
        settlement.settle(node, items);
        measured("settle one client, repeat", 1, 90_000);
    }

    function testGas_settleInNewEpoch() external {
        Item[] memory items = batch(0xCAFE, 1, 1 ether, true);
        toEpoch(today() + 1);
        settlement.settle(node, items);
        measured("settle one client, first of its epoch", 1, 90_000);
    }

    function testGas_settle50First() external {
        Item[] memory items = batch(0xCAFE, 50, 1 ether, true);
        settlement.settle(node, items);
        measured("settle 50 clients, first", 50, 27_000);
    }

    function testGas_settle50Repeat() external {
        settleClients(0xCAFE, 50, 1 ether);
        Item[] memory items = batch(0xCAFE, 50, 3 ether, false);
        settlement.settle(node, items);
        measured("settle 50 clients, repeat", 50, 27_000);
    }

    function testGas_claim50() external {
        uint256 epoch = today() + 1;
        toEpoch(epoch + 1);
        ClaimItem[] memory items = claimItems(OPERATOR_KEY, epoch, 50, 123_456, 1);
        vm.prank(node);
        emission.claim(node, epoch, items);
        measured("claim 50 sessions", 50, 22_000);
    }

    function testGas_mint() external {
        uint256 epoch = today() + 1;
        toEpoch(epoch + 1);
        ClaimItem[] memory items = claimItems(OPERATOR_KEY, epoch, 1, 123_456, 1);
        vm.prank(node);
        emission.claim(node, epoch, items);
        toEpoch(epoch + 2);
        emission.mint(node, epoch);
        measured("mint an epoch's share", 1, 130_000);
    }

    function testGas_equivocation() external {
        bytes32 id = keccak256("session");
        Statement memory a = statement(OPERATOR_KEY, id, 400, client, 1000, keccak256("one"));
        Statement memory b = statement(OPERATOR_KEY, id, 400, client, 1000, keccak256("two"));
        vm.prank(address(0xEE00));
        disputes.proveEquivocation(node, id, 400, a, b);
        measured("equivocation proof", 1, 90_000);
    }

    function testGas_fundFourNodes() external {
        (address[] memory nodes, uint96[] memory amounts) = (new address[](4), new uint96[](4));
        for (uint256 i; i < 4; ++i) {
            (nodes[i], amounts[i]) = (address(uint160(0x10000 + i)), 5 ether);
        }
        give(client, 20 ether);
        vm.prank(client);
        token.approve(address(settlement), 20 ether);
        vm.prank(client);
        settlement.fund(client, nodes, amounts, noPermit());
        measured("fund four nodes", 1, 200_000);
    }

    /// @dev The first of an account; a later one costs 17,100 less.
    function testGas_thaw() external {
        fill(client, node, DEPOSIT);
        vm.prank(client);
        settlement.thaw(node);
        measured("thaw an account, first", 1, 60_000);
    }

    /// @dev Settled, paid out and open again, by the client's signature.
    function testGas_closeBySig() external {
        fill(client, node, DEPOSIT);
        Item[] memory items = one(item(OPERATOR_KEY, client, CLIENT_KEY, 1 ether));
        uint64 end = uint64(vm.getBlockTimestamp() + 10 minutes);
        Release memory release = Release(1 ether, end, sign(OPERATOR_KEY, releaseDigest(node, client, 1 ether, end)));
        bytes memory order = packed(sign(CLIENT_KEY, orderDigest("Close", client, node, 0, end)));
        settlement.closeBySig(client, node, release, items, end, order);
        measured("close an account by signature", 1, 170_000);
    }
}
