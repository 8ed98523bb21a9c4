"""Machines, what a placement of them can do, and the most that any placement could: the world of `placement.py`.

What a placement can do is a maximal flow of tokens from block 0 to the last, by linear programming (HiGHS): a token
enters a node before any block of its span, leaves it behind any, and goes to any other node that has the next block.
Each node has rows a second through one block, rows a second in and out of its own region, and out to others.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

BLOCKS, BLOCK_BYTES, ROW_BYTES = 80, 1.711e9, 16384
"""Llama-3.1-70B: 80 blocks of 855.6 million weights in bf16; a row of 8,192 numbers of two bytes between nodes."""
KV_SHARE = 0.2
"""Of a card's memory: what is kept for keys, values and activations."""
BATCH = 16
"""Rows of a decode batch: a step reads a block's weights once, at the card's memory bandwidth."""
REGIONS = 3
CARDS: Mapping[str, tuple[float, float]] = {
    "H100 SXM": (80, 3350),
    "A100 80GB": (80, 2039),
    "A100 40GB": (40, 1555),
    "L40S": (48, 864),
    "RTX A6000": (48, 768),
    "V100 16GB": (16, 900),
    "T4": (16, 320),
    "RTX 4090": (24, 1008),
    "RTX 3090": (24, 936),
    "RTX 4060 Ti 16GB": (16, 288),
    "M2 Ultra": (192, 800),
    "M3 Max": (64, 400),
}
"""Published memory (GB) and memory bandwidth (GB/s)."""
LINKS = ((1e9, 1e9), (1e9, 3e8), (3e8, 3e8), (1e10, 1e9))
"""Bits a second of a machine within its region, and to others."""


@dataclass(frozen=True)
class Machine:
    """`holds`: blocks. `rate`: rows a second through one block. `near`, `far`: rows a second of its link."""

    number: int
    region: int
    holds: int
    rate: float
    near: float
    far: float

    @property
    def useful(self) -> float:
        """Rows a second through one block that its link lets it do, whatever it serves."""
        return min(self.rate, self.near * self.holds)


Places = Mapping[Machine, tuple[int, int]]


def draw(number: int, source: random.Random) -> Machine:
    memory, bandwidth = CARDS[source.choice(sorted(CARDS))]
    near, far = source.choice(LINKS)
    holds = min(BLOCKS, int(memory * (1 - KV_SHARE) * 1e9 / BLOCK_BYTES))
    rate = BATCH * bandwidth * 1e9 / BLOCK_BYTES
    bits = 8 * ROW_BYTES
    return Machine(number, source.randrange(REGIONS), holds, rate, near / bits, far / bits)


def draw_swarm(count: int, source: random.Random) -> list[Machine]:
    """Machines that can hold the model once and a quarter together: fewer are no swarm yet."""
    while True:
        found = [draw(number, source) for number in range(count)]
        if sum(machine.holds for machine in found) >= 1.25 * BLOCKS:
            return found


def bound(machines: Sequence[Machine]) -> float:
    """Tokens a second that no placement of these machines exceeds.

    Take any of the machines away: together they hold no more than the sum of what each holds, and all other blocks are
    left to the rest. So the swarm does no more tokens a second than the rest has useful rows, over the blocks that are
    left; with none taken away, no more than all have, over all blocks. The least of these over all subsets of up to 12
    machines, and of more over those with the most rows for what they hold. 0 where they can't hold the model together.
    """
    if sum(machine.holds for machine in machines) < BLOCKS:
        return 0.0
    ordered = sorted(machines, key=lambda machine: -machine.useful / machine.holds)
    if len(ordered) <= 12:
        subsets = [chosen for size in range(len(ordered)) for chosen in combinations(ordered, size)]
    else:
        subsets = [tuple(ordered[:size]) for size in range(len(ordered))]
    every, found = sum(machine.useful for machine in ordered), []
    for chosen in subsets:
        left = BLOCKS - sum(machine.holds for machine in chosen)
        if left > 0:
            found.append((every - sum(machine.useful for machine in chosen)) / left)
    return min(found)


class _Programme:
    """A linear programme, put together column by column."""

    def __init__(self) -> None:
        self.width = self.height = 0
        self._rows: list[np.ndarray] = []
        self._columns: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def columns(self, count: int) -> np.ndarray:
        self.width += count
        return np.arange(self.width - count, self.width)

    def rows(self, count: int) -> np.ndarray:
        self.height += count
        return np.arange(self.height - count, self.height)

    def put(self, rows: np.ndarray | int, columns: np.ndarray, value: float) -> None:
        self._rows.append(np.broadcast_to(rows, columns.shape))
        self._columns.append(columns)
        self._values.append(np.full(columns.shape, value))

    def matrix(self) -> coo_array:
        entries = np.concatenate(self._values), (np.concatenate(self._rows), np.concatenate(self._columns))
        return coo_array(entries, shape=(self.height, self.width)).tocsr()


def flow(places: Places) -> float:
    """Tokens a second that these machines can do at these places, the best routes taken."""
    served = np.zeros(BLOCKS, dtype=bool)
    for first, end in places.values():
        served[first:end] = True
    if not served.all():
        return 0.0
    even, most = _Programme(), _Programme()
    pools = even.rows(REGIONS * (BLOCKS - 1)).reshape(REGIONS, BLOCKS - 1)  # before block 1, 2, ...
    leaving = even.rows(REGIONS * (BLOCKS - 1)).reshape(REGIONS, BLOCKS - 1)
    starts, limits = [], []
    for machine, (first, end) in places.items():
        count = end - first
        work, enter, near, far = (even.columns(count) for _ in range(4))
        keep = even.rows(count)
        even.put(keep, work, 1.0)
        even.put(keep, enter, -1.0)
        even.put(keep[1:], work[:-1], -1.0)
        even.put(keep[1:], near[:-1], 1.0)
        even.put(keep[1:], far[:-1], 1.0)
        last = even.rows(1)
        even.put(int(last[0]), work[-1:], 1.0)
        even.put(int(last[0]), near[-1:], -1.0)
        even.put(int(last[0]), far[-1:], -1.0)
        inner = slice(1, None) if first == 0 else slice(None)
        even.put(pools[machine.region, max(first, 1) - 1 : end - 1], enter[inner], -1.0)
        stops = min(end, BLOCKS - 1) - first
        even.put(pools[machine.region, first : first + stops], near[:stops], 1.0)
        even.put(leaving[machine.region, first : first + stops], far[:stops], 1.0)
        limit = most.rows(3)
        most.put(int(limit[0]), work, 1.0)
        most.put(int(limit[1]), enter, 1.0)
        most.put(int(limit[2]), far, 1.0)
        limits += [machine.rate, machine.near, machine.far]
        starts += [enter[0]] if first == 0 else []
    for one in range(REGIONS):
        for other in range(REGIONS):
            if one != other:
                across = even.columns(BLOCKS - 1)
                even.put(leaving[one], across, -1.0)
                even.put(pools[other], across, 1.0)
    most.width = even.width
    goal = np.zeros(even.width)
    goal[starts] = -1
    scale = max(limits)
    found = linprog(
        goal,
        A_ub=most.matrix(),
        b_ub=np.array(limits) / scale,
        A_eq=even.matrix(),
        b_eq=np.zeros(even.height),
        method="highs-ipm",
    )
    assert found.status == 0, found.message
    return -float(found.fun) * scale
