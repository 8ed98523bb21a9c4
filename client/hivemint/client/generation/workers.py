"""Threads for what would hold a loop up (signatures, hashes), at work until the loop itself ends.

The library's own pool takes nothing from the moment on that the main thread has ended; but a thread of the program that
is no daemon may be in mid-answer then, and all models have still to take their leave.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

_Job = tuple["Future[Any]", Callable[[], Any]]
MOST = 8


class Workers(ThreadPoolExecutor):
    """A loop's default executor. Daemon threads: they never keep a process alive."""

    def __init__(self, most: int = MOST) -> None:
        super().__init__(most)
        self._most, self._begun = most, 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._starting = threading.Lock()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """See `Executor.submit`."""
        future: Future[Any] = Future()
        self._jobs.put((future, partial(function, *args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            with self._starting:
                if self._begun < self._most:
                    self._begun += 1
                    threading.Thread(target=self._serve, name="hivemint-worker", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Each thread ends after what it has begun; who waits is told, nobody is waited for."""
        with self._starting:
            for _ in range(self._begun):
                self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - who waits for it gets it, whatever it is
                    future.set_exception(error)
            del job, future, work  # nothing is held while there is nothing to do
            self._idle.release()
