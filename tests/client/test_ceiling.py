"""Nodes that no route of a client's would pay: by the median, by its own ceiling, and by its bid."""

import pytest

from hivemint.client.sessions.ceiling import too_dear
from hivemint.client.sessions.routing.planning import plan_route
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.errors import OverLimit
from hivemint.protocol.ids import Credits
from support.fake_swarm import FakeNode

ASK = 1000


def wish(**changes: object) -> Wish:
    return Wish(**{"blocks": 30, "tokens": 1, "bid": Bid("times"), "times_median": 3.0, **changes})  # type: ignore[arg-type]


def test_who_asks_far_more_than_the_median_is_too_dear() -> None:
    usual, absurd = [FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=3 * ASK)], FakeNode(0, 30, ask=10**9 * ASK)
    records = [one.record() for one in (*usual, absurd)]
    assert set(too_dear(records, wish(times_median=1.0))) == {absurd.operator.address}
    (why,) = too_dear(records, wish(times_median=2.0)).values()
    assert "2x the median ask" in why
    assert too_dear(records, wish(times_median=None)) == {}
    assert too_dear([absurd.record()], wish()) == {}, "there is nobody to compare with"


def test_a_second_span_at_a_usual_ask_keeps_a_node() -> None:
    one, other = FakeNode(0, 30, ask=ASK), FakeNode(0, 30, ask=ASK)
    dear = other.record(ask=Credits(100 * ASK), first_block=15)
    assert too_dear([one.record(), one.record(), other.record(), dear], wish()) == {}
    assert set(too_dear([one.record(), one.record(), dear], wish())) == {other.operator.address}


@pytest.mark.parametrize("ceiling", [29 * ASK, 30 * ASK, 39 * ASK - 1, 39 * ASK, 10**6 * ASK])
def test_the_own_ceiling_leaves_out_who_is_on_no_route_within_it(ceiling: int) -> None:
    """A route may take one block alone of the dear node, as here another node begins within its span."""
    cheap, late, dear = FakeNode(0, 30, ask=ASK), FakeNode(1, 30, ask=ASK), FakeNode(0, 1, ask=10 * ASK)
    records, asked = [one.record() for one in (cheap, late, dear)], wish(ceiling=Credits(ceiling))
    with_it = [one.record() for one in (dear, late)]
    reasons = too_dear(records, asked)
    assert (dear.operator.address in reasons) == (ceiling < 39 * ASK)
    assert (cheap.operator.address in reasons) == (ceiling < 30 * ASK)
    if dear.operator.address in reasons:
        assert "max_price" in reasons[dear.operator.address]
        with pytest.raises(OverLimit):
            plan_route(with_it, asked, Speeds())
    else:
        plan_route(with_it, asked, Speeds())


def test_a_record_beyond_the_model_makes_nobody_dear() -> None:
    honest, odd = FakeNode(0, 30, ask=ASK), FakeNode(30, 60, ask=10**9 * ASK)
    reasons = too_dear([honest.record(), odd.record()], wish(ceiling=Credits(30 * ASK)))
    assert honest.operator.address not in reasons


def test_a_fixed_bid_reaches_who_asks_no_more() -> None:
    cheap, dear = FakeNode(0, 30, ask=ASK), FakeNode(0, 30, ask=ASK + 1)
    reasons = too_dear([cheap.record(), dear.record()], wish(bid=Bid("amount", amount=Credits(ASK))))
    assert set(reasons) == {dear.operator.address}
    assert "more than the bid" in reasons[dear.operator.address]
