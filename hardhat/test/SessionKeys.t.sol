// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISettlement, SessionKey} from "../src/interfaces/ISettlement.sol";
import {Kit} from "./support/Kit.sol";
import {ContractWallet, HostileWallet} from "./support/Wallets.sol";

contract SessionKeysTest is Kit {
    address private key = vm.addr(SESSION_KEY);

    function until(uint256 life) private view returns (uint64) {
        return uint64(vm.getBlockTimestamp() + life);
    }

    function testFuzz_authorize(address c, address k, uint256 life) external {
        vm.assume(k != address(0) && k != c);
        life = within(life, 1, 90 days);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Authorized(c, k, until(life));
        vm.prank(c);
        settlement.authorize(k, until(life));
        SessionKey memory record = settlement.sessionKey(c, k);
        eq(record.validUntil, until(life), "validUntil");
        ok(record.authorized, "authorized");
    }

    function testFuzz_authorizeInTheNext90DaysOnly(uint64 validUntil) external {
        uint256 time = vm.getBlockTimestamp();
        vm.assume(validUntil <= time || validUntil > time + 90 days);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadValidity.selector, validUntil, time + 90 days));
        vm.prank(client);
        settlement.authorize(key, validUntil);
    }

    function test_authorizeRefusesSelfAndZero() external {
        vm.startPrank(client);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadKey.selector, client));
        settlement.authorize(client, until(1));
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadKey.selector, address(0)));
        settlement.authorize(address(0), until(1));
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadKey.selector, client));
        settlement.revoke(client);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadKey.selector, address(0)));
        settlement.revoke(address(0));
        vm.stopPrank();
    }

    function test_aKeyIsSetOnce() external {
        vm.startPrank(client);
        settlement.authorize(key, until(1 days));
        vm.expectRevert(abi.encodeWithSelector(ISettlement.KeyKnown.selector, key));
        settlement.authorize(key, until(2 days));
        vm.warp(vm.getBlockTimestamp() + 3 days);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.KeyKnown.selector, key));
        settlement.authorize(key, until(2 days));
        vm.stopPrank();
    }

    function test_anOldDelegationCannotUndoARevocation() external {
        uint64 end = until(30 days);
        bytes memory delegation = packed(sign(CLIENT_KEY, delegationDigest(client, key, end)));
        vm.prank(client);
        settlement.revoke(key);
        vm.expectRevert(abi.encodeWithSelector(ISettlement.KeyKnown.selector, key));
        settlement.authorizeBySig(client, key, end, delegation);
        ok(!settlement.sessionKey(client, key).authorized, "never set");
        eq(settlement.sessionKey(client, key).validUntil, vm.getBlockTimestamp(), "revoked now");
    }

    function testFuzz_revokeEndsNowAndNeverLater(uint256 life, uint256 wait) external {
        life = within(life, 1, 90 days);
        wait = within(wait, 0, 200 days);
        uint64 end = until(life);
        vm.startPrank(client);
        settlement.authorize(key, end);
        vm.warp(vm.getBlockTimestamp() + wait);
        uint256 time = vm.getBlockTimestamp();
        uint64 expected = uint64(time < end ? time : end);
        vm.expectEmit(true, true, true, true, address(settlement));
        emit ISettlement.Revoked(client, key, expected);
        settlement.revoke(key);
        eq(settlement.sessionKey(client, key).validUntil, expected, "ends now");
        vm.warp(time + 1 days);
        settlement.revoke(key);
        eq(settlement.sessionKey(client, key).validUntil, expected, "a second revocation does not lengthen it");
        vm.stopPrank();
    }

    function testFuzz_authorizeBySig(uint256 wallet, address sender, uint256 life) external {
        wallet = within(wallet, 1, type(uint128).max);
        address c = vm.addr(wallet);
        vm.assume(c != key);
        uint64 end = until(within(life, 1, 90 days));
        bytes memory signature = packed(sign(wallet, delegationDigest(c, key, end)));
        vm.prank(sender);
        settlement.authorizeBySig(c, key, end, signature);
        eq(settlement.sessionKey(c, key).validUntil, end, "set");
    }

    function testFuzz_authorizeBySigRefusesOthers(uint256 wallet, address c, uint64 end, bytes32 r, bytes32 vs)
        external
    {
        wallet = within(wallet, 1, type(uint128).max);
        vm.assume(c != vm.addr(wallet) && c.code.length == 0 && uint160(c) > 0xffff);
        bytes memory refusal = abi.encodeWithSelector(ISettlement.BadDelegation.selector, c);
        bytes memory signature = packed(sign(wallet, delegationDigest(c, key, end)));
        vm.expectRevert(refusal);
        settlement.authorizeBySig(c, key, end, signature);
        vm.expectRevert(refusal);
        settlement.authorizeBySig(c, key, end, bytes.concat(r, vs));
        vm.expectRevert(refusal);
        settlement.authorizeBySig(c, key, end, bytes.concat(r));
    }

    /// @dev A delegation that was shown for donated work moves no money.
    function test_aDelegationForDonatedWorkIsNoMoneyPermission() external {
        uint64 end = until(1 days);
        bytes memory signature = packed(sign(CLIENT_KEY, delegationDigest(client, key, end, false)));
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadDelegation.selector, client));
        settlement.authorizeBySig(client, key, end, signature);
    }

    /// @dev Wallets give (r, s, v); a mirrored s and an unknown v are nobody's.
    function testFuzz_authorizeBySigTakesTheLongForm(uint256 wallet, uint8 v, bytes32 noise) external {
        wallet = within(wallet, 1, type(uint128).max);
        (address c, uint64 end) = (vm.addr(wallet), until(1 days));
        vm.assume(c != key && v != 27 && v != 28);
        (uint8 v_, bytes32 r, bytes32 s) = vm.sign(wallet, delegationDigest(c, key, end));
        bytes memory refusal = abi.encodeWithSelector(ISettlement.BadDelegation.selector, c);
        bytes[5] memory bad = [
            abi.encodePacked(r, s, v),
            abi.encodePacked(r, s, 55 - v_),
            abi.encodePacked(r, noise, v_),
            // The parity in the highest bit, as in the short form, is no s.
            abi.encodePacked(r, s | bytes32(uint256(1) << 255), uint8(27)),
            abi.encodePacked(r, s, v_, uint8(0))
        ];
        for (uint256 i; i < 5; ++i) {
            vm.expectRevert(refusal);
            settlement.authorizeBySig(c, key, end, bad[i]);
        }
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        bytes memory mirrored = abi.encodePacked(r, bytes32(order - uint256(s)), 55 - v_);
        vm.expectRevert(refusal);
        settlement.authorizeBySig(c, key, end, mirrored);
        settlement.authorizeBySig(c, key, end, abi.encodePacked(r, s, v_));
        eq(settlement.sessionKey(c, key).validUntil, end, "set");
    }

    function test_authorizeBySigNobody() external {
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadDelegation.selector, address(0)));
        settlement.authorizeBySig(address(0), key, until(1), new bytes(64));
    }

    function test_authorizeBySigBindsEveryField() external {
        uint64 end = until(1 days);
        bytes memory signature = packed(sign(CLIENT_KEY, delegationDigest(client, key, end)));
        bytes memory refusal = abi.encodeWithSelector(ISettlement.BadDelegation.selector, client);
        vm.expectRevert(refusal);
        settlement.authorizeBySig(client, node, end, signature);
        vm.expectRevert(refusal);
        settlement.authorizeBySig(client, key, end + 1, signature);
        vm.chainId(77);
        vm.expectRevert(refusal);
        settlement.authorizeBySig(client, key, end, signature);
    }

    function test_contractWallet() external {
        ContractWallet wallet = new ContractWallet();
        uint64 end = until(1 days);
        bytes memory refusal = abi.encodeWithSelector(ISettlement.BadDelegation.selector, address(wallet));
        vm.expectRevert(refusal);
        settlement.authorizeBySig(address(wallet), key, end, "");
        wallet.approve(delegationDigest(address(wallet), key, end));
        settlement.authorizeBySig(address(wallet), key, end, "");
        eq(settlement.sessionKey(address(wallet), key).validUntil, end, "set");
    }

    function test_hostileWalletIsRefused() external {
        HostileWallet wallet = new HostileWallet();
        vm.expectRevert(abi.encodeWithSelector(ISettlement.BadDelegation.selector, address(wallet)));
        settlement.authorizeBySig(address(wallet), key, until(1 days), new bytes(64));
    }
}
