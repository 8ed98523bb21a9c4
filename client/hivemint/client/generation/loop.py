"""One event loop in a thread of its own: the network side of a model whose public face is synchronous."""

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from hivemint.client.generation.words import in_python
from hivemint.client.generation.workers import Workers
from hivemint.protocol.errors import HivemintError, SwarmError

T = TypeVar("T")
GLANCE = 0.5
"""Seconds: a signal that comes just before a thread blocks on a lock is seen only when it wakes (CPython)."""


class LoopThread:
    """Runs coroutines for threads that are none. A daemon thread: it never keeps a process alive."""

    def __init__(self, name: str = "hivemint-client") -> None:
        self._loop = _new_loop()
        self._loop.set_default_executor(Workers())
        self._process = os.getpid()
        self._last: asyncio.Task[Any] | None = None
        self.ending = False
        """Whether the interpreter ends: what threads are left then are daemons, whom nobody hears."""
        self._calls = 0
        self._quiet = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """The result of the coroutine `work(*args)`. An interrupt of the waiting thread (Ctrl-C) cancels it and is
        passed on.

        The coroutine is made in the loop's thread: an interrupt between its making and its start would leave it never
        awaited, and Python's warning of that would be the program's last word. Raises `SwarmError` when the loop is
        stopped already or stops meanwhile.
        """
        try:
            return self._run(work, args)
        except BaseException:
            if self.ending and threading.current_thread() is not threading.main_thread():
                self._leave_call()
                threading.Event().wait()  # a traceback of a daemon thread would be the program's last word
            raise

    def run_made(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """`run`, of a coroutine that the caller has made."""
        try:
            return self.run(lambda: coroutine)
        finally:
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # the loop was closed, or an interrupt
                coroutine.close()

    def _run(self, work: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> T:
        answer: Future[T] = Future()
        try:
            self._begin_soon(answer, work, args)
            while True:
                with suppress(TimeoutError):
                    return answer.result(GLANCE)
                if answer.done():  # the coroutine's own TimeoutError, or a result that came this moment
                    return answer.result()
                if not self.alive:
                    raise self._ended()
        except CancelledError:
            raise SwarmError("this model was closed while it worked") from None
        except HivemintError as error:
            in_python(error)
            raise
        except BaseException:
            answer.cancel()
            raise

    def _begin_soon(
        self, answer: "Future[T]", work: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]
    ) -> None:
        """Have the loop run `work(*args)` for `answer`, unless that is cancelled before."""

        async def worked() -> T:
            return await work(*args)  # made within: its own errors are answers too

        def begin() -> None:
            if not answer.cancelled():
                task = self._loop.create_task(worked())
                task.add_done_callback(lambda done: _copy(done, answer))
                answer.add_done_callback(lambda done: self._cancel_with(done, task))

        if not self.alive:
            raise self._ended()
        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError as error:  # the loop was closed this moment
            raise self._ended() from error

    def _cancel_with(self, answer: "Future[T]", task: "asyncio.Task[T]") -> None:
        if answer.cancelled() and not task.done():
            with suppress(RuntimeError):  # the loop is closed, the task cancelled with it
                self._loop.call_soon_threadsafe(task.cancel)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around what a thread does by several `run`s."""
        with self._quiet:
            self._calls += 1
        try:
            yield
        finally:
            self._leave_call()

    def wait_for_calls(self, seconds: float) -> None:
        """Until no thread is in a call, so long at most. As the interpreter ends: it must not end a thread in the
        middle of the library's C++ code, which would abort the process."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._calls, seconds)

    def _leave_call(self) -> None:
        with self._quiet:
            self._calls -= 1
            self._quiet.notify_all()

    def stop(self) -> None:
        """Cancel what still runs, end the thread. Harmless when called again."""
        with suppress(RuntimeError):  # it has ended by itself meanwhile
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._loop.stop)
        self.join()

    def stop_after(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last`, whatever comes of it, and end the thread; waits for neither. For any thread, its own too."""

        def begin() -> None:
            if self._last is None:
                self._last = self._loop.create_task(last())
                self._last.add_done_callback(end)

        def end(task: asyncio.Task[Any]) -> None:
            task.cancelled() or task.exception()  # nobody is left to be told
            self._loop.stop()

        with suppress(RuntimeError):  # it has ended already
            if self._thread.is_alive():
                self._loop.call_soon_threadsafe(begin)

    def join(self, seconds: float | None = None) -> None:
        """Wait for the thread's end, so long at most."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _ended(self) -> SwarmError:
        if os.getpid() != self._process:
            return SwarmError(
                "this model belongs to the process that loaded it",
                why="a fork has no part in its connections",
                next_step="load it in this process with from_pretrained",
            )
        return SwarmError("this model is closed", next_step="load it again with from_pretrained")

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


def _copy(task: "asyncio.Task[T]", answer: "Future[T]") -> None:
    """What came of `task` to who waits for `answer`, if anybody still does."""
    if task.cancelled():
        answer.cancel()
    error = None if task.cancelled() else task.exception()
    if answer.set_running_or_notify_cancel():
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
