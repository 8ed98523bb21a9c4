"""The cheapest path through blocks over nodes that serve parts of them: by block, each node's best way to have come."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hivemint.client.sessions.routing.costs import Costs
from hivemint.client.sessions.routing.view import Flags, Floats, Ints, NodeView

_CLIENT = -1


@dataclass(frozen=True, slots=True)
class PathLeg:
    """Blocks `[first, end)` at the node in that row of the view."""

    row: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class TextEnds:
    """Whether the path begins with the model's first block, ends with its last."""

    first: bool
    last: bool


def cheapest_path(
    view: NodeView, costs: Costs, rows: Sequence[int], part: range, weight: float, ends: TextEnds
) -> tuple[PathLeg, ...] | None:
    """Over the nodes of `rows`, by time and `weight` seconds a credit; None where they serve no whole path.

    Where a node is entered costs once, what it computes by the block. So it is enough to know, stop by stop, for each
    node what the best path costs that has come to it, and where that path entered it. A stop is where a span begins or
    ends; each block, where accounts admit parts of spans alone. n nodes and s stops take s n^2 steps.
    """
    nodes = np.asarray(rows, dtype=np.int64)
    if not len(nodes):
        return None
    stops = np.arange(part.start, part.stop + 1)
    if (costs.most[nodes] >= len(part)).all():
        edges = np.concatenate((view.first[nodes], view.end[nodes], stops[[0, -1]]))
        stops = np.unique(edges[(edges >= part.start) & (edges <= part.stop)])
    serves = (view.first[nodes] <= stops[:-1, None]) & (view.end[nodes] >= stops[1:, None])
    if not serves.any(axis=1).all():
        return None
    return _Sweep(costs, nodes, stops, serves, weight, ends).run()


class _Sweep:
    """From stop to stop. Nodes are numbered anew here, from 0. `serves`: which node serves from which stop to the next.

    What it costs to have entered a node is kept less what the blocks before would have cost there: so two places to
    have entered it compare, whatever comes behind.
    """

    def __init__(self, costs: Costs, nodes: Ints, stops: Ints, serves: Flags, weight: float, ends: TextEnds) -> None:
        self._nodes, self._stops, self._serves = nodes, stops, serves
        factor, trip = costs.factor[nodes], costs.trip[nodes]
        self._entry: Floats = (costs.wait[nodes] + costs.room[nodes]) * factor
        self._block: Floats = costs.compute[nodes] * factor + weight * costs.price[nodes]
        self._ways = costs.between(nodes, nodes).T.copy()  # to each from each
        begins, finishes = (costs.trusted[nodes] | (not at) for at in (ends.first, ends.last))
        self._begin = np.where(begins, trip / 2, np.inf)
        self._finish = np.where(finishes, trip / 2, np.inf)
        self._most = costs.most[nodes]
        self._short: Ints = np.flatnonzero(self._most < stops[-1] - stops[0])
        size = (len(stops) - 1, len(nodes))
        self._entered = np.empty(size)
        self._came_from = np.full(size, _CLIENT, dtype=np.int64)
        self._since = np.zeros(size, dtype=np.int64)

    def run(self) -> tuple[PathLeg, ...] | None:
        best = np.full(len(self._nodes), np.inf)
        since, every = np.zeros(len(self._nodes), dtype=np.int64), np.arange(len(self._nodes))
        reached: Floats = best
        for at, serves in enumerate(self._serves):
            way = self._begin
            if at:
                ways = self._ways + reached
                self._came_from[at] = chosen = ways.argmin(axis=1)
                way = ways[every, chosen]
            entered = np.where(serves, way + self._entry - self._block * self._stops[at], np.inf)
            self._entered[at] = entered
            since = np.where(entered < best, at, since)
            best = np.minimum(entered, best)
            self._since[at] = since
            reached = np.where(serves, best + self._block * self._stops[at + 1], np.inf)
            if len(self._short):
                self._shorten(at, reached)
        total = reached + self._finish
        last = int(total.argmin())
        return self._back(last) if np.isfinite(total[last]) else None

    def _shorten(self, at: int, reached: Floats) -> None:
        """Where an account admits fewer blocks than that: the best place to have entered its node late enough."""
        short, there = self._short, self._stops[at + 1]
        late = self._stops[: at + 1, None] >= there - self._most[short]
        entered = np.where(late, self._entered[: at + 1, short], np.inf)
        self._since[at, short] = chosen = entered.argmin(axis=0)
        cost = entered[chosen, np.arange(len(short))] + self._block[short] * there
        reached[short] = np.where(self._serves[at, short], cost, np.inf)

    def _back(self, node: int) -> tuple[PathLeg, ...]:
        legs: list[PathLeg] = []
        at = len(self._stops) - 2
        while True:
            start = int(self._since[at, node])
            legs.append(PathLeg(int(self._nodes[node]), int(self._stops[start]), int(self._stops[at + 1])))
            if not start:
                return tuple(reversed(legs))
            node, at = int(self._came_from[start, node]), start - 1
