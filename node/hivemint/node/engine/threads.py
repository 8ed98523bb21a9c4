"""A worker thread for work of microseconds: signatures, hashes, heads.

An executor wakes the event loop once a call; here one wake-up carries the results of all that was waiting. With
sixteen sessions that is the difference between two hundred and a few dozen wake-ups a batch.
"""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Call = tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]
_TOGETHER = 8
"""Calls whose results travel together: more would make the first one wait too long."""
LOOP_SHARE, LOOP_BURST = 0.2, 0.002
"""The part of its time that the event loop gives to such work itself, and how many seconds of it at once."""


GIVE_WAY = 5
"""How much nicer all other threads are than the one that computes."""


def give_way(to: str) -> None:
    """From now on this process's threads make room for those whose names begin with `to`, where cores are short.

    Without it the scheduler takes the core from a batch for each message that arrives: on two cores with a client and
    another node a single stream is 6 % faster with it. Linux knows priorities of threads, other systems don't.
    """
    if not sys.platform.startswith("linux"):
        return
    for thread in threading.enumerate():
        if thread.native_id is not None and not thread.name.startswith(to):
            with suppress(OSError):  # it has just ended, or was nicer already
                os.setpriority(os.PRIO_PROCESS, thread.native_id, GIVE_WAY)


class Worker:
    """Runs calls in the order of their coming, in one thread. Belongs to the event loop that made it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._spent, self._at = 0.0, self._loop.time()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def do(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` in the thread, or at once as long as there is little of it; raises what it raises.

        The way to the thread and back costs more than a signature (50 us). But a flood of calls goes that way, so that
        it never holds up the event loop.
        """
        now = self._loop.time()
        self._spent, self._at = max(0.0, self._spent - LOOP_SHARE * (now - self._at)), now
        if self._spent >= LOOP_BURST:
            return await self.far(function, *args)
        began = time.thread_time()
        try:
            return function(*args)
        finally:
            self._spent += time.thread_time() - began

    async def far(self, function: Callable[..., T], *args: Any) -> T:
        """In the thread, whatever the moment: for work that grows with what a peer sends."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((future, function, args))
        return await future

    def stop(self) -> None:
        """End the thread once it has done what waits."""
        self._calls.put(None)

    def _run(self) -> None:
        while True:
            calls = [self._calls.get()]
            while len(calls) < _TOGETHER:
                try:
                    calls.append(self._calls.get_nowait())
                except Empty:
                    break
            results = [(call[0], *_call(call[1], call[2])) for call in calls if call is not None]
            try:
                self._loop.call_soon_threadsafe(_settle, results)
            except RuntimeError:  # the loop has been closed: nobody waits any more
                return
            if None in calls:
                return


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return function(*args), None
    except Exception as error:  # noqa: BLE001 - handed to the caller, as an executor does
        return None, error


def _settle(results: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, value, error in results:
        if future.done():  # cancelled meanwhile
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
