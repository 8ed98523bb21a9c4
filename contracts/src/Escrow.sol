// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ICreditToken} from "./interfaces/ICreditToken.sol";
import {Fixed, IParameters} from "./interfaces/IParameters.sol";
import {Account, AccountView, ISettlement, Order, Permit} from "./interfaces/ISettlement.sol";
import {SessionKeys} from "./SessionKeys.sol";

/// @title The accounts of all (client, node) pairs: deposits and leaving
abstract contract Escrow is SessionKeys {
    using SafeERC20 for ICreditToken;

    IParameters public immutable PARAMETERS;
    ICreditToken public immutable TOKEN;
    uint256 public immutable THAW;
    uint256 public immutable THAW_BLOCKS;

    mapping(address node => mapping(address client => Account)) internal _accounts;
    /// @dev Beside the account, not in it: written by a thaw, never by a settlement.
    mapping(address node => mapping(address client => uint256)) private _thawEndBlock;

    constructor(IParameters parameters, ICreditToken token) {
        Fixed memory numbers = parameters.fixedNumbers();
        PARAMETERS = parameters;
        TOKEN = token;
        THAW = numbers.thaw;
        THAW_BLOCKS = numbers.thawBlocks;
    }

    /// @inheritdoc ISettlement
    function fund(address client, address[] calldata nodes, uint96[] calldata amounts, Permit calldata permit)
        external
    {
        _fund(msg.sender, client, nodes, amounts, permit);
    }

    /// @inheritdoc ISettlement
    function fundBySig(
        address client,
        address[] calldata nodes,
        uint96[] calldata amounts,
        Permit calldata permit,
        uint64 deadline,
        bytes calldata signature
    ) external {
        uint256 nonce = _useNonce(client);
        _checkOrder(client, fundDigest(client, nodes, amounts, nonce, deadline), nonce, deadline, signature);
        _fund(client, client, nodes, amounts, permit);
    }

    /// @inheritdoc ISettlement
    function thaw(address node) external {
        _thaw(msg.sender, node);
    }

    /// @inheritdoc ISettlement
    function thawBySig(address client, address node, uint64 deadline, bytes calldata signature) external {
        _obey(Order.Thaw, client, node, deadline, signature);
        _thaw(client, node);
    }

    /// @inheritdoc ISettlement
    function cancelThaw(address node) external {
        _cancelThaw(msg.sender, node);
    }

    /// @inheritdoc ISettlement
    function cancelThawBySig(address client, address node, uint64 deadline, bytes calldata signature) external {
        _obey(Order.CancelThaw, client, node, deadline, signature);
        _cancelThaw(client, node);
    }

    /// @inheritdoc ISettlement
    function withdraw(address node) external {
        _withdraw(msg.sender, node);
    }

    /// @inheritdoc ISettlement
    function withdrawBySig(address client, address node, uint64 deadline, bytes calldata signature) external {
        _obey(Order.Withdraw, client, node, deadline, signature);
        _withdraw(client, node);
    }

    /// @inheritdoc ISettlement
    function account(address client, address node) external view returns (Account memory) {
        return _accounts[node][client];
    }

    /// @inheritdoc ISettlement
    function thawEndBlock(address client, address node) external view returns (uint256) {
        return _accounts[node][client].thawEnd == 0 ? 0 : _thawEndBlock[node][client];
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
            (uint64 end, bool revoked) = (_validUntil(clients[i], keys[i]), _revokedUnset(clients[i], keys[i]));
            views[i] = AccountView(a.balance, a.collected, a.thawEnd, end, revoked);
        }
    }

    /// @dev Pays all that is left back to the client, and opens the account again.
    function _payOut(address client, address node) internal {
        Account storage a = _accounts[node][client];
        uint96 amount = a.balance;
        a.balance = 0;
        a.thawEnd = 0;
        emit Withdrawn(client, node, amount);
        TOKEN.safeTransfer(client, amount);
    }

    function _fund(
        address payer,
        address client,
        address[] calldata nodes,
        uint96[] calldata amounts,
        Permit calldata permit
    ) private {
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
            emit Funded(client, nodes[i], payer, amount, balance);
        }
        if (permit.deadline != 0) _usePermit(payer, permit);
        // The payer is the sender, or has signed this very deposit.
        // slither-disable-next-line arbitrary-send-erc20
        TOKEN.safeTransferFrom(payer, address(this), sum);
    }

    function _thaw(address client, address node) private {
        Account storage a = _accounts[node][client];
        if (a.thawEnd != 0) revert AlreadyThawing(a.thawEnd);
        uint64 end = uint64(block.timestamp + THAW);
        a.thawEnd = end;
        _thawEndBlock[node][client] = block.number + THAW_BLOCKS;
        emit Thawing(client, node, end);
    }

    function _cancelThaw(address client, address node) private {
        Account storage a = _accounts[node][client];
        if (a.thawEnd == 0) revert NotThawing();
        a.thawEnd = 0;
        emit ThawCancelled(client, node);
    }

    function _withdraw(address client, address node) private {
        uint64 end = _accounts[node][client].thawEnd;
        if (end == 0) revert NotThawing();
        // Strictly after: a voucher is collectable through the thaw's last second.
        if (block.timestamp <= end) revert StillThawing(end);
        // A chain that stood still for the whole thaw held nobody's settlement: blocks must have come since it began.
        uint256 endBlock = _thawEndBlock[node][client];
        if (block.number < endBlock) revert TooFewBlocks(endBlock);
        _payOut(client, node);
    }

    /// @dev Somebody may have sent the permit already; the allowance decides.
    function _usePermit(address payer, Permit calldata permit) private {
        try TOKEN.permit(payer, address(this), permit.value, permit.deadline, permit.v, permit.r, permit.s) {} catch {}
    }
}
