"""The hot loop in virtual time: it gathers sessions into large batches, keeps nobody long, and nobody who is alone."""

import asyncio
import random
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.node import engine as module
from hivemint.node.batch import Work
from hivemint.node.engine import AT_WORK, GATHER, Engine
from hivemint.node.kv_cache import KvShape, KvStore
from hivemint.node.room import Room, Seat
from hivemint.node.scheduler import Job, Lane, Scheduler
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

    def backward(self, *work: Any) -> torch.Tensor:
        raise NotImplementedError("nobody trains here")


class Node:
    """An engine over a device; `waits`: how long each step stood in the queue while the device did nothing."""

    def __init__(self, loop: VirtualLoop) -> None:
        store = KvStore([KvShape(1, 8, 8)], torch.float32, torch.device("cpu"), 1 << 20)
        self.device = Device(loop)
        self.engine = Engine(self.device, Scheduler(64, clock=loop.time), Room(store, clock=loop.time))
        self.waits: list[float] = []
        self._loop = loop

    @property
    def sizes(self) -> list[int]:
        return [rows for *_, rows in self.device.batches]

    async def step(self, name: str, seat: Seat, position: int) -> None:
        job = Job(Lane.PAID, name, name, 1)
        idle_since = max(self._loop.time(), self.device.batches[-1][1] if self.device.batches else 0.0)
        await self.engine.finish(self.engine.enqueue(job, seat, position, torch.zeros(1, 4)))
        assert job.started_at is not None
        self.waits.append(job.started_at - max(job.queued_at, idle_since))


def play(monkeypatch: pytest.MonkeyPatch, sessions: Sequence[Sequence[float]], nodes: int = 1) -> list[Node]:
    """All sessions at once, each with its pauses before its tokens, which pass through all nodes."""

    async def speak(route: list[Node], name: str, thinking: Sequence[float]) -> None:
        seats = [node.engine.room.open(Lane.PAID, 64) for node in route]
        for position, pause in enumerate(thinking):
            await asyncio.sleep(pause)
            for node, seat in zip(route, seats, strict=True):
                await node.step(name, seat, position)

    async def main(loop: VirtualLoop) -> list[Node]:
        patch.setattr("hivemint.node.engine.time", SimpleNamespace(perf_counter=loop.clock))
        route = [Node(loop) for _ in range(nodes)]
        serving = [asyncio.create_task(node.engine.run()) for node in route]
        await asyncio.gather(*(speak(route, f"session {n}", pauses) for n, pauses in enumerate(sessions)))
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(pauses, min_size=3, max_size=24))
def test_nobody_waits_longer_than_a_part_of_a_step(
    monkeypatch: pytest.MonkeyPatch, sessions: list[list[float]]
) -> None:
    """The device stands idle beside a waiting step for `GATHER` of a step at most: of the longest that there was."""
    (node,) = play(monkeypatch, sessions)
    longest = max(ended - began for began, ended, _ in node.device.batches)
    assert max(node.waits) <= GATHER * longest + 1e-9
    assert sum(node.sizes) == sum(map(len, sessions))


def test_sixteen_staggered_sessions_settle_into_larger_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes, and clients that take 1 to 2 ms for a token: more rows a batch, and everything done sooner."""
    dice = random.Random(1)
    sessions = [[dice.uniform(0.001, 0.002) for _ in range(40)] for _ in range(16)]
    gathered = play(monkeypatch, sessions, nodes=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "GATHER", 0.0)
        hasty = play(patch, sessions, nodes=2)
    for ours, theirs in zip(gathered, hasty, strict=True):
        assert statistics.mean(ours.sizes) > 1.3 * statistics.mean(theirs.sizes)
        assert ours.device.batches[-1][1] < theirs.device.batches[-1][1]


def test_half_of_those_at_work_are_company_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sessions; two come back at once, the others later: the two go without any wait."""
    (node,) = play(monkeypatch, [[0, 0.1], [0, 0.1], [0, 0.1 + FIXED / 10], [0, 0.1 + FIXED / 10]])
    assert node.sizes == [4, 2, 2]
    assert max(node.waits[:-2]) < 1e-9


def test_one_of_four_waits_a_moment_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = play(monkeypatch, [[0, 0.1], *[[0, 0.1 + FIXED / 100]] * 3])
    assert node.sizes == [4, 4]


def test_who_has_left_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = play(monkeypatch, [[0, 2 * AT_WORK], *[[0]] * 5])
    assert node.sizes == [6, 1]
    assert max(node.waits) < 1e-9
