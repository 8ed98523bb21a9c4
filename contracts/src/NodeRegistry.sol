// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Fixed, IParameters} from "./interfaces/IParameters.sol";
import {INodeRegistry, Node} from "./interfaces/INodeRegistry.sol";
import {Signature, Signed} from "./Signed.sol";

/// @title Who serves: keys, peer ids, payouts and stake
contract NodeRegistry is INodeRegistry, Signed {
    /// @dev A reporter's share of a slash is one part in this many.
    uint256 private constant REWARD_PART = 10;

    uint256 public immutable EPOCH;
    uint256 public immutable UNBOND;
    uint256 public immutable MIN_STAKE;
    /// @inheritdoc INodeRegistry
    address public immutable DISPUTES;

    mapping(address node => Node) private _nodes;
    /// @inheritdoc INodeRegistry
    mapping(address node => address) public offeredTo;
    /// @inheritdoc INodeRegistry
    mapping(address reporter => uint256) public rewardOf;

    modifier onlyOwner(address node) {
        if (_nodes[node].owner != msg.sender) revert NotOwner(node, msg.sender);
        _;
    }

    modifier onlyDisputes() {
        if (msg.sender != DISPUTES) revert NotDisputes(msg.sender);
        _;
    }

    constructor(IParameters parameters, address settlement, address disputes) Signed(settlement) {
        Fixed memory numbers = parameters.fixedNumbers();
        EPOCH = numbers.epoch;
        UNBOND = numbers.unbond;
        MIN_STAKE = numbers.minStake;
        DISPUTES = disputes;
    }

    /// @inheritdoc INodeRegistry
    function register(address operator, bytes32 peerIdHash, address payout, Signature calldata signature)
        external
        payable
    {
        Node storage node = _nodes[operator];
        if (node.owner != address(0)) revert AlreadyRegistered(operator);
        if (payout == address(0)) revert ZeroAddress();
        _checkConsent(msg.sender, operator, peerIdHash, signature);
        node.owner = msg.sender;
        node.payout = payout;
        node.peerIdHash = peerIdHash;
        emit Registered(operator, msg.sender, payout, peerIdHash);
        if (msg.value != 0) _bond(operator);
    }

    /// @inheritdoc INodeRegistry
    function setPeer(address node, bytes32 peerIdHash, Signature calldata signature) external onlyOwner(node) {
        _checkConsent(msg.sender, node, peerIdHash, signature);
        _nodes[node].peerIdHash = peerIdHash;
        emit PeerChanged(node, peerIdHash);
    }

    /// @inheritdoc INodeRegistry
    function setPayout(address node, address payout) external onlyOwner(node) {
        if (payout == address(0)) revert ZeroAddress();
        _nodes[node].payout = payout;
        emit PayoutChanged(node, payout);
    }

    /// @inheritdoc INodeRegistry
    function offerOwnership(address node, address to) external onlyOwner(node) {
        offeredTo[node] = to;
        emit OwnershipOffered(node, to);
    }

    /// @inheritdoc INodeRegistry
    function acceptOwnership(address node) external {
        if (offeredTo[node] != msg.sender) revert NotOffered(node, msg.sender);
        offeredTo[node] = address(0);
        _nodes[node].owner = msg.sender;
        emit OwnerChanged(node, msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function bond(address node) external payable onlyOwner(node) {
        _bond(node);
    }

    /// @inheritdoc INodeRegistry
    function unbond(address node) external onlyOwner(node) {
        Node storage record = _nodes[node];
        uint96 amount = record.bonded;
        if (amount == 0) revert NothingBonded(node);
        _remember(record);
        uint64 end = SafeCast.toUint64(block.timestamp + UNBOND);
        record.bonded = 0;
        // Nothing is unbonding yet: `bond` refuses new stake until the old one has left.
        record.unbonding = amount;
        record.unbondEnd = end;
        emit Unbonding(node, amount, end);
    }

    /// @inheritdoc INodeRegistry
    function withdrawStake(address node, address to) external onlyOwner(node) {
        Node storage record = _nodes[node];
        uint96 amount = record.unbonding;
        if (amount == 0) revert NothingToWithdraw(node);
        if (block.timestamp <= record.unbondEnd) revert IsUnbonding(node, record.unbondEnd);
        if (to == address(0)) revert ZeroAddress();
        record.unbonding = 0;
        record.unbondEnd = 0;
        emit StakeWithdrawn(node, to, amount);
        Address.sendValue(payable(to), amount);
    }

    /// @inheritdoc INodeRegistry
    function pullReward(address to) external {
        uint256 amount = rewardOf[msg.sender];
        if (amount == 0) revert NothingToWithdraw(msg.sender);
        if (to == address(0)) revert ZeroAddress();
        rewardOf[msg.sender] = 0;
        emit RewardPulled(msg.sender, to, amount);
        Address.sendValue(payable(to), amount);
    }

    /// @inheritdoc INodeRegistry
    function slash(address node, uint256 bps, address reporter) external onlyDisputes {
        Node storage record = _nodes[node];
        (uint256 bonded, uint256 unbonding) = (record.bonded, record.unbonding);
        uint256 fromBonded = bonded * bps / 10_000;
        uint256 fromUnbonding = unbonding * bps / 10_000;
        record.bonded = uint96(bonded - fromBonded);
        record.slashedEpoch = SafeCast.toUint32(block.timestamp / EPOCH);
        if (fromUnbonding != 0) record.unbonding = uint96(unbonding - fromUnbonding);
        uint256 lost = fromBonded + fromUnbonding;
        uint256 reward = reporter == address(0) ? 0 : lost / REWARD_PART;
        if (reward != 0) rewardOf[reporter] += reward;
        emit Slashed(node, lost, reporter, reward);
    }

    /// @inheritdoc INodeRegistry
    function retire(address node) external onlyDisputes {
        if (_nodes[node].retired) revert IsRetired(node);
        _nodes[node].retired = true;
        emit Retired(node);
    }

    /// @inheritdoc INodeRegistry
    function nodeOf(address node) external view returns (Node memory) {
        return _nodes[node];
    }

    /// @inheritdoc INodeRegistry
    function nodesOf(address[] calldata nodes) external view returns (Node[] memory records) {
        records = new Node[](nodes.length);
        for (uint256 i; i < nodes.length; ++i) {
            records[i] = _nodes[nodes[i]];
        }
    }

    /// @inheritdoc INodeRegistry
    function payoutOf(address node) external view returns (address) {
        return _nodes[node].payout;
    }

    /// @inheritdoc INodeRegistry
    function ownerOf(address node) external view returns (address) {
        return _nodes[node].owner;
    }

    /// @inheritdoc INodeRegistry
    function isRetired(address node) external view returns (bool) {
        return _nodes[node].retired;
    }

    /// @inheritdoc INodeRegistry
    function stakeFor(address node, uint256 epoch) external view returns (uint256) {
        Node storage record = _nodes[node];
        uint256 change = record.changeEpoch;
        uint256 atStart = epoch > change
            ? record.bonded
            : epoch == change ? record.bondedAtChange : epoch + 1 == change ? record.bondedBeforeChange : 0;
        // What left or was slashed since then no longer counts. New stake can't take its place within the two epochs
        // that are asked for: UNBOND is longer.
        return Math.min(atStart, record.bonded);
    }

    /// @inheritdoc INodeRegistry
    function slashedSince(address node, uint256 epoch) external view returns (bool) {
        uint256 slashed = _nodes[node].slashedEpoch;
        return slashed != 0 && slashed >= epoch;
    }

    /// @inheritdoc INodeRegistry
    function operatorDigest(address owner, address operator, bytes32 peerIdHash) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(OPERATOR_TYPEHASH, owner, operator, peerIdHash)));
    }

    function _bond(address node) private {
        Node storage record = _nodes[node];
        if (record.retired) revert IsRetired(node);
        if (record.unbonding != 0) revert IsUnbonding(node, record.unbondEnd);
        uint256 stake = record.bonded + msg.value;
        if (stake < MIN_STAKE) revert StakeTooSmall(stake, MIN_STAKE);
        _remember(record);
        record.bonded = SafeCast.toUint96(stake);
        emit Bonded(node, msg.value, stake);
    }

    /// @dev Keeps the stake that this epoch and the last one began with, before `bonded` changes.
    function _remember(Node storage record) private {
        uint256 epoch = block.timestamp / EPOCH;
        uint256 change = record.changeEpoch;
        if (epoch <= change) return;
        record.bondedBeforeChange = epoch > change + 1 ? record.bonded : record.bondedAtChange;
        record.bondedAtChange = record.bonded;
        record.changeEpoch = SafeCast.toUint32(epoch);
    }

    /// @dev Nobody can enter another's operator key and take its pay.
    function _checkConsent(address owner, address operator, bytes32 peerIdHash, Signature calldata signature)
        private
        view
    {
        bytes32 digest = operatorDigest(owner, operator, peerIdHash);
        if (operator == address(0) || _signer(digest, signature.r, signature.vs) != operator) {
            revert BadOperatorSignature(operator);
        }
    }
}
