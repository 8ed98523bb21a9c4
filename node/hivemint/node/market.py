"""What others ask for the same blocks: whether this node is dear, and an ask that follows them.

A record is only what a node says of itself. So only operators count that the registry knows and that hold stake, each
once with its lowest ask, and not this node's own. The rule of `ask = "auto"`:

    the median of their asks, weighted by stake, within `ask_floor` and `ask_ceiling`
    at most one change in CHANGE_EVERY, by a factor of STEP at most, and none that is smaller than SMALL

The weight makes a price that many small operators name together worth no more than the stake behind them; floor and
step keep one who asks 1 wei from pulling the others down with it. Nobody else there: the ask
stays, within the same bounds.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hivemint.protocol.credits import in_words
from hivemint.protocol.ids import Address, Credits
from hivemint.swarm.records import CheckedRecord

CHANGE_EVERY = 300.0
STEP, SMALL = 2, 0.05
DEAR = 1.5
"""Times the cheapest ask from which on it is said."""
MOST = 256
"""Other operators that are looked at, the most stake first."""
BONDED = 2
"""A stake of 1 wei stands for a node that is registered and has nothing bonded."""


@dataclass(frozen=True, slots=True)
class Rival:
    """Another operator of some of these blocks: its lowest ask, in wei per token and block, and its stake."""

    operator: Address
    ask: int
    stake: int


@dataclass(frozen=True, slots=True)
class AskRule:
    """How an ask follows others. Amounts in wei per token and block."""

    floor: int
    ceiling: int

    def next(self, ask: int, rivals: Iterable[Rival], *, at_once: bool = False) -> int:
        """The ask after this look, always within floor and ceiling; with nothing to follow the same. `at_once`: in one
        step, however wide.
        """
        usual = median(rivals)
        if usual is None:
            return self.within(ask)
        target = self.within(usual)
        if abs(target - ask) <= SMALL * ask:
            return self.within(ask)
        if not at_once:
            target = min(max(target, ask // STEP), max(1, ask * STEP))
        return self.within(target)

    def within(self, ask: int) -> int:
        return min(max(ask, self.floor), self.ceiling)


class Market:
    """Of one node. `reprice` is called with a new ask; `rule` None: the ask is the operator's own."""

    def __init__(
        self,
        stake_of: Callable[[CheckedRecord], int],
        blocks: range,
        operator: Address,
        ask: Callable[[], int],
        reprice: Callable[[Credits], None],
        rule: AskRule | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rivals: list[Rival] = []
        self.rule = rule
        self._stake_of, self._blocks, self._operator = stake_of, blocks, operator
        self._ask, self._reprice, self._clock = ask, reprice, clock
        self._changed = float("-inf")  # so the first change is at once: the default was nobody's price

    def see(self, found: Iterable[CheckedRecord]) -> None:
        """What the directory has just told, nothing if it does not answer; follow it if that is the rule."""
        here = [
            one
            for one in found
            if one.record.first_block < self._blocks.stop and one.record.end_block > self._blocks.start
        ]
        self.rivals = others(here, self._stake_of, self._operator)
        if self.rule is None or self._clock() - self._changed < CHANGE_EVERY:
            return
        ask = self._ask()
        if (new := self.rule.next(ask, self.rivals, at_once=self._changed < 0)) != ask:
            if self.rivals:  # coming within the bounds follows nobody: the first to follow still is followed at once
                self._changed = self._clock()
            self._reprice(Credits(new))

    @property
    def note(self) -> str:
        """Where the ask stands beside the others; empty if there is nothing to say."""
        return beside(self._ask(), self.rivals)


def beside(ask: int, rivals: Iterable[Rival]) -> str:
    """Where an ask stands beside the others', if it is DEAR; "" otherwise."""
    cheapest = min((rival.ask for rival in rivals), default=None)
    if cheapest is None or ask < DEAR * max(1, cheapest):
        return ""
    what = f"{ask / cheapest:,.0f} times" if cheapest and ask >= 2 * cheapest else "more than"
    if cheapest and DEAR * cheapest <= ask < 2 * cheapest:
        what = f"{ask / cheapest:.1f} times"
    return f"your ask is {what} the cheapest for these blocks ({in_words(cheapest)} a token and block)"


def others(found: Iterable[CheckedRecord], stake_of: Callable[[CheckedRecord], int], own: Address) -> list[Rival]:
    """The registered operators with stake among those that published, `own` left out: the most stake first."""
    rivals: dict[Address, Rival] = {}
    for one in found:
        record, stake = one.record, stake_of(one)
        if record.operator == own or stake < BONDED:
            continue
        known = rivals.get(record.operator)
        if known is None or record.ask < known.ask:
            rivals[record.operator] = Rival(record.operator, int(record.ask), stake)
    return sorted(rivals.values(), key=lambda rival: (-rival.stake, rival.operator))[:MOST]


def median(rivals: Iterable[Rival]) -> int | None:
    """By stake: at least half of it asks so much or less. None for nobody."""
    by_ask = sorted(rivals, key=lambda rival: rival.ask)
    whole = sum(rival.stake for rival in by_ask)
    below = 0
    for rival in by_ask:
        below += rival.stake
        if 2 * below >= whole:
            return rival.ask
    return None
