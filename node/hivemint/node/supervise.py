"""Background tasks: none of them ends in silence, whatever happens in it.

    essential    its end is the node's end: engine, watchdog, the host's place in the swarm
    keep_up      it is begun again, after a pause that grows: the look at open sessions, the record, settlement

Why such a task was begun again is in `trouble` until it has run well for a while, and in the log with its traceback.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from hivemint.protocol.errors import HivemintError

log = structlog.get_logger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a task is begun again, doubled each time; one that ran for the longest pause is well again."""

Sleep = Callable[[float], Awaitable[None]]


class Supervisor:
    """The tasks of one node, and what is wrong with them. Belongs to the event loop that made it."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self.trouble: dict[str, str] = {}
        """Task -> why it was begun again, or what it fails at and tries again."""
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Raises what the node can't go on with."""
        self._sleep = sleep
        self._tasks: list[asyncio.Task[Any]] = []

    def broken(self, error: BaseException) -> None:
        """The node can't go on. The first such error counts."""
        if not self.failure.done():
            self.failure.set_exception(
                error if isinstance(error, HivemintError) else HivemintError("The node failed", why=_text(error))
            )

    def tell(self, name: str, reason: str) -> None:
        """Something of a task fails and is tried again by the task itself: in `trouble`, and once in the log."""
        if self.trouble.get(name) != reason:
            log.warning("a background task has trouble", task=name, reason=reason)
        self.trouble[name] = reason

    def well(self, name: str) -> None:
        """It works again."""
        if self.trouble.pop(name, None) is not None:
            log.info("a background task works again", task=name)

    def essential(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; if it ends, with an error or without, the node does."""

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if error is not None and not isinstance(error, HivemintError):
                log.error("a task of the node failed", task=name, exc_info=error)
            self.broken(error or HivemintError("The node failed", why=f"its task {name!r} has ended"))

        self._spawn(name, work).add_done_callback(ended)

    def keep_up(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work()`, and again whenever it ends."""
        self._spawn(name, self._again_and_again(name, work))

    async def close(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.failure.done():
            self.failure.cancel()
        elif not self.failure.cancelled():
            self.failure.exception()  # counts as seen: asyncio would complain at some later time

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        return task

    async def _again_and_again(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
        while True:
            began = loop.time()
            well = loop.call_later(LONGEST_PAUSE, self.trouble.pop, name, None)
            try:
                await work()
                reason = "it has ended without an error"
            except Exception as error:  # whatever it is: told here, and the task begun again
                reason = _text(error)
                log.error("a background task failed", task=name, again_in_s=pause, exc_info=error)
            finally:
                well.cancel()
            if loop.time() - began >= LONGEST_PAUSE:
                pause = FIRST_PAUSE
            self.trouble[name] = reason
            await self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, HivemintError) else f"{type(error).__name__}: {error}"
