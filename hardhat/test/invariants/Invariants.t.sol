// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {CreditToken} from "../../src/CreditToken.sol";
import {Emission} from "../../src/Emission.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {Settlement} from "../../src/Settlement.sol";
import {Node} from "../../src/interfaces/INodeRegistry.sol";
import {Account} from "../../src/interfaces/ISettlement.sol";
import {Check} from "../support/Check.sol";
import {Actors} from "./Actors.t.sol";
import {Officers} from "./Officers.sol";
import {World} from "./World.sol";

/// @dev The promises that hold after any sequence of moves.
contract InvariantsTest is Check {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Actors private actors;
    CreditToken private token;
    Settlement private settlement;
    NodeRegistry private registry;
    Emission private emission;

    function setUp() external {
        actors = new Actors();
        actors.setUp();
        (address t, address s, address r, address e) = actors.rest();
        (token, settlement, registry, emission) = (CreditToken(t), Settlement(s), NodeRegistry(payable(r)), Emission(e));
    }

    function targetContracts() external view returns (address[] memory list) {
        list = new address[](1);
        list[0] = address(actors);
    }

    /// @dev Frequent moves stand in the list more than once.
    function targetSelectors() external view returns (FuzzSelector[] memory list) {
        bytes4[] memory s = new bytes4[](45);
        s[0] = s[1] = Actors.fund.selector;
        s[2] = s[3] = s[4] = Actors.settle.selector;
        s[5] = s[6] = Actors.replay.selector;
        s[7] = Actors.thaw.selector;
        s[8] = Actors.cancelThaw.selector;
        s[9] = Actors.withdraw.selector;
        s[10] = Actors.authorize.selector;
        s[11] = Actors.revoke.selector;
        s[12] = s[13] = Actors.work.selector;
        s[14] = s[15] = Actors.claim.selector;
        s[16] = s[26] = Actors.mintShare.selector;
        s[27] = s[28] = Actors.donate.selector;
        s[17] = Officers.bond.selector;
        s[18] = Officers.unbond.selector;
        s[19] = Officers.withdrawStake.selector;
        s[20] = Officers.strike.selector;
        s[21] = Officers.pardon.selector;
        s[22] = Officers.equivocate.selector;
        s[23] = Officers.pullReward.selector;
        s[24] = Actors.wait.selector;
        s[25] = Actors.waitLong.selector;
        s[29] = s[30] = Officers.slashStruck.selector;
        s[31] = s[32] = Officers.strikeOften.selector;
        s[33] = Officers.setPayout.selector;
        s[34] = Officers.setPeer.selector;
        s[35] = Officers.handOver.selector;
        s[36] = Officers.schedule.selector;
        s[37] = Officers.pause.selector;
        s[38] = Officers.unpause.selector;
        s[39] = s[40] = s[41] = Actors.close.selector;
        s[42] = s[43] = Officers.condemn.selector;
        s[44] = Officers.strikeAndPardon.selector;
        list = new FuzzSelector[](1);
        list[0] = FuzzSelector(address(actors), s);
    }

    function invariant_P1_supply() external view {
        uint256 made = actors.given() + actors.emitted() + actors.settledMints();
        eq(token.totalSupply(), made - actors.burned(), "supply = emission + settled mints - burns");
        eq(emission.mintedTotal(), actors.emitted(), "emission");
        uint256 balances;
        for (uint256 c; c < 5; ++c) {
            for (uint256 n; n < 3; ++n) {
                balances += settlement.account(actors.clients(c), actors.nodes(n)).balance;
            }
        }
        eq(token.balanceOf(address(settlement)), balances, "the escrow holds all balances");
    }

    function invariant_P2_P3_accounts() external view {
        uint256 minted;
        for (uint256 c; c < 5; ++c) {
            for (uint256 n; n < 3; ++n) {
                (address client, address node) = (actors.clients(c), actors.nodes(n));
                Account memory a = settlement.account(client, node);
                World.ModelAccount memory model = actors.modelOf(client, node);
                eq(a.balance, model.balance, "balance as the model says");
                eq(a.collected, model.collected, "collected as the model says: it only grows");
                eq(a.thawEnd, model.thawEnd, "thaw as the model says");
                atMost(a.collected, model.highestVoucher, "P3: never past the highest voucher");
                eq(a.balance + a.collected, model.deposits - model.withdrawals, "P3: nor past what was deposited");
                eq(model.minted, settlement.mintedFor(a.collected), "P4: minted is m(collected), however it was split");
                atMost(model.minted * 10_000, uint256(a.collected) * 9_500, "P2: the fee is lost");
                minted += model.minted;
            }
        }
        eq(minted, actors.settledMints(), "P1: settled mints");
    }

    function invariant_P7_emission() external view {
        uint256[] memory epochs = actors.epochs();
        for (uint256 i; i < epochs.length; ++i) {
            uint256 weights;
            for (uint256 n; n < 3; ++n) {
                weights += emission.claimOf(actors.nodes(n), epochs[i]).weight;
            }
            eq(emission.totalWeight(epochs[i]), weights, "the sum of all weights");
            atMost(actors.mintedOf(epochs[i]), emission.budget(epochs[i]), "P7: within E");
            uint256 budget = actors.lostIn(epochs[i]) + emission.bootstrap(epochs[i]);
            if (budget > emission.CAP()) budget = emission.CAP();
            eq(emission.budget(epochs[i]), budget, "P7: E is what was lost and the bootstrap, up to the cap");
        }
    }

    function invariant_P8_stake() external view {
        uint256 today = vm.getBlockTimestamp() / 1 days;
        (uint256 held, uint256 counted, uint256 countedBefore) = (0, 0, 0);
        for (uint256 n; n < 3; ++n) {
            Node memory state = registry.nodeOf(actors.nodes(n));
            held += uint256(state.bonded) + state.unbonding;
            counted += registry.stakeFor(actors.nodes(n), today);
            countedBefore += registry.stakeFor(actors.nodes(n), today - 1);
            ok(state.bonded == 0 || state.unbonding == 0, "P8: bonded or leaving");
        }
        eq(address(registry).balance, actors.coinIn() - actors.coinOut(), "coin in less coin out");
        atMost(held + registry.rewardOf(actors.clients(1)), address(registry).balance, "all stake is held");
        atMost(counted, held, "P8: a coin counts once");
        atMost(countedBefore, held, "P8: a coin counts once, in the last epoch too");
    }

    function invariant_fees() external view {
        uint256 today = vm.getBlockTimestamp() / 1 days;
        eq(settlement.feesBurned(today), actors.lostIn(today), "this epoch's fees");
        eq(settlement.feesBurned(today - 1), actors.lostIn(today - 1), "the last epoch's");
    }
}
