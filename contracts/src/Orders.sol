// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {ISettlement, Order} from "./interfaces/ISettlement.sol";
import {Signed} from "./Signed.sol";

/// @title What a wallet orders by its signature, so that anyone may send it and the wallet needs no coin of the chain
/// @dev One nonce for all orders of a client: each is good once, in the order in which they were signed, and another one
/// with the same nonce takes its place.
abstract contract Orders is ISettlement, Signed, Nonces {
    bytes32 private constant FUND_TYPEHASH =
        keccak256("Fund(address client,address[] nodes,uint96[] amounts,uint256 nonce,uint64 deadline)");
    bytes32 private constant THAW_TYPEHASH =
        keccak256("Thaw(address client,address node,uint256 nonce,uint64 deadline)");
    bytes32 private constant CANCEL_TYPEHASH =
        keccak256("CancelThaw(address client,address node,uint256 nonce,uint64 deadline)");
    bytes32 private constant WITHDRAW_TYPEHASH =
        keccak256("Withdraw(address client,address node,uint256 nonce,uint64 deadline)");
    bytes32 private constant REVOKE_TYPEHASH =
        keccak256("Revoke(address client,address sessionKey,uint256 nonce,uint64 deadline)");
    bytes32 private constant CLOSE_TYPEHASH =
        keccak256("Close(address client,address node,uint256 nonce,uint64 deadline)");

    /// @inheritdoc ISettlement
    function orderDigest(Order order, address client, address subject, uint256 nonce, uint64 deadline)
        public
        view
        returns (bytes32)
    {
        return _digest(keccak256(abi.encode(_typeHash(order), client, subject, nonce, deadline)));
    }

    /// @inheritdoc ISettlement
    function fundDigest(
        address client,
        address[] calldata nodes,
        uint96[] calldata amounts,
        uint256 nonce,
        uint64 deadline
    ) public view returns (bytes32) {
        // EIP-712 hashes an array as its elements, each in a word, which is what encodePacked makes of one.
        bytes32 nodesHash = keccak256(abi.encodePacked(nodes));
        bytes32 amountsHash = keccak256(abi.encodePacked(amounts));
        return _digest(keccak256(abi.encode(FUND_TYPEHASH, client, nodesHash, amountsHash, nonce, deadline)));
    }

    /// @dev Spends the client's next nonce on this order, or refuses.
    function _obey(Order order, address client, address subject, uint64 deadline, bytes calldata signature) internal {
        uint256 nonce = _useNonce(client);
        bytes32 digest = orderDigest(order, client, subject, nonce, deadline);
        _checkOrder(client, digest, nonce, deadline, signature);
    }

    function _checkOrder(address client, bytes32 digest, uint256 nonce, uint64 deadline, bytes calldata signature)
        internal
        view
    {
        if (block.timestamp > deadline) revert OrderOver(deadline);
        if (!_signedBy(client, digest, signature)) revert BadOrder(client, nonce);
    }

    /// @dev 64 bytes (r, vs) or 65 (r, s, v) of an externally owned account, or what a contract wallet takes.
    function _signedBy(address client, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        address signer = address(0);
        if (signature.length == 64) {
            signer = _signer(digest, bytes32(signature[:32]), bytes32(signature[32:]));
        } else if (signature.length == 65) {
            signer = _longSigner(digest, bytes32(signature[:32]), bytes32(signature[32:64]), uint8(signature[64]));
        }
        if (signer != address(0) && signer == client) return true;
        return SignatureChecker.isValidERC1271SignatureNow(client, digest, signature);
    }

    function _longSigner(bytes32 digest, bytes32 r, bytes32 s, uint8 v) private pure returns (address) {
        if (v != 27 && v != 28) return address(0);
        // A set highest bit is an s in the upper half: it must not pass for the parity of the short form.
        if (uint256(s) >> 255 != 0) return address(0);
        return _signer(digest, r, v == 28 ? s | bytes32(uint256(1) << 255) : s);
    }

    function _typeHash(Order order) private pure returns (bytes32) {
        if (order == Order.Thaw) return THAW_TYPEHASH;
        if (order == Order.CancelThaw) return CANCEL_TYPEHASH;
        if (order == Order.Withdraw) return WITHDRAW_TYPEHASH;
        if (order == Order.Revoke) return REVOKE_TYPEHASH;
        return CLOSE_TYPEHASH;
    }
}
