"""How three systems place machines, one class each: ours (the rule that a node uses), Petals' and Parallax'.

`join`: where a new machine goes. `look`: where one that serves goes when it looks again; None: it stays. `repair`: what
a central planner moves after somebody came or went. A view holds the places that the rule can see: records of machines
that serve; in Petals also of those that are still loading, as they announce themselves before.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from placement_model import BLOCKS, Machine, Places

from hivemint.node.placement.rule import Placed, believed, choose
from hivemint.node.placement.watch import LOOK_EVERY, Moves, pause

Span = tuple[int, int]


class Ours:
    """By `hivemint.node.placement`; looks as often as `watch` has it look."""

    name, sees_loading = "ours", False

    def __init__(self) -> None:
        self._moves: dict[Machine, Moves] = {}

    def pause(self, count: int, source: random.Random) -> float:
        return pause(LOOK_EVERY, count, source)

    def join(self, machine: Machine, view: Places, source: random.Random) -> Span:
        others = believed(_placed(view), machine.useful)
        return choose(BLOCKS, others, machine.holds, machine.useful).span

    def look(self, machine: Machine, view: Places, source: random.Random) -> Span | None:
        others = believed(_placed({one: span for one, span in view.items() if one is not machine}), machine.useful)
        own, moves = Placed(*view[machine], machine.useful), self._moves.setdefault(machine, Moves())
        found = moves.decide(BLOCKS, others, own, machine.holds)
        return found.span if found else None

    def repair(self, places: Places, source: random.Random) -> dict[Machine, Span]:
        return {}


def _placed(view: Places) -> list[Placed]:
    return [Placed(*span, machine.useful) for machine, span in view.items()]


class Petals:
    """Greedy: at the span whose throughputs, in order from the lowest, are least. A server counts in each of its blocks
    with the requests a second that it takes over half of them on average, or its link. It looks about every two
    minutes; it moves where, after all others had moved greedily too, the lowest throughput were 4/3 of today's.
    """

    name, sees_loading = "petals", True
    every, quality, epsilon = 120.0, 0.75, 1e-3

    def pause(self, count: int, source: random.Random) -> float:
        return 2 * self.every * source.random()

    def join(self, machine: Machine, view: Places, source: random.Random) -> Span:
        first = _lowest_window(self._sums(view), machine.holds)
        return first, first + machine.holds

    def look(self, machine: Machine, view: Places, source: random.Random) -> Span | None:
        spans, sums = dict(view), self._sums(view)
        before = sums.min()
        moved = self._move(machine, spans, sums, only_if_whole=before > self.epsilon)
        target = spans[machine]
        if not moved:
            return None
        order = list(spans)
        for _ in range(100):
            source.shuffle(order)
            moves = [self._move(one, spans, sums) for one in order]
            if True not in moves:
                break
        after = sums.min()
        worth = after >= max(before, self.epsilon) and before / after < self.quality - self.epsilon
        return target if worth else None

    def repair(self, places: Places, source: random.Random) -> dict[Machine, Span]:
        return {}

    def _move(
        self, machine: Machine, spans: dict[Machine, Span], sums: np.ndarray, only_if_whole: bool = False
    ) -> bool:
        """Take it away and place it greedily; whether it has moved."""
        rate = _requests(machine)
        here = slice(*spans[machine])
        sums[here] -= rate * (1 + self.epsilon)
        if only_if_whole and sums.min() <= 0:
            sums[here] += rate * (1 + self.epsilon)
            return False
        first = _lowest_window(sums, machine.holds)
        sums[here] += rate * self.epsilon
        moved = first != spans[machine][0]
        spans[machine] = (first, first + machine.holds)
        sums[first : first + machine.holds] += rate
        return moved

    @staticmethod
    def _sums(view: Places) -> np.ndarray:
        sums = np.zeros(BLOCKS)
        for machine, (first, end) in view.items():
            sums[first:end] += _requests(machine)
        return sums


def _requests(machine: Machine) -> float:
    return min(machine.rate / ((machine.holds + 1) / 2), machine.near)


def _lowest_window(sums: np.ndarray, size: int) -> int:
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(sums, size), axis=1)
    return min(range(len(windows)), key=lambda first: (tuple(windows[first]), first))


class Parallax:
    """Central: pipelines of as few machines as can be, largest first, within a region before across; blocks of each
    pipeline are shared out by water-filling, as much as each computes, at most what it holds. Who is left over, and who
    comes later, goes where blocks have the least memory for keys and values. All is planned anew when the model isn't
    covered, or the blocks' memory varies by more than a quarter of its mean.
    """

    name, sees_loading = "parallax", True
    threshold = 0.25

    def pause(self, count: int, source: random.Random) -> float:
        return math.inf

    def join(self, machine: Machine, view: Places, source: random.Random) -> Span:
        first = int(_memory(view).argmin())
        return first, min(BLOCKS, first + machine.holds)

    def look(self, machine: Machine, view: Places, source: random.Random) -> Span | None:
        return None

    def repair(self, places: Places, source: random.Random) -> dict[Machine, Span]:
        """`places`: of all that are there. Those that move, with their new spans."""
        memory = _memory(places)
        if memory.min() > 0 and memory.std() <= self.threshold * memory.mean():
            return {}
        planned = self.plan(list(places))
        return {machine: span for machine, span in planned.items() if places[machine] != span}

    def plan(self, machines: Sequence[Machine]) -> dict[Machine, Span]:
        planned: dict[Machine, Span] = {}
        regions = sorted({machine.region for machine in machines})
        groups = [[one for one in machines if one.region == region] for region in regions]
        left: list[Machine] = []
        for group in groups:
            left += self._pipelines(group, planned)
        left = self._pipelines(left, planned)
        for machine in sorted(left, key=lambda one: (-one.holds, one.number)):
            planned[machine] = self.join(machine, planned, random.Random(0))
        return planned

    @staticmethod
    def _pipelines(machines: Sequence[Machine], planned: dict[Machine, Span]) -> list[Machine]:
        """Plan whole pipelines; who is left."""
        left = sorted(machines, key=lambda one: (-one.holds, one.number))
        while sum(one.holds for one in left) >= BLOCKS:
            stages: list[Machine] = []
            need = BLOCKS
            while need > 0:
                enough = [one for one in left if one.holds >= need]
                taken = enough[-1] if enough else left[0]  # the smallest that completes it
                left.remove(taken)
                stages.append(taken)
                need -= taken.holds
            planned.update(_water_filled(stages))
        return left


def _memory(view: Places) -> np.ndarray:
    """Of each block, for keys and values: a machine's room is shared by the blocks that it serves."""
    memory = np.zeros(BLOCKS)
    for machine, (first, end) in view.items():
        memory[first:end] += machine.holds / (end - first)
    return memory


def _water_filled(stages: Sequence[Machine]) -> dict[Machine, Span]:
    """Blocks in proportion to the rates, none more than it holds, all of the model together."""
    low, high = 0.0, BLOCKS * max(1 / one.rate for one in stages)
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if sum(min(one.holds, level * one.rate) for one in stages) < BLOCKS else (low, level)
    exact = [min(one.holds, high * one.rate) for one in stages]
    counts = [max(1, math.floor(share)) for share in exact]
    while sum(counts) != BLOCKS:
        step = 1 if sum(counts) < BLOCKS else -1
        fits = [i for i, one in enumerate(stages) if 1 <= counts[i] + step <= one.holds]
        counts[max(fits, key=lambda i: step * (exact[i] - counts[i]))] += step
    ends = np.cumsum(counts)
    return {one: (int(end) - count, int(end)) for one, count, end in zip(stages, counts, ends, strict=True)}
