"""A test's own event loop in place of a model's thread: its nodes run in the same loop."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")


class Here:
    """Stands for a model's LoopThread: the loop that made it, asked from another thread."""

    alive = True

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        return asyncio.run_coroutine_threadsafe(work(*args), self._loop).result(120)

    def call(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stop_after(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A model that is dropped leaves nothing here: the test closes its swarm itself."""

    def join(self, seconds: float | None = None) -> None:
        """Nor is there a thread to wait for."""

    def wait_for_calls(self, seconds: float) -> None:
        """Nor a call."""
