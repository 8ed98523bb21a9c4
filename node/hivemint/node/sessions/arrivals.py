"""The inputs of one session that come from the previous node: what is here, and which step waits for which.

At most `ahead` are kept for steps that were not asked for yet, for 2 s.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hivemint.protocol.errors import ProtocolError
from hivemint.protocol.ids import PeerId, SessionId, Step
from hivemint.swarm.held import Held
from hivemint.swarm.messages import HopReceipt, Tensor

KEEP = 2.0
"""Seconds that an input is kept before somebody reads it."""


class Weight:
    """The bytes of one tensor, counted for its maker once, however many sessions keep it."""

    def __init__(self, size: int, holder: Held) -> None:
        self._size, self._holder, self._keepers = size, holder, 0

    def take(self) -> None:
        """One more keeps it. Raises ProtocolError if its maker holds too much here already."""
        if not self._keepers:
            try:
                self._holder.add(self._size)
            except ProtocolError:
                self._holder.add(-self._size)
                raise
        self._keepers += 1

    def release(self) -> None:
        self._keepers -= 1
        if not self._keepers:
            self._holder.add(-self._size)


@dataclass(eq=False)
class Arrival:
    """A step's input on its way in: the tensor first, its maker's word on it by a later frame."""

    tensor: asyncio.Future[Tensor]
    receipt: asyncio.Future[HopReceipt]
    wanted: bool = False
    claimed: bool = False
    at: float = field(default_factory=time.monotonic)
    _weight: Weight | None = None

    def claim(self) -> asyncio.Future[Tensor]:
        """The tensor, for the step that reads it now: from here on it is that step's own."""
        self.claimed = True
        return self.tensor

    def take(self, tensor: Tensor, weight: Weight) -> None:
        """Raises ProtocolError if its maker holds too much here already."""
        weight.take()
        self._weight = weight
        self.at = time.monotonic()  # its time begins when it is whole
        self.tensor.set_result(tensor)

    def release(self) -> None:
        """The bytes are kept for nobody here any more."""
        if self._weight is not None:
            self._weight.release()
        self._weight = None


class Arrivals:
    """What one session takes of the outputs of `source`, from `peer` alone, frames up to `most` bytes.

    `dropped` is told of each input that came and was not kept until a step had read it.
    """

    def __init__(self, source: SessionId, peer: PeerId, most: int, ahead: int, dropped: Callable[[], None]) -> None:
        self.source, self.peer, self.most = source, peer, most
        self._ahead, self._dropped = ahead, dropped
        self._steps: dict[Step, Arrival] = {}

    # ---- asked by the session

    def want(self, step: Step) -> Arrival:
        """The input of a step that was taken; it may be here already. `done` when it has been used or given up."""
        arrival = self._arrival(step)
        arrival.wanted = True
        return arrival

    def done(self, step: Step, arrival: Arrival) -> None:
        """What `want` gave is needed no longer."""
        if self._steps.get(step) is arrival:
            del self._steps[step]
        arrival.release()

    def close(self) -> None:
        """Nothing is awaited any more."""
        arrivals, self._steps = list(self._steps.values()), {}
        for arrival in arrivals:
            arrival.release()
            arrival.tensor.cancel()
            arrival.receipt.cancel()

    # ---- asked by the inbox

    def expects(self, step: Step) -> bool:
        """Whether a tensor that has begun would be kept."""
        arrival = self._admit(step)
        return arrival is not None and not arrival.tensor.done() and not self._full(arrival)

    def keep(self, tensor: Tensor, weight: Weight) -> bool:
        """Whether there was a place for it. Raises ProtocolError if its maker holds too much here already."""
        step = tensor.head.step
        arrival = self._admit(step)
        if arrival is None or self._full(arrival) or arrival.tensor.done():
            return False
        arrival.take(tensor, weight)
        asyncio.get_running_loop().call_later(KEEP, self._expire, step, arrival)
        return True

    def prove(self, word: HopReceipt) -> bool:
        """Whether there was a place for it."""
        arrival = self._admit(word.receipt.step)
        if arrival is not None and not arrival.receipt.done():
            arrival.receipt.set_result(word)
        return arrival is not None

    # ---- inside

    def _full(self, arrival: Arrival) -> bool:
        """As many tensors as a session has in flight are here unread, and no step reads this one now."""
        unread = sum(a.tensor.done() and not a.claimed for a in self._steps.values())
        return unread >= self._ahead and not arrival.claimed

    def _expire(self, step: Step, arrival: Arrival) -> None:
        """Nobody has read this input in time: its request did not come, or waits behind one whose input did not."""
        if self._steps.get(step) is not arrival or arrival.claimed:
            return
        arrival.release()
        self._dropped()
        if arrival.wanted:
            arrival.tensor = asyncio.get_running_loop().create_future()
        else:
            del self._steps[step]

    def _admit(self, step: Step) -> Arrival | None:
        """Where a frame goes; None if too many wait for their requests."""
        now = time.monotonic()
        for old in [n for n, a in self._steps.items() if not a.wanted and now - a.at > KEEP]:
            self._steps.pop(old).release()
        if step not in self._steps and sum(not one.wanted for one in self._steps.values()) >= self._ahead:
            return None
        return self._arrival(step)

    def _arrival(self, step: Step) -> Arrival:
        loop = asyncio.get_running_loop()
        if step not in self._steps:
            self._steps[step] = Arrival(loop.create_future(), loop.create_future())
        return self._steps[step]
