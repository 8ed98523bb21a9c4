"""Inputs that come from the previous node.

Several sessions may take the outputs of the same one: a stranger may name it as well, and first, and must not keep it
from whoever it is for. What comes in goes to each of them, and only from the peer that this session has named.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from hivemint.node.sessions.arrivals import Arrivals, Weight
from hivemint.protocol.errors import LinkClosed, ProtocolError
from hivemint.protocol.ids import PeerId, SessionId, Step
from hivemint.protocol.receipt import SignedReceipt
from hivemint.swarm.held import Held
from hivemint.swarm.link import Link
from hivemint.swarm.messages import MAX_TENSOR, AnyMessage, HopReceipt, Tensor, TensorHead

GRACE = 5.0
"""Seconds after the last session that named a peer, in which tensors of that session may still be on their way."""

Differ = Callable[[SignedReceipt, SignedReceipt], None]


@dataclass(eq=False, slots=True)
class _Source:
    """One session as one peer pushes its outputs: the sessions here that take them, at most one a seat, and the
    receipts of its newest steps."""

    takers: list[Arrivals] = field(default_factory=list)
    signed: dict[Step, SignedReceipt] = field(default_factory=dict)


class Inbox:
    """Inputs pushed by previous nodes, of all sessions. `differ` is told of two receipts for one step."""

    def __init__(self, ahead: int, differ: Differ = lambda one, other: None) -> None:
        self._ahead, self._differ = ahead, differ
        self._sources: dict[tuple[SessionId, PeerId], _Source] = {}
        self._links: dict[PeerId, set[Link]] = {}
        self.dropped = 0

    def name(self, source: SessionId, peer: PeerId, most: int = MAX_TENSOR) -> Arrivals:
        """An open session takes the outputs of `source` from `peer`, frames up to `most` bytes, until `forget`."""
        arrivals = Arrivals(source, peer, most, self._ahead, self._drop)
        self._sources.setdefault((source, peer), _Source()).takers.append(arrivals)
        self._allow(peer)
        return arrivals

    def forget(self, arrivals: Arrivals) -> None:
        """What `name` gave is needed no longer."""
        arrivals.close()
        known = self._sources[arrivals.source, arrivals.peer]
        known.takers.remove(arrivals)
        if not known.takers:
            del self._sources[arrivals.source, arrivals.peer]
        asyncio.get_running_loop().call_later(GRACE, self._allow, arrivals.peer)

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
        kept = False
        if isinstance(message, Tensor) and (source := self._source(peer, message.head.session)) is not None:
            kept = _keep(source, message, Weight(len(message.data), holder))
        elif isinstance(message, HopReceipt) and (source := self._source(peer, message.receipt.session_id)) is not None:
            self._compare(source.signed, message.receipt)
            kept = sum(one.prove(message) for one in source.takers) > 0
        if not kept:
            self._drop()

    def _expects(self, peer: PeerId, head: TensorHead) -> bool:
        """Whether a tensor that has begun would be kept; if not, this is all that is seen of it."""
        source = self._source(peer, head.session)
        expected = source is not None and sum(one.expects(head.step) for one in source.takers) > 0
        if not expected:
            self._drop()
        return expected

    def _source(self, peer: PeerId, session: bytes | None) -> _Source | None:
        """None: nobody here has named this session of that peer."""
        return None if session is None else self._sources.get((SessionId(session), peer))

    def _compare(self, kept: dict[Step, SignedReceipt], signed: SignedReceipt) -> None:
        """The receipts of the newest steps are kept for as long as another one of theirs could come."""
        first = kept.setdefault(signed.step, signed)
        if first.body != signed.body:
            del kept[signed.step]  # a flood of them is compared in pairs alone
            self._differ(first, signed)
        while len(kept) > 2 * self._ahead:
            del kept[next(iter(kept))]

    def _drop(self) -> None:
        self.dropped += 1

    def _allow(self, peer: PeerId) -> None:
        """What this peer's links may carry: the largest frame that an open session has named it for."""
        if not (links := self._links.get(peer)):
            return
        named = (one.most for (_, its), source in self._sources.items() if its == peer for one in source.takers)
        most = max(named, default=0)
        for link in links:
            link.allow(Tensor, most)


def _keep(source: _Source, tensor: Tensor, weight: Weight) -> bool:
    """Whether any session has kept it."""
    try:
        return sum(one.keep(tensor, weight) for one in source.takers) > 0
    except ProtocolError:  # its maker holds too much here already: that is so for the first who would keep it
        return False
