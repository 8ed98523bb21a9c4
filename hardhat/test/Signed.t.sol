// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Order} from "../src/interfaces/ISettlement.sol";
import {Session, Signature, Signed} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";

contract Recovers is Signed(address(1)) {
    function signer(bytes32 digest, bytes32 r, bytes32 vs) external pure returns (address) {
        return _signer(digest, r, vs);
    }
}

/// @dev P13, the Solidity half: the contracts' digests equal those built from the spec's type strings.
contract SignedTest is Kit {
    function testFuzz_P13_receipt(address n, address c, bytes32 id, uint64 step, uint64 tokens, bytes32 head)
        external
        view
    {
        eq(settlement.receiptDigest(n, c, id, step, tokens, head), receiptDigest(n, c, id, step, tokens, head), "receipt");
    }

    function testFuzz_P13_voucher(bytes32 receipt, uint96 total) external view {
        eq(settlement.voucherDigest(receipt, total), voucherDigest(receipt, total), "voucher");
    }

    function testFuzz_P13_delegation(address c, address key, uint64 until, bool paid) external view {
        bytes32 expected = delegationDigest(c, key, until, paid);
        eq(settlement.delegationDigest(c, key, until, paid), expected, "delegation");
    }

    function testFuzz_P13_orders(address c, address subject, uint256 nonce, uint64 end) external view {
        string[5] memory names = ["Thaw", "CancelThaw", "Withdraw", "Revoke", "Close"];
        for (uint8 i; i < 5; ++i) {
            bytes32 expected = orderDigest(names[i], c, subject, nonce, end);
            eq(settlement.orderDigest(Order(i), c, subject, nonce, end), expected, names[i]);
        }
    }

    function testFuzz_P13_fund(address c, address[] memory nodes, uint96[] memory amounts, uint256 nonce, uint64 end)
        external
        view
    {
        bytes32 expected = fundDigest(c, nodes, amounts, nonce, end);
        eq(settlement.fundDigest(c, nodes, amounts, nonce, end), expected, "fund");
    }

    function testFuzz_P13_release(address n, address c, uint96 total, uint64 end) external view {
        eq(settlement.releaseDigest(n, c, total, end), releaseDigest(n, c, total, end), "release");
    }

    function testFuzz_P13_session(Session memory s) external view {
        eq(emission.sessionDigest(s), sessionId(s), "session");
    }

    function testFuzz_P13_operator(address o, address op, bytes32 peer) external view {
        eq(registry.operatorDigest(o, op, peer), operatorDigest(o, op, peer), "operator");
    }

    function testFuzz_P13_verdicts(address n, uint64 epoch, bytes32 evidence, address accuser) external view {
        eq(disputes.strikeDigest(n, epoch, evidence, accuser), strikeDigest(n, epoch, evidence, accuser), "strike");
        eq(disputes.pardonDigest(n, epoch, evidence), pardonDigest(n, epoch, evidence), "pardon");
    }

    /// @dev Our recovery answers what OpenZeppelin's does, for real signatures, their mirror images and noise.
    function testFuzz_signerIsOpenZeppelins(uint256 key, bytes32 hash, bytes32 noise) external {
        key = within(key, 1, type(uint128).max);
        Recovers ours = new Recovers();
        Signature memory s = sign(key, hash);
        eq(ours.signer(hash, s.r, s.vs), vm.addr(key), "a real one");
        bytes32 plain = s.vs & bytes32(uint256(type(int256).max));
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        bytes32[5] memory values =
            [s.vs, s.vs ^ bytes32(uint256(1) << 255), bytes32(order - uint256(plain)), noise, bytes32(0)];
        for (uint256 i; i < 5; ++i) {
            (address expected,,) = ECDSA.tryRecover(hash, s.r, values[i]);
            eq(ours.signer(hash, s.r, values[i]), expected, "s");
            (expected,,) = ECDSA.tryRecover(hash, noise, values[i]);
            eq(ours.signer(hash, noise, values[i]), expected, "r");
        }
    }

    function test_signerTakesTheLargestLowS() external {
        Recovers ours = new Recovers();
        bytes32 half = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;
        bytes32 r = bytes32(uint256(0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798));
        (address expected,,) = ECDSA.tryRecover(keccak256("x"), r, half);
        ok(expected != address(0), "a signature");
        eq(ours.signer(keccak256("x"), r, half), expected, "at the bound");
        eq(ours.signer(keccak256("x"), r, bytes32(uint256(half) + 1)), address(0), "above it");
    }

    function testFuzz_P13_minted(uint96 c) external view {
        eq(settlement.mintedFor(c), m(c), "m(c)");
    }

    function test_P4_allContractsShareOneDomain() external view {
        eq(registry.separator(), settlement.separator(), "registry");
        eq(disputes.separator(), settlement.separator(), "disputes");
        eq(emission.separator(), settlement.separator(), "emission");
        eq(emission.SETTLEMENT(), address(settlement), "verifying contract");
    }

    /// @dev ERC-5267: a wallet builds the separator from what the contract tells, for every contract with the domain.
    function test_allContractsTellTheirDomain() external {
        vm.chainId(4_711);
        Signed[4] memory list = [
            Signed(address(registry)), Signed(address(settlement)), Signed(address(disputes)), Signed(address(emission))
        ];
        for (uint256 i; i < 4; ++i) {
            (bytes1 fields, string memory name, string memory version, uint256 chain, address at, bytes32 salt,) =
                list[i].eip712Domain();
            ok(fields == 0x0f && salt == 0, "name, version, chain id and contract");
            bytes32 kind =
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
            bytes32 built = keccak256(abi.encode(kind, keccak256(bytes(name)), keccak256(bytes(version)), chain, at));
            eq(built, list[i].separator(), "the same domain");
        }
        (, string memory named,,, address itself,,) = token.eip712Domain();
        eq(keccak256(bytes(named)), keccak256("Hivemint Credit"), "the token has its own");
        eq(itself, address(token), "for itself");
    }

    function testFuzz_P4_separatorFollowsTheChain(uint64 chain) external {
        vm.assume(chain != block.chainid && chain != 0);
        bytes32 before = settlement.separator();
        vm.chainId(chain);
        ok(settlement.separator() != before, "another chain, another domain");
        eq(settlement.voucherDigest(0, 1), voucherDigest(0, 1), "built for the new chain");
    }
}
