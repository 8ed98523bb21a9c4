"""The hot loop: schedule, run, deliver. One worker thread computes; the event loop never waits for it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch

from hivemint.contracts.errors import HivemintError
from hivemint.node import memory
from hivemint.node.backward import NOTHING, Need, NoMemory
from hivemint.node.batch import Work
from hivemint.node.company import Company
from hivemint.node.kv_cache import Blocks, KvCache, OutOfRoom
from hivemint.node.lora import Adapter
from hivemint.node.room import Room, Seat
from hivemint.node.scheduler import Job, Lane, Scheduler, Slice
from hivemint.node.watchdog import Load

_SMOOTH = 0.2
COMPUTE = "compute"
"""The thread's name."""
_LARGE = 256
"""Rows of a batch whose activations (45 MB for 512 rows of SmolLM2) are worth giving back when nobody waits."""
Output = torch.Tensor | Exception


class Computes(Protocol):
    """`span.Span`, as far as the loop uses it."""

    def run(self, batch: "list[Work]") -> list[torch.Tensor]: ...

    def backward(
        self, hidden: torch.Tensor, gradient: torch.Tensor, blocks: Blocks | None, adapter: Adapter | None
    ) -> torch.Tensor: ...


class ComputeFailed(HivemintError):
    """The device failed at a step. Nothing of it counts."""


@dataclass(eq=False)
class StepJob:
    """A step's rows on their way through the device. `output` resolves to `[count, hidden]`.

    A backward step's rows are twice as wide, states and gradients, and its job counts each position twice. It takes
    its turns like any other step and runs whole at the last of them: the sum of its turns is what it has waited for.
    """

    job: Job
    seat: Seat
    start: int
    hidden: torch.Tensor
    output: asyncio.Future[torch.Tensor]
    backward: bool = False
    parts: list[torch.Tensor] = field(default_factory=list)

    @property
    def cache(self) -> KvCache:
        return self.seat.cache


@dataclass
class Gauge:
    """What the loop measures of itself, smoothed: waits in seconds by lane, token rows a second while computing."""

    wait_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    rows_per_s: float = 0.0
    step_s: float = 0.0
    """A batch's time."""
    rows_done: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    batches: int = 0
    batch_rows: float = 0.0
    sizes: Counter[int] = field(default_factory=Counter)
    """Batches by their rows, rounded up to a power of two."""
    busy_s: float = 0.0

    def started(self, job: Job) -> None:
        wait = (job.started_at or job.queued_at) - job.queued_at
        self.wait_s[job.lane] += _SMOOTH * (wait - self.wait_s[job.lane])

    def ran(self, batch: list[Slice], seconds: float) -> None:
        rows = sum(part.rows for part in batch)
        for part in batch:
            self.rows_done[part.job.lane] += part.rows
        speed = rows / max(seconds, 1e-6)
        self.step_s += _SMOOTH * (seconds - self.step_s)
        self.rows_per_s += _SMOOTH * (speed - self.rows_per_s)
        self.batch_rows += _SMOOTH * (rows - self.batch_rows)
        self.batches += 1
        self.sizes[1 << (rows - 1).bit_length()] += 1
        self.busy_s += seconds

    def load(self, batch: list[Slice]) -> Load:
        """What the device is given, and how long that takes by what was measured: at least as long as of late."""
        rows = sum(part.rows for part in batch)
        return Load(rows, len(batch), max(self.step_s, rows / self.rows_per_s if self.rows_per_s else 0.0))

    def passed(self, part: Slice, seconds: float) -> None:
        """A backward pass. Its time is no batch's: sessions don't gather for as long."""
        self.rows_done[part.job.lane] += part.rows
        self.batches += 1
        self.busy_s += seconds


_Turn = tuple[Slice, StepJob]


class Engine:
    """Serves one span on one device."""

    def __init__(
        self, span: Computes, scheduler: Scheduler, room: Room, need: Need = NOTHING,
        patience: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        """`need`: memory of backward passes. `patience`: longest wait for company, in steps."""
        self._span, self.scheduler, self.room, self._need, self._patience = span, scheduler, room, need, patience
        self.gauge = Gauge()
        self.load: Load | None = None
        """What is on the device now."""
        self._failed: ComputeFailed | None = None
        self._jobs: dict[Job, StepJob] = {}
        self._running: list[Seat] = []
        self._held: list[Seat] = []
        self._leaving: list[Seat] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, COMPUTE)
        self._loop = asyncio.get_running_loop()
        self._company = Company(self._loop.time)
        self._awaited: set[Seat] = set()

    def enqueue(self, job: Job, seat: Seat, start: int, hidden: torch.Tensor) -> StepJob:
        """Queue rows `[count, hidden]` for positions `start ..`. Steps of one session must come in their order."""
        return self._add(StepJob(job, seat, start, hidden, self._loop.create_future()))

    def enqueue_backward(self, job: Job, seat: Seat, rows: torch.Tensor) -> StepJob:
        """Queue a whole sequence's states and gradients `[count, 2 * hidden]`; the output is the input's gradient."""
        return self._add(StepJob(job, seat, 0, rows, self._loop.create_future(), backward=True))

    def _add(self, step: StepJob) -> StepJob:
        self._jobs[step.job] = step
        self._company.came(step.seat)
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
            self._company.left(step.seat)

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

    def free_wait(self) -> float:
        """Seconds until a free step that came now would start: free rows ahead of it over the lane's sure share."""
        share = self.scheduler.reserve / self.scheduler.budget
        queued = self.scheduler.waiting(Lane.FREE)
        if not self.scheduler.waiting(Lane.PAID):
            share = 1.0
        return queued / (share * self.gauge.rows_per_s) if self.gauge.rows_per_s else 0.0

    def release(self, seat: Seat) -> None:
        """Give a seat back; while the device still writes to it, right after that."""
        self._company.gone(seat)
        self._awaited.discard(seat)
        if seat in self._running or seat in self._held:
            self._leaving.append(seat)
        else:
            self.room.close(seat)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                batch, passes = await self._schedule()
                if batch:
                    self._deliver(batch, await self._run(batch))
                for part, step in passes:  # each holds the others up for as long as it takes: theirs went first
                    self._deliver([(part, step)], [await self._run_backward(part, step)])
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _schedule(self) -> tuple[list[_Turn], list[_Turn]]:
        """Everything that may go now, and the backward passes whose turn has come; waits only while there is none."""
        while True:
            while not self.scheduler:
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            batch: list[_Turn] = []
            passes: list[_Turn] = []
            for part in self.scheduler.pick():
                if (step := self._jobs.get(part.job)) is None or step.output.done():
                    continue  # taken back this very moment
                if not part.first:
                    self.gauge.started(part.job)
                if step.backward:
                    self.room.touch(step.seat)
                    if part.first + part.rows == part.job.rows:
                        passes.append((part, step))
                    continue
                try:
                    start = step.start + part.first
                    self.room.take(step.seat, start + part.rows, start)
                except OutOfRoom as error:
                    self.scheduler.drop(part.job)
                    step.output.set_exception(error)
                    continue
                batch.append((part, step))
            if batch or passes:
                return batch, passes

    async def _gather(self) -> None:
        """Wait for those that are about to be back. A step that is paid for waits for none that are not."""
        patience = self._patience() * self.gauge.step_s
        deadline = self._loop.time() + patience
        while (left := deadline - self._loop.time()) > 0 and not self._enough():
            self._awaited = self._company.due(left, patience, paid=self.scheduler.waiting(Lane.PAID) > 0)
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
        self.load = self.gauge.load(parts)
        outputs = await self._loop.run_in_executor(self._thread, self._forward, works, parts)
        self.load, self._running = None, []
        self._see_off()
        return outputs

    def _see_off(self) -> None:
        """Close the seats that were given back while the device used them."""
        gone = [seat for seat in self._leaving if seat not in self._running and seat not in self._held]
        for seat in gone:
            self._leaving.remove(seat)
            self.room.close(seat)

    async def _run_backward(self, part: Slice, step: StepJob) -> Output:
        whole = Slice(part.job, 0, part.job.rows)
        self.load = self.gauge.load([whole])
        work = step.hidden, step.seat.adapter, step.cache.blocks, whole
        output = await self._loop.run_in_executor(self._thread, self._backward, *work)
        self.load = None
        return output

    def _backward(self, rows: torch.Tensor, adapter: Adapter | None, blocks: Blocks | None, whole: Slice) -> Output:
        """In the compute thread. Checked against the memory that is free now, whatever was free when it was taken."""
        began = time.perf_counter()
        try:
            self._need.check(rows.shape[0], self.room.store.device)
            hidden, gradient = rows.unsqueeze(0).chunk(2, dim=2)
            output = self._span.backward(hidden, gradient, blocks, adapter)[0]
        except torch.OutOfMemoryError as error:
            return NoMemory("No memory for a backward pass now", why=str(error)[:200], next_step="try again later")
        except (HivemintError, RuntimeError, MemoryError) as error:
            return error
        self.gauge.passed(whole, time.perf_counter() - began)
        memory.trim()
        return output

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
        f"no memory for a step of {work.count} rows now", why="the device has none left",
        next_step="try again later, send fewer tokens a step, or use another node",
    )  # fmt: skip
