"""The one thread that computes, and what it is busy with. The event loop gives it work and never waits for it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from hivemint.node.engine.gauge import Gauge
from hivemint.node.engine.step_job import StepJob, StepSlice
from hivemint.node.engine.watchdog import DeviceLoad
from hivemint.node.kv.cache import Blocks, KvCache, OutOfRoom
from hivemint.node.span import memory
from hivemint.node.span.backward import Need, NoMemory
from hivemint.node.span.lora import Adapter
from hivemint.node.span.packing import Work
from hivemint.protocol.errors import HivemintError

COMPUTE = "compute"
"""The thread's name."""
_LARGE = 256
"""Rows of a batch whose activations (45 MB for 512 rows of SmolLM2) are worth giving back when nobody waits."""
Output = torch.Tensor | Exception
T = TypeVar("T")


class Computes(Protocol):
    """`span.Span`, as far as the device is asked for it."""

    def run(self, batch: "list[Work]") -> list[torch.Tensor]: ...

    def backward_in_turns(
        self, hidden: torch.Tensor, gradient: torch.Tensor, blocks: Blocks | None, adapter: Adapter | None, most: int
    ) -> Iterator[torch.Tensor | None]: ...


class Device:
    """Computes batches and turns of backward passes, one at a time, and measures them."""

    def __init__(self, span: Computes, gauge: Gauge, need: Need, place: torch.device, idle: Callable[[], bool]) -> None:
        """`need`: memory of backward passes, to be had at `place`. `idle`: whether nobody waits for the next batch."""
        self._span, self._gauge, self._need, self._place, self._idle = span, gauge, need, place, idle
        self._thread = ThreadPoolExecutor(1, COMPUTE)
        self._loop = asyncio.get_running_loop()
        self.on_device: DeviceLoad | None = None
        """What is on the device now."""

    async def warm_up(self, cache: KvCache, hidden_size: int, dtype: torch.dtype) -> None:
        """Two decode steps before anybody waits: kernels are chosen, and the speed is known from the start."""

        def run() -> float:
            for start in range(2):
                began = time.perf_counter()
                self._span.run([Work(cache, start, torch.zeros(1, hidden_size, dtype=dtype))])
            return time.perf_counter() - began

        self._gauge.rows_per_s = 1 / max(await self.do(run), 1e-6)

    async def run(self, batch: list[StepSlice]) -> list[Output]:
        """One forward; of each slice what came out, or why nothing did."""
        works = [part.job.work(part.first, part.rows) for part in batch]
        self.on_device = self._gauge.load(batch)
        outputs = await self._loop.run_in_executor(self._thread, self._forward, works, batch)
        self.on_device = None
        return outputs

    async def run_backward(self, whole: StepSlice, most: int) -> Output | None:
        """One turn of a backward pass, at most so many blocks. None: it is not over."""
        self.on_device = self._gauge.load([whole])
        output = await self._loop.run_in_executor(self._thread, self._backward, whole.job, most)
        self.on_device = None
        if output is not None:
            self._gauge.passed(whole, whole.job.seconds)
        return output

    def do(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Something else in its thread: behind what runs, before all that comes later."""
        return self._loop.run_in_executor(self._thread, work)

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ---- in the thread

    def _forward(self, works: list[Work], parts: list[StepSlice]) -> list[Output]:
        """When a batch fails, each step runs alone: one bad step costs only itself."""
        began = time.perf_counter()
        try:
            outputs: list[Output] = [*self._span.run(works)]
        except (HivemintError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError for all of its own
            if len(works) == 1:
                return [_refused_for_memory(works[0]) if _out_of_memory(error) else error]
            return [output for work, part in zip(works, parts, strict=True) for output in self._forward([work], [part])]
        self._gauge.ran(parts, time.perf_counter() - began)
        if sum(part.rows for part in parts) >= _LARGE and self._idle():
            memory.trim()
        return outputs

    def _backward(self, step: StepJob, most: int) -> Output | None:
        """Checked against the memory that is free now, whatever was free when it was taken."""
        began = time.perf_counter()
        try:
            if step.turns is None:
                self._need.check(step.hidden.shape[0], self._place)
                hidden, gradient = step.hidden.unsqueeze(0).chunk(2, dim=2)
                seat = step.seat
                step.turns = self._span.backward_in_turns(hidden, gradient, seat.cache.blocks, seat.adapter, most)
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


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _refused_for_memory(work: Work) -> OutOfRoom:
    return OutOfRoom(
        f"no memory for a step of {work.count} rows now",
        why="the device has none left",
        next_step="try again later, send fewer tokens a step, or use another node",
    )
