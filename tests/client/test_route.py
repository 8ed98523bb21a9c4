"""Routes over checked records: cheapest, within the ceiling, and a clear word on what is missing."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.client.sessions.route import Route, session_amount, wire_of
from hivemint.client.sessions.routing.planning import plan_route
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import ONE_CREDIT, Credits
from support.fake_swarm import FakeNode

BLOCKS = 30
ASK = ONE_CREDIT // 10_000


def node(first: int, end: int, ask: int = ASK, **changes: object) -> tuple[FakeNode, object]:
    made = FakeNode(first, end, ask=ask)
    return made, made.record(**{"free_tokens": 10_000, **changes})


def plan(*nodes: tuple[FakeNode, object], speeds: Speeds | None = None, **wish: object) -> Route:
    settings = {"blocks": BLOCKS, "tokens": 100, "bid": Bid("times"), **wish}
    return plan_route([record for _, record in nodes], Wish(**settings), speeds or Speeds())  # type: ignore[arg-type, misc]


def spans(route: Route) -> list[tuple[int, int]]:
    return [(leg.first, leg.end) for leg in route.legs]


def test_two_halves() -> None:
    route = plan(node(0, 15), node(15, 30))
    assert spans(route) == [(0, 15), (15, 30)]
    assert route.price == 30 * ASK
    assert route.paid


def test_a_part_of_a_span_will_do() -> None:
    """Two spans overlap: the faster node takes what both have."""
    slow, fast = node(0, 20, tokens_per_s=2.0), node(10, 30, tokens_per_s=50.0)
    assert spans(plan(slow, fast)) == [(0, 10), (10, 30)]


def test_fewer_hops_are_cheaper() -> None:
    assert spans(plan(node(0, 15), node(15, 30), node(0, 30))) == [(0, 30)]


def test_a_long_queue_is_avoided_by_lane() -> None:
    """A paid queue is short where the free one is long."""
    busy, other = node(0, 30, wait_donated_s=5.0), node(0, 30, ask=2 * ASK, wait_donated_s=0.1)
    assert plan(busy, other, bid=Bid("free")).legs[0].peer == other[0].peer
    assert plan(busy, other).legs[0].peer == busy[0].peer


def test_a_higher_bid_waits_less() -> None:
    one = node(0, 30, wait_paid_s=1.6)
    assert plan(one, bid=Bid("times", 16_000_000)).legs[0].wait == pytest.approx(0.1)
    assert plan(one, bid=Bid("times", 2_000_000)).legs[0].wait == pytest.approx(0.8)


def test_own_measurements_count_more_than_promises() -> None:
    liar, honest = node(0, 30, wait_paid_s=0.0), node(0, 30, wait_paid_s=0.3)
    speeds = Speeds()
    speeds.step(liar[0].peer, 3.0, 30)
    assert plan(liar, honest).legs[0].peer == liar[0].peer
    assert plan(liar, honest, speeds=speeds).legs[0].peer == honest[0].peer


def test_missing_blocks_are_named() -> None:
    with pytest.raises(SwarmError, match="10:15, 20:30") as caught:
        plan(node(0, 10), node(15, 20))
    assert "--blocks 10:15" in caught.value.next_step
    with pytest.raises(SwarmError, match="0:30"):
        plan()


def test_the_ceiling_trades_time_for_price() -> None:
    dear, cheap = node(0, 30, ask=10 * ASK, tokens_per_s=50.0), node(0, 30, tokens_per_s=1.0)
    assert plan(dear, cheap, seconds_per_credit=0.0).legs[0].peer == dear[0].peer
    assert plan(dear, cheap, seconds_per_credit=0.0, ceiling=Credits(40 * ASK)).legs[0].peer == cheap[0].peer
    with pytest.raises(SwarmError, match="No route costs at most"):
        plan(dear, cheap, ceiling=Credits(29 * ASK))


def test_without_a_ceiling_nodes_far_above_the_median_are_left_out() -> None:
    usual, dear = [node(0, 15), node(15, 30), node(0, 30, ask=2 * ASK, tokens_per_s=1.0)], node(0, 30, ask=4 * ASK)
    wish: dict[str, Any] = {"times_median": 3.0, "seconds_per_credit": 0.0}
    route = plan(*usual, dear, **wish)
    assert spans(route) == [(0, 15), (15, 30)]
    assert any("3x the median ask" in note for note in route.plan(10, 1.0).notes)
    assert spans(plan(*usual, dear, **{**wish, "times_median": 4.0})) == [(0, 30)]
    assert spans(plan(*usual, dear, **wish, ceiling=Credits(10**30))) == [(0, 30)], "the user's word goes before"
    assert spans(plan(*usual, dear, **wish, bid=Bid("amount", amount=Credits(5 * ASK)))) == [(0, 30)]
    free = plan(*usual, dear, **wish, bid=Bid("free"))
    assert (spans(free), free.notes) == ([(0, 30)], ())


def test_blocks_that_only_dear_nodes_serve_are_named_with_what_they_ask() -> None:
    with pytest.raises(SwarmError, match="Blocks 15:30 cost more than the default price ceiling") as caught:
        plan(node(0, 15), node(15, 30, ask=100 * ASK), times_median=3.0)
    assert "--max-price" in caught.value.next_step
    with pytest.raises(SwarmError, match="No node serves"):
        plan(node(0, 15), node(0, 15, ask=100 * ASK), times_median=3.0)


def test_a_node_alone_has_nothing_to_be_compared_with() -> None:
    route = plan(node(0, 30, ask=10**6 * ASK), times_median=3.0)
    assert any("one node alone" in note for note in route.notes)


def test_nodes_that_ask_nothing_do_not_lower_the_median() -> None:
    assert plan(node(0, 15, ask=0), node(0, 15, ask=0), node(15, 30), times_median=3.0).price == 15 * ASK


def test_a_fixed_bid_that_does_not_reach() -> None:
    with pytest.raises(SwarmError, match="does not reach all blocks"):
        plan(node(0, 30), bid=Bid("amount", amount=Credits(ASK - 1)))


def test_accounts_that_hold_too_little_are_left_out() -> None:
    poor, rich = node(0, 30), node(0, 30, ask=2 * ASK)
    needed = session_amount(2 * ASK * 30, 100, 1.25)
    assert needed == 2 * ASK * 30 * 125
    funds = {poor[0].operator.address: 10, rich[0].operator.address: int(needed)}
    assert plan(poor, rich, funds=funds).legs[0].peer == rich[0].peer
    funds[rich[0].operator.address] -= 1
    with pytest.raises(SwarmError, match="accounts do not cover"):
        plan(poor, rich, funds=funds)


def test_neighbours_speak_one_wire_form() -> None:
    one, two = node(0, 15), node(15, 30, numerics=("bf16/bf16/bf16",))
    with pytest.raises(SwarmError, match="cannot be chained"):
        plan(one, two)
    both = node(15, 30, numerics=("bf16/bf16/bf16", "bf16/bf16/fp32"), tokens_per_s=1.0)
    assert [leg.wire for leg in plan(one, two, both).legs] == ["fp32", "fp32"]
    assert wire_of("fp32/fp32") == wire_of("fp32/fp32/int8") == ""


def test_plan_for_people() -> None:
    route = plan(node(0, 15), node(15, 30))
    shown = route.plan(1000, 1.25)
    assert (shown.lane, shown.cost, shown.reserved) == ("paid", 1000 * 30 * ASK, 1250 * 30 * ASK)
    assert [(hop.first, hop.end, hop.price) for hop in shown.hops] == [(0, 15, 15 * ASK), (15, 30, 15 * ASK)]
    free = plan(node(0, 15), node(15, 30), bid=Bid("free")).plan(1000, 1.25)
    assert (free.lane, free.cost, free.reserved) == ("donated", 0, 0)


_spans = st.tuples(st.integers(0, 5), st.integers(1, 6)).map(lambda pair: (pair[0], max(pair[0] + 1, pair[1])))


@given(
    st.lists(st.tuples(_spans, st.integers(1, 9), st.floats(1, 50), st.floats(0, 3)), min_size=1, max_size=6),
    st.integers(0, 60),
)
def test_every_route_is_whole_and_none_of_one_leg_is_cheaper(
    nodes: list[tuple[tuple[int, int], int, float, float]], ceiling: int
) -> None:
    """A route covers each block once, within spans and ceiling; the direct one, if any, is never better."""
    made = [node(*span, ask=ask, tokens_per_s=speed, wait_paid_s=wait) for span, ask, speed, wait in nodes]
    covered = {block for (first, end), *_ in nodes for block in range(first, end)}
    if len(covered) < 6:
        with pytest.raises(SwarmError, match="No node serves"):
            plan(*made, blocks=6)
        return
    cheapest = plan(*made, blocks=6, seconds_per_credit=1e12).price
    if 0 < ceiling < cheapest:
        with pytest.raises(SwarmError, match="No route costs"):
            plan(*made, blocks=6, ceiling=Credits(ceiling))
        return
    route = plan(*made, blocks=6, ceiling=Credits(ceiling) if ceiling else None)
    assert route.legs[0].first == 0
    assert route.legs[-1].end == 6
    assert all(one.end == other.first for one, other in pairwise(route.legs))
    assert all(leg.record.first_block <= leg.first < leg.end <= leg.record.end_block for leg in route.legs)
    assert not ceiling or route.price <= ceiling
    if not ceiling:
        whole = [one for one in made if one[1].record.blocks == range(6)]  # type: ignore[attr-defined]
        assert all(route.seconds <= plan(one, blocks=6).seconds + 1e-6 for one in whole)


def test_a_way_through_a_part_of_the_model() -> None:
    """What lies outside is not asked for, and nobody need serve it."""
    early, late = node(0, 12), node(12, 25)
    assert spans(plan(early, late, first=5, end=20)) == [(5, 12), (12, 20)]
    assert spans(plan(late, first=12, end=13)) == [(12, 13)]
    with pytest.raises(SwarmError, match="25:26"):
        plan(early, late, first=5, end=26)


def test_a_part_keeps_ceiling_and_bid() -> None:
    """The ceiling counts what the part costs, the funds what its sessions reserve."""
    cheap, dear = node(0, 30, tokens_per_s=1.0), node(0, 30, ask=4 * ASK, tokens_per_s=1000.0)
    route = plan(cheap, dear, first=10, end=20, ceiling=Credits(10 * ASK))
    assert [leg.peer for leg in route.legs] == [cheap[0].peer]
    assert route.price == 10 * ASK
    enough = {cheap[0].operator.address: session_amount(10 * ASK, 100, 1.25)}
    assert plan(cheap, first=10, end=20, funds=enough).price == 10 * ASK
    with pytest.raises(SwarmError):
        plan(cheap, first=10, end=21, funds=enough)


def test_a_wire_form_that_the_neighbours_speak() -> None:
    """What is left of a pipeline speaks one form: a replacement speaks it too, though another node is faster."""
    fast, fitting = node(0, 30, numerics=("int8/bf16/fp16",), tokens_per_s=1000.0), node(0, 30, tokens_per_s=1.0)
    assert plan(fast, fitting).legs[0].peer == fast[0].peer
    assert plan(fast, fitting, wire="fp32").legs[0].peer == fitting[0].peer
    with pytest.raises(SwarmError, match="cannot be chained") as caught:
        plan(fast, wire="fp32")
    assert "fp32" in caught.value.why
