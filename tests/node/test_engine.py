"""The hot loop over a real span: what shares a forward, and that sharing changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from hivemint.contracts.ids import BlockIndex
from hivemint.node.batch import Work
from hivemint.node.engine import Engine
from hivemint.node.kv_cache import KvStore
from hivemint.node.room import Room, Seat
from hivemint.node.scheduler import Job, Lane, Scheduler
from hivemint.node.span import Span
from support.tiny import tiny_model


class Watched:
    """A span that notes (start, count) of each part of each forward."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.forwards: list[list[tuple[int, int]]] = []

    def run(self, batch: list[Work]) -> list[torch.Tensor]:
        self.forwards.append([(work.start, work.count) for work in batch])
        return self.span.run(batch)


class Bench:
    """An engine with its room; sessions are seats."""

    def __init__(self, span: Span, budget: int, paged: bool) -> None:
        self.span = Watched(span)
        shapes = span.new_store(1).shapes
        self.room = Room(KvStore(shapes, span.dtype, span.device, 1 << 20, paged))
        self.engine = Engine(self.span, Scheduler(budget), self.room)

    def seat(self) -> Seat:
        return self.room.open(Lane.PAID, 60)

    async def step(self, seat: Seat, start: int, rows: torch.Tensor) -> torch.Tensor:
        job = Job(Lane.PAID, id(seat), id(seat), len(rows))
        return await self.engine.finish(self.engine.enqueue(job, seat, start, rows))


@pytest.fixture(scope="module")
def span(tmp_path_factory: pytest.TempPathFactory) -> Span:
    folder: Path = tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return Span.load(folder, BlockIndex(0), BlockIndex(2))


@pytest_asyncio.fixture(params=[False, True], ids=["slotted", "paged"])
async def bench(span: Span, request: Any) -> AsyncIterator[Bench]:
    made = Bench(span, 64, request.param)
    loop = asyncio.create_task(made.engine.run())
    yield made
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


async def test_prefill_decode_and_verify_steps_share_one_forward(bench: Bench, span: Span) -> None:
    """A prompt's chunk, one token, and a draft of four behind a crop: one batch, each as if it were alone."""
    texts = [torch.randn(length, 32) for length in (20, 9, 12)]
    prefill, decode, verify = (bench.seat() for _ in texts)
    await bench.step(decode, 0, texts[1][:8])
    await bench.step(verify, 0, torch.cat([texts[2][:8], torch.randn(3, 32)]))
    before = len(bench.span.forwards)
    outputs = await asyncio.gather(
        bench.step(prefill, 0, texts[0]), bench.step(decode, 8, texts[1][8:]), bench.step(verify, 8, texts[2][8:])
    )
    assert [sorted(parts) for parts in bench.span.forwards[before:]] == [[(0, 20), (8, 1), (8, 4)]]
    for text, output, start in zip(texts, outputs, (0, 8, 8), strict=True):
        alone = span.run([Work(span.new_store(1 << 20).open(60), 0, text)])[0]
        torch.testing.assert_close(output, alone[start:], rtol=1e-4, atol=1e-5)
    assert [seat.cache.length for seat in (prefill, decode, verify)] == [20, 9, 12]


async def test_a_long_prompt_is_cut_and_the_others_steps_go_with_each_chunk(bench: Bench) -> None:
    bench.engine.scheduler.budget = 8
    prefill, decode, verify = (bench.seat() for _ in range(3))
    await bench.step(decode, 0, torch.randn(4, 32))
    await bench.step(verify, 0, torch.randn(6, 32))
    before = len(bench.span.forwards)

    async def talk(seat: Seat, start: int, count: int) -> None:
        await bench.step(seat, start, torch.randn(count, 32))

    await asyncio.gather(talk(prefill, 0, 30), talk(decode, 4, 1), talk(verify, 5, 3))
    forwards = bench.span.forwards[before:]
    assert {(4, 1), (5, 3)} < set(forwards[0]), "nobody waits for the whole prompt"
    assert len(forwards[0]) == 3
    assert all(sum(count for _, count in parts) <= 8 for parts in forwards[:-1])
    assert prefill.cache.length == 30
