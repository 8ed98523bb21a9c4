"""What a node costs: published waits that grow old, own measurements, own sessions, room."""

import itertools
import secrets
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.client.sessions.routing.costs import CROWDED, Costs, costs_of
from hivemint.client.sessions.routing.view import STALE_HALF, NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import HALF, UNDERSTATED_HALF, UNKNOWN_TRIP, Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.ids import PeerId
from hivemint.swarm.records import CheckedRecord, pack_trips
from support.routes import unsigned

FREE = Wish(10, 100, Bid("free"))


def costs(*records: CheckedRecord, speeds: Speeds | None = None, wish: Wish = FREE, later: float = 0.0) -> Costs:
    return costs_of(NodeView(records), wish, speeds or Speeds(), time.time() + later)


def test_a_wait_that_was_published_long_ago_nears_what_is_usual() -> None:
    nodes = [unsigned(0, 10, wait_donated_s=wait) for wait in (0.0, 1.0, 4.0)]
    assert costs(*nodes).wait == pytest.approx([0.0, 1.0, 4.0], abs=0.01)
    assert costs(*nodes, later=STALE_HALF).wait == pytest.approx([0.5, 1.0, 2.5], abs=0.01)
    assert costs(nodes[2], later=STALE_HALF).wait == pytest.approx([4.0], abs=0.01), "there is nothing else to go by"


def test_an_own_measurement_stands_in_for_what_is_published_and_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    node, speeds = unsigned(0, 10, tokens_per_s=10.0, wait_donated_s=0.0), Speeds()
    speeds.trip(node.peer, 0.05)
    speeds.step(node.peer, 0.95, 10)
    assert costs(node, speeds=speeds).wait == pytest.approx([0.95 - 0.1 - 0.05], abs=1e-3)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + HALF)
    assert costs(node, speeds=speeds).wait == pytest.approx([0.4], abs=1e-3)
    monkeypatch.setattr(time, "monotonic", lambda: began + 10 * HALF)
    assert costs(node, speeds=speeds).wait == pytest.approx([0.0], abs=1e-3)


def test_who_understates_is_corrected_for_longer_than_a_measurement_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    liar, honest, speeds = unsigned(0, 10), unsigned(0, 10), Speeds()
    for _ in range(30):
        speeds.judge(liar.peer, 2.05, 0.05)
        speeds.judge(honest.peer, 0.05, 0.05)
    assert costs(liar, honest, speeds=speeds).wait == pytest.approx([2.0, 0.0], abs=0.02)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + UNDERSTATED_HALF)
    assert costs(liar, honest, speeds=speeds).wait == pytest.approx([1.0, 0.0], abs=0.02)
    for _ in range(30):
        speeds.judge(liar.peer, 0.05, 0.05)
    assert costs(liar, speeds=speeds).wait == pytest.approx([0.0], abs=0.02), "it keeps its word now"


def test_own_open_sessions_join_the_queue() -> None:
    node, speeds = unsigned(0, 10, tokens_per_s=10.0), Speeds()
    speeds.opened(node.peer, 4)
    assert costs(node, speeds=speeds).wait == pytest.approx([0.2])
    speeds.opened(node.peer, -4)
    assert costs(node, speeds=speeds).wait == pytest.approx([0.0])


def test_a_bid_shortens_the_wait_of_the_paid_lane_alone() -> None:
    node = unsigned(0, 10, wait_paid_s=1.6, wait_donated_s=8.0)
    for bid, expected in (("ask", 1.6), ("2x", 0.8), ("16x", 0.1), ("free", 8.0)):
        assert costs(node, wish=Wish(10, 100, Bid.parse(bid))).wait == pytest.approx([expected]), bid


def test_a_long_session_weighs_the_room_that_is_left() -> None:
    nodes = [unsigned(0, 10, tokens_per_s=10.0, free_tokens=free) for free in (100_000, 2_000, 500)]
    short, long = costs(*nodes, wish=Wish(10, 10, Bid("free"))), costs(*nodes, wish=Wish(10, 1000, Bid("free")))
    assert short.room == pytest.approx([0.1 * 10 / 100_000, 0.1 * 10 / 2_000, 0.1 * 10 / 500])
    assert long.room == pytest.approx([0.1 * 1000 / 100_000, 0.1 * 1000 / 2_000, CROWDED])


def test_nodes_look_worse_by_chance_and_the_same_for_one_client() -> None:
    view = NodeView([unsigned(0, 10) for _ in range(200)])
    one, same, other = (
        costs_of(view, Wish(10, 100, Bid("free"), salt=salt), Speeds()).factor for salt in (b"one", b"one", b"other")
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.min() >= 1.0
    assert one.max() <= 1.25
    assert costs_of(view, FREE, Speeds()).factor.tolist() == [1.0] * 200


PEERS = [PeerId(secrets.token_bytes(38)) for _ in range(3)]
TRIPS = st.floats(0, 2)


@given(
    seen=st.lists(st.none() | TRIPS, min_size=3, max_size=3),
    told=st.dictionaries(st.permutations(range(3)).map(lambda order: (order[0], order[1])), TRIPS),
)
def test_nothing_that_nodes_say_makes_them_nearer_than_their_distances_from_here_differ(
    seen: list[float | None], told: dict[tuple[int, int], float]
) -> None:
    records = [
        unsigned(0, 10, peer=peer, trips=pack_trips([(PEERS[to], told[at, to]) for at, to in told if at == row]))
        for row, peer in enumerate(PEERS)
    ]
    speeds = Speeds()
    for peer, trip in zip(PEERS, seen, strict=True):
        if trip is not None:
            speeds.trip(peer, trip)
    found = costs(*records, speeds=speeds)
    for one, other in itertools.permutations(range(3), 2):
        words = [told[link] for link in ((one, other), (other, one)) if link in told]
        here, there = seen[one], seen[other]
        apart = abs(here - there) if here is not None and there is not None else 0.0
        way = 2 * found.way(one, other)
        assert way >= apart - 1e-9
        if words:
            assert way == pytest.approx(max(*words, apart, 0.0), abs=2e-4), "the longer word, and no less than that"


def test_a_word_about_a_node_that_was_never_measured_stands() -> None:
    """What is guessed of its distance proves nothing: two nodes far from here may be near to each other."""
    far, near_to_it, speeds = unsigned(10, 20), unsigned(20, 30), Speeds()
    far = unsigned(10, 20, peer=far.peer, trips=pack_trips([(near_to_it.peer, 0.005)]))
    speeds.trip(far.peer, 0.3)
    assert 2 * costs(far, near_to_it, speeds=speeds).way(0, 1) == pytest.approx(0.005)
    silent = unsigned(10, 20, peer=far.peer)
    assert 2 * costs(silent, near_to_it, speeds=speeds).way(0, 1) == pytest.approx(0.3 - UNKNOWN_TRIP)
