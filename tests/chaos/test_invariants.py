"""Each check of a run can fail: what it says of books, texts and faults that are not as they should be."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos import invariants
from chaos.conduct import Report
from chaos.faults import Struck, Trouble
from chaos.invariants import Standing
from chaos.network import node_plans
from chaos.schedule import LONG, Fault, Kind, draw

WELL = Standing(promised=110, bound=95, signed=100, owed=100, proven=100, chain=100, ledger=100)


def test_books_that_agree_are_right() -> None:
    assert WELL.wrong("payer", 0) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"ledger": 99}, "journal, chain and ledger differ"),
        ({"proven": 101}, "journal, chain and ledger differ"),
        ({"promised": 99}, "more was collected than promised"),
        ({"owed": 99}, "more was collected than is owed"),
        ({"owed": 111}, "more is owed than was computed"),
        ({"bound": 101}, "a countersigned receipt was not paid"),
    ],
)
def test_a_wei_too_much_in_any_book_is_seen(changes: dict[str, int], rule: str) -> None:
    assert [line for line in replace(WELL, **changes).wrong("payer", 10) if rule in line]


def client(folder: Path, *lines: dict[str, Any], wallet: str = "ab") -> Any:
    path = folder / "results"
    path.write_text("".join(json.dumps({"thread": 0, "ask": "greedy", **line}) + "\n" for line in lines))
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return SimpleNamespace(job=SimpleNamespace(name="payer", wallet=wallet), results=lambda: read, lives=1, ended=[])


def ended(error: str = "", told: str = "", at: float = 9.0) -> dict[str, Any]:
    return {"ended": at, "number": 0, "error": error, "told": told}


NET: Any = SimpleNamespace(plans=node_plans(2))
BEGAN = {"began": 5.0, "number": 0}
FIRST, OTHER = (plan.operator for plan in NET.plans if plan.first == 0)
ELSEWHERE = next(plan.operator for plan in NET.plans if plan.first)


def wrong(folder: Path, trouble: Trouble, *lines: dict[str, Any], kills: int = 0) -> list[str]:
    return invariants.answers(NET, [client(folder, *lines)], trouble, {"payer": kills})


def test_a_text_that_is_another_one_is_never_excused(tmp_path: Path) -> None:
    trouble = Trouble({name: [(0.0, 100.0)] for name in ("machine", "chain", FIRST, OTHER)})
    assert wrong(tmp_path, trouble, BEGAN, ended()) == []
    assert "differs" in wrong(tmp_path, trouble, BEGAN, ended("differs", "from 7 on"))[0]
    assert "traceback" in wrong(tmp_path, trouble, BEGAN, ended("traceback", "KeyError"))[0]


@pytest.mark.parametrize(
    ("spells", "excused"),
    [
        ({FIRST: [(6.0, 7.0)], OTHER: [(5.5, 6.5)]}, True),
        ({FIRST: [(6.0, 7.0)]}, False),
        ({FIRST: [(6.0, 7.0)], OTHER: [(7.5, 8.0)]}, False),
        ({FIRST: [(6.0, 7.0)], ELSEWHERE: [(6.0, 7.0)]}, False),
        ({FIRST: [(6.0, 7.0)], OTHER: [(1.0, 4.9)]}, False),
        ({"chain": [(4.0, 5.1)]}, True),
        ({"chain": [(9.1, 9.5)]}, False),
        ({"machine": [(8.0, 9.5)]}, True),
        ({}, False),
    ],
)
def test_who_ends_with_an_error_had_no_node_left(
    spells: dict[str, list[tuple[float, float]]], excused: bool, tmp_path: Path
) -> None:
    assert (wrong(tmp_path, Trouble(spells), BEGAN, ended("refused", "NodeGone")) == []) is excused


def test_who_never_ends_was_killed(tmp_path: Path) -> None:
    assert "never ended" in wrong(tmp_path, Trouble(), BEGAN)[0]
    assert wrong(tmp_path, Trouble(), BEGAN, kills=1) == []


def test_who_hangs_is_seen(tmp_path: Path) -> None:
    late = ended(at=5.0 + invariants.HANGS_AFTER + 1)
    assert "took" in wrong(tmp_path, Trouble(), BEGAN, late)[0]


def test_what_was_collected_was_told() -> None:
    books = {"payer": {"one": WELL, "other": WELL}}
    one = SimpleNamespace(job=SimpleNamespace(name="payer"), lives=1, ended=[{"spent": 199}])
    assert invariants.bills([one], books)  # type: ignore[list-item]
    one.ended = [{"spent": 200}]
    assert invariants.bills([one], books) == []  # type: ignore[list-item]


def test_a_kind_that_never_hit_anybody_is_told() -> None:
    schedule = draw(5, LONG)
    hit = [Struck(fault, "somebody", int(fault.kind is not Kind.SLOW), "sessions", 0.0) for fault in schedule.faults]
    assert invariants.not_hit(schedule, hit) == [Kind.SLOW]


def test_a_failed_run_says_how_to_play_it_again() -> None:
    report = Report(77, "long", apart=True, wrong=["a text differs"])
    assert "make chaos SEED=77" in str(report)
    assert "SEED" not in str(replace(report, wrong=[]))


def test_trouble_lasts_a_little_longer_than_its_cause() -> None:
    trouble = Trouble()
    with trouble.spell("node"):
        (spell,) = trouble.spells["node"]
        assert spell[1] == float("inf")
    (spell,) = trouble.spells["node"]
    assert spell[1] < float("inf")
    assert trouble.at_once(["node"], spell[1] - 1, spell[1] + 1)
    assert not trouble.at_once(["node"], spell[1] + 1, spell[1] + 2)
    assert str(Struck(Fault(1.0, "span0", Kind.CUT, 2.0, 3), "node", 4, "links", 5.0, 6.0)) == (
        "links cut at node: 4 links, 1.0 s"
    )
