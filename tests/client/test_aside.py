"""Set aside longer each time, with a reason, one trial at a time, and back with the first step that is proved."""

import pytest

from hivemint.client.sessions.routing import aside as module
from hivemint.client.sessions.routing.aside import LONGEST, TRIAL, TRYING, Aside
from hivemint.client.sessions.speeds import Speeds
from hivemint.protocol.ids import PeerId

NODE, OTHER = PeerId(b"node"), PeerId(b"other")


class Clock:
    """Stands for the monotonic clock of all that is tested here."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr("hivemint.client.sessions.speeds.time", made)
    return made


def book() -> tuple[Aside, Speeds]:
    speeds = Speeds()
    return Aside(speeds.delivered_at, speeds.opened_at), speeds


def test_each_time_is_twice_as_long_up_to_an_hour(clock: Clock) -> None:
    aside, _ = book()
    for expected in (120.0, 240.0, 480.0, 960.0, 1920.0, LONGEST, LONGEST):
        aside.misbehaved(NODE, 120.0, "it hung", lied=False)
        clock.now += expected - 1
        assert aside.peers() == {NODE}
        clock.now += 2
        assert aside.peers() == set()


def test_a_proved_step_after_its_time_makes_the_next_one_short(clock: Clock) -> None:
    aside, speeds = book()
    for _ in range(3):
        aside.misbehaved(NODE, 10.0, "it hung", lied=False)
        clock.now += 100
    speeds.delivered(NODE)
    clock.now += 1
    aside.misbehaved(NODE, 10.0, "it hung", lied=False)
    clock.now += 11
    assert aside.peers() == set()


def test_what_it_delivers_while_it_is_aside_proves_nothing(clock: Clock) -> None:
    """A session of before may go on, as slowly as ever."""
    aside, speeds = book()
    aside.misbehaved(NODE, 10.0, "it is slow", lied=False)
    clock.now += 5
    speeds.delivered(NODE)
    assert aside.peers() == {NODE}
    clock.now += 6
    aside.misbehaved(NODE, 10.0, "it is slow", lied=False)
    clock.now += 15
    assert aside.peers() == {NODE}


def test_sessions_that_fail_together_count_once(clock: Clock) -> None:
    aside, _ = book()
    for _ in range(8):
        aside.misbehaved(NODE, 10.0, "it died", lied=False)
    clock.now += 11
    assert aside.peers() == set()


def test_one_trial_at_a_time_until_it_has_delivered(clock: Clock) -> None:
    aside, speeds = book()
    aside.misbehaved(NODE, 10.0, "it died", lied=False)
    aside.trying(OTHER)
    clock.now += 11
    assert aside.peers() == set()
    aside.trying(NODE)
    assert aside.peers() == {NODE}, "a route is being opened over it"
    assert "on trial" in aside.reason(NODE)
    clock.now += TRYING - 1
    speeds.opened(NODE)
    clock.now += 2
    assert aside.peers() == {NODE}, "its session has not delivered yet"
    speeds.delivered(NODE)
    assert aside.peers() == set()
    assert aside.reason(NODE) == ""


def test_a_trial_without_an_end_lets_another_one_try(clock: Clock) -> None:
    aside, speeds = book()
    aside.misbehaved(NODE, 10.0, "it died", lied=False)
    clock.now += 11
    speeds.opened(NODE)
    assert aside.peers() == {NODE}
    clock.now += TRIAL
    assert aside.peers() == set()


def test_the_reason_is_told_with_the_time(clock: Clock) -> None:
    aside, _ = book()
    aside.misbehaved(NODE, 10.0, "did not answer while connecting", lied=False)
    clock.now += 11
    aside.misbehaved(NODE, 10.0, "did not answer while connecting", lied=False)
    told = aside.reason(NODE)
    assert told == "set aside for 20 s more, 2 times in a row: did not answer while connecting"


def test_liars_are_told_apart_and_grow_too(clock: Clock) -> None:
    aside, _ = book()
    aside.misbehaved(NODE, 10.0, "", lied=True)
    aside.misbehaved(NODE, 10.0, "it died", lied=False)
    assert aside.liars() == {NODE}, "what it did later does not make it honest"
    clock.now += 11
    assert aside.liars() == set()
    aside.misbehaved(NODE, 10.0, "", lied=True)
    clock.now += 15
    assert aside.liars() == {NODE}


def test_who_is_busy_has_done_nothing_wrong(clock: Clock) -> None:
    aside, _ = book()
    for _ in range(5):
        aside.busy(NODE, 2.0)
        assert aside.peers() == {NODE}
        clock.now += 3
    assert aside.peers() == set()
    aside.misbehaved(NODE, 10.0, "it died", lied=False)
    clock.now += 11
    assert aside.peers() == set()


def test_no_time_at_all_is_none(clock: Clock) -> None:
    aside, _ = book()
    aside.misbehaved(NODE, 0.0, "it died", lied=True)
    assert aside.peers() == aside.liars() == set()
