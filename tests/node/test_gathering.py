"""The hot loop in virtual time: it gathers sessions into large batches, keeps nobody long, and nobody who is alone."""

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.node.engine.engine import Engine
from hivemint.node.engine.gathering import SHARED, Processors
from hivemint.node.engine.scheduler import Lane, Scheduler
from hivemint.node.engine.seats import Seat, Seats
from hivemint.node.engine.step_job import StepJob
from hivemint.node.kv.cache import KvStore
from hivemint.node.kv.shape import KvShape
from hivemint.node.span.packing import Work
from support.virtual_time import VirtualLoop, run

FIXED, EACH = 0.006, 0.0006
"""Seconds a batch and a row: 15 blocks of SmolLM2 on one core."""


class Device:
    """A span that only takes time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.batches: list[tuple[float, float, int]] = []  # (began, ended, rows)

    def run(self, batch: Sequence[Work]) -> list[torch.Tensor]:
        rows, began = sum(work.count for work in batch), self._loop.clock()
        self._loop.spend(FIXED + EACH * rows)
        self.batches.append((began, self._loop.clock(), rows))
        return [work.hidden for work in batch]

    def backward_in_turns(self, *work: Any) -> Iterator[torch.Tensor | None]:
        raise NotImplementedError("nobody trains here")


class Node:
    """An engine over a device; `stood`: how long each step was in the queue while the device did nothing, its lane."""

    def __init__(self, loop: VirtualLoop, patience: float) -> None:
        store = KvStore([KvShape(1, 8, 8)], torch.float32, torch.device("cpu"), 1 << 20)
        self.device = Device(loop)
        room = Seats(store, clock=loop.time)
        self.engine = Engine(self.device, Scheduler(64, clock=loop.time), room, patience=lambda: patience)
        self.stood: list[tuple[float, Lane]] = []
        self._loop = loop

    @property
    def sizes(self) -> list[int]:
        return [rows for *_, rows in self.device.batches]

    @property
    def waits(self) -> list[float]:
        return [wait for wait, _ in self.stood]

    @property
    def device_time(self) -> float:
        return sum(ended - began for began, ended, _ in self.device.batches)

    async def step(self, name: str, seat: Seat, position: int) -> None:
        job = StepJob(seat.lane, name, name, 1, seat=seat, start=position, hidden=torch.zeros(1, 4))
        idle_since = max(self._loop.time(), self.device.batches[-1][1] if self.device.batches else 0.0)
        self.engine.enqueue(job)
        await self.engine.finish(job)
        assert job.started_at is not None
        self.stood.append((job.started_at - max(job.queued_at, idle_since), seat.lane))


def play(
    monkeypatch: pytest.MonkeyPatch,
    sessions: Sequence[Sequence[float]],
    nodes: int = 1,
    patience: float = SHARED,
    free: int = 0,
) -> list[Node]:
    """All sessions at once, each with its pauses before its tokens, which pass through all nodes.

    The last `free` ones are not paid for.
    """

    async def speak(route: list[Node], number: int, thinking: Sequence[float]) -> None:
        name, lane = f"session {number}", Lane.DONATED if number >= len(sessions) - free else Lane.PAID
        seats = [node.engine.room.open(lane, 64) for node in route]
        for position, pause in enumerate(thinking):
            await asyncio.sleep(pause)
            for node, seat in zip(route, seats, strict=True):
                await node.step(name, seat, position)

    async def main(loop: VirtualLoop) -> list[Node]:
        patch.setattr("hivemint.node.engine.device.time", SimpleNamespace(perf_counter=loop.clock))
        route = [Node(loop, patience) for _ in range(nodes)]
        serving = [asyncio.create_task(node.engine.run()) for node in route]
        await asyncio.gather(*(speak(route, n, pauses) for n, pauses in enumerate(sessions)))
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        return route

    with monkeypatch.context() as patch:
        return run(main)


pauses = st.lists(st.floats(0, 0.05), min_size=1, max_size=25)


@pytest.mark.parametrize("count", [1, 2])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_one_or_two_sessions_never_wait(monkeypatch: pytest.MonkeyPatch, count: int, data: Any) -> None:
    (node,) = play(monkeypatch, data.draw(st.lists(pauses, min_size=count, max_size=count)))
    assert max(node.waits) < 1e-9


@pytest.mark.parametrize("patience", [0.0, SHARED])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(sessions=st.lists(pauses, min_size=3, max_size=24))
def test_nobody_waits_longer_than_the_node_is_patient(
    monkeypatch: pytest.MonkeyPatch, patience: float, sessions: list[list[float]]
) -> None:
    """The device stands idle beside a waiting step for so many steps at most, of the longest that there was."""
    (node,) = play(monkeypatch, sessions, patience=patience)
    longest = max(ended - began for began, ended, _ in node.device.batches)
    assert max(node.waits) <= patience * longest + 1e-9
    assert sum(node.sizes) == sum(map(len, sessions))


def thinking(least: float, most: float) -> list[list[float]]:
    dice = random.Random(1)
    return [[dice.uniform(least, most) for _ in range(40)] for _ in range(16)]


@pytest.mark.parametrize(("clients", "rows"), [((0.001, 0.002), 14), ((0.001, 0.008), 14), ((0.03, 0.05), 7)])
def test_sixteen_sessions_settle_into_large_batches(
    monkeypatch: pytest.MonkeyPatch, clients: tuple[float, float], rows: int
) -> None:
    """Two nodes; clients that take so many seconds for a token. All come back together, whatever the first order."""
    sessions = thinking(*clients)
    patient = play(monkeypatch, sessions, nodes=2)
    hasty = play(monkeypatch, sessions, nodes=2, patience=0.0)
    for mine, theirs in zip(patient, hasty, strict=True):
        assert statistics.mean(mine.sizes) > rows > 2 * statistics.mean(theirs.sizes)
        assert mine.device_time < 0.65 * theirs.device_time


def test_who_was_away_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sixth session speaks every second: it joins who is there, and nobody waits for it in between."""
    (node,) = play(monkeypatch, [[0, *[1.0] * 3], *[[0, *[0.01] * 50]] * 5])
    assert node.sizes.count(5) >= 48
    assert max(node.waits) < 1e-9


def test_who_pays_waits_for_nobody_who_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = [[0.01] * 20, *[[0.012] * 20 for _ in range(8)]]
    (node,) = play(monkeypatch, pauses, free=8)
    paid = [wait for wait, lane in node.stood if lane is Lane.PAID]
    assert len(paid) == 20
    assert max(paid) < 1e-9


class Machine:
    """In the place of psutil: two processors."""

    def __init__(self) -> None:
        self.now = self.own = self.others = 0.0

    def cpu_count(self) -> int:
        return 2

    def cpu_times(self) -> Any:
        return SimpleNamespace(user=self.others, nice=self.own, system=0.0)  # as on Linux, where nodes are nice

    def Process(self) -> Any:
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=self.own, system=0.0))

    def run(self, seconds: float, own: float, others: float) -> None:
        self.now, self.own, self.others = self.now + seconds, self.own + own, self.others + others


def test_a_node_is_patient_only_while_others_use_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr("hivemint.node.engine.gathering.psutil", machine)
    processors = Processors(lambda: machine.now)
    assert processors.patience() == 0
    machine.run(1.0, own=1.9, others=0.1)
    assert processors.patience() == 0
    machine.run(1.0, own=1.0, others=0.9)
    assert processors.patience() == SHARED
    machine.run(100.0, own=1.0, others=0.0)
    assert processors.patience() == SHARED, "a long pause tells nothing"
    machine.run(1.0, own=1.9, others=0.1)
    assert processors.patience() == 0
