"""Planning a route: the cheapest that ceiling, funds and named nodes allow, or a word on what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from hivemint.client.pipeline import Alternative
from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.routing.costs import Costs, costs_of
from hivemint.client.sessions.routing.missing import LeftOut, check_covered, nobody
from hivemint.client.sessions.routing.paths import PathLeg, TextEnds, cheapest_path
from hivemint.client.sessions.routing.usual import usual_asks
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import OverLimit
from hivemint.protocol.ids import ONE_CREDIT, BlockIndex, Credits
from hivemint.swarm.records import CheckedRecord
from hivemint.swarm.rows import WIRES

MOST_A_BLOCK = 16
"""Nodes of one block that are planned with, the least costly ones, where more than `MOST_NODES` serve the model."""
MOST_NODES = 96
_LAST = 1e18
"""Seconds: greater than any cost."""


def plan_route(
    records: Sequence[CheckedRecord] | NodeView, wish: Wish, speeds: Speeds, left_out: Sequence[LeftOut] = ()
) -> Route:
    """The cheapest route. A view of the records spares what all plans over them share.

    `left_out`: nodes that are not among the records, to be named where blocks are missing. Raises SwarmError that says
    what is missing, and what keeps which node out.
    """
    return _Planning(records, wish, speeds, left_out).route()


def explain_route(
    records: Sequence[CheckedRecord] | NodeView, wish: Wish, speeds: Speeds, route: Route
) -> tuple[Alternative | None, ...]:
    """For each leg of a route the best one without its node, within the same limits; None where there is none."""
    planning = _Planning(records, wish, speeds, ())
    return tuple(planning.instead(route, leg) for leg in route.legs)


@dataclass(frozen=True, slots=True)
class _Found:
    legs: tuple[PathLeg, ...]
    wire: str
    seconds: float
    price: float


class _Planning:
    def __init__(
        self,
        records: Sequence[CheckedRecord] | NodeView,
        wish: Wish,
        speeds: Speeds,
        left_out: Sequence[LeftOut],
    ) -> None:
        self._view = records if isinstance(records, NodeView) else NodeView(records)
        self._wish, self._speeds, self._left_out = wish, speeds, left_out
        self._costs: Costs = costs_of(self._view, wish, speeds)
        self._rows: list[int] = []
        self._notes: tuple[str, ...] = ()

    def route(self) -> Route:
        self._admit()
        return replace(self._route(self._within_ceiling()), notes=self._notes)

    def instead(self, route: Route, leg: Leg) -> Alternative | None:
        """The best route without this leg's node."""
        self._admit()
        without = [row for row in self._rows if self._view.records[row].peer != leg.peer]
        found, limit = self._cheapest(without, self._wish.seconds_per_credit), self._wish.ceiling
        if found is None or (limit is not None and self._route(found).price > limit):
            return None
        other = self._route(found)
        way = " -> ".join(f"{one.name} {one.first}:{one.end}" for one in other.legs)
        return Alternative(way, (other.seconds - route.seconds) * 1000, other.price - route.price)

    def _admit(self) -> None:
        """The rows that the user's words, the bid and the usual asks allow. Raises SwarmError."""
        wish, records = self._wish, self._view.records
        kept, left_out = list(range(len(records))), list(self._left_out)
        if wish.choice.allowed or wish.choice.blocked:
            reasons = [wish.choice.excludes(one.record) for one in records]
            left_out += [LeftOut(records[row].record, reason) for row, reason in enumerate(reasons) if reason]
            kept = [row for row, reason in enumerate(reasons) if not reason]
        allowed = [records[row] for row in kept]
        check_covered(allowed, wish, left_out)
        usual, self._notes = usual_asks(allowed, wish)
        if len(usual) < len(allowed):
            within = {one.peer for one in usual}
            kept = [row for row in kept if records[row].peer in within]
        self._rows = [row for row in kept if self._costs.bids[row] is not None and self._costs.most[row]]

    def _least_costly(self, rows: list[int], weight: float) -> list[int]:
        """So many that each block has enough to choose from; of those whose account admits them whole, if there are."""
        view, costs, part = self._view, self._costs, self._wish.part
        length = view.end - view.first
        score = ((costs.wait + costs.room) * costs.factor + costs.trip) / length + costs.compute * costs.factor
        score += weight * costs.price + _LAST * (costs.most < length)
        if self._wish.choice.trusted:
            score -= 2 * _LAST * costs.trusted
        ranked = np.asarray(rows)[np.argsort(score[rows], kind="stable")]
        blocks = np.arange(part.start, part.stop)
        serves = (view.first[ranked, None] <= blocks) & (blocks < view.end[ranked, None])
        place = np.cumsum(serves, axis=0)
        kept: list[int] = ranked[(serves & (place <= MOST_A_BLOCK)).any(axis=1)].tolist()
        return kept

    def _within_ceiling(self) -> _Found:
        wish, least = self._wish, self._wish.seconds_per_credit
        found = self._cheapest(self._rows, least)
        if found is None:
            raise nobody([one for one in self._view.records if not wish.choice.excludes(one.record)], wish)
        if wish.ceiling is None or self._route(found).price <= wish.ceiling:
            return found
        low, high, cheap = least, 1e12, self._cheapest(self._rows, 1e12)
        if cheap is None or self._route(cheap).price > wish.ceiling:
            lowest = self._route(cheap or found).price
            raise OverLimit(
                f"No route costs at most {format_credits(wish.ceiling)} a token",
                why=f"the cheapest one costs {format_credits(lowest)}",
                next_step="raise the ceiling (--max-price), lower the bid, or use the donated lane (--bid free)",
            )
        for _ in range(24):  # the least weight of price that stays below it: the fastest route of those on the hull
            middle = (low * high) ** 0.5 if low > 0 else high / 1e6
            tried = self._cheapest(self._rows, middle)
            if tried is not None and self._route(tried).price <= wish.ceiling:
                high, cheap = middle, tried
            else:
                low = middle
            if high < low * 1.01:
                break
        return cheap

    def _cheapest(self, rows: Sequence[int], weight: float) -> _Found | None:
        """Over all wire forms that are wished: neighbours must speak the same one."""
        found = [self._by_wire(rows, weight, wire) for wire in WIRES if self._wish.wire in (None, wire)]
        known = [one for one in found if one is not None]
        return min(known, key=lambda one: one.seconds + weight * one.price, default=None)

    def _by_wire(self, rows: Sequence[int], weight: float, wire: str) -> _Found | None:
        labels, part = self._view.labels[wire], self._wish.part
        offers = [row for row in rows if labels[row]]
        if len(offers) > MOST_NODES:
            offers = self._least_costly(offers, weight)
        ends = TextEnds(part.start == 0, part.stop == self._wish.blocks)
        path = cheapest_path(self._view, self._costs, offers, part, weight, ends)
        if path is None:
            return None
        route = self._along(path, wire)
        return _Found(path, wire, route.seconds, route.price / ONE_CREDIT)

    def _route(self, found: _Found) -> Route:
        return self._along(found.legs, found.wire)

    def _along(self, path: Sequence[PathLeg], wire: str) -> Route:
        trips = self._trips(path)
        return Route(tuple(self._leg(one, wire, trip) for one, trip in zip(path, trips, strict=True)))

    def _trips(self, path: Sequence[PathLeg]) -> list[float]:
        """Seconds on the way to each node, and back from the last."""
        costs = self._costs
        trips = [float(costs.trip[path[0].row]) / 2, *(costs.way(one.row, other.row) for one, other in pairwise(path))]
        trips[-1] += float(costs.trip[path[-1].row]) / 2
        return trips

    def _leg(self, one: PathLeg, wire: str, trip: float) -> Leg:
        costs, row = self._costs, one.row
        wait, room = float(costs.wait[row]), float(costs.room[row])
        return Leg(
            record=self._view.records[row].record,
            first=BlockIndex(one.first),
            end=BlockIndex(one.end),
            bid=costs.bids[row] or Credits(0),
            numerics=self._view.labels[wire][row],
            wait=wait,
            seconds=wait + room + trip + float(costs.compute[row]) * (one.end - one.first),
            trip=trip,
            room=room,
        )
