// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @notice The terms of one client's use of one node's span; its digest is the session's id.
struct Session {
    address client;
    address sessionKey;
    address node;
    bytes32 peerIdHash;
    bytes32 modelId;
    bytes32 numerics;
    uint32 firstBlock;
    uint32 endBlock;
    uint96 price;
    uint96 maxAmount;
    uint64 maxTokens;
    uint64 expiry;
    bytes32 nonce;
}

/// @notice An EIP-2098 signature.
struct Signature {
    bytes32 r;
    bytes32 vs;
}

/// @title The messages that Hivemint signs (EIP-712)
/// @notice One domain for all contracts: name "Hivemint", version "1", the chain id read at each call, verifying
/// contract = Settlement. "Digest" always means the full EIP-712 digest, domain included.
abstract contract Signed is IERC5267 {
    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant DELEGATION_TYPEHASH =
        keccak256("Delegation(address client,address sessionKey,uint64 validUntil,bool paid)");
    bytes32 internal constant SESSION_TYPEHASH = keccak256(
        "Session(address client,address sessionKey,address node,bytes32 peerIdHash,bytes32 modelId,bytes32 numerics,uint32 firstBlock,uint32 endBlock,uint96 price,uint96 maxAmount,uint64 maxTokens,uint64 expiry,bytes32 nonce)"
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(address node,address client,bytes32 sessionId,uint64 step,uint64 tokens,bytes32 head)"
    );
    bytes32 internal constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 receipt,uint96 total)");
    bytes32 internal constant RELEASE_TYPEHASH =
        keccak256("Release(address node,address client,uint96 total,uint64 deadline)");
    bytes32 internal constant OPERATOR_TYPEHASH =
        keccak256("Operator(address owner,address operator,bytes32 peerIdHash)");
    bytes32 internal constant STRIKE_TYPEHASH =
        keccak256("Strike(address node,uint64 epoch,bytes32 evidence,address accuser)");
    bytes32 internal constant PARDON_TYPEHASH = keccak256("Pardon(address node,uint64 epoch,bytes32 evidence)");

    /// @dev Half of the order of secp256k1; a greater `s` is the mirror image of a signature.
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;
    bytes32 private constant S_MASK = bytes32(uint256(type(int256).max));

    string private constant NAME = "Hivemint";
    string private constant VERSION = "1";
    bytes32 private constant NAME_HASH = keccak256("Hivemint");
    bytes32 private constant VERSION_HASH = keccak256("1");

    /// @notice The domain's verifying contract, the same for every contract of a deployment.
    address public immutable SETTLEMENT;

    constructor(address settlement) {
        SETTLEMENT = settlement;
    }

    /// @notice The domain separator; computed at each call, so that a fork of the chain gets another one.
    function separator() public view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPEHASH, NAME_HASH, VERSION_HASH, block.chainid, SETTLEMENT));
    }

    /// @inheritdoc IERC5267
    function eip712Domain()
        external
        view
        returns (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        )
    {
        // 0x0f: the first four of them are in use.
        return (hex"0f", NAME, VERSION, block.chainid, SETTLEMENT, bytes32(0), new uint256[](0));
    }

    function _sessionDigest(bytes32 domain, Session calldata session) internal pure returns (bytes32) {
        // All members are static, so the struct's ABI encoding is its EIP-712 encoding.
        return MessageHashUtils.toTypedDataHash(domain, keccak256(abi.encode(SESSION_TYPEHASH, session)));
    }

    function _receiptDigest(
        bytes32 domain,
        address node,
        address client,
        bytes32 sessionId,
        uint64 step,
        uint64 tokens,
        bytes32 head
    ) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(
            domain, keccak256(abi.encode(RECEIPT_TYPEHASH, node, client, sessionId, step, tokens, head))
        );
    }

    function _voucherDigest(bytes32 domain, bytes32 receipt, uint96 total) internal pure returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(domain, keccak256(abi.encode(VOUCHER_TYPEHASH, receipt, total)));
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        return MessageHashUtils.toTypedDataHash(separator(), structHash);
    }

    /// @dev The signer, or zero for whatever is no signature. The same as OpenZeppelin's `ECDSA.tryRecover`, of which
    /// a test holds it equal, for 220 gas less: there are two in each item of a settlement.
    function _signer(bytes32 digest, bytes32 r, bytes32 vs) internal pure returns (address) {
        bytes32 s = vs & S_MASK;
        if (uint256(s) > HALF_ORDER) return address(0);
        uint8 v = vs == s ? 27 : 28;
        return ecrecover(digest, v, r, s);
    }
}
