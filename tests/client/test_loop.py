"""The thread that a model's network side lives in, from the threads that wait for it."""

import asyncio
import gc
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from hivemint.client.generation import loop as module
from hivemint.client.generation.loop import LoopThread
from hivemint.protocol.errors import SwarmError


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.stop()


class InterruptAt:
    """Ctrl-C at one place after another: the n-th line or call that this thread comes to in the module."""

    def __init__(self, place: int) -> None:
        self._left = place

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return self

    @property
    def came(self) -> bool:
        return self._left <= 0


def test_an_interrupt_at_any_place_leaves_no_coroutine_behind_and_none_at_work(loop: LoopThread) -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0.02)
        done.append(number)

    place, interrupted = 1, 0
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        while True:
            signal = InterruptAt(place)
            sys.settrace(signal)
            try:
                loop.run(work, place)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                sys.settrace(None)
            if not signal.came:
                break
            place += 1
        gc.collect()
    assert interrupted == place - 1 > 10
    assert [str(one.message) for one in complaints] == []
    loop.run(asyncio.sleep, 0.1)  # longer than any work that goes on
    assert place in done
    assert len(done) <= 4, "interrupted before its result came, it went on (a few places are behind that)"


def test_what_is_cancelled_by_an_interrupt_is_cancelled_in_the_loop(loop: LoopThread) -> None:
    ended: list[type[BaseException]] = []

    async def work() -> None:
        threading.Timer(0.05, lambda: sys.modules["_thread"].interrupt_main()).start()
        try:
            await asyncio.sleep(60)
        except BaseException as error:
            ended.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt):
        loop.run(work)
    loop.run(asyncio.sleep, 0)
    assert ended == [asyncio.CancelledError]


def test_results_and_errors_come_as_they_are(loop: LoopThread) -> None:
    async def work(number: int) -> int:
        if number < 0:
            raise TimeoutError("its own")
        return number

    assert loop.run(work, 3) == 3
    with pytest.raises(TimeoutError, match="its own"):
        loop.run(work, -1)
    with pytest.raises(TypeError, match="positional argument"):
        loop.run(work)


def test_a_loop_that_is_stopped_says_so_before_and_meanwhile() -> None:
    loop = LoopThread()
    threading.Timer(0.05, loop.stop).start()
    with pytest.raises(SwarmError, match="closed while it worked"):
        loop.run(asyncio.sleep, 60)
    with pytest.raises(SwarmError, match="this model is closed"):
        loop.run(asyncio.sleep, 0)
