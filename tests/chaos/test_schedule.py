"""The same seed is the same run; no run of the suite leaves out what it is for."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.job import Job
from chaos.schedule import (
    CLIENTS,
    HOLD,
    LANES,
    LONG,
    ON_NODES,
    ONLY_APART,
    SAMPLES,
    SHORT,
    SPANS,
    THREADS,
    Ask,
    Kind,
    Profile,
    draw,
)

SEEDS = st.integers(0, 2**64)
PROFILES = st.builds(
    Profile,
    seconds=st.floats(5, 1000),
    latest=st.just(1000.0),
    rounds=st.integers(1, 5),
    items=st.integers(0, 40),
    without=st.frozensets(st.sampled_from(Kind)),
)


@settings(max_examples=50, deadline=None)
@given(SEEDS, PROFILES, st.booleans())
def test_a_seed_is_a_schedule(seed: int, profile: Profile, apart: bool) -> None:
    assert draw(seed, profile, apart=apart) == draw(seed, profile, apart=apart)


@settings(max_examples=200, deadline=None)
@given(SEEDS, PROFILES, st.booleans())
def test_each_kind_comes_as_often_as_there_are_rounds(seed: int, profile: Profile, apart: bool) -> None:
    schedule = draw(seed, profile, apart=apart)
    wanted = set(Kind) - profile.without - (frozenset() if apart else ONLY_APART)
    counts = {kind: sum(fault.kind is kind for fault in schedule.faults) for kind in Kind}
    assert counts == {kind: profile.rounds * (kind in wanted) for kind in Kind}
    assert all(fault.kind in ON_NODES for fault in schedule.faults if fault.lane.startswith("span"))
    assert all(fault.kind in LANES[fault.lane] for fault in schedule.faults if fault.kind not in ON_NODES)
    loads = [len(schedule.lane(f"span{number}")) for number in range(SPANS)]
    assert max(loads) - min(loads) <= 1


@settings(max_examples=200, deadline=None)
@given(SEEDS, PROFILES)
def test_faults_of_a_lane_follow_each_other_and_end_in_time(seed: int, profile: Profile) -> None:
    schedule = draw(seed, profile)
    assert [fault.at for fault in schedule.faults] == sorted(fault.at for fault in schedule.faults)
    for lane in schedule.lanes:
        faults = schedule.lane(lane)
        assert all(0 < fault.hold <= HOLD[1] for fault in faults)
        ends = [fault.at + fault.hold for fault in faults]
        assert all(end <= later.at + 0.02 for end, later in zip(ends, faults[1:], strict=False))
        assert ends[-1] <= profile.seconds


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_both_lanes_ask_for_everything_and_one_thread_alone_samples(seed: int) -> None:
    """Numbers are drawn from one source a process: a second thread would take some of them."""
    schedule = draw(seed, SHORT)
    assert set(schedule.traffic) == set(CLIENTS)
    for threads in schedule.traffic.values():
        assert len(threads) == THREADS
        first, *others = ([item.ask for item in items] for items in threads)
        assert set(first[: len(Ask)]) == set(Ask)
        assert all(not SAMPLES & set(asks) for asks in others)
        assert all([item.number for item in items] == list(range(SHORT.items)) for items in threads)


def test_other_seeds_are_other_schedules() -> None:
    drawn = [draw(seed, SHORT) for seed in range(20)]
    assert len({one.faults for one in drawn}) == len({str(one.traffic) for one in drawn}) == 20


def test_the_long_run_leaves_nothing_out() -> None:
    assert LONG.without == frozenset()
    assert {fault.kind for fault in draw(1, LONG).faults} == set(Kind)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_job_survives_its_file(client: str, tmp_path: Path) -> None:
    items = [list(one) for one in draw(7, replace(SHORT, items=9)).traffic[client]]
    job = Job(client, "network", "model", "home", "ab", {"bid": "ask"}, items, "results")
    assert Job.read(job.write(tmp_path / "job.json")) == job
    assert json.loads((tmp_path / "job.json").read_text()) == json.loads(json.dumps(asdict(job)))
