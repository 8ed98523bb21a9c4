"""The hot loop: schedule, run, deliver. One worker thread computes; the event loop never waits for it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch

from hivemint.node.engine.gathering import Gathering
from hivemint.node.engine.gauge import Capacity, Gauge, LaneLoad
from hivemint.node.engine.scheduler import Job, Lane, Scheduler, Slice
from hivemint.node.engine.seats import Seat, Seats
from hivemint.node.engine.watchdog import DeviceLoad
from hivemint.node.kv.cache import Blocks, KvCache, OutOfRoom
from hivemint.node.span import memory
from hivemint.node.span.backward import NOTHING, Need, NoMemory
from hivemint.node.span.lora import Adapter
from hivemint.node.span.packing import Work
from hivemint.node.unable import Unable
from hivemint.protocol.errors import HivemintError

COMPUTE = "compute"
"""The thread's name."""
_LARGE = 256
"""Rows of a batch whose activations (45 MB for 512 rows of SmolLM2) are worth giving back when nobody waits."""
Output = torch.Tensor | Exception


class Computes(Protocol):
    """`span.Span`, as far as the loop uses it."""

    def run(self, batch: "list[Work]") -> list[torch.Tensor]: ...

    def backward_in_turns(
        self, hidden: torch.Tensor, gradient: torch.Tensor, blocks: Blocks | None, adapter: Adapter | None, most: int
    ) -> Iterator[torch.Tensor | None]: ...


class ComputeFailed(Unable):
    """The device failed at a step. Nothing of it counts."""


@dataclass(eq=False)
class StepJob:
    """A step's rows on their way through the device. `output` resolves to `[count, hidden]`.

    A backward step's rows are twice as wide, states and gradients, and its job counts each position twice. It takes
    its turns like any other step and begins at the last of them: their sum is what it has waited for. From then on
    `turns` gives it in one piece, or block by block where others are about: between two of its blocks goes a batch.
    """

    job: Job
    seat: Seat
    start: int
    hidden: torch.Tensor
    output: asyncio.Future[torch.Tensor]
    backward: bool = False
    parts: list[torch.Tensor] = field(default_factory=list)
    turns: Iterator[torch.Tensor | None] | None = None
    seconds: float = 0.0

    @property
    def cache(self) -> KvCache:
        return self.seat.cache


_Turn = tuple[Slice, StepJob]
_WHOLE = 2**31
"""More blocks than any span has."""


class Engine:
    """Serves one span on one device."""

    def __init__(
        self,
        span: Computes,
        scheduler: Scheduler,
        room: Seats,
        need: Need = NOTHING,
        patience: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`need`: memory of backward passes. `patience`: longest wait for gathering, in steps."""
        self._span, self.scheduler, self.room, self._need, self._patience = span, scheduler, room, need, patience
        self.gauge = Gauge()
        self.on_device: DeviceLoad | None = None
        """What is on the device now."""
        self._failed: ComputeFailed | None = None
        self._jobs: dict[Job, StepJob] = {}
        self._passes: deque[_Turn] = deque()  # backward passes that have begun, or may
        self._running: list[Seat] = []
        self._held: list[Seat] = []
        self._leaving: list[Seat] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, COMPUTE)
        self._loop = asyncio.get_running_loop()
        self._gathering = Gathering(self._loop.time)
        self._awaited: set[Seat] = set()

    def enqueue(self, job: Job, seat: Seat, start: int, hidden: torch.Tensor) -> StepJob:
        """Queue rows `[count, hidden]` for positions `start ..`. Steps of one session must come in their order."""
        return self._add(StepJob(job, seat, start, hidden, self._loop.create_future()))

    def enqueue_backward(self, job: Job, seat: Seat, rows: torch.Tensor) -> StepJob:
        """Queue a whole sequence's states and gradients `[count, 2 * hidden]`; the output is the input's gradient."""
        return self._add(StepJob(job, seat, 0, rows, self._loop.create_future(), backward=True))

    def _add(self, step: StepJob) -> StepJob:
        self._jobs[step.job] = step
        self._gathering.came(step.seat)
        self._awaited.discard(step.seat)
        first_paid = bool(self._awaited) and step.job.lane is Lane.PAID and not self.scheduler.waiting(Lane.PAID)
        self.scheduler.add(step.job)
        if not self._awaited or first_paid or self._enough():
            self._arrived.set()
        if self._failed is not None:
            step.output.set_exception(self._failed)
        return step

    def fail(self, error: HivemintError) -> None:
        """The device computes nothing any more: every step under way, and each that comes, ends with ComputeFailed."""
        self._failed = ComputeFailed(error.what, why=error.why, next_step="use another node")
        for step in self._jobs.values():
            if not step.output.done():
                step.output.set_exception(self._failed)

    async def finish(self, step: StepJob) -> torch.Tensor:
        """The output, `[count, hidden]`. Cancelling takes the step back. Raises OutOfRoom, NoMemory, ComputeFailed."""
        try:
            return await step.output
        finally:
            self._jobs.pop(step.job, None)
            self.scheduler.drop(step.job)
            self._gathering.left(step.seat)

    async def warm_up(self, hidden_size: int, dtype: torch.dtype) -> None:
        """Two decode steps before anybody waits: kernels are chosen, and the speed is known from the start."""
        cache = self.room.store.open(4)

        def run() -> float:
            for start in range(2):
                began = time.perf_counter()
                self._span.run([Work(cache, start, torch.zeros(1, hidden_size, dtype=dtype))])
            return time.perf_counter() - began

        try:
            self.gauge.rows_per_s = 1 / max(await self._loop.run_in_executor(self._thread, run), 1e-6)
        finally:
            cache.close()

    def fork(self, parent: Seat, child: Seat, count: int) -> "asyncio.Future[None]":
        """`child` begins with the K/V of the first `count` tokens of `parent`. Raises OutOfRoom.

        Room is taken at once; what must be copied is copied behind the batch that runs, before any that comes later.
        """
        pair = [parent, child]
        for seat in pair:
            seat.busy += 1

        def let_go(_: object = None) -> None:
            for seat in pair:
                seat.busy -= 1
                self._held.remove(seat)
            self._see_off()

        self._held += pair
        try:
            copied = self._loop.run_in_executor(self._thread, self.room.fork(parent, child, count))
        except BaseException:
            let_go()
            raise
        copied.add_done_callback(let_go)
        return copied

    def open(self, lane: Lane, tokens: int, blocks: Blocks | None) -> Seat:
        """A seat with room for `tokens`, of these blocks of the span. Raises OutOfRoom."""
        return self.room.open(lane, tokens, blocks)

    def load_adapter(self, seat: Seat, adapter: Adapter) -> None:
        """For all steps of this seat. Raises OutOfRoom."""
        self.room.load(seat, adapter)

    def forget(self, lane: Lane, flow: Hashable) -> None:
        """A flow has ended: what its next steps' order would go by."""
        self.scheduler.forget(lane, flow)

    def load(self, lane: Lane) -> LaneLoad:
        """What a lane has here now."""
        return LaneLoad(self.scheduler.waiting(lane), self.room.used(lane))

    def capacity(self) -> Capacity:
        """What there is room for."""
        store, scheduler = self.room.store, self.scheduler
        return Capacity(store.tokens_free, store.tokens_total, scheduler.budget, scheduler.whole)

    def free_wait(self, flow: Hashable = None) -> float:
        """Seconds until a free step that came now would start: free rows ahead of it over the lane's sure share.

        `flow`: whose step; None: behind all that waits.
        """
        share = self.scheduler.reserve / self.scheduler.budget
        scheduler = self.scheduler
        queued = scheduler.waiting(Lane.FREE) if flow is None else scheduler.ahead_of(Lane.FREE, flow)
        if not self.scheduler.waiting(Lane.PAID):
            share = 1.0
        return queued / (share * self.gauge.rows_per_s) if self.gauge.rows_per_s else 0.0

    def release(self, seat: Seat) -> None:
        """Give a seat back; while the device still writes to it, right after that."""
        self._gathering.gone(seat)
        self._awaited.discard(seat)
        if seat in self._running or seat in self._held:
            self._leaving.append(seat)
        else:
            self.room.close(seat)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if batch := await self._schedule():
                    self._deliver(batch, await self._run(batch))
                if self._passes:
                    await self._run_backward(*self._passes[0])
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _schedule(self) -> list[_Turn]:
        """Everything that may go now; backward passes whose turn has come go to `_passes`. Waits while all is done."""
        while True:
            while not self.scheduler:
                if self._passes:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
            if not self._passes:
                await self._gather()
            batch: list[_Turn] = []
            for part in self.scheduler.pick():
                if (step := self._jobs.get(part.job)) is None or step.output.done():
                    continue  # taken back this very moment
                if not part.first:
                    self.gauge.started(part.job)
                if step.backward:
                    self.room.touch(step.seat)
                    if part.first + part.rows == part.job.rows:
                        self._passes.append((part, step))
                    continue
                try:
                    start = step.start + part.first
                    self.room.take(step.seat, start + part.rows, start)
                except OutOfRoom as error:
                    self.scheduler.drop(part.job)
                    step.output.set_exception(error)
                    continue
                batch.append((part, step))
            if batch or self._passes:
                return batch

    async def _gather(self) -> None:
        """Wait for those that are about to be back. A step that is paid for waits for none that are not."""
        patience = self._patience() * self.gauge.step_s
        deadline = self._loop.time() + patience
        while (left := deadline - self._loop.time()) > 0 and not self._enough():
            self._awaited = self._gathering.due(left, patience, paid=self.scheduler.waiting(Lane.PAID) > 0)
            if not self._awaited:
                return
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()
        self._awaited = set()

    def _enough(self) -> bool:
        """Half of what a batch may hold: more rows would not make each of them much cheaper."""
        return 2 * sum(self.scheduler.waiting(lane) for lane in Lane) >= self.scheduler.budget

    async def _run(self, batch: list[_Turn]) -> list[Output]:
        works = [
            Work(
                step.cache, step.start + part.first, step.hidden[part.first : part.first + part.rows], step.seat.adapter
            )
            for part, step in batch
        ]
        parts = [part for part, _ in batch]
        self._running = [step.seat for _, step in batch]
        self.on_device = self.gauge.load(parts)
        outputs = await self._loop.run_in_executor(self._thread, self._forward, works, parts)
        self.on_device, self._running = None, []
        self._see_off()
        return outputs

    def _see_off(self) -> None:
        """Close the seats that were given back while the device used them."""
        gone = [seat for seat in self._leaving if seat not in self._running and seat not in self._held]
        for seat in gone:
            self._leaving.remove(seat)
            self.room.close(seat)

    async def _run_backward(self, part: Slice, step: StepJob) -> None:
        """One turn of a backward pass: all of it where nobody waits for tokens, else a block."""
        if step.output.done():  # taken back
            self._passes.popleft()
            return
        whole = Slice(part.job, 0, part.job.rows)
        most = 1 if self.scheduler.holds_up(part.job) else _WHOLE
        self.on_device = self.gauge.load([whole])
        output = await self._loop.run_in_executor(self._thread, self._backward, step, most)
        self.on_device = None
        if output is not None:
            self._passes.popleft()
            self.gauge.passed(whole, step.seconds)
            self._deliver([(part, step)], [output])

    def _backward(self, step: StepJob, most: int) -> Output | None:
        """In the compute thread. Checked against the memory that is free now, whatever was free when it was taken."""
        began = time.perf_counter()
        try:
            if step.turns is None:
                self._need.check(step.hidden.shape[0], self.room.store.device)
                hidden, gradient = step.hidden.unsqueeze(0).chunk(2, dim=2)
                step.turns = self._span.backward_in_turns(hidden, gradient, step.cache.blocks, step.seat.adapter, most)
            output = next(step.turns)
        except torch.OutOfMemoryError as error:
            return NoMemory("No memory for a backward pass now", why=str(error)[:200], next_step="try again later")
        except (HivemintError, RuntimeError, MemoryError) as error:
            return error
        step.seconds += time.perf_counter() - began
        if output is None:
            return None
        memory.trim()
        return output[0]

    def _forward(self, works: list[Work], parts: list[Slice]) -> list[Output]:
        """In the compute thread. When a batch fails, each step runs alone: one bad step costs only itself."""
        began = time.perf_counter()
        try:
            outputs: list[Output] = [*self._span.run(works)]
        except (HivemintError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError for all of its own
            if len(works) == 1:
                return [_refused_for_memory(works[0]) if _out_of_memory(error) else error]
            return [output for work, part in zip(works, parts, strict=True) for output in self._forward([work], [part])]
        self.gauge.ran(parts, time.perf_counter() - began)
        if sum(part.rows for part in parts) >= _LARGE and not self.scheduler:
            memory.trim()
        return outputs

    def _deliver(self, batch: list[_Turn], outputs: list[Output]) -> None:
        for (part, step), output in zip(batch, outputs, strict=True):
            if step.output.done():
                continue
            if isinstance(output, Exception):
                self.scheduler.drop(part.job)
                failed = ComputeFailed("The device failed at this step", why=str(output), next_step="try another node")
                step.output.set_exception(output if isinstance(output, OutOfRoom | NoMemory) else failed)
                continue
            step.parts.append(output)
            if part.first + part.rows == part.job.rows:
                step.output.set_result(step.parts[0] if len(step.parts) == 1 else torch.cat(step.parts))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _refused_for_memory(work: Work) -> OutOfRoom:
    return OutOfRoom(
        f"no memory for a step of {work.count} rows now",
        why="the device has none left",
        next_step="try again later, send fewer tokens a step, or use another node",
    )
