// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Signature} from "../Signed.sol";

/// @notice One of two receipts that contradict each other.
struct Statement {
    address client;
    uint64 tokens;
    bytes32 head;
    Signature signature;
}

/// @notice One verdict on a node's numbers.
struct StrikeRecord {
    /// The hash of the auditors' evidence; zero if there is no strike.
    bytes32 evidence;
    address accuser;
    /// The last epoch in which the strike may be pardoned.
    uint64 appealEpoch;
    /// Then another strike, by other evidence, may take its place.
    bool pardoned;
}

/// @title What costs a node its stake
/// @notice Equivocation is proved by anyone. Wrong numbers are found by M of N auditors, can be pardoned by M of them,
/// and cost stake only when m strikes live within K epochs. A strike counts until K epochs after its own.
interface IDisputes {
    /// @notice `node` signed two receipts for one step, shown by `reporter`.
    event Equivocated(address indexed node, bytes32 indexed sessionId, uint64 step, address indexed reporter);
    /// @notice `node` has a strike for `epoch`, to be pardoned in `appealEpoch` at the latest.
    event Struck(
        address indexed node, uint256 indexed epoch, bytes32 evidence, address indexed accuser, uint256 appealEpoch
    );
    /// @notice The strike of `node` for `epoch` was taken back.
    event Pardoned(address indexed node, uint256 indexed epoch, bytes32 evidence);
    /// @notice The strikes of `node` for `epochs` cost it stake, and are spent.
    event StrikesSpent(address indexed node, uint256[] epochs);

    /// @notice No such node.
    error NotRegistered(address node);
    /// @notice The two receipts are one and the same.
    error SameReceipt(bytes32 digest);
    /// @notice That receipt is not signed by the node's operator.
    error BadReceipt(bytes32 digest);
    /// @notice Strikes are for the current or the last epoch.
    error WrongEpoch(uint256 epoch, uint256 currentEpoch);
    /// @notice A strike for that node and epoch lives.
    error AlreadyStruck(address node, uint256 epoch);
    /// @notice A strike, pardoned or not, was made of that evidence before.
    error EvidenceUsed(address node, bytes32 evidence);
    /// @notice There is no strike with this evidence to pardon, or it is pardoned.
    error NoStrike(address node, uint256 epoch);
    /// @notice The time to pardon is over.
    error AppealOver(uint256 appealEpoch, uint256 currentEpoch);
    /// @notice A signature is by nobody who is an auditor now.
    error NotAuditor(address signer);
    /// @notice The signers must rise strictly.
    error SignersNotRising(address before, address signer);
    /// @notice Too few signatures count; the accuser's, the owner's and the operator's do not.
    error QuorumMissed(uint256 counted, uint256 quorum);
    /// @notice The evidence's hash must not be zero.
    error NoEvidence();
    /// @notice Fewer than m strikes count now: unspent, at most K epochs old, before the first whose appeal runs.
    error NotEnoughStrikes(uint256 counted, uint256 limit);

    /// @notice Proves that `node` signed two different receipts for one session and step: half of its stake is lost,
    /// a tenth of that goes to the caller, and the operator key is retired. Once per operator key.
    function proveEquivocation(
        address node,
        bytes32 sessionId,
        uint64 step,
        Statement calldata first,
        Statement calldata second
    ) external;

    /// @notice Enters the auditors' verdict on `node` for the current or the last epoch; voids its mint for that epoch.
    /// @param evidence the hash of what was asked and answered; good for one strike of this node
    /// @param accuser the auditor that found it; its signature does not count
    /// @param signatures auditors' over `Strike`, in the order of their addresses
    function strike(
        address node,
        uint256 epoch,
        bytes32 evidence,
        address accuser,
        Signature[] calldata signatures
    ) external;

    /// @notice Takes a strike back, within APPEAL. `signatures` are auditors' over `Pardon`, in address order.
    function pardon(address node, uint256 epoch, bytes32 evidence, Signature[] calldata signatures) external;

    /// @notice Slashes 20 % for the m oldest strikes that live, none older than K epochs, and spends them. By anyone.
    /// A strike under appeal counts not yet, and holds back those after it.
    function slashStruck(address node) external;

    /// @notice Whether `node` has a strike for `epoch` that is not pardoned.
    function struck(address node, uint256 epoch) external view returns (bool);

    /// @notice The newest strike of `node` for `epoch`.
    function strikeOf(address node, uint256 epoch) external view returns (StrikeRecord memory);

    /// @notice The last epoch whose strikes against `node` are spent.
    function spentThrough(address node) external view returns (uint256);

    /// @notice The digest of `Strike(node, epoch, evidence, accuser)`.
    function strikeDigest(address node, uint64 epoch, bytes32 evidence, address accuser)
        external
        view
        returns (bytes32);

    /// @notice The digest of `Pardon(node, epoch, evidence)`.
    function pardonDigest(address node, uint64 epoch, bytes32 evidence) external view returns (bytes32);
}
