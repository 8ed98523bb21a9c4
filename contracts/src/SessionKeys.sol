// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISettlement, Order, SessionKey} from "./interfaces/ISettlement.sol";
import {Orders} from "./Orders.sol";

/// @title The keys that sign sessions and vouchers for a client
/// @dev A key is set once, so that an old `Delegation` can't undo a revocation. A contract wallet's answer is asked for
/// here alone and never again, so that `settle` calls no foreign code.
abstract contract SessionKeys is Orders {
    uint256 private constant LONGEST = 90 days;

    mapping(address client => mapping(address key => SessionKey)) private _keys;

    /// @inheritdoc ISettlement
    function authorize(address key, uint64 validUntil) external {
        _authorize(msg.sender, key, validUntil);
    }

    /// @inheritdoc ISettlement
    function authorizeBySig(address client, address key, uint64 validUntil, bytes calldata signature) external {
        // One that is not for paid work moves no money, whoever shows it.
        bytes32 digest = delegationDigest(client, key, validUntil, true);
        if (!_signedBy(client, digest, signature)) revert BadDelegation(client);
        _authorize(client, key, validUntil);
    }

    /// @inheritdoc ISettlement
    function revoke(address key) external {
        _revoke(msg.sender, key);
    }

    /// @inheritdoc ISettlement
    function revokeBySig(address client, address key, uint64 deadline, bytes calldata signature) external {
        _obey(Order.Revoke, client, key, deadline, signature);
        _revoke(client, key);
    }

    /// @inheritdoc ISettlement
    function sessionKey(address client, address key) external view returns (SessionKey memory) {
        return _keys[client][key];
    }

    /// @inheritdoc ISettlement
    function delegationDigest(address client, address key, uint64 validUntil, bool paid)
        public
        view
        returns (bytes32)
    {
        return _digest(keccak256(abi.encode(DELEGATION_TYPEHASH, client, key, validUntil, paid)));
    }

    /// @dev The end of a key's time: the largest value for the client's own key, 0 for one that was never set.
    function _validUntil(address client, address key) internal view returns (uint64) {
        if (key == client) return type(uint64).max;
        SessionKey storage record = _keys[client][key];
        return record.authorized ? record.validUntil : 0;
    }

    function _revokedUnset(address client, address key) internal view returns (bool) {
        SessionKey storage record = _keys[client][key];
        return record.validUntil != 0 && !record.authorized;
    }

    function _authorize(address client, address key, uint64 validUntil) private {
        if (key == address(0) || key == client) revert BadKey(key);
        uint256 latest = block.timestamp + LONGEST;
        if (validUntil <= block.timestamp || validUntil > latest) revert BadValidity(validUntil, latest);
        SessionKey storage record = _keys[client][key];
        if (record.validUntil != 0) revert KeyKnown(key);
        record.validUntil = validUntil;
        record.authorized = true;
        emit Authorized(client, key, validUntil);
    }

    function _revoke(address client, address key) private {
        if (key == address(0) || key == client) revert BadKey(key);
        SessionKey storage record = _keys[client][key];
        uint64 end = record.validUntil;
        // An ended key stays ended when it did: revoking must not lengthen the time of its vouchers.
        if (end == 0 || end > block.timestamp) {
            end = uint64(block.timestamp);
            record.validUntil = end;
        }
        emit Revoked(client, key, end);
    }
}
