// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {IDisputes, Statement, StrikeRecord} from "./interfaces/IDisputes.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IParameters, Setting} from "./interfaces/IParameters.sol";
import {Signature, Signed} from "./Signed.sol";

/// @title What costs a node its stake
/// @dev Paid work never waits for anything in here.
contract Disputes is IDisputes, Signed {
    uint256 private constant EQUIVOCATION_BPS = 5_000;
    uint256 private constant STRIKES_BPS = 2_000;

    IParameters public immutable PARAMETERS;
    INodeRegistry public immutable REGISTRY;

    /// @dev The newest strike of each epoch; a pardoned one gives way to another.
    mapping(address node => mapping(uint256 epoch => StrikeRecord)) private _strikes;
    mapping(address node => mapping(bytes32 evidence => bool)) private _shown;
    /// @inheritdoc IDisputes
    mapping(address node => uint256) public spentThrough;

    constructor(IParameters parameters, address settlement, INodeRegistry registry) Signed(settlement) {
        PARAMETERS = parameters;
        REGISTRY = registry;
    }

    /// @inheritdoc IDisputes
    function proveEquivocation(
        address node,
        bytes32 sessionId,
        uint64 step,
        Statement calldata first,
        Statement calldata second
    ) external {
        bytes32 domain = separator();
        bytes32 one = _checkStatement(domain, node, sessionId, step, first);
        bytes32 two = _checkStatement(domain, node, sessionId, step, second);
        if (one == two) revert SameReceipt(one);
        if (REGISTRY.ownerOf(node) == address(0)) revert NotRegistered(node);
        emit Equivocated(node, sessionId, step, msg.sender);
        REGISTRY.retire(node);
        REGISTRY.slash(node, EQUIVOCATION_BPS, msg.sender);
    }

    /// @inheritdoc IDisputes
    function strike(
        address node,
        uint256 epoch,
        bytes32 evidence,
        address accuser,
        Signature[] calldata signatures
    ) external {
        uint256 current = PARAMETERS.currentEpoch();
        if (epoch > current || epoch + 1 < current) revert WrongEpoch(epoch, current);
        if (evidence == 0) revert NoEvidence();
        if (struck(node, epoch)) revert AlreadyStruck(node, epoch);
        if (_shown[node][evidence]) revert EvidenceUsed(node, evidence);
        bytes32 digest = strikeDigest(node, SafeCast.toUint64(epoch), evidence, accuser);
        _checkQuorum(digest, node, accuser, current, signatures);
        uint64 appealEpoch = SafeCast.toUint64(current + PARAMETERS.valueAt(Setting.Appeal, current));
        _shown[node][evidence] = true;
        _strikes[node][epoch] = StrikeRecord(evidence, accuser, appealEpoch, false);
        emit Struck(node, epoch, evidence, accuser, appealEpoch);
    }

    /// @inheritdoc IDisputes
    function pardon(address node, uint256 epoch, bytes32 evidence, Signature[] calldata signatures) external {
        StrikeRecord storage record = _strikes[node][epoch];
        if (evidence == 0 || record.evidence != evidence || record.pardoned) revert NoStrike(node, epoch);
        uint256 current = PARAMETERS.currentEpoch();
        if (current > record.appealEpoch) revert AppealOver(record.appealEpoch, current);
        bytes32 digest = pardonDigest(node, SafeCast.toUint64(epoch), evidence);
        _checkQuorum(digest, node, record.accuser, current, signatures);
        record.pardoned = true;
        emit Pardoned(node, epoch, evidence);
    }

    /// @inheritdoc IDisputes
    function slashStruck(address node) external {
        uint256 current = PARAMETERS.currentEpoch();
        uint256[] memory epochs = new uint256[](PARAMETERS.valueAt(Setting.StrikeLimit, current));
        uint256 counted = 0;
        // Oldest first, up to the first whose appeal runs: which ones are spent is nobody's choice.
        for (uint256 epoch = _oldestThatCounts(node, current); epoch < current && counted < epochs.length; ++epoch) {
            if (!struck(node, epoch)) continue;
            if (current <= _strikes[node][epoch].appealEpoch) break;
            epochs[counted] = epoch;
            ++counted;
        }
        if (counted < epochs.length) revert NotEnoughStrikes(counted, epochs.length);
        spentThrough[node] = epochs[counted - 1];
        emit StrikesSpent(node, epochs);
        REGISTRY.slash(node, STRIKES_BPS, address(0));
    }

    /// @inheritdoc IDisputes
    function struck(address node, uint256 epoch) public view returns (bool) {
        StrikeRecord storage record = _strikes[node][epoch];
        return record.evidence != 0 && !record.pardoned;
    }

    /// @inheritdoc IDisputes
    function strikeOf(address node, uint256 epoch) external view returns (StrikeRecord memory) {
        return _strikes[node][epoch];
    }

    /// @inheritdoc IDisputes
    function strikeDigest(address node, uint64 epoch, bytes32 evidence, address accuser)
        public
        view
        returns (bytes32)
    {
        return _digest(keccak256(abi.encode(STRIKE_TYPEHASH, node, epoch, evidence, accuser)));
    }

    /// @inheritdoc IDisputes
    function pardonDigest(address node, uint64 epoch, bytes32 evidence) public view returns (bytes32) {
        return _digest(keccak256(abi.encode(PARDON_TYPEHASH, node, epoch, evidence)));
    }

    /// @dev A strike counts until K epochs after its own, and once. No strike comes for an epoch that is spent: those
    /// are at least two epochs old, an appeal having passed.
    function _oldestThatCounts(address node, uint256 current) private view returns (uint256) {
        uint256 window = PARAMETERS.valueAt(Setting.StrikeWindow, current);
        return Math.max(spentThrough[node] + 1, current > window ? current - window : 0);
    }

    function _checkStatement(
        bytes32 domain,
        address node,
        bytes32 sessionId,
        uint64 step,
        Statement calldata statement
    ) private pure returns (bytes32 digest) {
        digest = _receiptDigest(domain, node, statement.client, sessionId, step, statement.tokens, statement.head);
        Signature calldata signature = statement.signature;
        if (node == address(0) || _signer(digest, signature.r, signature.vs) != node) revert BadReceipt(digest);
    }

    /// @dev Neither accused nor accuser decides a verdict: their signatures are read and not counted.
    function _checkQuorum(
        bytes32 digest,
        address node,
        address accuser,
        uint256 epoch,
        Signature[] calldata signatures
    ) private view {
        address owner = REGISTRY.ownerOf(node);
        if (owner == address(0)) revert NotRegistered(node);
        address last = address(0);
        uint256 counted = 0;
        for (uint256 i; i < signatures.length; ++i) {
            address signer = _signer(digest, signatures[i].r, signatures[i].vs);
            if (signer <= last) revert SignersNotRising(last, signer);
            if (!PARAMETERS.isAuditor(signer, epoch)) revert NotAuditor(signer);
            if (signer != accuser && signer != owner && signer != node) ++counted;
            last = signer;
        }
        uint256 quorum = PARAMETERS.valueAt(Setting.Quorum, epoch);
        if (counted < quorum) revert QuorumMissed(counted, quorum);
    }
}
