// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Settlement} from "../src/Settlement.sol";
import {ICreditToken} from "../src/interfaces/ICreditToken.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Fixed, IParameters} from "../src/interfaces/IParameters.sol";
import {Account, Item, Permit} from "../src/interfaces/ISettlement.sol";

/// @dev The cheat codes of halmos.
interface SVM {
    function enableSymbolicStorage(address target) external;
}

interface VM {
    function assume(bool condition) external pure;
    function prank(address sender) external;
    function warp(uint256 time) external;
}

/// @dev Parameters, token and registry in one, that let everything through: what is proved is the settlement's own.
contract LetsThrough {
    function fixedNumbers() external pure returns (Fixed memory) {
        return Fixed(500, 1 days, 3 days, 600, 14 days, 2 days, 10, 1 ether, 1_000 ether, 100 ether);
    }

    function paused() external pure returns (bool) {
        return false;
    }

    function payoutOf(address) external pure returns (address) {
        return address(1);
    }

    function burn(uint256) external pure {}

    function mint(address, uint256) external pure {}

    function transfer(address, uint256) external pure returns (bool) {
        return true;
    }

    function transferFrom(address, address, uint256) external pure returns (bool) {
        return true;
    }
}

/// @dev Proved by halmos for every input and every state (scripts/halmos.sh): not run by Hardhat.
contract Proofs {
    SVM private constant svm = SVM(0xF3993A62377BCd56AE39D773740A5390411E8BC9);
    VM private constant vm = VM(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    Settlement private settlement;

    function setUp() public {
        vm.warp(20_000 days);
        address all = address(new LetsThrough());
        settlement = new Settlement(IParameters(all), ICreditToken(all), INodeRegistry(all));
        svm.enableSymbolicStorage(address(settlement));
    }

    /// @dev P3: no settlement lowers what any node has collected from any client, or passes the voucher's total.
    function check_P3_settleOnlyRaisesCollected(address client, address node, address other, Item memory it) external {
        Item[] memory items = new Item[](1);
        items[0] = it;
        Account memory before = settlement.account(client, node);
        settlement.settle(other, items);
        Account memory later = settlement.account(client, node);
        assert(later.collected >= before.collected);
        if (later.collected != before.collected) {
            assert(other == node && it.client == client);
            assert(later.collected <= it.total);
            assert(before.balance - later.balance == later.collected - before.collected);
        } else {
            assert(later.balance == before.balance);
        }
        assert(later.thawEnd == before.thawEnd);
    }

    /// @dev P3: nothing else touches it at all, whoever calls.
    function check_P3_nothingElseTouchesCollected(address sender, uint8 which, address client, address node, address a)
        external
    {
        Account memory before = settlement.account(client, node);
        vm.prank(sender);
        if (which == 0) settlement.thaw(a);
        else if (which == 1) settlement.cancelThaw(a);
        else if (which == 2) settlement.withdraw(a);
        else if (which == 3) settlement.revoke(a);
        else settlement.authorize(a, uint64(block.timestamp + 1));
        Account memory later = settlement.account(client, node);
        assert(later.collected == before.collected);
        if (sender != client || a != node) {
            assert(later.balance == before.balance && later.thawEnd == before.thawEnd);
        }
    }

    function check_P3_fundOnlyAdds(address sender, address client, address node, address c, address n, uint96 amount)
        external
    {
        address[] memory nodes = new address[](1);
        uint96[] memory amounts = new uint96[](1);
        (nodes[0], amounts[0]) = (n, amount);
        Permit memory none;
        Account memory before = settlement.account(client, node);
        vm.prank(sender);
        settlement.fund(c, nodes, amounts, none);
        Account memory later = settlement.account(client, node);
        assert(later.collected == before.collected && later.thawEnd == before.thawEnd);
        assert(later.balance == (c == client && n == node ? before.balance + amount : before.balance));
    }

    /// @dev P6: a withdrawal needs a thaw that is over.
    function check_P6_noWithdrawalBeforeTheThawEnds(address client, address node, uint64 time) external {
        Account memory before = settlement.account(client, node);
        vm.warp(time);
        vm.prank(client);
        settlement.withdraw(node);
        assert(before.thawEnd != 0 && time > before.thawEnd);
    }

    /// @dev m(c) = c - fee with the fee rounded up, by less than a wei: so what an account's whole life mints is at most
    /// what it burned less the fee, m never falls, and never rises faster than what is burned.
    function check_P1_mintedAtMostBurnedLessFee(uint96 collected) external view {
        uint256 minted = settlement.mintedFor(collected);
        assert(minted <= collected);
        uint256 fee = collected - minted;
        assert(fee * 10_000 >= uint256(collected) * 500);
        assert(fee * 10_000 < uint256(collected) * 500 + 10_000);
    }
}
