// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {CreditToken} from "../../src/CreditToken.sol";
import {Disputes} from "../../src/Disputes.sol";
import {Emission} from "../../src/Emission.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {Parameters} from "../../src/Parameters.sol";
import {Settlement} from "../../src/Settlement.sol";
import {ClaimItem} from "../../src/interfaces/IEmission.sol";
import {Statement} from "../../src/interfaces/IDisputes.sol";
import {Fixed} from "../../src/interfaces/IParameters.sol";
import {Item, Permit} from "../../src/interfaces/ISettlement.sol";
import {Session, Signature} from "../../src/Signed.sol";
import {Digests} from "./Digests.sol";

/// @dev A whole deployment, and the usual moves of its actors.
abstract contract Kit is Digests {
    uint256 internal constant EPOCH = 1 days;
    uint256 internal constant THAW = 3 days;
    uint256 internal constant THAW_BLOCKS = 40;
    uint256 internal constant UNBOND = 14 days;
    uint256 internal constant DELAY = 2 days;
    uint256 internal constant HALVING = 10;
    uint96 internal constant MIN_STAKE = 1 ether;
    uint96 internal constant CAP = 1_000 ether;
    uint96 internal constant BOOTSTRAP = 100 ether;
    uint256 internal constant UNITS_PER_COIN = 1e15;
    uint256 internal constant MAX_PER_UNIT = 1e21;
    uint256 internal constant START = 20_000 days + 1 hours;

    bytes32 internal constant MODEL = keccak256("model");
    uint64 internal constant RATE = 7;
    bytes32 internal constant PEER = keccak256("peer id");

    uint256 internal constant OPERATOR_KEY = 0xA11CE;
    uint256 internal constant CLIENT_KEY = 0xB0B;
    uint256 internal constant SESSION_KEY = 0x5E55;

    Parameters internal parameters;
    CreditToken internal token;
    NodeRegistry internal registry;
    Settlement internal settlement;
    Disputes internal disputes;
    Emission internal emission;

    address internal admin = address(0xAD00);
    address internal owner = address(0x0A00);
    address internal payout = address(0xFA00);
    address internal node;
    address internal client;

    function setUp() public virtual {
        vm.warp(START);
        node = vm.addr(OPERATOR_KEY);
        client = vm.addr(CLIENT_KEY);
        deploy();
    }

    // ---- deployment

    function fixedNumbers() internal pure virtual returns (Fixed memory) {
        return Fixed({
            fee: 500,
            epoch: uint32(EPOCH),
            thaw: uint32(THAW),
            thawBlocks: uint32(THAW_BLOCKS),
            unbond: uint32(UNBOND),
            delay: uint32(DELAY),
            halving: uint32(HALVING),
            minStake: MIN_STAKE,
            cap: CAP,
            bootstrap: BOOTSTRAP
        });
    }

    /// @dev unitsPerCoin, maxPerUnit, M = 3, m = 4, K = 20, APPEAL = 1.
    function settings() internal pure virtual returns (uint256[6] memory) {
        return [UNITS_PER_COIN, MAX_PER_UNIT, 3, 4, 20, 1];
    }

    function auditorKey(uint256 i) internal pure returns (uint256) {
        return 0xA0D1 + i;
    }

    function deploy() internal {
        (bytes32[] memory models, uint64[] memory rates) = (new bytes32[](1), new uint64[](1));
        (models[0], rates[0]) = (MODEL, RATE);
        address[] memory auditors = new address[](5);
        for (uint256 i; i < 5; ++i) {
            auditors[i] = vm.addr(auditorKey(i));
        }
        uint256 n = vm.getNonce(address(this));
        address settlementAt = vm.computeCreateAddress(address(this), n + 3);
        parameters = new Parameters(admin, fixedNumbers(), settings(), models, rates, auditors);
        token = new CreditToken(settlementAt, vm.computeCreateAddress(address(this), n + 5));
        registry = new NodeRegistry(parameters, settlementAt, vm.computeCreateAddress(address(this), n + 4));
        settlement = new Settlement(parameters, token, registry);
        disputes = new Disputes(parameters, settlementAt, registry);
        emission = new Emission(parameters, settlementAt, token, registry, disputes);
    }

    function domainContract() internal view override returns (address) {
        return address(settlement);
    }

    // ---- time

    function today() internal view returns (uint256) {
        return vm.getBlockTimestamp() / EPOCH;
    }

    /// @dev Time goes by, and as many blocks as a thaw asks for.
    function pass(uint256 time) internal {
        vm.warp(vm.getBlockTimestamp() + time);
        vm.roll(vm.getBlockNumber() + THAW_BLOCKS);
    }

    function toEpoch(uint256 epoch) internal {
        vm.warp(epoch * EPOCH + 1 hours);
    }

    // ---- actors' usual moves

    /// @dev Signatures of the auditors with these numbers, in the order of their addresses.
    function signAll(uint256[] memory numbers, bytes32 hash) internal pure returns (Signature[] memory list) {
        uint256 n = numbers.length;
        uint256[] memory keys = new uint256[](n);
        for (uint256 i; i < n; ++i) {
            keys[i] = auditorKey(numbers[i]);
        }
        return signSorted(keys, hash);
    }

    function register(uint256 operatorKey, address owner_, address payout_, uint256 stake) internal returns (address a) {
        a = vm.addr(operatorKey);
        Signature memory consent = sign(operatorKey, operatorDigest(owner_, a, PEER));
        vm.deal(owner_, stake);
        vm.prank(owner_);
        registry.register{value: stake}(a, PEER, payout_, consent);
    }

    function give(address to, uint256 amount) internal {
        vm.prank(address(emission));
        token.mint(to, amount);
    }

    function noPermit() internal pure returns (Permit memory p) {}

    function fundFrom(address payer, address client_, address node_, uint96 amount) internal {
        (address[] memory nodes, uint96[] memory amounts) = (new address[](1), new uint96[](1));
        (nodes[0], amounts[0]) = (node_, amount);
        vm.prank(payer);
        token.approve(address(settlement), amount);
        vm.prank(payer);
        settlement.fund(client_, nodes, amounts, noPermit());
    }

    /// @dev Gives `client_` the credits and puts them into its account at `node_`.
    function fill(address client_, address node_, uint96 amount) internal {
        give(client_, amount);
        fundFrom(client_, client_, node_, amount);
    }

    function item(uint256 operatorKey, address client_, uint256 voucherKey, uint96 total)
        internal
        view
        returns (Item memory it)
    {
        it.client = client_;
        it.sessionId = keccak256(abi.encode("session", client_, total));
        it.step = 9;
        it.tokens = 900;
        it.head = keccak256("head");
        it.total = total;
        signItem(it, operatorKey, voucherKey);
    }

    function signItem(Item memory it, uint256 operatorKey, uint256 voucherKey) internal view {
        bytes32 receipt = receiptDigest(vm.addr(operatorKey), it.client, it.sessionId, it.step, it.tokens, it.head);
        Signature memory s = sign(operatorKey, receipt);
        (it.receiptR, it.receiptVs) = (s.r, s.vs);
        s = sign(voucherKey, voucherDigest(receipt, it.total));
        (it.voucherR, it.voucherVs) = (s.r, s.vs);
    }

    function one(Item memory it) internal pure returns (Item[] memory items) {
        items = new Item[](1);
        items[0] = it;
    }

    function settleOne(Item memory it) internal returns (uint256 burned, uint256 minted) {
        return settlement.settle(node, one(it));
    }

    function donatedSession(address node_, uint256 nonce, uint256 epoch) internal view returns (Session memory s) {
        s.client = client;
        s.sessionKey = vm.addr(SESSION_KEY);
        s.node = node_;
        s.peerIdHash = PEER;
        s.modelId = MODEL;
        s.numerics = keccak256("f32/f32/f32");
        s.firstBlock = 3;
        s.endBlock = 18;
        s.maxTokens = 4096;
        s.expiry = uint64(epoch * EPOCH + 2 hours);
        s.nonce = keccak256(abi.encode("nonce", nonce));
    }

    function claimItem(uint256 operatorKey, Session memory s, uint64 tokens)
        internal
        view
        returns (ClaimItem memory it)
    {
        (it.session, it.step, it.tokens, it.head) = (s, 5, tokens, keccak256("head"));
        signClaim(it, operatorKey, SESSION_KEY);
    }

    function signClaim(ClaimItem memory it, uint256 operatorKey, uint256 sessionKey) internal view {
        bytes32 receipt = receiptDigest(
            vm.addr(operatorKey), it.session.client, sessionId(it.session), it.step, it.tokens, it.head
        );
        Signature memory s = sign(operatorKey, receipt);
        (it.receiptR, it.receiptVs) = (s.r, s.vs);
        s = sign(sessionKey, voucherDigest(receipt, 0));
        (it.voucherR, it.voucherVs) = (s.r, s.vs);
    }

    /// @dev `count` donated sessions of `node_` that expired in `epoch`, in the order that a claim asks for.
    function claimItems(uint256 operatorKey, uint256 epoch, uint256 count, uint64 tokens, uint256 salt)
        internal
        view
        returns (ClaimItem[] memory items)
    {
        items = new ClaimItem[](count);
        address node_ = vm.addr(operatorKey);
        for (uint256 i; i < count; ++i) {
            items[i] = claimItem(operatorKey, donatedSession(node_, uint256(keccak256(abi.encode(salt, i))), epoch), tokens);
        }
        sortClaims(items);
    }

    function sortClaims(ClaimItem[] memory items) internal view {
        for (uint256 i = 1; i < items.length; ++i) {
            ClaimItem memory it = items[i];
            bytes32 id = sessionId(it.session);
            uint256 j = i;
            for (; j > 0 && sessionId(items[j - 1].session) > id; --j) {
                items[j] = items[j - 1];
            }
            items[j] = it;
        }
    }

    function statement(uint256 operatorKey, bytes32 id, uint64 step, address client_, uint64 tokens, bytes32 head)
        internal
        view
        returns (Statement memory)
    {
        bytes32 receipt = receiptDigest(vm.addr(operatorKey), client_, id, step, tokens, head);
        return Statement(client_, tokens, head, sign(operatorKey, receipt));
    }

    // ---- sums

    /// @dev m(c) of the spec: c - ceil(c * FEE / 10000), by another way of rounding up.
    function m(uint256 c) internal pure returns (uint256) {
        uint256 fee = c * 500 / 10_000;
        if (fee * 10_000 != c * 500) ++fee;
        return c - fee;
    }

    function collectedOf(address client_, address node_) internal view returns (uint256) {
        return settlement.account(client_, node_).collected;
    }

    function balanceOf(address client_, address node_) internal view returns (uint256) {
        return settlement.account(client_, node_).balance;
    }
}
