// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Check} from "../support/Check.sol";
import {Actors} from "./Actors.t.sol";

/// @dev That the invariant runs try what they say: among random moves each one works at times, and each one that the
/// contracts may refuse is refused at times. A handler that never gets through would test nothing.
contract MovesTest is Check {
    uint256 private constant MOVES = 1_200;

    Actors private actors;
    uint256 private _seed;

    function setUp() external {
        actors = new Actors();
        actors.setUp();
    }

    function test_eachMoveWorksAndIsRefusedAtTimes() external {
        for (uint256 i; i < MOVES; ++i) {
            move();
        }
        string memory all;
        string[29] memory works = [
            "fund", "fundBySig", "thaw", "thawBySig", "cancelThaw", "cancelThawBySig", "withdraw", "withdrawBySig", "close",
            "authorize", "authorizeBySig", "revoke", "revokeBySig", "settle", "claim", "mint", "bond", "unbond",
            "withdrawStake", "setPayout", "setPeer", "acceptOwnership", "strike", "pardon", "slashStruck",
            "proveEquivocation", "pullReward", "schedule", "pause"
        ];
        for (uint256 i; i < works.length; ++i) {
            if (actors.worked(works[i]) == 0) all = string.concat(all, works[i], " never works; ");
        }
        ok(actors.worked("unpause") != 0, "unpause never ends a pause");
        string[22] memory fails = [
            "fund", "fundBySig", "thaw", "cancelThaw", "withdraw", "withdrawBySig", "close", "authorize", "authorizeBySig",
            "settle", "claim", "mint", "bond", "unbond", "withdrawStake", "setPeer", "acceptOwnership", "strike",
            "pardon", "slashStruck", "proveEquivocation", "pause"
        ];
        for (uint256 i; i < fails.length; ++i) {
            if (actors.refused(fails[i]) == 0) all = string.concat(all, fails[i], " is never refused; ");
        }
        ok(bytes(all).length == 0, all);
        ok(actors.refused("an order is good once") != 0, "no order is tried twice");
    }

    function dice(uint256 sides) private returns (uint256) {
        return uint256(keccak256(abi.encode(_seed++))) % sides;
    }

    function any() private returns (uint256) {
        return dice(type(uint256).max);
    }

    function coin() private returns (bool) {
        return dice(2) == 0;
    }

    function move() private {
        uint256 which = dice(3);
        if (which == 0) paidWork();
        else if (which == 1) donatedWork();
        else officers();
    }

    function paidWork() private {
        uint256 which = dice(10);
        if (which == 0) actors.fund(any(), any(), uint96(any()), any(), coin());
        else if (which == 1) actors.settle(any(), any(), uint96(any()), any());
        else if (which == 2) actors.replay(any(), any(), any());
        else if (which == 3) actors.thaw(any(), any(), coin());
        else if (which == 4) actors.cancelThaw(any(), any(), coin());
        else if (which == 5) actors.withdraw(any(), any(), any(), coin());
        else if (which == 6) actors.close(any(), any(), uint96(any()), any());
        else if (which == 7) actors.authorize(any(), any(), any(), coin(), coin());
        else if (which == 8) actors.revoke(any(), any(), coin());
        else actors.fund(any(), any(), uint96(any()), any(), coin());
    }

    function donatedWork() private {
        uint256 which = dice(6);
        if (which == 0) actors.work(any(), uint64(any()), any());
        else if (which == 1) actors.claim(any(), any());
        else if (which == 2) actors.donate(any(), uint64(any()));
        else if (which == 3) actors.mintShare(any(), any(), coin());
        else if (which == 4) actors.wait(any());
        else actors.waitLong(any());
    }

    function officers() private {
        uint256 which = dice(17);
        if (which == 0) actors.bond(any(), uint96(any()));
        else if (which == 1) actors.unbond(any());
        else if (which == 2) actors.withdrawStake(any(), coin(), any());
        else if (which == 3) actors.strike(any(), coin(), any());
        else if (which == 4) actors.strikeOften(any(), any());
        else if (which == 5) actors.pardon(any(), any());
        else if (which == 6) actors.slashStruck(any(), any());
        else if (which == 7) actors.setPayout(any(), any());
        else if (which == 8) actors.setPeer(any(), bytes32(any()), coin());
        else if (which == 9) actors.handOver(any(), any(), coin());
        else if (which == 10) actors.schedule(any(), any());
        else if (which == 11) actors.pause(any());
        else if (which == 12) actors.unpause();
        else if (which == 13) actors.pullReward();
        else if (which == 14) actors.condemn(any(), any());
        else if (which == 15) actors.strikeAndPardon(any(), any());
        else actors.equivocate(any(), uint64(any()), any());
    }
}
