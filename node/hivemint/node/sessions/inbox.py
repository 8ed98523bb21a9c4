"""Inputs that come from the previous node.

What comes in is kept by (source session, step): at most `ahead` a session, for 2 s, and only from the peer that an open
session has named, whose bytes it counts among.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from hivemint.protocol.errors import LinkClosed, ProtocolError
from hivemint.protocol.ids import PeerId, SessionId, Step
from hivemint.protocol.receipt import SignedReceipt
from hivemint.swarm.held import Held
from hivemint.swarm.link import Link
from hivemint.swarm.messages import MAX_TENSOR, AnyMessage, HopReceipt, Tensor, TensorHead

KEEP = 2.0
"""Seconds that an input is kept before somebody reads it."""
GRACE = 5.0
"""Seconds after the last session that named a peer, in which tensors of that session may still be on their way."""

Differ = Callable[[SignedReceipt, SignedReceipt], None]


@dataclass(eq=False)
class Arrival:
    """A step's input on its way in: the tensor first, its maker's word on it by a later frame."""

    tensor: asyncio.Future[Tensor]
    receipt: asyncio.Future[HopReceipt]
    wanted: bool = False
    claimed: bool = False
    at: float = field(default_factory=time.monotonic)
    _holder: Held | None = None
    _bytes: int = 0

    def claim(self) -> asyncio.Future[Tensor]:
        """The tensor, for the step that reads it now: from here on it is that step's own."""
        self.claimed = True
        return self.tensor

    def take(self, tensor: Tensor, holder: Held) -> None:
        """Raises ProtocolError if its maker holds too much here already."""
        size = len(tensor.data)
        self._holder, self._bytes = holder, size
        try:
            holder.add(size)
        except ProtocolError:
            self.release()
            raise
        self.at = time.monotonic()  # its time begins when it is whole
        self.tensor.set_result(tensor)

    def release(self) -> None:
        """The bytes are nobody's any more."""
        if self._holder is not None:
            self._holder.add(-self._bytes)
        self._holder, self._bytes = None, 0


@dataclass(frozen=True, slots=True)
class _Source:
    peer: PeerId
    most: int


class Inbox:
    """Inputs pushed by previous nodes, of all sessions. `differ` is told of two receipts for one step."""

    def __init__(self, ahead: int, differ: Differ = lambda one, other: None) -> None:
        self._ahead, self._differ = ahead, differ
        self._named: dict[SessionId, _Source] = {}
        self._arrivals: dict[SessionId, dict[Step, Arrival]] = {}
        self._signed: dict[SessionId, dict[Step, SignedReceipt]] = {}
        self._links: dict[PeerId, set[Link]] = {}
        self.dropped = 0

    def name(self, source: SessionId, peer: PeerId, most: int = MAX_TENSOR) -> bool:
        """An open session takes the outputs of `source` from `peer`, frames up to `most` bytes.

        False: another open session does so already.
        """
        if source in self._named:
            return False
        self._named[source] = _Source(peer, most)
        self._allow(peer)
        return True

    def forget(self, source: SessionId) -> None:
        known = self._named.pop(source, None)
        self._signed.pop(source, None)
        for arrival in self._arrivals.pop(source, {}).values():
            arrival.release()
            arrival.tensor.cancel()
            arrival.receipt.cancel()
        if known is not None:
            asyncio.get_running_loop().call_later(GRACE, self._allow, known.peer)

    def want(self, source: SessionId, step: Step) -> Arrival:
        """The input of a step that was taken; it may be here already. `done` when it has been used or given up."""
        arrival = self._arrival(source, step)
        arrival.wanted = True
        return arrival

    def done(self, source: SessionId, step: Step, arrival: Arrival) -> None:
        """What `want` gave is needed no longer."""
        arrivals = self._arrivals.get(source, {})
        if arrivals.get(step) is arrival:
            del arrivals[step]
        arrival.release()

    async def receive(self, link: Link) -> None:
        """Handler of push links: until the link ends."""
        self._links.setdefault(link.peer, set()).add(link)
        self._allow(link.peer)
        link.expects = partial(self._expects, link.peer)
        try:
            with suppress(LinkClosed):
                while True:
                    self.accept(link.peer, await link.receive(), link.held)
        finally:
            self._links[link.peer].discard(link)
            if not self._links[link.peer]:
                del self._links[link.peer]

    def accept(self, peer: PeerId, message: AnyMessage, holder: Held) -> None:
        """Keep a frame, or drop it in silence: a foreign peer learns nothing of the sessions here."""
        if isinstance(message, Tensor):
            source, step = self._source(peer, message.head.session), message.head.step
        elif isinstance(message, HopReceipt):
            source, step = self._source(peer, message.receipt.session_id), message.receipt.step
        else:
            source, step = None, Step(0)
        if source is None:
            self.dropped += 1
            return
        if isinstance(message, HopReceipt):
            self._compare(source, step, message.receipt)
        arrival = self._admit(source, step)
        if arrival is None:
            self.dropped += 1
        elif isinstance(message, Tensor) and not arrival.tensor.done():
            self._keep(source, step, arrival, message, holder)
        elif isinstance(message, HopReceipt) and not arrival.receipt.done():
            arrival.receipt.set_result(message)

    def _expects(self, peer: PeerId, head: TensorHead) -> bool:
        """Whether a tensor that has begun would be kept; if not, this is all that is seen of it."""
        source = self._source(peer, head.session)
        arrival = None if source is None else self._admit(source, head.step)
        if source is None or arrival is None or arrival.tensor.done() or self._full(source, arrival):
            self.dropped += 1
            return False
        return True

    def _source(self, peer: PeerId, session: bytes | None) -> SessionId | None:
        """The session whose outputs `peer` may push; None: nobody here has named it for that."""
        known = self._named.get(SessionId(session)) if session is not None else None
        return SessionId(session) if session is not None and known is not None and known.peer == peer else None

    def _full(self, source: SessionId, arrival: Arrival) -> bool:
        """As many tensors as a session has in flight are here unread, and no step reads this one now."""
        unread = sum(a.tensor.done() and not a.claimed for a in self._arrivals[source].values())
        return unread >= self._ahead and not arrival.claimed

    def _compare(self, source: SessionId, step: Step, signed: SignedReceipt) -> None:
        """The receipts of the newest steps are kept for as long as another one of theirs could come."""
        kept = self._signed.setdefault(source, {})
        first = kept.setdefault(step, signed)
        if first.body != signed.body:
            del kept[step]  # a flood of them is compared in pairs alone
            self._differ(first, signed)
        while len(kept) > 2 * self._ahead:
            del kept[next(iter(kept))]

    def _keep(self, source: SessionId, step: Step, arrival: Arrival, tensor: Tensor, holder: Held) -> None:
        try:
            if self._full(source, arrival):
                raise ProtocolError("A peer pushes more steps than a session has in flight")
            arrival.take(tensor, holder)
        except ProtocolError:
            self.dropped += 1
            return
        asyncio.get_running_loop().call_later(KEEP, self._expire, source, step, arrival)

    def _expire(self, source: SessionId, step: Step, arrival: Arrival) -> None:
        """Nobody has read this input in time: its request did not come, or waits behind one whose input did not."""
        steps = self._arrivals.get(source, {})
        if steps.get(step) is not arrival or arrival.claimed:
            return
        arrival.release()
        self.dropped += 1
        if arrival.wanted:
            arrival.tensor = asyncio.get_running_loop().create_future()
        else:
            del steps[step]

    def _admit(self, source: SessionId, step: Step) -> Arrival | None:
        """Where a frame goes; None if too many wait for their requests."""
        steps = self._arrivals.setdefault(source, {})
        now = time.monotonic()
        for old in [n for n, a in steps.items() if not a.wanted and now - a.at > KEEP]:
            steps.pop(old).release()
        if step not in steps and sum(not arrival.wanted for arrival in steps.values()) >= self._ahead:
            return None
        return self._arrival(source, step)

    def _arrival(self, source: SessionId, step: Step) -> Arrival:
        loop = asyncio.get_running_loop()
        steps = self._arrivals.setdefault(source, {})
        if step not in steps:
            steps[step] = Arrival(loop.create_future(), loop.create_future())
        return steps[step]

    def _allow(self, peer: PeerId) -> None:
        """What this peer's links may carry: the largest frame that an open session has named it for."""
        most = max((source.most for source in self._named.values() if source.peer == peer), default=0)
        for link in self._links.get(peer, ()):
            link.allow(Tensor, most)
