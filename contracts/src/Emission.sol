// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {IBound} from "./interfaces/IBound.sol";
import {ICreditToken} from "./interfaces/ICreditToken.sol";
import {IDisputes} from "./interfaces/IDisputes.sol";
import {ClaimItem, ClaimRecord, ClaimSkip, IEmission, Status} from "./interfaces/IEmission.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {Fixed, IParameters, Setting} from "./interfaces/IParameters.sol";
import {ISettlement} from "./interfaces/ISettlement.sol";
import {Session, Signed} from "./Signed.sol";

/// @title Donated work shares a capped emission
/// @dev Nothing loops over nodes; what is not minted lapses. Deployed last: it checks that all contracts of the
/// deployment name each other.
contract Emission is IEmission, Signed {
    uint256 private constant ONE = 1e18;

    IParameters public immutable PARAMETERS;
    ICreditToken public immutable TOKEN;
    INodeRegistry public immutable REGISTRY;
    IDisputes public immutable DISPUTES;
    uint256 public immutable EPOCH;
    uint256 public immutable CAP;
    uint256 public immutable FIRST_BOOTSTRAP;
    uint256 public immutable HALVING;
    uint256 public immutable GENESIS;

    mapping(address node => mapping(uint256 epoch => ClaimRecord)) private _claims;
    mapping(uint256 epoch => Total) private _totals;
    /// @inheritdoc IEmission
    uint256 public mintedTotal;

    /// @dev What an epoch's claims share. `budget` is E, fixed by the first claim: only then are its fees final and known.
    struct Total {
        uint160 weight;
        uint96 budget;
    }

    /// @dev What is the same for all items of one claim, and the rate of the model met last (none has id 0).
    struct Batch {
        bytes32 domain;
        address node;
        uint256 epoch;
        bytes32 lastSessionId;
        uint256 units;
        uint256 counted;
        bytes32 modelId;
        uint256 rate;
    }

    constructor(
        IParameters parameters,
        address settlement,
        ICreditToken token,
        INodeRegistry registry,
        IDisputes disputes
    ) Signed(settlement) {
        Fixed memory numbers = parameters.fixedNumbers();
        PARAMETERS = parameters;
        TOKEN = token;
        REGISTRY = registry;
        DISPUTES = disputes;
        EPOCH = numbers.epoch;
        CAP = numbers.cap;
        FIRST_BOOTSTRAP = numbers.bootstrap;
        HALVING = numbers.halving;
        GENESIS = parameters.GENESIS();
        _checkBindings();
    }

    /// @inheritdoc IEmission
    function claim(address node, uint256 epoch, ClaimItem[] calldata items) external {
        if (msg.sender != node && msg.sender != REGISTRY.ownerOf(node)) revert NotOperatorOrOwner(node, msg.sender);
        if (epoch + 1 != currentEpoch()) revert WrongEpoch(epoch, currentEpoch());
        if (REGISTRY.isRetired(node)) revert IsRetired(node);
        ClaimRecord storage record = _claims[node][epoch];
        Batch memory batch = Batch({
            domain: separator(),
            node: node,
            epoch: epoch,
            lastSessionId: record.lastSessionId,
            units: record.units,
            counted: 0,
            modelId: 0,
            rate: 0
        });
        for (uint256 i; i < items.length; ++i) {
            ClaimSkip reason = _count(batch, items[i]);
            if (reason != ClaimSkip.None) emit ClaimSkipped(node, epoch, i, reason);
        }
        uint256 weight = _weight(node, epoch, batch.units);
        // The sum holds the old weight, and 160 bits the weights of 2^40 nodes.
        unchecked {
            uint256 sum = _totals[epoch].weight - record.weight + weight;
            _totals[epoch] = Total(uint160(sum), uint96(budget(epoch)));
        }
        record.lastSessionId = batch.lastSessionId;
        record.units = uint120(batch.units);
        record.weight = uint120(weight);
        emit Claimed(node, epoch, batch.counted, batch.units, weight);
    }

    /// @inheritdoc IEmission
    function mint(address node, uint256 epoch) external returns (uint256 amount) {
        if (PARAMETERS.paused()) revert MintsPaused();
        uint256 current = currentEpoch();
        if (current < epoch + 2) revert TooEarly(epoch, current);
        ClaimRecord storage record = _claims[node][epoch];
        if (record.weight == 0) revert NothingClaimed(node, epoch);
        if (record.minted) revert AlreadyMinted(node, epoch);
        if (_isVoid(node, epoch)) revert ShareVoid(node, epoch);
        amount = _share(record.weight, epoch);
        address payout = REGISTRY.payoutOf(node);
        record.minted = true;
        mintedTotal += amount;
        emit Minted(node, epoch, payout, amount);
        TOKEN.mint(payout, amount);
    }

    /// @inheritdoc IEmission
    function pending(address node, uint256 epoch) external view returns (uint256 amount, Status status) {
        ClaimRecord memory record = _claims[node][epoch];
        if (record.weight == 0) return (0, Status.Nothing);
        amount = _share(record.weight, epoch);
        if (record.minted) return (amount, Status.Minted);
        if (_isVoid(node, epoch)) return (0, Status.Void);
        bool waits = currentEpoch() < epoch + 2 || PARAMETERS.paused();
        status = waits ? Status.Waiting : Status.Mintable;
    }

    /// @inheritdoc IEmission
    function claimOf(address node, uint256 epoch) external view returns (ClaimRecord memory) {
        return _claims[node][epoch];
    }

    /// @inheritdoc IEmission
    function totalWeight(uint256 epoch) external view returns (uint256) {
        return _totals[epoch].weight;
    }

    /// @inheritdoc IEmission
    function budget(uint256 epoch) public view returns (uint256) {
        uint256 known = _totals[epoch].budget;
        if (known != 0 || epoch + 1 < currentEpoch()) return known;
        return Math.min(CAP, ISettlement(SETTLEMENT).feesBurned(epoch) + bootstrap(epoch));
    }

    /// @inheritdoc IEmission
    function bootstrap(uint256 epoch) public view returns (uint256) {
        return epoch < GENESIS ? 0 : FIRST_BOOTSTRAP >> ((epoch - GENESIS) / HALVING);
    }

    /// @inheritdoc IEmission
    function currentEpoch() public view returns (uint256) {
        return block.timestamp / EPOCH;
    }

    /// @inheritdoc IEmission
    function sessionDigest(Session calldata session) external view returns (bytes32) {
        return _sessionDigest(separator(), session);
    }

    /// @dev Adds one session to the batch, or says why not.
    function _count(Batch memory batch, ClaimItem calldata item) private view returns (ClaimSkip) {
        Session calldata session = item.session;
        if (session.node != batch.node) return ClaimSkip.ForeignNode;
        if (session.price != 0) return ClaimSkip.NotFree;
        if (session.expiry / EPOCH != batch.epoch) return ClaimSkip.WrongEpoch;
        if (session.endBlock <= session.firstBlock) return ClaimSkip.EmptySpan;
        bytes32 sessionId = _sessionDigest(batch.domain, session);
        if (sessionId <= batch.lastSessionId) return ClaimSkip.NotRising;
        if (session.modelId != batch.modelId) {
            batch.rate = PARAMETERS.rateAt(session.modelId, batch.epoch);
            batch.modelId = session.modelId;
        }
        if (batch.rate == 0) return ClaimSkip.UnknownModel;
        ClaimSkip reason = _checkSignatures(batch, item, sessionId);
        if (reason != ClaimSkip.None) return reason;
        // At most 64 + 32 + 64 bits, so neither product nor sum can overflow before it is cut off.
        unchecked {
            uint256 units = uint256(item.tokens) * (session.endBlock - session.firstBlock) * batch.rate;
            batch.units = Math.min(batch.units + units, type(uint120).max);
            ++batch.counted;
        }
        batch.lastSessionId = sessionId;
        return ClaimSkip.None;
    }

    function _checkSignatures(Batch memory batch, ClaimItem calldata item, bytes32 sessionId)
        private
        pure
        returns (ClaimSkip)
    {
        bytes32 receipt = _receiptDigest(
            batch.domain, batch.node, item.session.client, sessionId, item.step, item.tokens, item.head
        );
        if (_signer(receipt, item.receiptR, item.receiptVs) != batch.node) return ClaimSkip.BadReceipt;
        address signer = _signer(_voucherDigest(batch.domain, receipt, 0), item.voucherR, item.voucherVs);
        if (signer == address(0) || signer != item.session.sessionKey) return ClaimSkip.BadVoucher;
        return ClaimSkip.None;
    }

    function _weight(address node, uint256 epoch, uint256 units) private view returns (uint256) {
        uint256 stake = REGISTRY.stakeFor(node, epoch);
        return Math.min(units, stake * PARAMETERS.valueAt(Setting.UnitsPerCoin, epoch) / ONE);
    }

    function _share(uint256 weight, uint256 epoch) private view returns (uint256) {
        uint256 byBudget = weight * _totals[epoch].budget / _totals[epoch].weight;
        uint256 byStake = weight * PARAMETERS.valueAt(Setting.MaxPerUnit, epoch) / ONE;
        return Math.min(byBudget, byStake);
    }

    function _isVoid(address node, uint256 epoch) private view returns (bool) {
        return DISPUTES.struck(node, epoch) || REGISTRY.slashedSince(node, epoch);
    }

    /// @dev Addresses are computed from the deployer's nonce beforehand; here they are compared.
    function _checkBindings() private view {
        _require(TOKEN.SETTLEMENT() == SETTLEMENT && TOKEN.EMISSION() == address(this), address(TOKEN));
        IBound registry = IBound(address(REGISTRY));
        _require(registry.SETTLEMENT() == SETTLEMENT && REGISTRY.DISPUTES() == address(DISPUTES), address(REGISTRY));
        _require(IBound(SETTLEMENT).TOKEN() == address(TOKEN), SETTLEMENT);
        _requireSame(IBound(SETTLEMENT));
        _requireSame(IBound(address(DISPUTES)));
    }

    function _requireSame(IBound bound) private view {
        bool same = bound.SETTLEMENT() == SETTLEMENT && bound.PARAMETERS() == address(PARAMETERS)
            && bound.REGISTRY() == address(REGISTRY);
        _require(same, address(bound));
    }

    function _require(bool bound, address contract_) private pure {
        if (!bound) revert WrongBinding(contract_);
    }
}
