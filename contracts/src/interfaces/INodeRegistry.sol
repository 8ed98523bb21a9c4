// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Signature} from "../Signed.sol";

/// @notice One node; kept under its operator's address for ever.
struct Node {
    /// Holds the stake and names the payout; cold.
    address owner;
    /// The operator key signed two receipts for one step: no new stake, no claims.
    bool retired;
    /// Where settled and donated work is minted to; never zero.
    address payout;
    /// keccak256 of the libp2p peer id's multihash bytes.
    bytes32 peerIdHash;
    /// Stake now (wei), and as it was when `changeEpoch` and the epoch before that began.
    uint96 bonded;
    uint96 bondedAtChange;
    /// The epoch of the last change of `bonded`.
    uint32 changeEpoch;
    /// The epoch of the last slash, 0 for never.
    uint32 slashedEpoch;
    uint96 bondedBeforeChange;
    /// Stake that leaves (wei), still slashable, and when it may go.
    uint96 unbonding;
    uint64 unbondEnd;
}

/// @title Who serves: keys, peer ids, payouts and stake
/// @notice A node is named by its operator's address. The owner holds the stake; the operator key can move nothing.
interface INodeRegistry {
    /// @notice `node` exists from now on.
    event Registered(address indexed node, address indexed owner, address payout, bytes32 peerIdHash);
    /// @notice `node` runs under another peer id.
    event PeerChanged(address indexed node, bytes32 peerIdHash);
    /// @notice `node` is paid to another address.
    event PayoutChanged(address indexed node, address payout);
    /// @notice The owner of `node` would hand it to `to`; zero takes an offer back.
    event OwnershipOffered(address indexed node, address indexed to);
    /// @notice `node` with all its stake belongs to `owner` now; its payout stays until the new owner changes it.
    event OwnerChanged(address indexed node, address indexed owner);
    /// @notice `amount` of stake came in; `bonded` is the new sum.
    event Bonded(address indexed node, uint256 amount, uint256 bonded);
    /// @notice All stake leaves, and may be withdrawn after `unbondEnd`.
    event Unbonding(address indexed node, uint256 amount, uint64 unbondEnd);
    /// @notice The stake has left to `to`.
    event StakeWithdrawn(address indexed node, address indexed to, uint256 amount);
    /// @notice `lost` of the stake is gone, `reward` of it to `reporter`; the rest stays locked for ever.
    event Slashed(address indexed node, uint256 lost, address indexed reporter, uint256 reward);
    /// @notice The operator key of `node` takes no stake and claims nothing any more.
    event Retired(address indexed node);
    /// @notice `reporter` took its shares of slashes.
    event RewardPulled(address indexed reporter, address indexed to, uint256 amount);

    /// @notice That operator key has a record already.
    error AlreadyRegistered(address node);
    /// @notice No such node.
    error NotRegistered(address node);
    /// @notice The signature is not the operator's over this owner and peer id.
    error BadOperatorSignature(address node);
    /// @notice An address that must not be zero is.
    error ZeroAddress();
    /// @notice Only the node's owner may do this.
    error NotOwner(address node, address caller);
    /// @notice The node is not offered to the caller.
    error NotOffered(address node, address caller);
    /// @notice Only the contract of disputes may do this.
    error NotDisputes(address caller);
    /// @notice The operator key is retired.
    error IsRetired(address node);
    /// @notice The stake is leaving; it must be withdrawn before new stake comes in.
    error IsUnbonding(address node, uint64 unbondEnd);
    /// @notice There is no bonded stake to take out.
    error NothingBonded(address node);
    /// @notice There is nothing to withdraw.
    error NothingToWithdraw(address account);
    /// @notice The stake would be below the minimum.
    error StakeTooSmall(uint256 stake, uint256 minimum);

    /// @notice Enters `operator` as a node of the caller, with the coin sent along as its first stake, if any.
    /// @param operator the hot key that signs receipts; the node's name
    /// @param peerIdHash keccak256 of the peer id's multihash bytes
    /// @param payout where its credits are minted to
    /// @param signature the operator key's over `Operator(caller, operator, peerIdHash)`
    function register(address operator, bytes32 peerIdHash, address payout, Signature calldata signature)
        external
        payable;

    /// @notice Changes the peer id; `signature` is the operator key's over the new `Operator`. Only the owner.
    function setPeer(address node, bytes32 peerIdHash, Signature calldata signature) external;

    /// @notice Changes where `node` is paid. Only the owner.
    function setPayout(address node, address payout) external;

    /// @notice Adds the coin sent along to the stake; it counts from the next epoch on. Only the owner.
    function bond(address node) external payable;

    /// @notice All stake begins to leave: no lane-B weight from now on, slashable until withdrawn. Only the owner.
    function unbond(address node) external;

    /// @notice Takes out what has left, after UNBOND. Only the owner.
    function withdrawStake(address node, address to) external;

    /// @notice Offers `node`, its stake and its pay to `to`, who takes it by `acceptOwnership`; zero takes an offer back.
    /// Only the owner.
    function offerOwnership(address node, address to) external;

    /// @notice Becomes the owner of a node that was offered to the caller.
    function acceptOwnership(address node) external;

    /// @notice To whom `node` is offered; zero for nobody.
    function offeredTo(address node) external view returns (address);

    /// @notice Takes out the caller's shares of slashes.
    function pullReward(address to) external;

    /// @notice Takes `bps` / 10,000 of bonded and unbonding stake; a tenth of it goes to `reporter` unless zero.
    /// Only the contract of disputes.
    function slash(address node, uint256 bps, address reporter) external;

    /// @notice Takes the operator key of `node` out of use. Only the contract of disputes.
    function retire(address node) external;

    /// @notice The record of `node`; all zero if there is none.
    function nodeOf(address node) external view returns (Node memory);

    /// @notice The records of many nodes.
    function nodesOf(address[] calldata nodes) external view returns (Node[] memory);

    /// @notice Where `node` is paid; zero if it isn't registered.
    function payoutOf(address node) external view returns (address);

    /// @notice Who owns `node`; zero if it isn't registered.
    function ownerOf(address node) external view returns (address);

    /// @notice Whether the operator key of `node` is retired.
    function isRetired(address node) external view returns (bool);

    /// @notice The stake that was bonded before `epoch` began and still is. Right for the current and the last epoch.
    function stakeFor(address node, uint256 epoch) external view returns (uint256);

    /// @notice Whether `node` was slashed in `epoch` or later.
    function slashedSince(address node, uint256 epoch) external view returns (bool);

    /// @notice The shares of slashes that `reporter` may pull (wei).
    function rewardOf(address reporter) external view returns (uint256);

    /// @notice The digest of `Operator(owner, operator, peerIdHash)`.
    function operatorDigest(address owner, address operator, bytes32 peerIdHash) external view returns (bytes32);

    /// @notice The contract that may slash.
    function DISPUTES() external view returns (address);
}
