"""An ask beside the others', and one that follows them: who counts, and how far a liar gets."""

import time
from typing import Any

import pytest

from hivemint.node.market import CHANGE_EVERY, AskRule, Market, Rival, median, others
from hivemint.node.sessions.offer import SHOWN
from hivemint.protocol.ids import Address, BlockIndex, Credits, ModelId
from hivemint.protocol.signing import Signer
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.records import CheckedRecord, NodeRecord, check_record, sign_record

MODEL = ModelId(b"\x05" * 32)
OWN = Signer(b"\x01" * 32)
COIN = 10**18
RULE = AskRule(floor=10, ceiling=1000)


def record(key: int, ask: int, first: int = 0) -> CheckedRecord:
    operator, peer = Signer(bytes([key]) * 32), PeerKey.generate()
    told = NodeRecord(
        network="test",
        model_id=MODEL,
        first_block=BlockIndex(first),
        end_block=BlockIndex(first + 4),
        peer=peer.peer_id,
        operator=operator.address,
        numerics=("fp32/fp32/fp32",),
        ask=Credits(ask),
        expires=time.time() + 60,
    )
    return check_record(sign_record(told, operator, peer).to_bytes())


class Listed:
    """A directory with records and stakes of the test's making."""

    def __init__(self) -> None:
        self.records: list[CheckedRecord] = []
        self.stakes: dict[Address, int] = {}

    def add(self, key: int, ask: int, stake: int, first: int = 0) -> None:
        self.records.append(record(key, ask, first))
        self.stakes[self.records[-1].record.operator] = stake

    def stake_of(self, one: CheckedRecord) -> int:
        return self.stakes[one.record.operator]


class Place:
    def __init__(self, ask: int, rule: AskRule | None = RULE) -> None:
        self.listed, self.ask, self.now = Listed(), ask, 0.0
        self.market = Market(
            self.listed.stake_of, range(4), OWN.address, lambda: self.ask, self._reprice, rule, lambda: self.now
        )

    def look(self) -> None:
        self.market.see(self.listed.records)

    def _reprice(self, ask: Credits) -> None:
        self.ask = int(ask)


def rivals(*pairs: tuple[int, int]) -> list[Rival]:
    return [Rival(Address(str(at)), ask, stake) for at, (ask, stake) in enumerate(pairs)]


def test_only_registered_operators_with_stake_count_each_once_and_not_oneself() -> None:
    listed = Listed()
    listed.add(1, 1, 100 * COIN)  # this node's own operator, from another machine
    listed.add(2, 50, COIN)
    listed.add(2, 40, COIN)
    listed.add(3, 1, 0)
    listed.add(4, 1, 1)  # registered, and nothing bonded
    found = others(listed.records, listed.stake_of, OWN.address)
    assert [(one.ask, one.stake) for one in found] == [(40, COIN)]


def test_the_median_is_by_stake() -> None:
    assert median([]) is None
    assert median(rivals((100, 5))) == 100
    assert median(rivals((1, 1), (1, 1), (1, 1), (100, 10))) == 100, "many small ones that ask 1 wei"
    assert median(rivals((1, 11), (100, 10))) == 1


def test_an_ask_follows_within_floor_and_ceiling_in_steps() -> None:
    assert RULE.next(100, []) == 100
    assert RULE.next(100, rivals((98, 5))) == 100, "too small to change for"
    assert RULE.next(100, rivals((130, 5))) == 130
    assert RULE.next(100, rivals((1, 5))) == 50
    assert RULE.next(100, rivals((900, 5))) == 200
    assert RULE.next(100, rivals((10**9, 5)), at_once=True) == 1000
    assert RULE.next(100, rivals((0, 5)), at_once=True) == 10
    assert RULE.next(0, rivals((500, 5))) == 10
    assert AskRule(floor=100, ceiling=1000).next(98, rivals((100, 5))) == 100, "no bound is too near to be kept"


def test_a_stakeholder_who_asks_one_wei_pulls_an_ask_to_the_floor_and_no_further() -> None:
    place = Place(400)
    place.listed.add(2, 1, 1000 * COIN)
    for _ in range(20):
        place.look()
        place.now += CHANGE_EVERY
    assert place.ask == RULE.floor


def test_nobody_else_there_the_bounds_still_hold_and_the_first_to_come_is_followed_at_once() -> None:
    for ask, bound in ((3, RULE.floor), (5000, RULE.ceiling), (300, 300)):
        place = Place(ask)
        place.look()
        assert place.ask == bound
        place.listed.add(2, 100, COIN)
        place.look()
        assert place.ask == 100


def test_an_ask_changes_once_in_a_while_only() -> None:
    place = Place(400)
    place.listed.add(2, 100, COIN)
    place.look()
    assert place.ask == 100
    place.listed.records.clear()
    place.listed.add(3, 160, COIN)
    place.look()
    assert place.ask == 100
    place.now += CHANGE_EVERY
    place.look()
    assert place.ask == 160


def test_without_the_rule_the_ask_stays_and_it_is_said_how_dear_it_is() -> None:
    place = Place(500, None)
    assert place.market.note == ""
    place.listed.add(2, 100, COIN)
    place.listed.add(3, 200, COIN)
    place.look()
    assert place.ask == 500
    assert "your ask is 5 times the cheapest for these blocks" in place.market.note
    place.ask = 160
    assert "1.6 times" in place.market.note
    place.ask = 120
    assert place.market.note == ""
    place.listed.add(4, 0, COIN)
    place.look()
    assert "more than the cheapest" in place.market.note


def test_a_swarm_that_is_away_changes_nothing_and_nodes_of_other_blocks_are_no_rivals() -> None:
    place = Place(500)
    place.market.see([])
    assert place.ask == 500
    place.listed.add(2, 100, COIN, first=4)
    place.look()
    assert (place.ask, place.market.rivals) == (500, [])


def test_who_was_shown_a_lower_ask_may_still_open(monkeypatch: pytest.MonkeyPatch) -> None:
    from hivemint.node.sessions import offer as module

    clock = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    one: Any = module.Offer(OWN.address, b"p", MODEL, 0, 4, ("x",), Credits(10), None)  # type: ignore[arg-type]
    session: Any = type("Terms", (), {"blocks": 4})
    one.reprice(Credits(20))
    assert (one.ask, one.price(session)) == (20, 40)
    clock += SHOWN
    assert one.price(session) == 80
    one.reprice(Credits(5))
    assert one.price(session) == 20, "a lower one counts at once"
