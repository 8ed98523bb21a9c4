"""A day's budget of deposits: kept on the disk, counted before it is spent, never begun anew by damage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemint.cli.wallet.daily import DailyDeposits
from hivemint.protocol.errors import ConfigError


def test_a_day_counts_over_processes_and_ends_at_midnight(tmp_path: Path) -> None:
    now = [5 * 86_400.0]
    first, second = (DailyDeposits(tmp_path / "d.json", lambda: now[0]) for _ in range(2))
    assert first.today == 0
    with first.alone():
        first.take(30)
    second.take(12)
    assert (first.today, second.today) == (42, 42)
    now[0] += 86_399
    assert first.today == 42
    now[0] += 1
    assert first.today == 0
    assert (tmp_path / "d.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"day": 3}', '{"day": "x", "wei": "1"}'])
def test_a_damaged_file_is_no_new_budget(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(ConfigError, match="damaged"):
        _ = DailyDeposits(tmp_path / "d.json").today


@given(sums=st.lists(st.integers(0, 2**96), max_size=6))
def test_what_is_taken_adds_up(tmp_path_factory: pytest.TempPathFactory, sums: list[int]) -> None:
    days = DailyDeposits(tmp_path_factory.mktemp("days") / "d.json", lambda: 0.0)
    for wei in sums:
        days.take(wei)
    assert days.today == sum(sums)
