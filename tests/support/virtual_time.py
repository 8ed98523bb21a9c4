"""An event loop whose clock stands still while anything can run, and jumps to the next timer when nothing can.

What is simulated takes no real time and always happens in the same order. Threads are not seen: work that goes to an
executor runs at once, and is done after the seconds that it `spend`s.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Instead of waiting it moves the clock."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits, and no timer is set: a deadlock")
        self.loop.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Made by `run`."""

    def __init__(self) -> None:
        self.now, self._spent = 0.0, 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        """Called by work in an executor: it takes that long."""
        self._spent += seconds

    def clock(self) -> float:
        """The time as work in an executor sees it."""
        return self.now + self._spent

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """The function is called now; its result comes after the seconds that it spent."""
        future = self.create_future()

        def done(result: object = func(*args)) -> None:
            if not future.done():
                future.set_result(result)

        spent, self._spent = self._spent, 0.0
        self.call_later(spent, done)
        return future


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """`main(loop)` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))
