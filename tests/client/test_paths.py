"""The cheapest path, beside every path that there is."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.client.sessions.routing.costs import Costs, costs_of
from hivemint.client.sessions.routing.paths import PathLeg, TextEnds, cheapest_path
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.ids import PeerId
from hivemint.swarm.records import pack_trips, trip_key
from support.routes import random_swarm, unsigned

BLOCKS = 5
ANYWHERE = TextEnds(first=True, last=True)


def every_path(view: NodeView, costs: Costs, part: range) -> Iterator[tuple[PathLeg, ...]]:
    """All ways through, a node at most once in a row."""
    inner = range(part.start + 1, part.stop)
    for count in range(len(inner) + 1):
        for cuts in itertools.combinations(inner, count):
            edges = list(itertools.pairwise([part.start, *cuts, part.stop]))
            choices = [
                [row for row in range(len(view.records)) if view.first[row] <= a and b <= view.end[row]]
                for a, b in edges
            ]
            for rows in itertools.product(*choices):
                legs = tuple(PathLeg(row, a, b) for row, (a, b) in zip(rows, edges, strict=True))
                if all(one.row != other.row for one, other in itertools.pairwise(legs)) and all(
                    leg.end - leg.first <= costs.most[leg.row] for leg in legs
                ):
                    yield legs


def cost(costs: Costs, legs: tuple[PathLeg, ...], weight: float) -> float:
    total = float(costs.trip[legs[0].row] + costs.trip[legs[-1].row]) / 2
    total += sum(costs.way(one.row, other.row) for one, other in itertools.pairwise(legs))
    for leg in legs:
        row, blocks = leg.row, leg.end - leg.first
        total += float((costs.wait[row] + costs.room[row] + blocks * costs.compute[row]) * costs.factor[row])
        total += weight * blocks * float(costs.price[row])
    return total


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 5),
    bid=st.sampled_from(["free", "ask", "3x"]),
    salt=st.sampled_from([b"", b"one"]),
    weight=st.sampled_from([0.0, 10.0, 5000.0]),
    share=st.none() | st.floats(0.2, 1.5),
    work=st.sampled_from([0, 64]),
)
@settings(deadline=None, max_examples=100)
def test_no_path_is_cheaper(
    seed: int, count: int, bid: str, salt: bytes, weight: float, share: float | None, work: int
) -> None:
    """With trips between nodes, waits, accounts that admit a part of a span, and a client's own measurements."""
    view = NodeView(random_swarm(count, BLOCKS, seed, (2, 5)))
    speeds = Speeds()
    for one in view.records[::2]:
        speeds.trip(one.peer, 0.03)
        speeds.step(one.peer, 0.2, 3)
    funds = None
    if share is not None:  # of what the whole span costs at 100 positions
        whole = {one.record.operator: one.record.ask * len(one.record.blocks) * 125 for one in view.records}
        funds = {operator: int(share * amount) for operator, amount in whole.items()}
    wish = Wish(BLOCKS, 100, Bid.parse(bid), salt=salt, funds=funds, work=work)
    costs = costs_of(view, wish, speeds)
    rows = [row for row in range(count) if costs.most[row]]
    found = cheapest_path(view, costs, rows, wish.part, weight, ANYWHERE)
    known = list(every_path(view, costs, wish.part))
    if not known:
        assert found is None
        return
    assert found is not None
    assert found in known
    best = min(cost(costs, legs, weight) for legs in known)
    assert cost(costs, found, weight) == pytest.approx(best, rel=1e-9)


def test_only_trusted_nodes_take_the_ends_of_a_text() -> None:
    view = NodeView(random_swarm(6, BLOCKS, 3, (2, 5)))
    costs = costs_of(view, Wish(BLOCKS, 100, Bid("free")), Speeds())
    for row in range(6):
        trusted = costs.trusted.copy()
        trusted[:] = False
        trusted[row] = True
        found = cheapest_path(view, replace(costs, trusted=trusted), range(6), range(BLOCKS), 0.0, ANYWHERE)
        covers = view.first[row] == 0 and view.end[row] >= BLOCKS
        assert (found is not None) == covers
        assert found is None or found[0].row == found[-1].row == row


def test_a_far_node_is_not_gone_to_for_nothing() -> None:
    """Two nodes of the middle: the faster one lies 200 ms from the first one, which has measured it."""
    near, far = unsigned(2, 4, tokens_per_s=10.0), unsigned(2, 4, tokens_per_s=15.0)
    told = pack_trips([(near.peer, 0.004), (far.peer, 0.2)])
    first, last = unsigned(0, 2, trips=told), unsigned(4, 6, trips=told)
    rows = {PeerId(one.record.peer): name for one, name in ((near, "near"), (far, "far"))}
    for nodes, chosen in (((first, near, far, last), "near"), ((unsigned(0, 2), near, far, unsigned(4, 6)), "far")):
        view = NodeView(nodes)
        costs = costs_of(view, Wish(6, 100, Bid("free")), Speeds())
        found = cheapest_path(view, costs, range(4), range(6), 0.0, ANYWHERE)
        assert found is not None
        assert rows[PeerId(view.records[found[1].row].record.peer)] == chosen


def test_a_nodes_word_alone_does_not_make_it_near() -> None:
    liar = unsigned(2, 4)
    honest = unsigned(0, 2, trips=pack_trips([(liar.peer, 0.2)]))
    liar = unsigned(2, 4, peer=liar.record.peer, trips=pack_trips([(honest.peer, 0.0)]))
    view = NodeView([honest, liar])
    assert view.trips[0, 1] == view.trips[1, 0] == pytest.approx(0.2)
    assert math.isnan(view.trips[0, 0])


def test_what_is_said_of_a_key_that_two_nodes_have_counts_for_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its four bytes can be searched for: a node would take the short trip of another one for itself."""
    near, copy = unsigned(2, 4), unsigned(2, 4)
    first = unsigned(0, 2, trips=pack_trips([(near.peer, 0.001)]))
    assert NodeView([first, near, copy]).trips[0, 1] == pytest.approx(0.001)
    monkeypatch.setattr(
        "hivemint.client.sessions.routing.trips.trip_key",
        lambda peer: trip_key(near.peer if peer == copy.peer else peer),
    )
    assert np.isnan(NodeView([first, near, copy]).trips).all()
