"""A plan for people and as JSON: the way, and why it goes there."""

import json

import pytest

from hivemint.cli.talk.views import show_plan
from hivemint.client.pipeline import Alternative, Hop, Plan
from hivemint.protocol.ids import Address, BlockIndex, Credits, PeerId

OPERATOR = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")


def hop(first: int, end: int, instead: Alternative | None) -> Hop:
    return Hop(
        peer=PeerId(b"\x00$\x08\x01\x12 " + bytes(32)),
        name="candid-quail-52d6",
        first=BlockIndex(first),
        end=BlockIndex(end),
        price=Credits(10**15),
        wait_ms=41.26,
        operator=OPERATOR,
        trip_ms=7.04,
        compute_ms=31.0,
        room_ms=0.5,
        instead=instead,
    )


PLAN = Plan(
    hops=(hop(0, 15, Alternative("eager-sparrow-d95f 0:15", 12.34, -(10**15))), hop(15, 30, None)),
    tokens=100,
    cost=Credits(2 * 10**17),
    reserved=Credits(3 * 10**17),
    lane="paid",
    notes=("plain-otter-0001 (0:30) is left out: set aside for 9 s more: it \x1b[31mhung",),
)


def test_a_plan_as_json_tells_what_speaks_for_each_node(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(PLAN, as_json=True)
    first, second = json.loads(capsys.readouterr().out)["nodes"]
    assert (first["wait_ms"], first["trip_ms"], first["compute_ms"], first["room_ms"]) == (41.3, 7.0, 31.0, 0.5)
    assert first["instead"] == {"way": "eager-sparrow-d95f 0:15", "slower_ms": 12.3, "dearer_wei": -(10**15)}
    assert second["instead"] is None


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(PLAN, as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "+12 ms, -0.001 HMC" in shown
    assert "plain-otter-0001 (0:30) is left out: set aside for 9 s more" in shown
    assert "\x1b[31m" not in shown
