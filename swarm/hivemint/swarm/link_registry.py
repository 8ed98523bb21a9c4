"""The open links of a host: how a stream that a peer opened becomes one, how all of them beat, and how they end."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import structlog

from hivemint.protocol.errors import HivemintError, ProtocolError, Refusal, SwarmError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.frames import STRANGER
from hivemint.swarm.held import Held
from hivemint.swarm.hello import HELLO_LIMIT, Badge, answer, read_hello
from hivemint.swarm.limits import Gate
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Code, Hello, Refused

log = structlog.get_logger(__name__)
Handler = Callable[[Link], Awaitable[bool | None]]
"""Ends when its link does; True: the peer has paid for more than the link cost."""


class LinkRegistry:
    """Every link stands here from its first byte until it is closed, and is counted at the gate for as long."""

    def __init__(self, badge: Badge, gate: Gate) -> None:
        self.refusals: Counter[str] = Counter()
        """Links that were turned away before their handler saw them, by code."""
        self._badge, self._gate = badge, gate
        self._links: dict[Link, str | None] = {}

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)

    def add(self, peer: PeerId, writer: asyncio.StreamWriter, held: Held, prefix: str | None = None) -> Link:
        """A link over a stream that has entered at the gate; whoever opened it."""
        link = Link(peer, writer, held)
        link.on_closed = self._forget
        self._links[link] = prefix
        return link

    async def accept(
        self,
        peer: PeerId,
        prefix: str | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: Handler,
    ) -> None:
        """From a stream to a link: Hello first (bounded in size and time), then the limits, then the network.

        The handler says what else the peer may send (`Link.allow`): until then nothing that could be large.
        """
        held = self._gate.enter(peer, _now(), prefix)
        hello: Hello | None = None
        with contextlib.suppress(TimeoutError, EOFError, OSError, ProtocolError):
            if not self._gate.flooded(peer, prefix):
                async with asyncio.timeout(HELLO_LIMIT):
                    hello = await read_hello(reader)
        if hello is None:
            self._gate.leave(peer, prefix)
            writer.transport.abort()
            return
        link = self.add(peer, writer, held, prefix)
        link.spoken = False
        for kind in STRANGER:
            link.allow(kind, 0)
        reason = ""
        try:
            self._gate.check(peer, _now(), prefix)
            async with asyncio.timeout(HELLO_LIMIT):
                await answer(link, self._badge, hello)
            if await handler(link):
                self._gate.give_back(peer, prefix)
        except Refusal as error:
            reason = str(error)
            self.refusals[error.code] += 1
            with contextlib.suppress(SwarmError):
                await link.send(_refused(error))
        except TimeoutError:
            reason = "no proof in time"
        except SwarmError as error:
            reason = str(error)
        except HivemintError as error:  # of the chain, of a file: its text may hold an address or a path of ours
            reason = "this side failed at the link"
            log.error("a link's handler failed", reason=type(error).__name__)
        finally:
            await link.close(reason)

    def beat(self, now: float) -> None:
        """Whoever has been silent for too long is gone; whoever hears nothing of us gets a Ping."""
        for link in list(self._links):
            link.beat(now)

    async def close(self, reason: str) -> None:
        """Say Bye on every link."""
        await asyncio.gather(*(link.close(reason) for link in list(self._links)))

    def abort(self, reason: str) -> None:
        """Without a goodbye: nothing can be sent any more."""
        for link in list(self._links):
            link.abort(reason)

    def _forget(self, link: Link) -> None:
        if link in self._links:
            self._gate.leave(link.peer, self._links.pop(link))


def _refused(error: Refusal) -> Refused:
    return Refused.of(error, Code(error.code), retry_after=error.retry_after)


def _now() -> float:
    return asyncio.get_running_loop().time()
