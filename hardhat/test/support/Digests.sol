// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Session, Signature} from "../../src/Signed.sol";
import {Check} from "./Check.sol";

/// @dev What is signed, built from the spec's type strings and not asked of the contracts: so every test that signs
/// compares the two.
abstract contract Digests is Check {
    /// @dev The domain's verifying contract.
    function domainContract() internal view virtual returns (address);

    // ---- digests, from the spec

    function digest(bytes32 structHash) internal view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Hivemint"),
                keccak256("1"),
                block.chainid,
                domainContract()
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function sessionId(Session memory s) internal view returns (bytes32) {
        bytes32 typeHash = keccak256(
            bytes.concat(
                "Session(address client,address sessionKey,address node,bytes32 peerIdHash,bytes32 modelId,",
                "bytes32 numerics,uint32 firstBlock,uint32 endBlock,uint96 price,uint96 maxAmount,",
                "uint64 maxTokens,uint64 expiry,bytes32 nonce)"
            )
        );
        bytes memory head = abi.encode(
            typeHash, s.client, s.sessionKey, s.node, s.peerIdHash, s.modelId, s.numerics, uint256(s.firstBlock)
        );
        bytes memory tail = abi.encode(s.endBlock, s.price, s.maxAmount, s.maxTokens, s.expiry, s.nonce);
        return digest(keccak256(bytes.concat(head, tail)));
    }

    function receiptDigest(address node_, address client_, bytes32 id, uint64 step, uint64 tokens, bytes32 head)
        internal
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256(
            "Receipt(address node,address client,bytes32 sessionId,uint64 step,uint64 tokens,bytes32 head)"
        );
        return digest(keccak256(abi.encode(typeHash, node_, client_, id, step, tokens, head)));
    }

    function voucherDigest(bytes32 receipt, uint96 total) internal view returns (bytes32) {
        return digest(keccak256(abi.encode(keccak256("Voucher(bytes32 receipt,uint96 total)"), receipt, total)));
    }

    /// @dev For paid work.
    function delegationDigest(address client_, address key, uint64 validUntil) internal view returns (bytes32) {
        return delegationDigest(client_, key, validUntil, true);
    }

    function delegationDigest(address client_, address key, uint64 validUntil, bool paid)
        internal
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256("Delegation(address client,address sessionKey,uint64 validUntil,bool paid)");
        return digest(keccak256(abi.encode(typeHash, client_, key, validUntil, paid)));
    }

    /// @dev Thaw, CancelThaw, Withdraw and Close name a node; Revoke a session key.
    function orderDigest(string memory order, address client_, address subject, uint256 nonce, uint64 deadline)
        internal
        view
        returns (bytes32)
    {
        bool ofKey = keccak256(bytes(order)) == keccak256("Revoke");
        bytes32 typeHash = keccak256(
            bytes.concat(
                bytes(order),
                "(address client,address ",
                ofKey ? bytes("sessionKey") : bytes("node"),
                ",uint256 nonce,uint64 deadline)"
            )
        );
        return digest(keccak256(abi.encode(typeHash, client_, subject, nonce, deadline)));
    }

    function fundDigest(
        address client_,
        address[] memory nodes,
        uint96[] memory amounts,
        uint256 nonce,
        uint64 deadline
    ) internal view returns (bytes32) {
        bytes memory nodeWords;
        bytes memory amountWords;
        for (uint256 i; i < nodes.length; ++i) {
            nodeWords = bytes.concat(nodeWords, abi.encode(nodes[i]));
        }
        for (uint256 i; i < amounts.length; ++i) {
            amountWords = bytes.concat(amountWords, abi.encode(amounts[i]));
        }
        bytes32 typeHash =
            keccak256("Fund(address client,address[] nodes,uint96[] amounts,uint256 nonce,uint64 deadline)");
        return digest(
            keccak256(abi.encode(typeHash, client_, keccak256(nodeWords), keccak256(amountWords), nonce, deadline))
        );
    }

    function releaseDigest(address node_, address client_, uint96 total, uint64 deadline)
        internal
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256("Release(address node,address client,uint96 total,uint64 deadline)");
        return digest(keccak256(abi.encode(typeHash, node_, client_, total, deadline)));
    }

    function operatorDigest(address owner_, address operator, bytes32 peer) internal view returns (bytes32) {
        bytes32 typeHash = keccak256("Operator(address owner,address operator,bytes32 peerIdHash)");
        return digest(keccak256(abi.encode(typeHash, owner_, operator, peer)));
    }

    function strikeDigest(address node_, uint64 epoch, bytes32 evidence, address accuser)
        internal
        view
        returns (bytes32)
    {
        bytes32 typeHash = keccak256("Strike(address node,uint64 epoch,bytes32 evidence,address accuser)");
        return digest(keccak256(abi.encode(typeHash, node_, epoch, evidence, accuser)));
    }

    function pardonDigest(address node_, uint64 epoch, bytes32 evidence) internal view returns (bytes32) {
        bytes32 typeHash = keccak256("Pardon(address node,uint64 epoch,bytes32 evidence)");
        return digest(keccak256(abi.encode(typeHash, node_, epoch, evidence)));
    }

    // ---- signatures

    function sign(uint256 key, bytes32 hash) internal pure returns (Signature memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, hash);
        return Signature(r, v == 28 ? s | bytes32(uint256(1) << 255) : s);
    }

    function packed(Signature memory s) internal pure returns (bytes memory) {
        return bytes.concat(s.r, s.vs);
    }

    /// @dev Signatures by these keys, in the order of their addresses.
    function signSorted(uint256[] memory keys, bytes32 hash) internal pure returns (Signature[] memory list) {
        list = new Signature[](keys.length);
        for (uint256 i; i < keys.length; ++i) {
            for (uint256 j = i + 1; j < keys.length; ++j) {
                if (vm.addr(keys[j]) < vm.addr(keys[i])) (keys[i], keys[j]) = (keys[j], keys[i]);
            }
            list[i] = sign(keys[i], hash);
        }
    }

    function three(uint256 a, uint256 b, uint256 c) internal pure returns (uint256[] memory list) {
        list = new uint256[](3);
        (list[0], list[1], list[2]) = (a, b, c);
    }
}
