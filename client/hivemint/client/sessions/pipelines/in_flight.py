"""Steps in flight: who waits for them and how long, and the one error that ends them."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import torch

from hivemint.client.sessions.errors import NodeEquivocated, NodeGone
from hivemint.client.sessions.pipelines.proofs import StepProofs
from hivemint.client.sessions.session import RemoteSession
from hivemint.protocol.errors import HivemintError, SwarmError


class StepsInFlight:
    """The steps of one circuit from sending to proof, as those see them that wait. Belongs to its event loop.

    `error` is what broke the circuit: from then on every wait raises it. `closing` is set when it is closed.
    """

    def __init__(
        self,
        sessions: Sequence[RemoteSession],
        steps: StepProofs,
        limit: Callable[[], float],
        on_error: Callable[[HivemintError], None],
    ) -> None:
        """`limit`: seconds for the oldest step, all that comes of it included. `on_error` is told what went wrong."""
        self._sessions, self._steps, self._limit, self._on_error = sessions, steps, limit, on_error
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.error: HivemintError | None = None
        self.closing = False

    def check_usable(self) -> None:
        """Raises what broke the pipeline, and SwarmError once it is closed."""
        if self.error is not None:
            raise self.error
        if self.closing:
            raise SwarmError("The pipeline is closed", next_step="open a new one")

    def fail(self, error: HivemintError) -> None:
        """The first error is the one that counts; an equivocation is told whatever has gone wrong before."""
        if self.error is None or isinstance(error, NodeEquivocated):
            self._on_error(error)
        if self.error is not None:
            return
        self.error = error
        for state in self._steps.open:
            if state.output is not None and not state.output.done():
                state.output.set_exception(error)
                state.output.exception()  # retrieved here, in case nobody waits for it any more
        self._news.set()

    def notify(self) -> None:
        """Something has come that a waiter may wait for."""
        self._news.set()

    async def quiet(self, hops: Sequence[int], seconds: float) -> set[int]:
        """Until what these hops have under way has been dropped or proved, after an error, as far as that can be.

        Gives those that are of no use any more: gone, lying, silent for so many seconds, or with receipts for inputs
        that nobody here knows.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(self._busy(self._sessions[hop]) for hop in hops):
                    self._news.clear()
                    await self._news.wait()
        return {hop for hop in hops if self._sessions[hop].pending or self._sessions[hop].over}

    def _busy(self, session: RemoteSession) -> bool:
        """Whether word of a pending step may still come."""
        waits = session.cancelling or max(session.pending, default=0) > session.heard
        return waits and not session.over

    async def room(self, window: int) -> None:
        """Until fewer than `window` steps are in flight, all their receipts checked. Raises what broke the pipeline."""
        self.check_usable()
        while len(self._steps.open) >= window:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._time_left()):
                    await self._news.wait()
            self.check_usable()

    async def output(self, output: "asyncio.Future[torch.Tensor]") -> torch.Tensor:
        """The last hidden state of a step, once it has come. Raises what broke the pipeline."""
        while not output.done():
            await asyncio.wait((output,), timeout=self._time_left())
        return output.result()

    async def drain(self, seconds: float) -> None:
        """Until no receipt is due any more or the pipeline is broken, for so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.error is None and any(session.pending for session in self._sessions):
                    self._news.clear()
                    await self._news.wait()

    def discard(self) -> None:
        """Forget the steps that are left: nobody waits for them any more."""
        for state in self._steps.open:
            if state.output is not None:
                state.output.cancel()
        self._steps.open.clear()

    def _time_left(self) -> float:
        """Seconds for the oldest step. Raises what ends the pipeline when it is late."""
        limit = self._limit()
        if (left := self._steps.began() + limit - self._loop.time()) > 0:
            return left
        late = self._sessions[self._steps.unanswered() or 0]
        self.fail(NodeGone(late.leg, "does not answer", f"no receipt within {limit:.3g} s"))
        raise self.error or SwarmError("The pipeline is broken")
