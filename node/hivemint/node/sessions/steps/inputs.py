"""What the steps of one session are computed from: the client's own tensors, or what the previous node pushed."""

import asyncio
from dataclasses import dataclass

from hivemint.node.engine import seats
from hivemint.node.sessions.arrivals import Arrival, Arrivals
from hivemint.node.sessions.inbox import Inbox
from hivemint.node.sessions.metering import Meter, Source
from hivemint.node.unable import StepFailed
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, PeerId, SessionId, Step, TensorHash
from hivemint.swarm.messages import FIRST_RESEND, Code, Previous, StepRequest, Tensor

INPUT_LIMIT = seats.INPUT_LIMIT
"""Seconds that a step waits for its input; the nodes before may be busy."""
RECEIPT_LIMIT = 5.0
"""Seconds by which a neighbour's receipt may follow its tensor."""


@dataclass(eq=False, slots=True)
class Pushed:
    """A step's input from the previous node, and what it must prove to be."""

    arrival: Arrival
    source: Source
    among: Arrivals

    @property
    def once_more(self) -> bool:
        """Kept outputs: the client has their row hashes, and no receipt follows."""
        return self.source.step >= FIRST_RESEND


Awaited = Pushed | asyncio.Future[Tensor]
"""What a step waits for: the previous node's output, or a tensor of the client's own."""


class Inputs:
    """From the request to the end of its step: `expect`, `read`, `confirm`, `done`."""

    def __init__(self, inbox: Inbox, meter: Meter) -> None:
        self.previous: Previous | None = None
        self._inbox, self._meter = inbox, meter
        self._arrivals: Arrivals | None = None
        self._own: dict[Step, asyncio.Future[Tensor]] = {}

    def follow(self, previous: Previous | None, most: int = 0) -> None:
        """From now on inputs are the outputs of that session, in frames up to `most` bytes; those of the one before are
        awaited no longer.
        """
        if self._arrivals is not None:
            self._inbox.forget(self._arrivals)
        self.previous, self._arrivals = previous, None
        if previous is not None:
            self._arrivals = self._inbox.name(SessionId(previous.session), PeerId(previous.peer), most)

    def expect(self, request: StepRequest) -> Awaited:
        """There is a place for the input now, until `done`."""
        if request.source is None or self.previous is None or self._arrivals is None:
            own = self._own[request.step] = asyncio.get_running_loop().create_future()
            return own
        source = Source(Address(self.previous.operator), SessionId(self.previous.session), request.source)
        return Pushed(self._arrivals.want(source.step), source, self._arrivals)

    def expects(self, number: Step) -> bool:
        """A client's input. False: no step waits for it, or an earlier one still does: inputs come in order, as their
        requests do, and what waits behind a step that may never begin is not kept.
        """
        waiting = self._own.get(number)
        if waiting is None or waiting.done():
            return False
        return all(other.done() for step, other in self._own.items() if step < number)

    def give(self, tensor: Tensor) -> bool:
        """Whether it was expected."""
        expected = self.expects(tensor.head.step)
        if expected:
            self._own[tensor.head.step].set_result(tensor)
        return expected

    async def read(self, awaited: Awaited, expected: int) -> bytes | memoryview:
        """The rows in wire form, `expected` bytes. Raises StepFailed: they did not come in time, or not so many."""
        waiting = awaited.arrival.claim() if isinstance(awaited, Pushed) else awaited
        if not waiting.done():  # a client's own comes with its request
            try:
                async with asyncio.timeout(INPUT_LIMIT):
                    await asyncio.shield(waiting)
            except TimeoutError:
                raise StepFailed(
                    Code.MISSING,
                    "The step's input did not come",
                    f"waited {INPUT_LIMIT:.0f} s",
                    "replace the node before",
                ) from None
            except asyncio.CancelledError:
                if not waiting.cancelled():
                    raise
                raise _forgotten() from None
        data = waiting.result().data
        if len(data) != expected:
            raise StepFailed(Code.INPUT, "The input has the wrong size", f"expected {expected} bytes, got {len(data)}")
        return data

    async def confirm(self, pushed: Pushed, given: TensorHash) -> None:
        """The neighbour must have signed for the tensor that it gave, before anything of this step leaves."""
        try:
            async with asyncio.timeout(RECEIPT_LIMIT):
                word = await asyncio.shield(pushed.arrival.receipt)
            await self._meter.check_hop(pushed.source, given, word.leaf, word.receipt)
        except asyncio.CancelledError:
            if not pushed.arrival.receipt.cancelled():
                raise
            raise _forgotten() from None
        except TimeoutError:
            raise StepFailed(
                Code.MISSING, "The neighbour's receipt did not come", f"waited {RECEIPT_LIMIT} s"
            ) from None
        except ProofError as error:
            raise StepFailed(
                Code.INPUT, error.what, error.why, "set aside both ends of that link", evidence=word.receipt
            ) from None

    def done(self, step: Step, awaited: Awaited) -> None:
        """It has been used, or given up. The same step may have been asked for again: that one's place stays."""
        if isinstance(awaited, Pushed):
            awaited.among.done(awaited.source.step, awaited.arrival)
        elif self._own.get(step) is awaited:
            del self._own[step]


def _forgotten() -> StepFailed:
    """The inbox waits for nothing of that session any more."""
    return StepFailed(
        Code.MISSING, "The step's input is awaited no longer", "other neighbours were named", "ask for it again"
    )
