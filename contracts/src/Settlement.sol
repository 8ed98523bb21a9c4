// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {ICreditToken} from "./interfaces/ICreditToken.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {Fixed, IParameters} from "./interfaces/IParameters.sol";
import {Account, AccountView, ISettlement, Item, Permit, Skip} from "./interfaces/ISettlement.sol";
import {SessionKeys} from "./SessionKeys.sol";
import {Signed} from "./Signed.sol";

/// @title Lane A: paid work. Credits burn, credits mint
/// @dev Holds the escrow of all accounts. Calls the deployment's own contracts only.
contract Settlement is SessionKeys {
    using SafeERC20 for ICreditToken;

    uint256 private constant FEE_DENOMINATOR = 10_000;

    /// @dev Burned less minted, in the newest epoch that lost any and in the epoch before it: one slot, never zero, so
    /// that the first settlement of an epoch costs what any other does. `Emission` keeps what it needs for longer.
    struct Fees {
        uint48 epoch;
        uint104 newest;
        uint104 before;
    }

    IParameters public immutable PARAMETERS;
    ICreditToken public immutable TOKEN;
    INodeRegistry public immutable REGISTRY;
    uint256 public immutable FEE;
    uint256 public immutable EPOCH;
    uint256 public immutable THAW;

    mapping(address node => mapping(address client => Account)) private _accounts;
    Fees private _fees;

    constructor(IParameters parameters, ICreditToken token, INodeRegistry registry) Signed(address(this)) {
        Fixed memory numbers = parameters.fixedNumbers();
        PARAMETERS = parameters;
        TOKEN = token;
        REGISTRY = registry;
        FEE = numbers.fee;
        EPOCH = numbers.epoch;
        THAW = numbers.thaw;
        _fees.epoch = uint48(currentEpoch());
    }

    /// @inheritdoc ISettlement
    function fund(address client, address[] calldata nodes, uint96[] calldata amounts, Permit calldata permit)
        external
    {
        if (PARAMETERS.paused()) revert FundingPaused();
        if (client == address(0)) revert ZeroAddress();
        if (nodes.length != amounts.length) revert LengthMismatch(nodes.length, amounts.length);
        uint256 sum = 0;
        for (uint256 i; i < nodes.length; ++i) {
            uint96 amount = amounts[i];
            if (amount == 0) revert ZeroAmount(i);
            Account storage a = _accounts[nodes[i]][client];
            uint96 balance = a.balance + amount;
            a.balance = balance;
            sum += amount;
            emit Funded(client, nodes[i], msg.sender, amount, balance);
        }
        if (permit.deadline != 0) _usePermit(permit);
        TOKEN.safeTransferFrom(msg.sender, address(this), sum);
    }

    /// @inheritdoc ISettlement
    function thaw(address node) external {
        Account storage a = _accounts[node][msg.sender];
        if (a.thawEnd != 0) revert AlreadyThawing(a.thawEnd);
        uint64 end = uint64(block.timestamp + THAW);
        a.thawEnd = end;
        emit Thawing(msg.sender, node, end);
    }

    /// @inheritdoc ISettlement
    function cancelThaw(address node) external {
        Account storage a = _accounts[node][msg.sender];
        if (a.thawEnd == 0) revert NotThawing();
        a.thawEnd = 0;
        emit ThawCancelled(msg.sender, node);
    }

    /// @inheritdoc ISettlement
    function withdraw(address node) external {
        Account storage a = _accounts[node][msg.sender];
        uint64 end = a.thawEnd;
        if (end == 0) revert NotThawing();
        // Strictly after: a voucher is collectable through the thaw's last second.
        if (block.timestamp <= end) revert StillThawing(end);
        uint96 amount = a.balance;
        a.balance = 0;
        a.thawEnd = 0;
        emit Withdrawn(msg.sender, node, amount);
        TOKEN.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc ISettlement
    function settle(address node, Item[] calldata items) external returns (uint256 burned, uint256 minted) {
        address payout = REGISTRY.payoutOf(node);
        if (payout == address(0)) revert NotRegistered(node);
        bytes32 domain = separator();
        for (uint256 i; i < items.length; ++i) {
            (Skip reason, uint256 b, uint256 m) = _settleItem(domain, node, items[i]);
            if (reason != Skip.None) emit Skipped(node, i, reason);
            burned += b;
            minted += m;
        }
        if (burned == 0) return (0, 0);
        _bookFees(burned - minted);
        TOKEN.burn(burned);
        if (minted != 0) TOKEN.mint(payout, minted);
    }

    /// @inheritdoc ISettlement
    function account(address client, address node) external view returns (Account memory) {
        return _accounts[node][client];
    }

    /// @inheritdoc ISettlement
    function accounts(address node, address[] calldata clients, address[] calldata keys)
        external
        view
        returns (AccountView[] memory views)
    {
        if (clients.length != keys.length) revert LengthMismatch(clients.length, keys.length);
        views = new AccountView[](clients.length);
        for (uint256 i; i < clients.length; ++i) {
            Account storage a = _accounts[node][clients[i]];
            views[i] = AccountView(a.balance, a.collected, a.thawEnd, _validUntil(clients[i], keys[i]));
        }
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

    /// @dev Somebody may have sent the permit already; the allowance decides.
    function _usePermit(Permit calldata permit) private {
        try TOKEN.permit(
            msg.sender, address(this), permit.value, permit.deadline, permit.v, permit.r, permit.s
        ) {} catch {}
    }
}
