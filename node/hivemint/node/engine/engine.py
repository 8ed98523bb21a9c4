"""The hot loop: schedule, run, deliver. The device computes meanwhile; the event loop never waits for it."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress

import torch

from hivemint.node.engine.device import Computes, Device, Output
from hivemint.node.engine.gathering import Gathering
from hivemint.node.engine.gauge import Capacity, Gauge, LaneLoad
from hivemint.node.engine.scheduler import Lane, Scheduler, Slice
from hivemint.node.engine.seats import Seat, Seats
from hivemint.node.engine.step_job import StepJob, StepSlice
from hivemint.node.kv.cache import Blocks, OutOfRoom
from hivemint.node.span.backward import NOTHING, Need, NoMemory
from hivemint.node.span.lora import Adapter
from hivemint.node.unable import Unable
from hivemint.protocol.errors import HivemintError

_WHOLE = 2**31
"""More blocks than any span has."""


class ComputeFailed(Unable):
    """The device failed at a step. Nothing of it counts."""


class Engine:
    """Serves one span on one device."""

    def __init__(
        self,
        span: Computes,
        scheduler: Scheduler[StepJob],
        room: Seats,
        need: Need = NOTHING,
        patience: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`need`: memory of backward passes. `patience`: longest wait for gathering, in steps."""
        self.scheduler, self.room, self._patience = scheduler, room, patience
        self.gauge = Gauge()
        self.device = Device(span, self.gauge, need, room.store.device, lambda: not scheduler)
        self._failed: ComputeFailed | None = None
        self._steps: set[StepJob] = set()
        self._passes: deque[StepSlice] = deque()  # backward passes that have begun, or may
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._gathering = Gathering(self._loop.time)
        self._awaited: set[Seat] = set()

    def enqueue(self, step: StepJob) -> None:
        """Queue a step; those of one session must come in their order. `finish` has its output."""
        self._steps.add(step)
        self._gathering.came(step.seat)
        self._awaited.discard(step.seat)
        first_paid = bool(self._awaited) and step.lane is Lane.PAID and not self.scheduler.waiting(Lane.PAID)
        self.scheduler.add(step)
        if not self._awaited or first_paid or self._enough():
            self._arrived.set()
        if self._failed is not None:
            step.output.set_exception(self._failed)

    def fail(self, error: HivemintError) -> None:
        """The device computes nothing any more: every step under way, and each that comes, ends with ComputeFailed."""
        self._failed = ComputeFailed(error.what, why=error.why, next_step="use another node")
        for step in self._steps:
            if not step.output.done():
                step.output.set_exception(self._failed)

    async def finish(self, step: StepJob) -> torch.Tensor:
        """The output, `[count, hidden]`. Cancelling takes the step back. Raises OutOfRoom, NoMemory, ComputeFailed."""
        try:
            return await step.output
        finally:
            self._steps.discard(step)
            self.scheduler.drop(step)
            self._gathering.left(step.seat)

    async def warm_up(self, hidden_size: int, dtype: torch.dtype) -> None:
        """See `Device.warm_up`."""
        cache = self.room.store.open(4)
        try:
            await self.device.warm_up(cache, hidden_size, dtype)
        finally:
            cache.close()

    def fork(self, parent: Seat, child: Seat, count: int) -> "asyncio.Future[None]":
        """`child` begins with the K/V of the first `count` tokens of `parent`. Raises OutOfRoom.

        Room is taken at once; what must be copied is copied behind the batch that runs, before any that comes later.
        """
        pair = [parent, child]
        for seat in pair:
            seat.busy += 1
        self.room.hold(pair)

        def let_go(_: object = None) -> None:
            for seat in pair:
                seat.busy -= 1
            self.room.let_go(pair)

        try:
            copied = self.device.do(self.room.fork(parent, child, count))
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

    def donated_wait(self, flow: Hashable = None) -> float:
        """Seconds until a donated step that came now would start: donated rows ahead of it over what paid rows that
        wait leave of a batch, at least the lane's sure share.

        `flow`: whose step; None: behind all that waits.
        """
        scheduler = self.scheduler
        queued = scheduler.waiting(Lane.DONATED) if flow is None else scheduler.ahead_of(Lane.DONATED, flow)
        left = scheduler.budget - scheduler.waiting(Lane.PAID)
        share = max(scheduler.reserve, left) / scheduler.budget
        return queued / (share * self.gauge.rows_per_s) if self.gauge.rows_per_s else 0.0

    def release(self, seat: Seat) -> None:
        """Give a seat back; while the device still writes to it, right after that."""
        self._gathering.gone(seat)
        self._awaited.discard(seat)
        self.room.release(seat)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if batch := await self._schedule():
                    self._deliver(batch, await self._run(batch))
                if self._passes:
                    await self._run_backward(self._passes[0])
        finally:
            self.device.stop()

    async def _schedule(self) -> list[StepSlice]:
        """Everything that may go now; backward passes whose turn has come go to `_passes`. Waits while all is done."""
        while True:
            while not self.scheduler:
                if self._passes:
                    return []
                self._arrived.clear()
                await self._arrived.wait()
            if not self._passes:
                await self._gather()
            batch: list[StepSlice] = []
            for part in self.scheduler.pick():
                step = part.job
                if step.output.done():
                    continue  # taken back this very moment
                if not part.first:
                    self.gauge.started(step)
                if step.backward:
                    self.room.touch(step.seat)
                    if part.last:
                        self._passes.append(part)
                    continue
                try:
                    start = step.start + part.first
                    self.room.take(step.seat, start + part.rows, start)
                except OutOfRoom as error:
                    self.scheduler.drop(step)
                    step.output.set_exception(error)
                    continue
                batch.append(part)
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

    async def _run(self, batch: list[StepSlice]) -> list[Output]:
        """Their seats stay until the device is done with them, whoever gives them back meanwhile."""
        seats = [part.job.seat for part in batch]
        self.room.hold(seats)
        outputs = await self.device.run(batch)
        self.room.let_go(seats)
        return outputs

    async def _run_backward(self, part: StepSlice) -> None:
        """One turn of a backward pass: all of it where nobody waits for tokens, else a block."""
        step = part.job
        if step.output.done():  # taken back
            self._passes.popleft()
            return
        most = 1 if self.scheduler.holds_up(step) else _WHOLE
        output = await self.device.run_backward(Slice(step, 0, step.rows), most)
        if output is not None:
            self._passes.popleft()
            self._deliver([part], [output])

    def _deliver(self, batch: list[StepSlice], outputs: list[Output]) -> None:
        for part, output in zip(batch, outputs, strict=True):
            step = part.job
            if step.output.done():
                continue
            if isinstance(output, Exception):
                self.scheduler.drop(step)
                failed = ComputeFailed("The device failed at this step", why=str(output), next_step="try another node")
                step.output.set_exception(output if isinstance(output, OutOfRoom | NoMemory) else failed)
                continue
            step.came_out(output, last=part.last)
