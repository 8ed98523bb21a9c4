// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ICreditToken} from "../src/interfaces/ICreditToken.sol";
import {Kit} from "./support/Kit.sol";

contract CreditTokenTest is Kit {
    function test_nameAndNoPremint() external view {
        eq(keccak256(bytes(token.name())), keccak256("Hivemint Credit"), "name");
        eq(keccak256(bytes(token.symbol())), keccak256("HMC"), "symbol");
        eq(token.decimals(), 18, "decimals");
        eq(token.totalSupply(), 0, "no premint");
        eq(token.SETTLEMENT(), address(settlement), "settlement");
        eq(token.EMISSION(), address(emission), "emission");
    }

    function testFuzz_P1_onlyTheTwoMint(address caller, uint96 amount) external {
        vm.assume(caller != address(settlement) && caller != address(emission));
        vm.expectRevert(abi.encodeWithSelector(ICreditToken.NotMinter.selector, caller));
        vm.prank(caller);
        token.mint(caller, amount);
    }

    function testFuzz_P1_mint(address to, uint96 a, uint96 b) external {
        vm.assume(to != address(0));
        vm.prank(address(settlement));
        token.mint(to, a);
        vm.prank(address(emission));
        token.mint(to, b);
        eq(token.balanceOf(to), uint256(a) + b, "balance");
        eq(token.totalSupply(), uint256(a) + b, "supply");
    }

    function testFuzz_P1_onlySettlementBurns(address caller) external {
        vm.assume(caller != address(settlement) && caller != address(0));
        give(caller, 5);
        vm.expectRevert(abi.encodeWithSelector(ICreditToken.NotMinter.selector, caller));
        vm.prank(caller);
        token.burn(1);
        give(address(emission), 5);
        vm.expectRevert(abi.encodeWithSelector(ICreditToken.NotMinter.selector, address(emission)));
        vm.prank(address(emission));
        token.burn(1);
    }

    function test_P1_burnTakesTheCallersOwn() external {
        give(address(settlement), 5);
        give(client, 5);
        vm.prank(address(settlement));
        token.burn(3);
        eq(token.balanceOf(address(settlement)), 2, "escrow");
        eq(token.balanceOf(client), 5, "client");
        eq(token.totalSupply(), 7, "supply");
    }

    function testFuzz_permit(uint96 value, uint32 life) external {
        uint256 deadline = vm.getBlockTimestamp() + life;
        bytes32 typeHash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 hash = keccak256(
            abi.encodePacked(
                hex"1901",
                token.DOMAIN_SEPARATOR(),
                keccak256(abi.encode(typeHash, client, address(this), value, token.nonces(client), deadline))
            )
        );
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(CLIENT_KEY, hash);
        token.permit(client, address(this), value, deadline, v, r, s);
        eq(token.allowance(client, address(this)), value, "allowance");
        eq(token.nonces(client), 1, "nonce");
        vm.expectRevert();
        token.permit(client, address(this), value, deadline, v, r, s);
    }
}
