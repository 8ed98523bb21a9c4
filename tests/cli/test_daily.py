"""A day's budget of deposits: kept on the disk, counted before it is spent, never begun anew by damage."""

import fcntl
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.cli.wallet import daily
from hivemint.cli.wallet.daily import KEPT, DailyDeposits
from hivemint.protocol.errors import BadInput, ConfigError

DAY = 86_400.0


async def test_a_day_counts_over_processes_and_ends_at_midnight(tmp_path: Path) -> None:
    now = [5 * DAY]
    first, second = (DailyDeposits(tmp_path / "d.json", lambda: now[0]) for _ in range(2))
    assert first.today == 0
    async with first.alone():
        first.take(30)
    second.take(12)
    assert (first.today, second.today) == (42, 42)
    now[0] += 86_399
    assert first.today == 42
    now[0] += 1
    assert first.today == 0
    assert (tmp_path / "d.json").stat().st_mode & 0o077 == 0


DAMAGED = [
    "",
    "{",
    "[]",
    "{}",
    "null",
    '{"days": {"x": "1"}}',
    '{"days": {"5": "-1000"}}',
    '{"days": {"5": -1000}}',
    '{"days": {"5": "1e3"}}',
    '{"days": {"5": "\\n1"}}',
    '{"days": {"05": "1"}}',
    '{"days": {"999999999999": "1"}}',
    '{"days": 1e999}',
    '{"days": {"5": "' + "9" * 5000 + '"}}',
    '{"days": ' + "[" * 30_000,
    '{"days": {}, "x": ' + "[" * 30_000,
    '{"days": {"5": "1"}, "more": 1}',
    "{'days': {}}",
    '{"days": {"5": "\udce4"}}',
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_no_new_budget(tmp_path: Path, content: str) -> None:
    days = DailyDeposits(tmp_path / "d.json", lambda: 5 * DAY)
    (tmp_path / "d.json").write_bytes(content.encode(errors="surrogateescape"))
    for use in (lambda: days.today, lambda: days.take(1)):
        with pytest.raises(ConfigError, match="damaged"):
            use()
    assert (tmp_path / "d.json").read_bytes() == content.encode(errors="surrogateescape")


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["days", "5", "-5"]) | st.text(), inner)
        ),
        max_leaves=6,
    )
)
def test_whatever_stands_there_a_budget_is_never_enlarged(
    tmp_path_factory: pytest.TempPathFactory, document: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-days.json"
    file.write_text(json.dumps(document))
    with suppress(ConfigError):
        assert DailyDeposits(file, lambda: 5 * DAY).today >= 0


def test_what_is_no_file_is_no_new_budget_either(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    (tmp_path / "e.json").symlink_to("nowhere")
    (tmp_path / "f.json").write_bytes(b" " * (1 << 17))
    for name in ("d.json", "e.json", "f.json"):
        with pytest.raises(BadInput):
            _ = DailyDeposits(tmp_path / name).today


@given(sums=st.lists(st.integers(0, 2**96), max_size=6))
def test_what_is_taken_adds_up(tmp_path_factory: pytest.TempPathFactory, sums: list[int]) -> None:
    days = DailyDeposits(tmp_path_factory.mktemp("days") / "d.json", lambda: 0.0)
    for wei in sums:
        days.take(wei)
    assert days.today == sum(sums)


@given(steps=st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 2**96)), max_size=12))
def test_a_clock_that_goes_back_and_forth_finds_what_it_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    now, spent = [0.0], dict[int, int]()
    days = DailyDeposits(tmp_path_factory.mktemp("days") / "d.json", lambda: now[0])
    for day, wei in steps:
        now[0] = day * DAY
        days.take(wei)
        spent[day] = spent.get(day, 0) + wei
    for day, wei in spent.items():
        now[0] = day * DAY
        assert days.today == wei


def test_old_days_are_forgotten(tmp_path: Path) -> None:
    now = [0.0]
    days = DailyDeposits(tmp_path / "d.json", lambda: now[0])
    for day in range(3 * KEPT):
        now[0] = day * DAY
        days.take(1)
    kept = json.loads((tmp_path / "d.json").read_text())["days"]
    assert list(kept) == [str(day) for day in range(2 * KEPT, 3 * KEPT)]


async def test_who_waits_for_another_process_is_told_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daily, "LOCK_TIME", 0.3)
    days = DailyDeposits(tmp_path / "d.json")
    with (tmp_path / "d.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        begun = time.monotonic()
        with pytest.raises(ConfigError, match="Another process tops up"):
            async with days.alone():
                pytest.fail("both were alone")
        assert 0.3 <= time.monotonic() - begun < 5
    async with days.alone():
        days.take(1)
    async with days.alone():  # and it was given back
        assert days.today == 1
