// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @notice What a deployment fixes for ever. Times in seconds, amounts in wei of credits or of the chain's coin.
struct Fixed {
    /// The fee of a settlement, in 1/10,000 of what is burned.
    uint16 fee;
    /// The length of an epoch; the epoch is `block.timestamp / epoch`.
    uint32 epoch;
    /// How long an account thaws, and how long a voucher outlives its key.
    uint32 thaw;
    /// The blocks that a thaw lasts at least: a chain that stood still for all of it gives nodes time to settle.
    uint32 thawBlocks;
    /// How long stake stays slashable after `unbond`.
    uint32 unbond;
    /// The timelock: a change counts for epochs that begin after it.
    uint32 delay;
    /// The number of epochs after which the bootstrap halves.
    uint32 halving;
    /// The least stake of a bonded node (wei of the chain's coin).
    uint96 minStake;
    /// The most that donated work mints in one epoch (credits).
    uint96 cap;
    /// The bootstrap of the first epochs (credits).
    uint96 bootstrap;
}

/// @notice The single numbers that the timelocked owner may change.
enum Setting {
    /// Lane-B units that one coin of stake carries per epoch.
    UnitsPerCoin,
    /// The most credits (wei) minted per 1e18 units of bounded weight.
    MaxPerUnit,
    /// M: the auditors' signatures that a strike or pardon needs; never fewer than at the deployment.
    Quorum,
    /// m: the live strikes that cost 20 % of the stake; at least 4, never fewer than at the deployment.
    StrikeLimit,
    /// K: the epochs within which they must lie; m to 20, never more than at the deployment.
    StrikeWindow,
    /// APPEAL: the epochs after that of the strike in which it may be pardoned.
    Appeal
}

/// @title The numbers of a deployment
/// @notice The fixed ones, and the history by epoch of those that the timelocked owner may change. No change reaches
/// an epoch that has begun, or that begins before the delay is over. The owner may hand itself to a multisig or renounce.
interface IParameters {
    /// @notice `setting` is `value` from `epoch` on.
    event Scheduled(Setting indexed setting, uint256 value, uint256 epoch);
    /// @notice `modelId` pays `rate` mega-FLOP per token and block from `epoch` on; 0 = not paid.
    event RateScheduled(bytes32 indexed modelId, uint64 rate, uint256 epoch);
    /// @notice `auditor` is one, or is none any more, from `epoch` on.
    event AuditorScheduled(address indexed auditor, bool active, uint256 epoch);
    /// @notice `fund` and `mint` are stopped until then.
    event Paused(uint256 until);
    /// @notice They go on before that.
    event Unpaused();

    /// @notice A fixed number is out of its range; `name` says which.
    error BadFixed(bytes32 name);
    /// @notice A setting is out of its range `[low, high]`.
    error BadSetting(Setting setting, uint256 value, uint256 low, uint256 high);
    /// @notice Two lists that must be equally long are not.
    error LengthMismatch(uint256 left, uint256 right);
    /// @notice A pause runs, or ended less than 7 days ago; the next may begin at `free`.
    error PausedLately(uint256 free);

    /// @notice Changes `setting` for epochs that begin after the delay. Only the owner.
    function schedule(Setting setting, uint256 value) external;

    /// @notice Changes what a model's work counts, for epochs that begin after the delay. Only the owner.
    function scheduleRate(bytes32 modelId, uint64 rate) external;

    /// @notice Adds or removes an auditor, for epochs that begin after the delay. Only the owner.
    function scheduleAuditor(address auditor, bool active) external;

    /// @notice Stops `Settlement.fund` and `Emission.mint`, at once and for 7 days at most; for as long after its end
    /// there is no other pause. Neither has a time that could be missed. Only the owner.
    function pause() external;

    /// @notice Ends a pause. Only the owner.
    function unpause() external;

    /// @notice True while `fund` and `mint` are stopped.
    function paused() external view returns (bool);

    /// @notice When the newest pause ends, or ended (seconds); 0 if there was none.
    function pausedUntil() external view returns (uint256);

    /// @notice The epoch of the block's time.
    function currentEpoch() external view returns (uint256);

    /// @notice The first epoch that a change made now can reach.
    function nextChange() external view returns (uint256);

    /// @notice `setting` as it counts in `epoch`.
    function valueAt(Setting setting, uint256 epoch) external view returns (uint256);

    /// @notice What a token of `modelId` counts per block in `epoch`, in mega-FLOP.
    function rateAt(bytes32 modelId, uint256 epoch) external view returns (uint256);

    /// @notice Whether `auditor` is one in `epoch`.
    function isAuditor(address auditor, uint256 epoch) external view returns (bool);

    /// @notice All fixed numbers.
    function fixedNumbers() external view returns (Fixed memory);

    /// @notice The epoch of the deployment, from which the bootstrap counts.
    function GENESIS() external view returns (uint256);
}
