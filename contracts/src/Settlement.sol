// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {ICreditToken} from "./interfaces/ICreditToken.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {Fixed, IParameters} from "./interfaces/IParameters.sol";
import {Account, ISettlement, Item, Order, Release, Skip} from "./interfaces/ISettlement.sol";
import {Escrow} from "./Escrow.sol";
import {Signed} from "./Signed.sol";

/// @title Paid work. Credits burn, credits mint
/// @dev Holds the escrow of all accounts. Settling calls the deployment's own contracts only.
contract Settlement is Escrow {
    uint256 private constant FEE_DENOMINATOR = 10_000;
    /// @dev A node takes no paid session of a client that it has released until that is over: so it must not be long.
    uint256 private constant LONGEST_RELEASE = 1 hours;

    /// @dev Burned less minted, in the newest epoch that lost any and in the epoch before it: one slot, never zero, so
    /// that the first settlement of an epoch costs what any other does. `Emission` keeps what it needs for longer.
    struct Fees {
        uint48 epoch;
        uint104 newest;
        uint104 before;
    }

    INodeRegistry public immutable REGISTRY;
    uint256 public immutable FEE;
    uint256 public immutable EPOCH;

    Fees private _fees;

    constructor(IParameters parameters, ICreditToken token, INodeRegistry registry)
        Signed(address(this))
        Escrow(parameters, token)
    {
        Fixed memory numbers = parameters.fixedNumbers();
        REGISTRY = registry;
        FEE = numbers.fee;
        EPOCH = numbers.epoch;
        _fees.epoch = uint48(currentEpoch());
    }

    /// @inheritdoc ISettlement
    function settle(address node, Item[] calldata items) external returns (uint256 burned, uint256 minted) {
        return _settle(node, items);
    }

    /// @inheritdoc ISettlement
    function close(address node, Release calldata release, Item[] calldata items) external {
        _close(msg.sender, node, release, items);
    }

    /// @inheritdoc ISettlement
    function closeBySig(
        address client,
        address node,
        Release calldata release,
        Item[] calldata items,
        uint64 deadline,
        bytes calldata signature
    ) external {
        _obey(Order.Close, client, node, deadline, signature);
        _close(client, node, release, items);
    }

    /// @inheritdoc ISettlement
    function mintedFor(uint96 collected) external view returns (uint256) {
        return _mintedFor(collected);
    }

    /// @inheritdoc ISettlement
    function feesBurned(uint256 epoch) external view returns (uint256) {
        Fees memory fees = _fees;
        // Numbers of epochs are exact, unlike balances: equality is what is meant, here and in `_bookFees`.
        // slither-disable-start incorrect-equality
        if (epoch == fees.epoch) return fees.newest;
        return epoch + 1 == fees.epoch ? fees.before : 0;
        // slither-disable-end incorrect-equality
    }

    /// @inheritdoc ISettlement
    function currentEpoch() public view returns (uint256) {
        return block.timestamp / EPOCH;
    }

    /// @inheritdoc ISettlement
    function receiptDigest(
        address node,
        address client,
        bytes32 sessionId,
        uint64 step,
        uint64 tokens,
        bytes32 head
    ) external view returns (bytes32) {
        return _receiptDigest(separator(), node, client, sessionId, step, tokens, head);
    }

    /// @inheritdoc ISettlement
    function voucherDigest(bytes32 receipt, uint96 total) external view returns (bytes32) {
        return _voucherDigest(separator(), receipt, total);
    }

    /// @inheritdoc ISettlement
    function releaseDigest(address node, address client, uint96 total, uint64 deadline)
        public
        view
        returns (bytes32)
    {
        return _digest(keccak256(abi.encode(RELEASE_TYPEHASH, node, client, total, deadline)));
    }

    function _close(address client, address node, Release calldata release, Item[] calldata items) private {
        _checkRelease(client, node, release);
        if (items.length != 0) _settle(node, items);
        uint96 collected = _accounts[node][client].collected;
        if (collected < release.total) revert NotSettled(collected, release.total);
        emit Closed(client, node, release.total);
        _payOut(client, node);
    }

    function _checkRelease(address client, address node, Release calldata release) private view {
        uint256 latest = block.timestamp + LONGEST_RELEASE;
        if (block.timestamp > release.deadline || release.deadline > latest) {
            revert ReleaseOver(release.deadline, latest);
        }
        bytes32 digest = releaseDigest(node, client, release.total, release.deadline);
        address signer = _signer(digest, release.signature.r, release.signature.vs);
        if (signer == address(0) || signer != node) revert BadRelease(node);
    }

    function _settle(address node, Item[] calldata items) private returns (uint256 burned, uint256 minted) {
        address payout = REGISTRY.payoutOf(node);
        if (payout == address(0)) revert NotRegistered(node);
        bytes32 domain = separator();
        for (uint256 i; i < items.length; ++i) {
            (Skip reason, uint256 b, uint256 m) = _settleItem(domain, node, items[i]);
            if (reason != Skip.None) emit Skipped(node, items[i].client, i, reason);
            burned += b;
            minted += m;
        }
        if (burned == 0) return (0, 0);
        _bookFees(burned - minted);
        TOKEN.burn(burned);
        if (minted != 0) TOKEN.mint(payout, minted);
    }

    /// @dev The cheap checks first, so that a replayed or unfunded item costs its sender little.
    function _settleItem(bytes32 domain, address node, Item calldata item)
        private
        returns (Skip reason, uint256 burned, uint256 minted)
    {
        Account storage slot = _accounts[node][item.client];
        uint256 balance = slot.balance;
        uint256 before = slot.collected;
        uint256 total = item.total;
        if (total <= before) return (Skip.NothingOwed, 0, 0);
        if (balance == 0) return (Skip.EmptyAccount, 0, 0);
        reason = _checkSignatures(domain, node, item);
        if (reason != Skip.None) return (reason, 0, 0);

        // All three fit 96 bits: `collected` never passes `total`.
        unchecked {
            burned = total - before;
            if (burned > balance) burned = balance;
            // Over the whole account, not per call: splitting into small settlements mints the same sum.
            minted = _mintedFor(before + burned) - _mintedFor(before);
            (slot.balance, slot.collected) = (uint96(balance - burned), uint96(before + burned));
        }
        emit Settled(node, item.client, item.sessionId, item.step, item.tokens, burned, minted, total);
    }

    function _bookFees(uint256 lost) private {
        uint256 epoch = currentEpoch();
        (uint256 last, uint256 newest, uint256 before) = (_fees.epoch, _fees.newest, _fees.before);
        // More than 104 bits are above every cap of 96, so what is cut off changes no emission and stops no settlement.
        unchecked {
            // slither-disable-next-line incorrect-equality
            if (last != epoch) (newest, before) = (0, last + 1 == epoch ? newest : 0);
            newest = Math.min(newest + lost, type(uint104).max);
        }
        _fees = Fees(uint48(epoch), uint104(newest), uint104(before));
    }

    /// @dev c - ceil(c * FEE / 10000), for c of at most 96 bits.
    function _mintedFor(uint256 collected) private view returns (uint256) {
        unchecked {
            return collected - (collected * FEE + FEE_DENOMINATOR - 1) / FEE_DENOMINATOR;
        }
    }

    function _checkSignatures(bytes32 domain, address node, Item calldata item) private view returns (Skip) {
        bytes32 receipt =
            _receiptDigest(domain, node, item.client, item.sessionId, item.step, item.tokens, item.head);
        if (_signer(receipt, item.receiptR, item.receiptVs) != node) return Skip.BadReceipt;
        address signer = _signer(_voucherDigest(domain, receipt, item.total), item.voucherR, item.voucherVs);
        if (signer == address(0)) return Skip.UnknownKey;
        uint256 end = _validUntil(item.client, signer);
        if (end == 0) return Skip.UnknownKey;
        return block.timestamp <= end + THAW ? Skip.None : Skip.KeyOver;
    }
}
