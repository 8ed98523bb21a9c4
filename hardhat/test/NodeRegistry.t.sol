// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {INodeRegistry, Node} from "../src/interfaces/INodeRegistry.sol";
import {Signature} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";
import {HostileWallet, Reentrant} from "./support/Wallets.sol";

contract NodeRegistryTest is Kit {
    function consent(uint256 key, address owner_, bytes32 peer) private view returns (Signature memory) {
        return sign(key, operatorDigest(owner_, vm.addr(key), peer));
    }

    function bond(uint256 amount) private {
        vm.deal(owner, amount);
        vm.prank(owner);
        registry.bond{value: amount}(node);
    }

    function slash(uint256 bps, address reporter) private {
        vm.prank(address(disputes));
        registry.slash(node, bps, reporter);
    }

    // ---- registration

    function testFuzz_register(address owner_, bytes32 peer, address payout_, uint96 stake) external {
        vm.assume(payout_ != address(0) && owner_ != address(0));
        if (stake != 0) stake = uint96(within(stake, MIN_STAKE, type(uint96).max));
        vm.deal(owner_, stake);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.Registered(node, owner_, payout_, peer);
        Signature memory signature = consent(OPERATOR_KEY, owner_, peer);
        vm.prank(owner_);
        registry.register{value: stake}(node, peer, payout_, signature);
        Node memory record = registry.nodeOf(node);
        eq(record.owner, owner_, "owner");
        eq(registry.ownerOf(node), owner_, "ownerOf");
        eq(record.payout, payout_, "payout");
        eq(registry.payoutOf(node), payout_, "payoutOf");
        eq(record.peerIdHash, peer, "peer");
        eq(record.bonded, stake, "bonded");
        ok(!registry.isRetired(node), "in use");
    }

    function test_registerRefuses() external {
        Signature memory good = consent(OPERATOR_KEY, owner, PEER);
        vm.startPrank(owner);
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        registry.register(node, PEER, address(0), good);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, node));
        registry.register(node, keccak256("another peer"), payout, good);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, address(0)));
        registry.register(address(0), PEER, payout, Signature(0, 0));
        vm.stopPrank();
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, node));
        vm.prank(client);
        registry.register(node, PEER, payout, good);
        vm.prank(owner);
        registry.register(node, PEER, payout, good);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.AlreadyRegistered.selector, node));
        vm.prank(owner);
        registry.register(node, PEER, payout, good);
    }

    function testFuzz_registerNeedsTheOperatorsConsent(uint256 forger, bytes32 r, bytes32 vs) external {
        forger = within(forger, 1, type(uint128).max);
        vm.assume(forger != OPERATOR_KEY);
        Signature memory forged = sign(forger, operatorDigest(owner, node, PEER));
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, node);
        vm.startPrank(owner);
        vm.expectRevert(refusal);
        registry.register(node, PEER, payout, forged);
        vm.expectRevert(refusal);
        registry.register(node, PEER, payout, Signature(r, vs));
        vm.stopPrank();
    }

    // ---- changes by the owner

    function test_setPeerNeedsANewSignature() external {
        register(OPERATOR_KEY, owner, payout, 0);
        bytes32 peer = keccak256("new peer");
        Signature memory old = consent(OPERATOR_KEY, owner, PEER);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, node));
        vm.prank(owner);
        registry.setPeer(node, peer, old);
        Signature memory fresh = consent(OPERATOR_KEY, owner, peer);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.PeerChanged(node, peer);
        vm.prank(owner);
        registry.setPeer(node, peer, fresh);
        eq(registry.nodeOf(node).peerIdHash, peer, "changed");
    }

    function testFuzz_setPeer(bytes32 peer, bytes32 signed, uint256 key) external {
        register(OPERATOR_KEY, owner, payout, 0);
        key = key % 3 == 0 ? within(key, 1, 1 << 128) : OPERATOR_KEY;
        if (uint256(peer) % 2 == 0) signed = peer;
        bool allowed = key == OPERATOR_KEY && signed == peer;
        Signature memory given = sign(key, operatorDigest(owner, node, signed));
        if (!allowed) vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, node));
        vm.prank(owner);
        registry.setPeer(node, peer, given);
        eq(registry.nodeOf(node).peerIdHash, allowed ? peer : PEER, "only by the operator, only this one");
    }

    function testFuzz_setPayout(address to) external {
        vm.assume(to != address(0));
        register(OPERATOR_KEY, owner, payout, 0);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.PayoutChanged(node, to);
        vm.startPrank(owner);
        registry.setPayout(node, to);
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        registry.setPayout(node, address(0));
        vm.stopPrank();
        eq(registry.payoutOf(node), to, "payout");
    }

    function testFuzz_onlyTheOwner(address caller) external {
        register(OPERATOR_KEY, owner, payout, MIN_STAKE);
        vm.assume(caller != owner);
        Signature memory signature = consent(OPERATOR_KEY, caller, PEER);
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.NotOwner.selector, node, caller);
        vm.deal(caller, 1 ether);
        vm.startPrank(caller);
        vm.expectRevert(refusal);
        registry.setPeer(node, PEER, signature);
        vm.expectRevert(refusal);
        registry.setPayout(node, caller);
        vm.expectRevert(refusal);
        registry.bond{value: 1}(node);
        vm.expectRevert(refusal);
        registry.unbond(node);
        vm.expectRevert(refusal);
        registry.withdrawStake(node, caller);
        vm.stopPrank();
    }

    function testFuzz_onlyDisputesSlash(address caller) external {
        vm.assume(caller != address(disputes));
        register(OPERATOR_KEY, owner, payout, MIN_STAKE);
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.NotDisputes.selector, caller);
        vm.startPrank(caller);
        vm.expectRevert(refusal);
        registry.slash(node, 1, caller);
        vm.expectRevert(refusal);
        registry.retire(node);
        vm.stopPrank();
    }

    // ---- stake

    function test_bondAndItsMinimum() external {
        register(OPERATOR_KEY, owner, payout, 0);
        vm.deal(owner, 10 ether);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.StakeTooSmall.selector, MIN_STAKE - 1, MIN_STAKE));
        registry.bond{value: MIN_STAKE - 1}(node);
        registry.bond{value: MIN_STAKE}(node);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.Bonded(node, 5, MIN_STAKE + 5);
        registry.bond{value: 5}(node);
        vm.stopPrank();
        eq(registry.nodeOf(node).bonded, MIN_STAKE + 5, "bonded");
        eq(address(registry).balance, MIN_STAKE + 5, "held");
    }

    /// @dev P8: stake counts from the epoch after that of its deposit, whatever follows in the next epochs.
    function testFuzz_P8_stakeCountsFromTheNextEpoch(uint64[5] memory amounts, uint8[5] memory gaps) external {
        register(OPERATOR_KEY, owner, payout, 0);
        uint256[64] memory history;
        uint256 epoch = today();
        uint256 first = epoch;
        uint256 sum;
        for (uint256 i; i < 5; ++i) {
            uint256 next = epoch + gaps[i] % 4;
            for (; epoch < next; ++epoch) {
                history[epoch + 1 - first] = sum;
            }
            toEpoch(epoch);
            sum += uint256(amounts[i]) + MIN_STAKE;
            bond(uint256(amounts[i]) + MIN_STAKE);
            eq(registry.stakeFor(node, epoch), history[epoch - first], "this epoch");
            if (epoch > first) eq(registry.stakeFor(node, epoch - 1), history[epoch - 1 - first], "the last one");
            eq(registry.stakeFor(node, epoch + 1), sum, "the next one");
        }
    }

    function test_P8_olderEpochsCountNothing() external {
        register(OPERATOR_KEY, owner, payout, 2 ether);
        eq(registry.stakeFor(node, today() - 1), 0, "before");
        eq(registry.stakeFor(node, today() - 2), 0, "long before");
    }

    function test_unbondEndsTheWeightAtOnce() external {
        register(OPERATOR_KEY, owner, payout, 2 ether);
        toEpoch(today() + 2);
        eq(registry.stakeFor(node, today()), 2 ether, "counts");
        uint64 end = uint64(vm.getBlockTimestamp() + UNBOND);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.Unbonding(node, 2 ether, end);
        vm.startPrank(owner);
        registry.unbond(node);
        eq(registry.stakeFor(node, today()), 0, "this epoch");
        eq(registry.stakeFor(node, today() - 1), 0, "the last one");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingBonded.selector, node));
        registry.unbond(node);
        vm.deal(owner, 2 ether);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.IsUnbonding.selector, node, end));
        registry.bond{value: 2 ether}(node);
        vm.warp(end);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.IsUnbonding.selector, node, end));
        registry.withdrawStake(node, owner);
        vm.warp(end + 1);
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        registry.withdrawStake(node, address(0));
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.StakeWithdrawn(node, address(0xD00), 2 ether);
        registry.withdrawStake(node, address(0xD00));
        eq(address(0xD00).balance, 2 ether, "out");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingToWithdraw.selector, node));
        registry.withdrawStake(node, owner);
        registry.bond{value: 2 ether}(node);
        vm.stopPrank();
        eq(registry.stakeFor(node, today()), 0, "bonded anew: not yet");
        eq(registry.stakeFor(node, today() - 1), 0, "bonded anew: not for the past");
        eq(registry.stakeFor(node, today() + 1), 2 ether, "bonded anew: from the next epoch");
    }

    function test_reentrantOwnerIsPaidOnce() external {
        Reentrant greedy = new Reentrant(registry, node);
        vm.deal(address(this), 2 ether);
        greedy.register{value: 2 ether}(payout, PEER, consent(OPERATOR_KEY, address(greedy), PEER));
        register(0xC0FFEE, owner, payout, 5 ether);
        greedy.unbond();
        vm.warp(vm.getBlockTimestamp() + UNBOND + 1);
        greedy.withdraw();
        ok(greedy.tried() && !greedy.succeeded(), "called back in vain");
        eq(address(greedy).balance, 2 ether, "once");
        eq(address(registry).balance, 5 ether, "others' stake");
    }

    function test_hostileReceiverStopsItselfOnly() external {
        HostileWallet hostile = new HostileWallet();
        register(OPERATOR_KEY, owner, payout, 2 ether);
        vm.startPrank(owner);
        registry.unbond(node);
        vm.warp(vm.getBlockTimestamp() + UNBOND + 1);
        vm.expectRevert();
        registry.withdrawStake(node, address(hostile));
        registry.withdrawStake(node, owner);
        vm.stopPrank();
        eq(owner.balance, 2 ether, "paid elsewhere");
    }

    // ---- slashing

    function testFuzz_slash(uint96 stake, uint256 bps, address reporter) external {
        stake = uint96(within(stake, MIN_STAKE, type(uint96).max));
        bps = within(bps, 0, 10_000);
        register(OPERATOR_KEY, owner, payout, stake);
        uint256 lost = uint256(stake) * bps / 10_000;
        uint256 reward = reporter == address(0) ? 0 : lost / 10;
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.Slashed(node, lost, reporter, reward);
        slash(bps, reporter);
        eq(registry.nodeOf(node).bonded, stake - lost, "left");
        eq(registry.rewardOf(reporter), reward, "credited, to be pulled");
        eq(address(registry).balance, stake, "nothing moved");
        ok(registry.slashedSince(node, today()), "this epoch");
        ok(registry.slashedSince(node, today() - 1), "since an earlier one");
        ok(!registry.slashedSince(node, today() + 1), "not since a later one");
    }

    function test_neverSlashed() external {
        register(OPERATOR_KEY, owner, payout, MIN_STAKE);
        ok(!registry.slashedSince(node, 0), "never");
    }

    /// @dev P8: an unbonding stake stays slashable until it leaves.
    function testFuzz_P8_unbondingStakeIsSlashable(uint256 wait) external {
        wait = within(wait, 0, 3 * UNBOND);
        register(OPERATOR_KEY, owner, payout, 10 ether);
        vm.prank(owner);
        registry.unbond(node);
        vm.warp(vm.getBlockTimestamp() + wait);
        slash(5_000, client);
        eq(registry.nodeOf(node).unbonding, 5 ether, "half");
        eq(registry.rewardOf(client), 0.5 ether, "a tenth of that");
        vm.warp(vm.getBlockTimestamp() + UNBOND + 1);
        vm.prank(owner);
        registry.withdrawStake(node, owner);
        eq(owner.balance, 5 ether, "what is left");
    }

    function test_pullReward() external {
        register(OPERATOR_KEY, owner, payout, 10 ether);
        slash(5_000, client);
        slash(5_000, client);
        eq(registry.rewardOf(client), 0.75 ether, "adds up");
        vm.startPrank(client);
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        registry.pullReward(address(0));
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.RewardPulled(client, address(0xD00), 0.75 ether);
        registry.pullReward(address(0xD00));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingToWithdraw.selector, client));
        registry.pullReward(address(0xD00));
        vm.stopPrank();
        eq(address(0xD00).balance, 0.75 ether, "pulled once");
        eq(address(registry).balance, 9.25 ether, "the rest stays, most of it for ever");
    }

    function testFuzz_pullReward(uint96 stake, uint16 bps, address stranger) external {
        stake = uint96(within(stake, MIN_STAKE, 1e27));
        bps = uint16(within(bps, 1, 10_000));
        vm.assume(stranger != client);
        register(OPERATOR_KEY, owner, payout, stake);
        slash(bps, client);
        uint256 reward = uint256(stake) * bps / 10_000 / 10;
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingToWithdraw.selector, stranger));
        vm.prank(stranger);
        registry.pullReward(address(0xD00));
        vm.prank(client);
        registry.pullReward(address(0xD00));
        eq(address(0xD00).balance, reward, "a tenth of what was lost");
        eq(address(registry).balance, stake - reward, "all else stays");
    }

    function test_retire() external {
        register(OPERATOR_KEY, owner, payout, MIN_STAKE);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.Retired(node);
        vm.startPrank(address(disputes));
        registry.retire(node);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.IsRetired.selector, node));
        registry.retire(node);
        vm.stopPrank();
        vm.deal(owner, 1 ether);
        vm.startPrank(owner);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.IsRetired.selector, node));
        registry.bond{value: 1 ether}(node);
        registry.unbond(node);
        vm.warp(vm.getBlockTimestamp() + UNBOND + 1);
        registry.withdrawStake(node, owner);
        vm.stopPrank();
        eq(owner.balance, 1 ether + MIN_STAKE, "the rest may leave");
    }

    function test_nodesOf() external {
        register(OPERATOR_KEY, owner, payout, MIN_STAKE);
        address[] memory list = new address[](2);
        (list[0], list[1]) = (client, node);
        Node[] memory records = registry.nodesOf(list);
        eq(records[0].owner, address(0), "no record");
        eq(records[1].owner, owner, "record");
    }

    function test_knowsItsDeployment() external view {
        eq(registry.DISPUTES(), address(disputes), "disputes");
        eq(registry.EPOCH(), EPOCH, "epoch");
        eq(registry.UNBOND(), UNBOND, "unbond");
        eq(registry.MIN_STAKE(), MIN_STAKE, "minimum");
    }

    // ---- another owner

    function test_anOwnerHandsItsNodeOverInTwoSteps() external {
        address next = address(0x0B00);
        register(OPERATOR_KEY, owner, payout, 5 ether);
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.OwnershipOffered(node, next);
        vm.prank(owner);
        registry.offerOwnership(node, next);
        eq(registry.ownerOf(node), owner, "not before it is accepted");
        eq(registry.offeredTo(node), next, "offered");
        vm.expectEmit(true, true, true, true, address(registry));
        emit INodeRegistry.OwnerChanged(node, next);
        vm.prank(next);
        registry.acceptOwnership(node);
        Node memory record = registry.nodeOf(node);
        eq(record.owner, next, "accepted");
        eq(record.payout, payout, "the payout stays");
        eq(record.bonded, 5 ether, "with its stake");
        eq(registry.offeredTo(node), address(0), "an offer is good once");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, node, owner));
        vm.prank(owner);
        registry.unbond(node);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOffered.selector, node, next));
        vm.prank(next);
        registry.acceptOwnership(node);
    }

    function testFuzz_onlyWhomItWasOfferedTo(address stranger) external {
        vm.assume(stranger != owner && stranger != client && stranger != address(0));
        register(OPERATOR_KEY, owner, payout, 0);
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.NotOffered.selector, node, stranger);
        vm.expectRevert(refusal);
        vm.prank(stranger);
        registry.acceptOwnership(node);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, node, stranger));
        vm.prank(stranger);
        registry.offerOwnership(node, stranger);
        vm.prank(owner);
        registry.offerOwnership(node, client);
        vm.expectRevert(refusal);
        vm.prank(stranger);
        registry.acceptOwnership(node);
        // Taken back, it is nobody's to accept.
        vm.prank(owner);
        registry.offerOwnership(node, address(0));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOffered.selector, node, client));
        vm.prank(client);
        registry.acceptOwnership(node);
        eq(registry.ownerOf(node), owner, "still the first one's");
    }

    /// @dev A consent that the operator gave to the old owner is no use to it or to the new one.
    function test_theOldOwnersConsentEndsWithIt() external {
        register(OPERATOR_KEY, owner, payout, 0);
        Signature memory old = sign(OPERATOR_KEY, operatorDigest(owner, node, keccak256("next")));
        vm.prank(owner);
        registry.offerOwnership(node, client);
        vm.startPrank(client);
        registry.acceptOwnership(node);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.BadOperatorSignature.selector, node));
        registry.setPeer(node, keccak256("next"), old);
        registry.setPeer(node, keccak256("next"), sign(OPERATOR_KEY, operatorDigest(client, node, keccak256("next"))));
        vm.stopPrank();
    }
}
