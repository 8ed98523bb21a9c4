"""When a node has earned what: by the minute, over restarts, and never from a file that is another's."""

from pathlib import Path

import pytest

from hivemint.ledger.books.earnings import DAY, HOUR, MINUTE, Earnings


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_the_last_hour_and_day_and_since_the_start(tmp_path: Path) -> None:
    clock = Clock()
    one = Earnings(tmp_path / "earnings.json", "mine", clock)
    one.note(100, {})
    assert (one.last(HOUR), one.since_start) == (0, 0), "what was there before is nobody's last hour"
    clock.now += 10 * MINUTE
    one.note(150, {7: 30}, frozenset({7}))
    assert (one.last(HOUR), one.last(DAY), one.since_start, one.donated) == (80, 80, 80, 30)
    clock.now += 2 * HOUR
    one.note(151, {7: 30}, frozenset({7}))
    assert (one.last(HOUR), one.last(DAY), one.since_start) == (1, 81, 81)
    clock.now += DAY
    one.note(151, {7: 30}, frozenset({7}))
    assert (one.last(HOUR), one.last(DAY), one.since_start) == (0, 0, 81)


def test_an_older_share_is_counted_in_the_sum_and_not_in_the_hour() -> None:
    one = Earnings(None, "mine", Clock())
    one.note(0, {3: 1000, 4: 1}, frozenset({4}))
    assert (one.donated, one.last(HOUR)) == (1001, 1)


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "earnings.json"
    one = Earnings(path, "mine", clock)
    one.note(0, {})
    one.note(5, {1: 2**90}, frozenset({1}))
    assert one.save() == ""
    clock.now += MINUTE
    other = Earnings(path, "mine", clock)
    other.note(9, {})
    assert other.last(HOUR) == 9 + 2**90, "what was settled between the two runs is in"
    assert other.since_start == 4
    assert other.donated == 2**90, "an epoch that the journal has forgotten stays"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"books": "mine", "paid": "x"}', '{"books": "mine", "grew": {"a": "1"}}', "\x80"]
)
def test_a_damaged_file_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "earnings.json"
    path.write_text(content, encoding="latin-1")
    one = Earnings(path, "mine", Clock())
    one.note(5, {})
    assert one.last(DAY) == 0
    assert one.save() == ""


def test_other_books_and_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "earnings.json"
    one = Earnings(path, "mine", Clock())
    one.note(0, {})
    one.note(5, {})
    one.save()
    assert Earnings(path, "another chain's", Clock()).last(DAY) == 0
    lost = Earnings(tmp_path / "gone" / "earnings.json", "mine", Clock())
    lost.note(1, {})
    assert "cannot be written" in lost.save()


def test_a_payment_that_the_chain_took_back_is_no_longer_earned() -> None:
    one = Earnings(None, "mine", Clock())
    one.note(0, {})
    one.note(50, {})
    one.note(20, {})
    assert one.last(HOUR) == one.since_start == 20
