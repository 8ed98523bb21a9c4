// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {Checkpoints} from "@openzeppelin/contracts/utils/structs/Checkpoints.sol";
import {Fixed, IParameters, Setting} from "./interfaces/IParameters.sol";

/// @title The numbers of a deployment
/// @dev Changeable numbers are checkpoints keyed by epoch: a change is written at once and read from its epoch on.
contract Parameters is IParameters, Ownable2Step {
    using Checkpoints for Checkpoints.Trace208;

    /// @dev Epochs that stake must outlive beside the appeal: the claimed one, that of the claim, that of the mint.
    uint256 private constant DONATED_EPOCHS = 3;
    /// @dev What P9 is computed for: so many strikes, within so many epochs. A deployment may only be milder.
    uint256 private constant LEAST_STRIKES = 4;
    uint256 private constant LONGEST_WINDOW = 20;
    /// @dev How long a pause lasts at most, and how long none can follow it.
    uint256 private constant LONGEST_PAUSE = 7 days;
    /// @dev The id of development chains.
    uint256 private constant DEVELOPMENT = 31_337;

    /// @inheritdoc IParameters
    uint256 public immutable GENESIS;
    /// @inheritdoc IParameters
    uint256 public pausedUntil;

    Fixed private _fixed;
    mapping(Setting setting => Checkpoints.Trace208) private _settings;
    mapping(bytes32 modelId => Checkpoints.Trace208) private _rates;
    mapping(address auditor => Checkpoints.Trace208) private _auditors;

    /// @param owner who may change what is changeable, after the delay
    /// @param fixed_ what is never changed
    /// @param settings the first values, in the order of `Setting`
    /// @param modelIds the models that donated work pays for, and `rates` in mega-FLOP per token and block
    /// @param auditors the first auditors
    constructor(
        address owner,
        Fixed memory fixed_,
        uint256[6] memory settings,
        bytes32[] memory modelIds,
        uint64[] memory rates,
        address[] memory auditors
    ) Ownable(owner) {
        if (fixed_.fee == 0 || fixed_.fee > 10_000) revert BadFixed("fee");
        if (fixed_.epoch == 0) revert BadFixed("epoch");
        if (fixed_.thaw == 0) revert BadFixed("thaw");
        if (fixed_.thawBlocks == 0) revert BadFixed("thawBlocks");
        if (fixed_.delay == 0 && block.chainid != DEVELOPMENT) revert BadFixed("delay");
        if (fixed_.halving == 0) revert BadFixed("halving");
        if (fixed_.unbond < (DONATED_EPOCHS + 1) * fixed_.epoch) revert BadFixed("unbond");
        if (modelIds.length != rates.length) revert LengthMismatch(modelIds.length, rates.length);
        _fixed = fixed_;
        GENESIS = block.timestamp / fixed_.epoch;
        for (uint256 i; i < settings.length; ++i) {
            _set(Setting(i), settings[i], 0);
        }
        for (uint256 i; i < modelIds.length; ++i) {
            _setRate(modelIds[i], rates[i], 0);
        }
        for (uint256 i; i < auditors.length; ++i) {
            _setAuditor(auditors[i], true, 0);
        }
    }

    /// @inheritdoc IParameters
    function schedule(Setting setting, uint256 value) external onlyOwner {
        _set(setting, value, nextChange());
    }

    /// @inheritdoc IParameters
    function scheduleRate(bytes32 modelId, uint64 rate) external onlyOwner {
        _setRate(modelId, rate, nextChange());
    }

    /// @inheritdoc IParameters
    function scheduleAuditor(address auditor, bool active) external onlyOwner {
        _setAuditor(auditor, active, nextChange());
    }

    /// @inheritdoc IParameters
    function pause() external onlyOwner {
        uint256 free = pausedUntil + LONGEST_PAUSE;
        if (block.timestamp < free) revert PausedLately(free);
        pausedUntil = block.timestamp + LONGEST_PAUSE;
        emit Paused(pausedUntil);
    }

    /// @inheritdoc IParameters
    function unpause() external onlyOwner {
        _unpause();
    }

    /// @notice Gives up every change for ever, and ends a pause.
    function renounceOwnership() public override onlyOwner {
        _unpause();
        super.renounceOwnership();
    }

    /// @inheritdoc IParameters
    function paused() public view returns (bool) {
        return block.timestamp < pausedUntil;
    }

    /// @inheritdoc IParameters
    function currentEpoch() external view returns (uint256) {
        return block.timestamp / _fixed.epoch;
    }

    /// @inheritdoc IParameters
    function nextChange() public view returns (uint256) {
        return (block.timestamp + _fixed.delay) / _fixed.epoch + 1;
    }

    /// @inheritdoc IParameters
    function valueAt(Setting setting, uint256 epoch) external view returns (uint256) {
        return _settings[setting].upperLookupRecent(SafeCast.toUint48(epoch));
    }

    /// @inheritdoc IParameters
    function rateAt(bytes32 modelId, uint256 epoch) external view returns (uint256) {
        return _rates[modelId].upperLookupRecent(SafeCast.toUint48(epoch));
    }

    /// @inheritdoc IParameters
    function isAuditor(address auditor, uint256 epoch) external view returns (bool) {
        return _auditors[auditor].upperLookupRecent(SafeCast.toUint48(epoch)) != 0;
    }

    /// @inheritdoc IParameters
    function fixedNumbers() external view returns (Fixed memory) {
        return _fixed;
    }

    function _set(Setting setting, uint256 value, uint256 epoch) private {
        (uint256 low, uint256 high) = _range(setting);
        if (value < low || value > high) revert BadSetting(setting, value, low, high);
        _push(_settings[setting], epoch, value);
        emit Scheduled(setting, value, epoch);
    }

    /// @dev The ranges keep Emission's products inside 256 bits, every appeal shorter than the unbonding, and the strike
    /// rule at least as mild as at the deployment: no fewer auditors, no fewer strikes, no longer window (P9), which
    /// yet fits the strikes. Later changes never count earlier, so the latest limit and window are those that will meet.
    function _range(Setting setting) private view returns (uint256 low, uint256 high) {
        if (setting == Setting.UnitsPerCoin || setting == Setting.MaxPerUnit) return (0, type(uint96).max);
        if (setting == Setting.Appeal) return (1, _fixed.unbond / _fixed.epoch - DONATED_EPOCHS);
        // The constructor writes for epoch 0, the owner never; while the constructor runs it is 0.
        uint256 first = _settings[setting].upperLookup(0);
        if (setting == Setting.Quorum) return (Math.max(1, first), type(uint32).max);
        if (setting == Setting.StrikeLimit) {
            high = _settings[Setting.StrikeWindow].latest();
            return first == 0 ? (LEAST_STRIKES, LONGEST_WINDOW) : (first, high);
        }
        return (_settings[Setting.StrikeLimit].latest(), first == 0 ? LONGEST_WINDOW : first);
    }

    function _setRate(bytes32 modelId, uint64 rate, uint256 epoch) private {
        _push(_rates[modelId], epoch, rate);
        emit RateScheduled(modelId, rate, epoch);
    }

    function _setAuditor(address auditor, bool active, uint256 epoch) private {
        _push(_auditors[auditor], epoch, active ? 1 : 0);
        emit AuditorScheduled(auditor, active, epoch);
    }

    function _push(Checkpoints.Trace208 storage trace, uint256 epoch, uint256 value) private {
        // The answer is the value before, which nobody needs.
        // slither-disable-next-line unused-return
        trace.push(SafeCast.toUint48(epoch), SafeCast.toUint208(value));
    }

    function _unpause() private {
        if (!paused()) return;
        pausedUntil = block.timestamp;
        emit Unpaused();
    }
}
