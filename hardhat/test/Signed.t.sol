// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Session} from "../src/Signed.sol";
import {Kit} from "./support/Kit.sol";

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

    function testFuzz_P13_delegation(address c, address key, uint64 until) external view {
        eq(settlement.delegationDigest(c, key, until), delegationDigest(c, key, until), "delegation");
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

    function testFuzz_P13_minted(uint96 c) external view {
        eq(settlement.mintedFor(c), m(c), "m(c)");
    }

    function test_P4_allContractsShareOneDomain() external view {
        eq(registry.separator(), settlement.separator(), "registry");
        eq(disputes.separator(), settlement.separator(), "disputes");
        eq(emission.separator(), settlement.separator(), "emission");
        eq(emission.SETTLEMENT(), address(settlement), "verifying contract");
    }

    function testFuzz_P4_separatorFollowsTheChain(uint64 chain) external {
        vm.assume(chain != block.chainid && chain != 0);
        bytes32 before = settlement.separator();
        vm.chainId(chain);
        ok(settlement.separator() != before, "another chain, another domain");
        eq(settlement.voucherDigest(0, 1), voucherDigest(0, 1), "built for the new chain");
    }
}
