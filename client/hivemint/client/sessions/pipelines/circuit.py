"""The sessions of one route as they are now, and the steps through them. The first error ends a circuit.

A step may pass all hops, or only some that follow each other: where a node was replaced, it alone lacks what the others
have. Its input is then the outputs of the hop before it once more, and what the hop behind it has already goes nowhere.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from hivemint.client.sessions.errors import NodeGone, NodeLied
from hivemint.client.sessions.payer import Paid
from hivemint.client.sessions.pipelines.chunking import Chunking
from hivemint.client.sessions.pipelines.faults import NodeSlow
from hivemint.client.sessions.pipelines.in_flight import StepsInFlight
from hivemint.client.sessions.pipelines.proofs import StepProofs, StepState
from hivemint.client.sessions.pipelines.receiver import Receiver
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import FAREWELL, Parent, RemoteSession
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, LinkClosed
from hivemint.protocol.ids import Step
from hivemint.swarm.messages import FIRST_RESEND, Resend, RowMode, StepRequest

_DONATED_QUEUE = 30.0
"""Seconds more for a step of donated work: a node lets its queue there grow so long before it says `busy`."""
_DRAW_AFTER, _DRAW_WITHIN = 1 / 3, 0.05
"""The part of the nodes' time for a step after which the next vouchers are drawn, and seconds at most."""


@dataclass(frozen=True, slots=True)
class Section:
    """Positions `[start, end)` that the hops `hops` still lack."""

    hops: range
    start: int
    end: int


class Circuit:
    """Made in the event loop that it belongs to; from then on it reads all links, until `stop`."""

    def __init__(
        self,
        sessions: Sequence[RemoteSession],
        hidden_size: int,
        settings: ClientSettings,
        speeds: Speeds,
        source: VoucherSource,
        on_error: Callable[[HivemintError], None],
    ) -> None:
        self.sessions, self._settings, self._speeds, self.source = tuple(sessions), settings, speeds, source
        self.all = range(len(sessions))
        self.have = [one.length for one in sessions]
        """Positions that each hop has or was sent."""
        self.patched = len(set(self.have)) > 1
        """Some hops lack what others have, or an output of theirs is not proved by the hops behind them yet."""
        self.steps = StepProofs(sessions, hidden_size, sessions[0].leg.wire, speeds)
        self.in_flight = StepsInFlight(sessions, self.steps, self.limit, on_error)
        self.receiver = Receiver(sessions, self.steps, self.in_flight, source, self._send_again)
        self._chunking = Chunking(sessions, settings, speeds)
        self._resends = FIRST_RESEND

    def next_part(self, target: int) -> Section | None:
        """What is to be sent next, so that all hops have the positions up to `target`; None: they do, or will."""
        low = min(self.have)
        if low >= target:
            return None
        first = self.have.index(low)
        end = first + 1
        while end < len(self.have) and self.have[end] == low:
            end += 1
        bounds = [self.have[hop] for hop in (first - 1, end) if 0 <= hop < len(self.have)]
        return Section(range(first, end), low, min([target, *bounds]))

    def chunking(self, part: Section) -> Chunking:
        """How a part is cut into steps."""
        if part.hops == self.all:
            return self._chunking
        return Chunking([self.sessions[hop] for hop in part.hops], self._settings, self._speeds)

    @property
    def slow(self) -> NodeSlow | None:
        """The node that is far slower than it publishes, and the one before it. Nothing is broken."""
        late = [hop for hop, one in enumerate(self.sessions) if self._speeds.slow(one.leg.peer)]
        if not late:
            return None
        hop = max(late, key=lambda hop: self._speeds.lateness(self.sessions[hop].leg.peer))
        return NodeSlow(self.sessions[hop].leg, *(one.leg for one in self.sessions[max(0, hop - 1) : hop]))

    @property
    def recalled(self) -> bool:
        """It began with positions of an earlier process: what would have to be computed again is not here."""
        return any(one.recalled for one in self.sessions)

    def crop(self, length: int) -> None:
        """The next step begins at `length`, or before."""
        self.have = [min(one, length) for one in self.have]

    async def send(
        self, hops: range, start: int, count: int, data: bytes, rows: RowMode
    ) -> "asyncio.Future[torch.Tensor] | None":
        """One step through `hops`: a request with its voucher to each; to the first one its input, `data` in wire form,
        where that is the client's own."""
        try:
            paid = await self.source.take(count, hops)
        except NodeLied as error:
            self.in_flight.fail(error)
            raise
        state = self.steps.add(hops, start, count, rows, data, self._resends if hops.start else None)
        requests = [self._prepare(hop, state, one) for hop, one in zip(hops, paid, strict=True)]
        for hop in hops:
            self.have[hop] = start + count
        if state.source is not None:
            self._resends = Step(self._resends + 1)
            await self._tell(hops.start - 1, Resend(state.source, start, count))
        for hop, request in zip(hops, requests, strict=True):
            await self._dispatch(hop, request, data if hop == 0 else b"")
        if count == 1 and hops == self.all:
            self.source.draw_ahead(start + 2, min(_DRAW_WITHIN, _DRAW_AFTER * self._nodes_time()))
        return state.output

    async def fork(self, parents: Sequence[Parent], count: int) -> None:
        """Each session begins with the one of `parents` at the same node. Raises what broke this one."""
        self.steps.add_fork(count)
        for hop, (session, its) in enumerate(zip(self.sessions, parents, strict=True)):
            self.have[hop] = count
            await self._dispatch(hop, session.prepare_fork(its, count), b"")
        await self.in_flight.room(1)

    async def prove_rest(self) -> None:
        """Until nothing is in flight: then each output has been taken by the next hop, and vouchers may bind it."""
        await self.in_flight.room(1)
        for session in self.sessions:
            session.prove_rest()
        self.patched = False

    def limit(self) -> float:
        """Seconds for the oldest step, by what its nodes publish and what was measured; `step_timeout` at most."""
        most = self._settings.step_timeout
        if not self.steps.open:
            return most
        state, seconds, floor = self.steps.open[0], 0.0, self._settings.step_floor
        for hop in state.hops:
            session = self.sessions[hop]
            if not self._speeds.knows(session.leg.peer):
                return most
            measured = (self._speeds.of(session.leg.peer).step or 0.0) * session.session.blocks * state.count
            seconds += max(session.leg.published(state.count), measured)
            floor += 0.0 if session.price else _DONATED_QUEUE
        return min(most, floor + self._settings.step_times * seconds)

    # ---- the end

    def lost(self, error: HivemintError) -> set[int]:
        """The hops that `error` names, and those of which nothing more comes."""
        peers = getattr(error, "peers", ())
        return {hop for hop, one in enumerate(self.sessions) if one.over or one.leg.peer in peers}

    async def quiet(self, lost: Collection[int]) -> set[int]:
        """Take back what the other hops have not begun, and wait for the rest. Gives those that are lost as well."""
        kept = [hop for hop in self.all if hop not in lost]
        await self.source.put_back()
        await asyncio.gather(*(self.sessions[hop].cancel() for hop in kept))
        return await self.in_flight.quiet(kept, self.limit())

    async def cancel(self) -> None:
        """Ask all nodes to drop what they have not begun."""
        with contextlib.suppress(TimeoutError):  # a node that reads nothing learns it when the stream ends
            async with asyncio.timeout(FAREWELL):
                await asyncio.gather(*(session.cancel() for session in self.sessions))

    async def stop(self) -> None:
        """Read no further and forget the steps in flight; the sessions go on."""
        self.in_flight.closing = True
        await self.source.put_back()
        await self.receiver.stop()
        self.in_flight.discard()

    # ---- out

    def _nodes_time(self) -> float:
        """Seconds that a step of decode takes at all nodes together, as measured here; 0 where nothing is known."""
        known = ((self._speeds.of(one.leg.peer).step or 0.0, one.session.blocks) for one in self.sessions)
        return sum(step * blocks for step, blocks in known)

    def _prepare(self, hop: int, state: StepState, paid: Paid) -> StepRequest:
        rows = state.rows if hop == self.all[-1] else "none"
        push = hop != state.hops[-1]
        source = state.source if hop == state.hops[0] else state.number(hop - 1)
        return self.sessions[hop].prepare(state.start, state.count, paid, source=source, push=push, rows=rows)

    async def _dispatch(self, hop: int, request: StepRequest, data: bytes) -> None:
        self.in_flight.check_usable()  # while the voucher was drawn, a node may have been found lying
        session = self.sessions[hop]
        with self._blaming(session):
            async with asyncio.timeout(self._settings.step_timeout):
                await session.send(request, data or None)  # a fork has no rows

    async def _tell(self, hop: int, message: Resend) -> None:
        session = self.sessions[hop]
        with self._blaming(session):
            async with asyncio.timeout(self._settings.step_timeout):
                await session.link.send(message)

    @contextlib.contextmanager
    def _blaming(self, session: RemoteSession) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            why = f"it read no request for {self._settings.step_timeout:g} s"
            self.in_flight.fail(NodeGone(session.leg, "takes nothing", why))
            self.in_flight.check_usable()
        except LinkClosed as error:
            self.in_flight.fail(NodeGone(session.leg, "went away", error.why or error.what))
            self.in_flight.check_usable()

    async def _send_again(self, hop: int, state: StepState) -> None:
        """The same step with a new voucher, to a node that has refused the first."""
        paid = await self.source.again(hop, state.count)
        await self._dispatch(hop, self._prepare(hop, state, paid), state.data if hop == 0 else b"")
