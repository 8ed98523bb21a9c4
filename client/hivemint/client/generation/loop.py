"""One event loop in a thread of its own: the network side of a model whose public face is synchronous."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

from hivemint.protocol.errors import SwarmError

T = TypeVar("T")
GLANCE = 0.5
"""Seconds: a signal that comes just before a thread blocks on a lock is seen only when it wakes (CPython)."""


class LoopThread:
    """Runs coroutines for threads that are none. A daemon thread: it never keeps a process alive."""

    def __init__(self, name: str = "hivemint-client") -> None:
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. An interrupt of the waiting thread (Ctrl-C) cancels it and is passed on.

        Raises `SwarmError` when the loop is stopped already or stops meanwhile.
        """
        if not self.alive:
            coroutine.close()
            raise SwarmError("this model is closed", next_step="load it again with from_pretrained")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            while True:
                with suppress(TimeoutError):
                    return future.result(GLANCE)
                if future.done():  # the coroutine's own TimeoutError, or a result that came this moment
                    return future.result()
        except CancelledError:
            raise SwarmError("this model was closed while it worked") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel what still runs, end the thread. Harmless when called again."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self._loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
