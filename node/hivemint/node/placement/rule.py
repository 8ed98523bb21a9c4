"""The rule that places a node: the span that raises the swarm's weakest block most. Pure: numbers in, a span out.

A node of rate `r` (rows a second through one block) that serves `n` blocks shares `r` out over them as they are asked
for. So a swarm gives each block a *level*, rows a second that its nodes have for it; tokens pass through all blocks,
and what the swarm can do is its lowest level. `levels` shares every node out so that the lowest is as high as can be,
then the next (for contiguous spans that is the maximal flow). A new node is poured over each span that it could
take; the one that closes the most holes wins (blocks that nobody serves, whatever levels others claim), of these the
one with the least want. One that serves looks as if it were not there, and moves where holes become fewer, or the
swarm's lowest level gains a good part of what the node has to give.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.float64]
Holes = npt.NDArray[np.bool_]

SWEEPS = 100
"""Rounds of sharing out, at most."""
CLOSE = 1e-3
"""Of the mean level: what a round must still change."""
WANT, NONE = 4.0, 0.01
"""The power by which low levels weigh more than others, and the level, as a share of what the node would give each of
its blocks, below which none counts less. By its own measure, as nobody else's word can move that."""
SAME = 1e-12
"""Of the want: by so much equal spans differ in the last digits."""
GAIN = 0.1
"""What a move must bring to the lowest level, as a share of what the node would bring if its rate were spread evenly
over all blocks of the model."""
AWAY = 0.1
"""What a move must bring to the lowest level, as a share of what that level loses until the node serves again: it pays
when the node stays ten times as long as it was away."""
FEW = 24
"""Nodes up to which each looks whether a move suits another better; more of them look so rarely that few meet."""
MOST_CLAIMED = 5.0
"""Times the usual rate that a node's word about itself counts at most: the fastest card does 3.7 times as much as the
middle one of those that the benchmark knows, and whatever more is claimed keeps nobody away."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A node at its place: blocks `first .. end - 1`, and rows a second through one block. `rate` 0: it tells none."""

    first: int
    end: int
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.end or not 0 <= self.rate < float("inf"):
            raise ValueError(f"{self.first}:{self.end} at {self.rate} rows/s is no place")


@dataclass(frozen=True, slots=True)
class Choice:
    """A span, and the swarm's lowest level without the node and with it there, in rows a second."""

    first: int
    end: int
    before: float
    after: float

    @property
    def span(self) -> tuple[int, int]:
        return self.first, self.end


def believed(others: Iterable[Placed], own: float) -> list[Placed]:
    """Others with rates that can be compared: who tells none has the usual one, and nobody more than MOST_CLAIMED times
    that. The usual one is the lower median of what others tell and this node has measured (`own`)."""
    found = list(others)
    usual = statistics.median_low([own, *(one.rate for one in found if one.rate > 0)])
    return [replace(one, rate=min(one.rate or usual, MOST_CLAIMED * usual)) for one in found]


def levels(blocks: int, placed: Sequence[Placed]) -> Levels:
    """Rows a second for each of the model's blocks `[blocks]`, every node shared out so that the lowest are highest."""
    return _Shares(blocks, placed).levels


def lowest(blocks: int, placed: Sequence[Placed]) -> float:
    """Tokens a second that a swarm can do, 0 where a block is served by nobody."""
    return float(levels(blocks, placed).min())


def choose(blocks: int, others: Sequence[Placed], size: int, rate: float) -> Choice:
    """The span of `size` blocks (of all, where there are fewer) in which a node of `rate` helps most; of equal spans
    the first. Raises ValueError for a node without blocks or rate."""
    without = levels(blocks, others)
    first, end = _neediest(without, _unserved(blocks, others), size, rate)
    return Choice(first, end, float(without.min()), lowest(blocks, [*others, Placed(first, end, rate)]))


def better(blocks: int, others: Sequence[Placed], own: Placed, size: int) -> Choice | None:
    """Where a node that serves `own` should go; None: it stays. `before` of the choice: with the node where it is.

    It moves where blocks without any node become fewer, or where the lowest level rises by GAIN of its share and by
    AWAY of what the swarm can do less until it serves again. It never leaves a block alone that nobody else serves,
    not for as long as the move takes, unless the swarm can do nothing as it is.
    """
    without = levels(blocks, others)
    first, end = _neediest(without, _unserved(blocks, others), size, own.rate)
    there = Placed(first, end, own.rate)
    if there == own:
        return None
    holes, meanwhile = _holes(blocks, [*others, own]), _holes(blocks, others)
    left = _holes(blocks, [*others, there])
    if left > holes or (meanwhile > holes and not (holes and left < holes)):
        return None
    now, then = lowest(blocks, [*others, own]), lowest(blocks, [*others, there])
    enough = max(GAIN * own.rate / blocks, AWAY * (now - float(without.min())))
    return Choice(first, end, now, then) if left < holes or then - now >= enough else None


def suits_another(blocks: int, others: Sequence[Placed], own: Placed, found: Choice) -> bool:
    """Whether another node's move would help more than what `own` has found: of at most FEW nodes, who all see the same
    records, so that one goes and the others wait for it."""
    if len(others) >= FEW:
        return False
    for index, other in enumerate(others):
        rest = [*others[:index], *others[index + 1 :], own]
        move = better(blocks, rest, other, other.end - other.first)
        if move is not None and (move.after, other.rate) > (found.after, own.rate):
            return True
    return False


class _Shares:
    """How each node's rate is shared out over its blocks: in turns, each node filling its lowest blocks up.

    Each turn lowers the sum of squares of the levels, which is least where the levels are as even as they can be.
    """

    def __init__(self, blocks: int, placed: Sequence[Placed]) -> None:
        self.levels: Levels = np.zeros(blocks)
        together: Counter[tuple[int, int]] = Counter()  # nodes of one span count as one
        for one in placed:
            if one.first < blocks:
                together[one.first, min(one.end, blocks)] += one.rate  # type: ignore[assignment]
        self._spans = inside = [(first, end, rate) for (first, end), rate in sorted(together.items())]
        self._shares = [np.zeros(end - first) for first, end, _ in self._spans]
        close = CLOSE * sum(rate for *_, rate in inside) / blocks
        order = range(len(inside))
        for _ in range(SWEEPS):
            before = self.levels.copy()
            for index in order:
                self._turn(index)
            order = order[::-1]
            if np.abs(self.levels - before).max(initial=0.0) <= close:
                return

    def _turn(self, index: int) -> None:
        first, end, rate = self._spans[index]
        here = self.levels[first:end] - self._shares[index]
        share = np.maximum(_fill(here, rate) - here, 0.0)
        self._shares[index] = share
        self.levels[first:end] = here + share


def _fill(here: Levels, rate: float) -> float:
    """The level up to which `rate` fills `here`."""
    ordered = np.sort(here)
    tops = (rate + ordered.cumsum()) / np.arange(1, len(ordered) + 1)
    return float(tops.min())


def _neediest(without: Levels, unserved: Holes, size: int, rate: float) -> tuple[int, int]:
    """The span in which the node is wanted most: where it closes the most holes, of equal ones where the swarm is then
    least wanting. Levels and holes are those without the node."""
    if size < 1 or rate <= 0:
        raise ValueError(f"{size} blocks at {rate} rows/s can't be placed")
    size = min(size, len(without))
    closed = np.lib.stride_tricks.sliding_window_view(unserved, size).sum(axis=1)
    wants = np.where(closed == closed.max(), _wants(without, unserved, size, rate), np.inf)
    first = int((wants <= wants.min() * (1 + SAME)).argmax())
    return first, first + size


def _wants(without: Levels, unserved: Holes, size: int, rate: float) -> Levels:
    """For each first block: how wanting the swarm is with the node there, by a sum in which low levels weigh most.
    Holes that stay open are left out: they are counted before."""
    windows = np.lib.stride_tricks.sliding_window_view(without, size)
    ordered = np.sort(windows, axis=1)
    tops = ((rate + ordered.cumsum(axis=1)) / np.arange(1, size + 1)).min(axis=1)
    unit = rate / size
    now = np.where(unserved, 0.0, _want(without / unit))
    before = np.lib.stride_tricks.sliding_window_view(now, size).sum(axis=1)
    after = _want(np.maximum(windows, tops[:, None]) / unit).sum(axis=1)
    wants: Levels = (now.sum() - before) + after
    return wants


def _want(level: Levels) -> Levels:
    wanted: Levels = np.maximum(level, NONE) ** -WANT
    return wanted


def _unserved(blocks: int, placed: Iterable[Placed]) -> Holes:
    """Which blocks are holes: nobody serves them, as far as records say."""
    unserved: Holes = np.ones(blocks, dtype=bool)
    for one in placed:
        unserved[one.first : one.end] = False
    return unserved


def _holes(blocks: int, placed: Iterable[Placed]) -> int:
    return int(_unserved(blocks, placed).sum())
