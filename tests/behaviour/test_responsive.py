"""The compute thread never blocks the event loop: a node that computes answers as one that does not."""

import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemint.node.engine.scheduler import Lane
from hivemint.node.engine.step_job import StepJob
from hivemint.node.start import SWITCH
from hivemint.swarm import link
from hivemint.swarm.messages import Code, Refused
from support.node_client import NodeSession, routed
from support.one_node import ASK, Served, one_node
from support.promises import signer
from support.tiny import tiny_model

CALLS, BATCHES = 50, 12
WIDTH, MOST = 256, 8192


async def test_everything_but_compute_goes_on_while_a_batch_runs(tmp_path: Path) -> None:
    """One call of the span lasts as long as this test likes; all of it happens during that one call."""
    async with one_node(tiny_model(tmp_path / "tiny"), tmp_path) as served:
        session = await served.open(signer(1), price=ASK)
        served.span.shut()
        request = session.request(4, start=0)
        await session.send(request, torch.randn(4, 32))
        await asyncio.to_thread(served.span.held.wait)
        for number in range(2, 6):
            other = await served.open(signer(number), price=ASK)  # signatures, journal, opening receipt
            for _ in range(CALLS):
                assert routed(await other.route())
            await other.send(other.request(1, start=9), torch.randn(1, 32))
            refused, _ = await other.answer()
            assert isinstance(refused, Refused)
            assert refused.code is Code.GAP
            await other.link.close()
        assert served.span.begun == served.span.ended + 1
        served.span.open()
        await session.answer()


async def test_control_calls_are_answered_under_full_load(tmp_path: Path, short_turns: None) -> None:
    """The share of batches during which at least five calls are answered, one after the other, where a batch takes as
    long as forty of them would. Were the loop held up by the compute, no call would be.
    """
    changes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "max_position_embeddings": MOST}
    model = tiny_model(tmp_path / "wide", **changes)
    async with one_node(model, tmp_path, kv_bytes=1 << 28, max_rows=MOST, batch_rows=MOST) as served:
        session, span = await served.open(signer(1)), served.span
        idle = statistics.quantiles([await answered_in(session) for _ in range(CALLS)], n=10)[-1]
        rows = 64
        while await batch_takes(served, rows) < 40 * (idle + SWITCH) and rows < MOST:
            rows *= 2
        loads = [asyncio.create_task(load(served, name, rows)) for name in ("one", "two")]
        answered: Counter[int] = Counter()
        first = span.begun + 1
        while span.begun <= first + BATCHES:
            batch, working = span.begun, span.begun > span.ended
            await answered_in(session)
            answered[batch] += working and batch == span.begun
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        assert statistics.mean(answered[first + n] >= 5 for n in range(BATCHES)) >= 0.75


@pytest.fixture(autouse=True)
def routes_without_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand for any request that is answered at once, and one follows the other."""
    monkeypatch.setattr(link, "RATES", {})


@pytest.fixture
def short_turns() -> Iterator[None]:
    """Threads take turns as often as in a node's process."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    yield
    sys.setswitchinterval(before)


async def answered_in(session: NodeSession) -> float:
    """Seconds of one control round trip."""
    began = time.perf_counter()
    assert routed(await session.route())
    return time.perf_counter() - began


async def batch_takes(served: Served, rows: int) -> float:
    began = time.perf_counter()
    await compute(served, "trial", rows)
    return time.perf_counter() - began


async def load(served: Served, name: str, rows: int) -> None:
    """A prompt of `rows`, again and again."""
    while True:
        await compute(served, name, rows)


async def compute(served: Served, name: str, rows: int) -> None:
    engine = served.node.engine
    seat = engine.room.open(Lane.PAID, rows)
    try:
        job = StepJob(Lane.PAID, name, name, rows, seat=seat, start=0, hidden=torch.randn(rows, WIDTH))
        engine.enqueue(job)
        await engine.finish(job)
    finally:
        engine.release(seat)
