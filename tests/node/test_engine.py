"""The hot loop over a real span: what shares a forward, and that sharing changes nothing."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from hivemint.node.engine.engine import Engine
from hivemint.node.engine.scheduler import Lane, Scheduler
from hivemint.node.engine.seats import Seat, Seats
from hivemint.node.engine.step_job import StepJob
from hivemint.node.kv.cache import KvStore, OutOfRoom
from hivemint.node.kv.pages import PAGE
from hivemint.node.span.packing import Work
from hivemint.node.span.span import Span
from hivemint.protocol.ids import BlockIndex
from support.tiny import tiny_model


class Watched:
    """A span that notes (start, count) of each part of each forward."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.forwards: list[list[tuple[int, int]]] = []

    def run(self, batch: list[Work]) -> list[torch.Tensor]:
        self.forwards.append([(work.start, work.count) for work in batch])
        return self.span.run(batch)

    def backward_in_turns(self, *work: Any) -> Iterator[torch.Tensor | None]:
        for output in self.span.backward_in_turns(*work):
            self.forwards.append([])  # a turn
            yield output


class Bench:
    """An engine with its room; sessions are seats."""

    def __init__(self, span: Span, budget: int, paged: bool) -> None:
        self.span = Watched(span)
        shapes = span.new_store(1).shapes
        self.room = Seats(KvStore(shapes, span.dtype, span.device, 1 << 20, paged))
        self.engine = Engine(self.span, Scheduler(budget), self.room)

    def seat(self, blocks: tuple[int, int] | None = None) -> Seat:
        return self.room.open(Lane.PAID, 60, blocks)

    async def step(self, seat: Seat, start: int, rows: torch.Tensor) -> torch.Tensor:
        job = StepJob(Lane.PAID, id(seat), id(seat), len(rows), seat=seat, start=start, hidden=rows)
        self.engine.enqueue(job)
        return await self.engine.finish(job)


def training_step(seat: Seat, rows: torch.Tensor, lane: Lane = Lane.DONATED) -> StepJob:
    """States and gradients side by side, each position counted twice."""
    return StepJob(lane, "trainer", "trainer", 2 * len(rows), seat=seat, start=0, hidden=rows, backward=True)


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


async def test_a_fork_goes_on_where_its_parent_was(bench: Bench, span: Span) -> None:
    """The parent goes back and writes other rows right behind the fork; each keeps its own."""
    rows, other = torch.randn(24, 32), torch.randn(6, 32)
    parent, child = bench.seat(), bench.seat()
    await bench.step(parent, 0, rows[:20])
    copied = bench.engine.fork(parent, child, 18)
    went, goes = await asyncio.gather(bench.step(parent, 10, other), bench.step(child, 18, rows[18:]))
    await copied
    for text, output, start in ((torch.cat([rows[:10], other]), went, 10), (rows, goes, 18)):
        alone = span.run([Work(span.new_store(1 << 20).open(60), 0, text)])[0]
        torch.testing.assert_close(output, alone[start:], rtol=1e-4, atol=1e-5)
    bench.engine.release(parent)
    bench.engine.release(child)
    assert bench.room.used(Lane.PAID) == bench.room.store.bytes_used == 0


async def test_seats_given_back_while_they_are_copied_close_behind_that(bench: Bench) -> None:
    parent, child = bench.seat(), bench.seat()
    await bench.step(parent, 0, torch.randn(20, 32))
    fork, may_go = bench.room.fork, threading.Event()

    def slow(*args: Any) -> Any:
        copy = fork(*args)
        return lambda: may_go.wait(10) and copy()

    bench.room.fork = slow  # type: ignore[method-assign, assignment]
    copied = bench.engine.fork(parent, child, 18)
    assert parent.busy == child.busy == 1, "nobody may take their room"
    bench.engine.release(child)
    bench.engine.release(parent)
    assert bench.room.used(Lane.PAID) > 0
    may_go.set()
    await copied
    await asyncio.sleep(0)
    assert bench.room.used(Lane.PAID) == bench.room.store.bytes_used == 0
    assert bench.room.seats == []


async def test_a_fork_evicts_idle_sessions_but_never_its_parent(span: Span) -> None:
    store = KvStore(span.new_store(1).shapes, span.dtype, span.device, 2 * PAGE * span.new_store(1).bytes_per_token)
    room = Seats(store, idle=0.0)
    engine = Engine(Watched(span), Scheduler(64), room)
    parent, idle, child, late = (room.open(Lane.PAID, 60) for _ in range(4))
    for seat in (parent, idle):
        room.take(seat, 20)
        seat.cache.length = 20
    await engine.fork(parent, child, 20)
    assert [seat.cache.length for seat in (parent, idle, child)] == [20, 0, 20]
    child.busy = 1
    with pytest.raises(OutOfRoom, match="the other sessions are busy"):
        engine.fork(parent, late, 20)
    assert (parent.busy, late.busy, parent.cache.length) == (0, 0, 20)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "gpu", "cpu"],
)
async def test_out_of_memory_is_a_refusal_and_the_next_step_is_served(
    bench: Bench, span: Span, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    seat, rows = bench.seat(), torch.randn(5, 32)
    await bench.step(seat, 0, rows[:3])

    def fails(batch: list[Work]) -> list[torch.Tensor]:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(bench.span, "run", fails)
        with pytest.raises(OutOfRoom, match="no memory for a step of 1 rows"):
            await bench.step(seat, 3, rows[3:4])
    output = await bench.step(seat, 3, rows[3:])
    alone = span.run([Work(span.new_store(1 << 20).open(8), 0, rows)])[0]
    torch.testing.assert_close(output, alone[3:], atol=1e-5, rtol=1e-4)


async def test_parts_of_a_span_share_the_passes_over_its_blocks(tmp_path: Path) -> None:
    """Sessions of six different parts in one batch: each block's weights are read once, and each is as if alone."""
    span = Span.load(tiny_model(tmp_path / "four", num_hidden_layers=4), BlockIndex(0), BlockIndex(4))
    parts = [(0, 4), (0, 2), (1, 3), (2, 4), (3, 4), (0, 1)]
    store, texts = span.new_store(1 << 20), [torch.randn(count, 32) for count in (5, 1, 3, 2, 1, 4)]
    works = [
        Work(store.open(60, blocks=None if part == (0, 4) else part), 0, text)
        for part, text in zip(parts, texts, strict=True)
    ]
    passes: list[int] = []
    for number, layer in enumerate(span._layers):
        layer.register_forward_pre_hook(lambda *_, number=number: passes.append(number))
    span.run(works)  # the first time, each part is also tried out
    passes.clear()
    outputs = span.run(works)
    assert passes == [0, 1, 2, 3]
    for part, text, output in zip(parts, texts, outputs, strict=True):
        alone = span.run([Work(store.open(60, blocks=None if part == (0, 4) else part), 0, text)])[0]
        torch.testing.assert_close(output, alone, rtol=1e-4, atol=1e-5)


def test_a_backward_pass_in_turns_gives_the_same_gradient(span: Span) -> None:
    hidden, gradient = torch.randn(2, 1, 9, 32)
    *between, turns = span.backward_in_turns(hidden, gradient, None, None, 1)
    assert between == [None, None], "the first block's forward, the second one's pass"
    torch.testing.assert_close(turns, span.backward(hidden, gradient))


@pytest.mark.parametrize("lane", list(Lane))
async def test_tokens_go_between_the_blocks_of_a_backward_pass(bench: Bench, span: Span, lane: Lane) -> None:
    """Somebody's session in decode, and another one's backward pass: it comes block by block, tokens in between."""
    talker, trainer = bench.seat(), bench.seat()
    await bench.step(talker, 0, torch.randn(4, 32))
    await bench.step(talker, 4, torch.randn(1, 32))
    hidden, gradient = torch.randn(2, 9, 32)
    began = len(bench.span.forwards)
    step = training_step(trainer, torch.cat([hidden, gradient], 1), lane)
    bench.engine.enqueue(step)
    training = asyncio.create_task(bench.engine.finish(step))
    for position in range(5, 40):
        await bench.step(talker, position, torch.randn(1, 32))
        if training.done():
            break
    torch.testing.assert_close(await training, span.backward(hidden[None], gradient[None])[0])
    order = ["token" if parts else "turn" for parts in bench.span.forwards[began:]]
    assert order.count("turn") == 3, "a forward of the first block, then two blocks back"
    assert "turn turn" not in " ".join(order), "a token waits for one block, not for the pass"


async def test_a_backward_pass_that_holds_nobody_up_is_one_turn(bench: Bench) -> None:
    step = training_step(bench.seat(), torch.randn(9, 64))
    bench.engine.enqueue(step)
    await bench.engine.finish(step)
    assert bench.span.forwards == [[]]
