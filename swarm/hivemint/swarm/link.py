"""One libp2p stream between two peers that have exchanged Hello.

The stream's bytes are cut into messages as they arrive, in the event loop's own callback: no reader task stands
between the socket and `receive`. Reading pauses while the inbox is full, so a peer that sends faster than it is read
is held back by the stream itself; `send` waits in the same way.

A killed peer ends its stream within milliseconds, a stopped one only after libp2p's 39 s keep-alive. Hence the
heartbeat: the host calls `beat` on all its links; whoever has sent nothing for 0.5 s sends Ping, whoever has said
nothing for 2 s is gone.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

from hivemint.protocol.errors import LinkClosed, ProtocolError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.budget import Budget
from hivemint.swarm.frames import FrameReader, pack
from hivemint.swarm.held import Held
from hivemint.swarm.identity import peer_text
from hivemint.swarm.messages import AnyMessage, Bye, Cancel, Load, Message, Neighbours, Ping, Tensor, TensorHead

PING_AFTER, STRANGER = 0.5, 2
"""So many times longer for a stranger that has said nothing since its Hello: thousands of them cost what pings cost."""
SILENCE_LIMIT = 2.0
FAREWELL = 0.5
"""Seconds that a closing side waits for the peer to take the last frames and hang up too."""
INBOX_BYTES, INBOX_MESSAGES = 8 * 1024 * 1024, 1024
"""Reading pauses above either, and goes on below half of it."""
OUTBOX_BYTES = 1024 * 1024
"""`send` waits while more than this is not yet taken by the stream."""
MESSAGE_COST = 256
"""Bytes that a message is counted with beside those of its frame: what Python makes of it."""
FRAME_TIME, FRAME_RATE = 30.0, 256 * 1024
"""A frame that has begun is whole within so many seconds, and one more for each so many bytes. What `send` waits for is
taken by the peer within the same time.
"""
RATES: Mapping[type, tuple[float, float]] = {
    Ping: (10.0, 50.0),
    Cancel: (20.0, 100.0),
    Neighbours: (4.0, 32.0),
    Load: (1.0, 4.0),
}
"""Messages a second, and at once, of the types that cost their sender nothing."""


_PING = b"".join(pack((Ping(),)))


class _Budgets:
    """One link's, of the messages that cost their sender nothing."""

    def __init__(self) -> None:
        self._of: dict[type, Budget] = {}

    def spend(self, message: AnyMessage, now: float) -> None:
        """Raises ProtocolError for more of a free message than its type's budget."""
        kind = type(message)
        if kind not in RATES:
            return
        if (budget := self._of.get(kind)) is None:
            budget = self._of[kind] = Budget(*RATES[kind], now)
        if not budget.take(now):
            raise ProtocolError(f"A peer sent too many {kind.__name__}", why=f"more than {budget.rate:g} a second")


class Link(asyncio.Protocol):
    """A stream in use. Made by `Host.dial`, or given to the handler of `Host.serve`; one task receives at a time.

    `peer` is the id that libp2p has authenticated. `closed` and `reason` tell how it ended. `expects` is asked of a
    tensor that has begun, once all before it has been dealt with: one that is not expected is passed over unkept.
    `trip`: seconds of a round trip, as Hello took here; 0.0 where the other side has dialled.
    """

    def __init__(self, peer: PeerId, writer: asyncio.StreamWriter, held: Held) -> None:
        self.peer = peer
        self.closed, self.reason, self.trip = False, "", 0.0
        self._writer = writer  # kept, as its finalizer would close the transport
        self._transport = transport = cast(asyncio.Transport, writer.transport)
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader()
        self.held, self._partial = held, 0
        self.spoken = True
        """False: a stranger, who has said nothing since its Hello."""
        self._budgets = _Budgets()
        self._inbox: deque[tuple[AnyMessage, int]] = deque()
        self._inbox_bytes = 0
        self._reading, self._deaf = True, False
        self._arrival: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._full_at: float | None = None
        self._full_bytes = 0
        self._gone = self._loop.create_future()
        self._sent_at = self._heard_at = self._beat_at = self._frame_at = self._loop.time()
        self.on_closed: Callable[[Link], None] | None = None
        self.expects: Callable[[TensorHead], bool] | None = None
        held.cuts.add(self._cut_off)
        transport.set_write_buffer_limits(high=OUTBOX_BYTES)
        transport.set_protocol(self)
        transport.resume_reading()

    def __repr__(self) -> str:
        return f"<Link {peer_text(self.peer)[-8:]} {'closed: ' + self.reason if self.closed else 'open'}>"

    def allow(self, kind: type[Message] | type[Tensor], size: int) -> None:
        """From the next frame on the peer may send messages of `kind` up to `size` bytes; 0: none at all.

        Never more than the type's own limit. A larger frame ends the link at its head.
        """
        self._frames.narrowed[kind.NUMBER] = size

    # ---- the two verbs

    async def send(self, *messages: AnyMessage) -> None:
        """Write all messages at once, and wait while the stream is full, before and after: above what the stream may
        hold lies what one sender has to say. Raises LinkClosed, in time also for a peer that takes nothing.

        Buffers of a Tensor are handed over: they must not change afterwards.
        """
        while not self.put(*messages):
            await self._writable.wait()
        if not self._writable.is_set():
            await self._writable.wait()
            self._check_open()

    def put(self, *messages: AnyMessage) -> bool:
        """As `send`, but without waiting: False, and nothing written, where the stream is full. Raises LinkClosed."""
        self._check_open()
        if room := self._writable.is_set():
            self._write(messages)
        return room

    async def receive(self) -> AnyMessage:
        """The next message. What came before the end is still delivered, then it raises LinkClosed."""
        while not self._inbox:
            self._check_open()
            if self._arrival is not None:
                raise RuntimeError("two tasks receive from one link")
            self._arrival = self._loop.create_future()
            try:
                if self._partial:
                    self._weigh()
                await self._arrival
            except ProtocolError as error:
                self.hang_up(str(error))
            finally:
                self._arrival = None
        message, size = self._inbox.popleft()
        self._inbox_bytes -= size
        if self.closed:
            return message  # the end has released all that this link held
        self.held.add(-size)
        if not self._reading and not self._full(0.5):
            self._reading = True
            self._heard_at = self._loop.time()  # silence counts only while we listen
            self._transport.resume_reading()
        return message

    async def close(self, reason: str = "") -> None:
        """Say Bye, wait up to 0.5 s for the peer to hang up, then end the stream. Safe to call twice."""
        if not self.closed:
            self._write((Bye(reason[:400]),))
            self._end(reason or "closed here")
            if not self._reading and not self._transport.is_closing():
                self._reading = True
                self._transport.resume_reading()  # else the peer's hanging up would not be seen
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await asyncio.shield(self._gone)
        self.abort(self.reason)

    def abort(self, reason: str) -> None:
        """End the stream at once, without a word."""
        self._end(reason)
        self._transport.abort()

    def hang_up(self, reason: str, told: str = "") -> None:
        """End the link at once: tell the peer why (`told`, else `reason`), hear no more; cut off who does not leave.

        Closing with unread bytes on the way would reset the stream and lose the Bye.
        """
        self._deaf = True
        if not self.closed:
            self._write((Bye((told or reason)[:400]),))
        self._end(reason)
        self._loop.call_later(FAREWELL, self._transport.abort)

    async def wait_closed(self) -> str:
        """Until the stream has ended; the reason."""
        await asyncio.shield(self._gone)
        return self.reason

    # ---- called by the host

    def beat(self, now: float) -> None:
        """Heartbeat. A beat that comes late shows that this process slept: the silence before it proves nothing."""
        slept = now - self._beat_at - PING_AFTER
        self._beat_at = now
        if self.closed:
            return
        if slept > 0:
            self._heard_at = min(now, self._heard_at + slept)
            self._frame_at = min(now, self._frame_at + slept)
            self._full_at = None if self._full_at is None else min(now, self._full_at + slept)
        if self._full_at is not None and now - self._full_at > FRAME_TIME + self._full_bytes / FRAME_RATE:
            self.abort(f"the peer did not take what was sent for {now - self._full_at:.0f} s")
            return
        if not self._reading:
            self._heard_at = self._frame_at = now
        elif self._partial and now - self._frame_at > FRAME_TIME + self._frames.awaited / FRAME_RATE:
            self.hang_up(f"a frame was not whole after {now - self._frame_at:.0f} s")
            return
        elif now - self._heard_at > SILENCE_LIMIT:
            silent = f"for {SILENCE_LIMIT:.0f} s"
            self.hang_up(f"the peer was silent {silent}", told=f"the other side heard nothing from here {silent}")
            return
        quiet = PING_AFTER if self.spoken else STRANGER * PING_AFTER
        if now - self._sent_at >= quiet and not self._transport.get_write_buffer_size():
            self._transport.write(_PING)
            self._sent_at = now

    # ---- asyncio's callbacks

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._deaf:
            return
        frames, waited = self._frames, self._partial
        whole = frames.whole
        try:
            for message, size in frames.feed(data):
                if isinstance(message, Bye):
                    self._end(message.reason or "the peer said goodbye")
                    self._transport.close()
                    return
                if type(message) in RATES:
                    self._budgets.spend(message, self._heard_at)
                if not self.closed and not isinstance(message, Ping):
                    self.spoken = True
                    self._inbox.append((message, size + MESSAGE_COST))
                    self._inbox_bytes += size + MESSAGE_COST
                    self.held.add(size + MESSAGE_COST)
            if whole != frames.whole or not waited:
                self._frame_at = self._heard_at
            if not self.closed and (waited or frames.held):
                self._weigh()
        except ProtocolError as error:
            self.hang_up(str(error))
            return
        if not self.closed and self._reading and self._full(1.0):
            self._reading = False
            self._transport.pause_reading()
        if self._inbox:
            self._wake()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, error: Exception | None) -> None:
        self._end("the stream ended: the peer's process died or was cut off")
        if not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()
        self._full_at, self._full_bytes = self._loop.time(), self._transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self._writable.set()
        self._full_at = None

    # ---- inside

    def _write(self, messages: tuple[AnyMessage, ...]) -> None:
        parts = pack(messages)
        self._transport.writelines(parts)
        self._sent_at = self._loop.time()

    def _weigh(self) -> None:
        """Count what is kept of the unfinished frame. What is still to be read, or being dealt with, may be a tensor's
        request: only when the receiver waits is it known whether anybody expects it.
        """
        idle = not self._inbox and self._arrival is not None and not self._arrival.done()
        head = self._frames.tensor() if idle and self.expects else None
        if head is not None and self.expects and not self.expects(head):
            self._frames.skip()
        grown, self._partial = self._frames.held - self._partial, self._frames.held
        self.held.add(grown)

    def _cut_off(self, reason: str) -> None:
        """Others need the room."""
        self.hang_up(f"A peer's messages take too much room: {reason}")

    def _full(self, share: float) -> bool:
        return self._inbox_bytes > INBOX_BYTES * share or len(self._inbox) > INBOX_MESSAGES * share

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _check_open(self) -> None:
        if self.closed:
            raise LinkClosed(f"The link to {peer_text(self.peer)} has ended", why=self.reason)

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed, self.reason = True, reason
        self.held.cuts.discard(self._cut_off)
        self.held.add(-self._partial - self._inbox_bytes)
        self._writable.set()
        self._wake()
        if self.on_closed is not None:
            self.on_closed(self)


async def while_open(link: Link, work: Coroutine[Any, Any, None]) -> None:
    """`work` for a link's peer alone; it is given up when the link ends. Raises LinkClosed then."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(link.wait_closed())
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise LinkClosed("The peer has left", why=link.reason)
        doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)
