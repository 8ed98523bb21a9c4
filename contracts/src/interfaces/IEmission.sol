// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Session} from "../Signed.sol";

/// @notice One donated session's last countersigned receipt; 640 bytes of calldata.
struct ClaimItem {
    Session session;
    uint64 step;
    uint64 tokens;
    bytes32 head;
    bytes32 receiptR;
    bytes32 receiptVs;
    /// The signature of the session's key over the voucher with total 0.
    bytes32 voucherR;
    bytes32 voucherVs;
}

/// @notice What one node has claimed for one epoch.
struct ClaimRecord {
    /// The highest session counted so far.
    bytes32 lastSessionId;
    /// Work, in units of mega-FLOP; what does not fit is cut off.
    uint120 units;
    /// Work bounded by stake, so never more than `units`; what shares the emission.
    uint120 weight;
    bool minted;
}

/// @notice Why an item of a claim was skipped.
enum ClaimSkip {
    None,
    /// The session is with another node.
    ForeignNode,
    /// The session was paid.
    NotFree,
    /// The session expires outside the claimed epoch.
    WrongEpoch,
    /// The session's id is not above those counted before.
    NotRising,
    /// The session's span is empty.
    EmptySpan,
    /// The session's model is not paid for.
    UnknownModel,
    /// The receipt is not signed by the node.
    BadReceipt,
    /// The voucher with total 0 is not signed by the session's key.
    BadVoucher
}

/// @notice Where a node's share of an epoch stands.
enum Status {
    /// Nothing is claimed.
    Nothing,
    /// Claimed; mintable from two epochs after the claimed one, unless a pause runs.
    Waiting,
    /// `mint` would pay it now.
    Mintable,
    /// Paid.
    Minted,
    /// A strike that is not pardoned, or a slash, voids it.
    Void
}

/// @title Donated work shares a capped emission
interface IEmission {
    /// @notice `counted` more sessions of `node` count for `epoch`; `units` and `weight` are the new sums.
    event Claimed(address indexed node, uint256 indexed epoch, uint256 counted, uint256 units, uint256 weight);
    /// @notice Item `index` of the claim did nothing.
    event ClaimSkipped(address indexed node, uint256 indexed epoch, uint256 index, ClaimSkip reason);
    /// @notice `node` got its share of `epoch`.
    event Minted(address indexed node, uint256 indexed epoch, address indexed payout, uint256 amount);

    /// @notice `mint` is paused; claiming never is.
    error MintsPaused();
    /// @notice Only the node's operator or owner may claim.
    error NotOperatorOrOwner(address node, address caller);
    /// @notice Claims for an epoch are taken during the next one only.
    error WrongEpoch(uint256 epoch, uint256 currentEpoch);
    /// @notice The operator key is retired.
    error IsRetired(address node);
    /// @notice Mints begin two epochs after the claimed one.
    error TooEarly(uint256 epoch, uint256 currentEpoch);
    /// @notice The node has claimed nothing for that epoch.
    error NothingClaimed(address node, uint256 epoch);
    /// @notice That share was minted before.
    error AlreadyMinted(address node, uint256 epoch);
    /// @notice A strike or a slash voids the share.
    error ShareVoid(address node, uint256 epoch);
    /// @notice The contracts of this deployment do not name each other.
    error WrongBinding(address contract_);

    /// @notice Counts donated sessions of `node` that expired in `epoch`, the last one. Only its operator or owner.
    /// @param items in strictly rising order of session ids, over all claims of the epoch; bad ones are skipped
    function claim(address node, uint256 epoch, ClaimItem[] calldata items) external;

    /// @notice Mints the share of `node` of `epoch` to its payout address, once. By anyone.
    function mint(address node, uint256 epoch) external returns (uint256 amount);

    /// @notice E: the most that is minted for `epoch`; final once the epoch is over. 0 if nobody claimed in time.
    function budget(uint256 epoch) external view returns (uint256);

    /// @notice The part of `budget` that does not come from fees.
    function bootstrap(uint256 epoch) external view returns (uint256);

    /// @notice The sum of all weights of `epoch`.
    function totalWeight(uint256 epoch) external view returns (uint256);

    /// @notice What `node` has claimed for `epoch`.
    function claimOf(address node, uint256 epoch) external view returns (ClaimRecord memory);

    /// @notice What `mint` pays, by what is known now, and where it stands.
    function pending(address node, uint256 epoch) external view returns (uint256 amount, Status status);

    /// @notice All credits that donated work has minted.
    function mintedTotal() external view returns (uint256);

    /// @notice The epoch of the block's time.
    function currentEpoch() external view returns (uint256);

    /// @notice The digest of a session: its id.
    function sessionDigest(Session calldata session) external view returns (bytes32);
}
