"""Plans: who is chosen where clients plan at once, named nodes, why there is no route, and why this one."""

import random
import secrets
from collections import Counter
from typing import Any

import pytest

from hivemint.client.sessions.routing import planning
from hivemint.client.sessions.routing.choice import NodeChoice
from hivemint.client.sessions.routing.missing import LeftOut
from hivemint.client.sessions.routing.planning import explain_route, plan_route
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import Credits, PeerId
from hivemint.protocol.node_name import node_name
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import CheckedRecord, pack_trips
from support.routes import ASK, random_swarm, unsigned


def wished(**changes: Any) -> Wish:
    return Wish(**{"blocks": 20, "tokens": 100, "bid": Bid("free"), **changes})


def peers_of(records: Any, wish: Wish) -> list[bytes]:
    return [leg.peer for leg in plan_route(records, wish, Speeds()).legs]


def test_clients_that_plan_at_once_spread_over_what_is_as_good() -> None:
    """200 clients, ten equal nodes for each half, and one look-up: without a salt all would take the same two."""
    view = NodeView([unsigned(first, first + 10) for first in (0, 10) for _ in range(10)])
    counts: Counter[bytes] = Counter()
    for number in range(200):
        counts.update(peers_of(view, wished(salt=number.to_bytes(4, "big"))))
    assert len(counts) == 20
    assert max(counts.values()) <= 2 * 20, "twice the fair share"
    herd = Counter(peer for _ in range(200) for peer in peers_of(view, wished()))
    assert max(herd.values()) == 200


def test_a_node_that_is_clearly_better_is_still_taken_by_all() -> None:
    fast, slow = unsigned(0, 20, tokens_per_s=40.0), unsigned(0, 20, tokens_per_s=10.0)
    view = NodeView([slow, fast])
    for number in range(50):
        assert peers_of(view, wished(salt=number.to_bytes(4, "big"))) == [fast.peer]


@pytest.mark.parametrize("kind", ["name", "operator", "peer"])
def test_nodes_are_named_by_name_operator_or_peer_id(kind: str) -> None:
    one, other = unsigned(0, 20, tokens_per_s=30.0), unsigned(0, 20)
    operator = one.record.operator
    names = ({"name": node_name(operator), "operator": operator.lower(), "peer": peer_text(one.peer)}[kind],)
    assert peers_of([one, other], wished(choice=NodeChoice(blocked=names))) == [other.peer]
    slow = unsigned(0, 20, tokens_per_s=1.0, operator=one.record.operator, peer=one.record.peer)
    assert peers_of([slow, other], wished(choice=NodeChoice(allowed=names))) == [one.peer]
    a_bit_slow = unsigned(0, 20, tokens_per_s=11.0, operator=one.record.operator, peer=one.record.peer)
    assert peers_of([a_bit_slow, other], wished()) == [other.peer]
    assert peers_of([a_bit_slow, other], wished(choice=NodeChoice(preferred=names))) == [one.peer]
    assert peers_of([slow, other], wished(choice=NodeChoice(preferred=names))) == [other.peer]


def test_the_ends_of_a_text_are_for_trusted_nodes() -> None:
    mine, fast = unsigned(0, 20, tokens_per_s=2.0), unsigned(2, 18, tokens_per_s=200.0)
    whole = unsigned(0, 20, tokens_per_s=100.0)
    choice = NodeChoice(trusted=(node_name(mine.record.operator),))
    route = plan_route([mine, fast, whole], wished(choice=choice), Speeds())
    assert [(leg.peer, leg.first, leg.end) for leg in route.legs] == [
        (mine.peer, 0, 2),
        (fast.peer, 2, 18),
        (mine.peer, 18, 20),
    ]
    part = plan_route([mine, fast, whole], wished(choice=choice, first=5, end=15), Speeds())
    assert part.legs[0].peer == fast.peer, "what lies between a model's ends is for anybody"
    first = unsigned(0, 5, operator=mine.record.operator)
    with pytest.raises(SwarmError, match="No trusted node computes the last block"):
        plan_route([first, fast, whole], wished(choice=choice), Speeds())


def test_who_excludes_the_last_candidate_is_named() -> None:
    half, gone, other = unsigned(0, 10), unsigned(10, 20), unsigned(5, 20)
    choice = NodeChoice(blocked=(node_name(other.record.operator),))
    left_out = [LeftOut(gone.record, "set aside for 63 s more: did not answer while connecting")]
    with pytest.raises(SwarmError, match="No node serves blocks 10:20") as caught:
        plan_route([half, other], wished(choice=choice), Speeds(), left_out)
    assert f"{node_name(other.record.operator)} (5:20) is left out: blocked_nodes names it" in caught.value.why
    assert f"{node_name(gone.record.operator)} (10:20) is left out: set aside for 63 s more" in caught.value.why
    choice = NodeChoice(allowed=(node_name(half.record.operator),))
    with pytest.raises(SwarmError, match="10:20") as caught:
        plan_route([half, other], wished(choice=choice), Speeds())
    assert "allowed_nodes names others alone" in caught.value.why


def test_for_each_node_the_best_way_without_it_is_told() -> None:
    first, second = unsigned(0, 10, tokens_per_s=20.0), unsigned(10, 20, tokens_per_s=20.0)
    spare = unsigned(10, 20, tokens_per_s=10.0, ask=Credits(2 * ASK))
    wish = wished(bid=Bid("times"), seconds_per_credit=0.0)
    route = plan_route([first, second, spare], wish, Speeds())
    instead = explain_route([first, second, spare], wish, Speeds(), route)
    assert instead[0] is None
    assert instead[1] is not None
    assert instead[1].slower_ms == pytest.approx(50.0, abs=1.0)
    assert instead[1].dearer == 10 * ASK
    assert f"{node_name(spare.record.operator)} 10:20" in instead[1].way
    shown = route.plan(100, 1.25, instead)
    assert [hop.instead for hop in shown.hops] == list(instead)
    assert shown.hops[0].compute_ms == pytest.approx(50.0)
    total = sum(hop.wait_ms + hop.trip_ms + hop.compute_ms + hop.room_ms for hop in shown.hops)
    assert total == pytest.approx(1000 * route.seconds)


def test_many_nodes_are_planned_with_the_least_costly_of_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all of them: hardly any time is lost by it."""
    lost = []
    for seed in range(8):
        view = NodeView(random_swarm(150, 40, seed, (5, 20)))
        wish = wished(blocks=40, bid=Bid("times"))
        assert planning.MOST_NODES < 150
        cut = plan_route(view, wish, Speeds())
        with monkeypatch.context() as patch:
            patch.setattr(planning, "MOST_NODES", 1000)
            whole = plan_route(view, wish, Speeds())
        lost.append((cut.seconds + 10 * cut.price / 1e18) / (whole.seconds + 10 * whole.price / 1e18))
    assert max(lost) < 1.05
    assert min(lost) > 0.99, "waits grow old between both"


def test_a_paid_route_over_many_nodes_keeps_to_the_accounts() -> None:
    records: list[CheckedRecord] = random_swarm(150, 40, 1, (5, 20))
    dice = random.Random(1)
    chosen = dice.sample(records, 60)
    funds = {one.record.operator: 10**30 for one in chosen}
    route = plan_route(records, wished(blocks=40, bid=Bid("times"), funds=funds), Speeds())
    assert {leg.operator for leg in route.legs} <= set(funds)


def test_a_lie_about_trips_draws_no_text_once_its_link_was_measured_from_here() -> None:
    """The liar is 300 ms from here and its neighbours 10: so it is 290 from them at least, whatever it says."""
    a, honest, liar, c = (PeerId(secrets.token_bytes(38)) for _ in range(4))
    for lie in (b"", pack_trips([(a, 0.0), (c, 0.0)])):
        speeds = Speeds()
        for peer, trip in ((a, 0.01), (honest, 0.01), (c, 0.01), (liar, 0.3)):
            speeds.trip(peer, trip)
        records = [
            unsigned(0, 10, peer=a, trips=pack_trips([(honest, 0.005)])),
            unsigned(10, 20, peer=honest, trips=pack_trips([(c, 0.005)])),
            unsigned(10, 20, peer=liar, trips=lie),
            unsigned(20, 30, peer=c),
        ]
        assert [leg.peer for leg in plan_route(records, wished(blocks=30), speeds).legs] == [a, honest, c]
