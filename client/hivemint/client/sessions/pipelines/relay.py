"""One lane of training: the client carries every tensor from node to node itself.

A node's gradient step needs its own input and the gradient of its output, and only the client has both. So no node
knows its neighbours here, a step is one request and its answer, and every output is seen, hashed and compared with
its receipt before the next voucher is signed (P17). So what a lost node leaves is all here, too: only its blocks are
asked of others, the rest of the lane stays as it is.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import takewhile

import torch

from hivemint.client.pipeline import SessionLimit, Trail
from hivemint.client.sessions.errors import blaming
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.pipelines.absence import Absence
from hivemint.client.sessions.pipelines.faults import NodeSlow
from hivemint.client.sessions.pipelines.finite import check_own, check_theirs
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import RemoteSession, check_signatures
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, ProofError, ProtocolError, Refusal, SwarmError
from hivemint.protocol.ids import BACKWARD, FORWARD, Step
from hivemint.protocol.receipt import work
from hivemint.swarm.messages import Closed, Refused, StepReceipt, Tensor
from hivemint.swarm.rows import from_wire, row_hashes, to_wire


class Relay:
    """Sessions of one route. Implements `client.pipeline.Training`; made by `SwarmClient.relay`."""

    def __init__(
        self,
        sessions: list[RemoteSession],
        hidden_size: int,
        payer: Payer,
        settings: ClientSettings,
        speeds: Speeds,
        on_error: Callable[[HivemintError], None],
        others_for: Callable[[RemoteSession], Awaitable[list[RemoteSession]]],
    ) -> None:
        """`settings.step_timeout`: seconds for one step at one node. `others_for` opens sessions for the blocks of one
        that is lost, at other nodes; it raises what the opening of a route does.
        """
        self._sessions, self._hidden_size, self._settings = sessions, hidden_size, settings
        self._payer, self._speeds, self._on_error, self._others_for = payer, speeds, on_error, others_for
        self._sources: dict[RemoteSession, VoucherSource] = {}
        self._enter(sessions)
        self._wire = sessions[0].leg.wire
        self._closed = self._interrupted = False
        self._absence = Absence(settings.wait_for_return)
        self._lost: RemoteSession | None = None  # where the last pass failed
        self._left: list[RemoteSession] = []  # replaced by others
        self._leaving: list[asyncio.Task[None]] = []

    @property
    def open(self) -> bool:
        """False once `close` has been called."""
        return not self._closed

    @property
    def sessions(self) -> tuple[RemoteSession, ...]:
        """Hop by hop: terms, newest checked receipt, what was spent."""
        return tuple(self._sessions)

    @property
    def spent(self) -> int:
        """See `Pipeline.spent`."""
        return sum(one.spent for one in (*self._sessions, *self._left))

    @property
    def signed(self) -> int:
        """See `Pipeline.signed`."""
        return sum(one.signed for one in (*self._sessions, *self._left))

    @property
    def price(self) -> int:
        """See `Training.price`."""
        return sum(one.price for one in self._sessions)

    def cost(self, trail: Trail) -> int:
        """See `Training.cost`."""
        passes = list(self._due(trail))
        tried = {session: self._trial(session, trail.count) for session, _ in passes}
        steps = sum(session.price * work(kind, trail.count) for session, kind in passes)
        return steps + sum(session.price * small for session, small in tried.items())

    @property
    def slow(self) -> NodeSlow | None:
        """See `Pipeline.slow`. Nobody stands between a node and this client here."""
        return next((NodeSlow(one.leg) for one in self._sessions if self._speeds.slow(one.leg.peer)), None)

    async def forward(self, trail: Trail) -> torch.Tensor:
        """See `Training.forward`."""
        await self._pass(trail)
        return trail.states[self._sessions[-1].leg.end]

    async def backward(self, trail: Trail) -> torch.Tensor:
        """See `Training.backward`."""
        await self._pass(trail)
        return trail.gradients[0]

    async def mend(self) -> bool:
        """See `Training.mend`. Who is lost hears a farewell meanwhile, if it hears anything."""
        lost, self._lost = self._lost, None
        if lost is None or self._closed:
            return False
        while True:
            try:
                others = await self._others_for(lost)
                break
            except (SwarmError, ProofError, Refusal) as error:
                if not await self._absence.may_end(error):
                    return False
        if self._closed:
            await asyncio.gather(*(_sign_off(one) for one in others))
            return False
        at = self._sessions.index(lost)
        self._sessions[at : at + 1] = others
        self._enter(others)
        self._leave(lost)
        self._interrupted = False
        return True

    def _enter(self, sessions: list[RemoteSession]) -> None:
        for session in sessions:
            self._sources[session] = VoucherSource([session], self._payer, lambda: False)
            self._speeds.opened(session.leg.peer)

    def _leave(self, session: RemoteSession) -> None:
        del self._sources[session]
        self._speeds.opened(session.leg.peer, -1)
        self._left.append(session)
        self._leaving.append(asyncio.create_task(_sign_off(session)))

    def _due(self, trail: Trail) -> Iterator[tuple[RemoteSession, int]]:
        """The steps that are left of a pass, in order: session and kind."""
        known = set(trail.states)
        if not trail.gradients:
            yield from ((one, FORWARD) for one in self._towards(self._sessions[-1].leg.end, known))
            return
        for session in reversed(self._sessions):
            if session.leg.first not in trail.gradients:
                yield from ((one, FORWARD) for one in self._towards(session.leg.first, known))
                yield session, BACKWARD

    def _towards(self, block: int, known: set[int]) -> list[RemoteSession]:
        """Who must go forward for the state that enters `block`, which is known from then on, as are those between."""
        before = [one for one in reversed(self._sessions) if one.leg.end <= block]
        way = list(takewhile(lambda one: one.leg.end not in known, before))[::-1]
        known.update(one.leg.end for one in way)
        return way

    async def _pass(self, trail: Trail) -> None:
        for session, kind in list(self._due(trail)):
            first, end, hidden = session.leg.first, session.leg.end, trail.states[session.leg.first]
            if small := self._trial(session, trail.count):
                await self._step(session, FORWARD, hidden[:small])
            if kind == FORWARD:
                trail.states[end] = await self._step(session, FORWARD, hidden)
            else:
                rows = torch.cat([hidden, trail.gradients[end]], dim=1)
                trail.gradients[first] = await self._step(session, BACKWARD, rows)

    async def close(self) -> None:
        """See `Training.close`."""
        if not self._closed:
            self._closed = True
            for session in self._sessions:
                self._speeds.opened(session.leg.peer, -1)
            await asyncio.gather(*self._leaving, *(_sign_off(session) for session in self._sessions))

    def _trial(self, session: RemoteSession, count: int) -> int:
        """Rows of the small step that a paid node gets first if it has not delivered to this client yet."""
        small = self._settings.min_chunk
        return small if session.price and count > small and not self._speeds.knows(session.leg.peer) else 0

    async def _step(self, session: RemoteSession, kind: int, rows: torch.Tensor) -> torch.Tensor:
        """A whole sequence through one node: `[count, hidden]`, or twice as wide backward, to `[count, hidden]`."""
        if self._closed or self._interrupted:
            raise SwarmError("The lane can't go on", why="it is closed, or was interrupted", next_step="open a new one")
        data = to_wire(rows, self._wire)
        check_own(rows, data, self._wire)
        self._interrupted = True
        try:
            output = await self._ask(session, kind, data, rows.shape[0])
        except HivemintError as error:
            self._on_error(error)
            if isinstance(error, SwarmError | ProofError | Refusal) and not isinstance(error, SessionLimit):
                self._lost = session
            raise
        self._interrupted = False
        self._absence.over()
        return output

    async def _ask(self, session: RemoteSession, kind: int, data: bytes, count: int) -> torch.Tensor:
        began = time.monotonic()
        session.admit(work(kind, count), count)
        step = Step(session.newest.step + 1)
        with blaming(session.leg, "computing a training step"):
            async with asyncio.timeout(self._settings.step_timeout):
                answer, tensor = await self._paid_for(session, step, kind, data, count)
        try:
            session.take(answer, row_hashes(data, len(data) // count))
            if tensor is None:
                raise ProofError("A receipt came without the output that was asked for")
            output = from_wire(tensor.data, count, self._hidden_size, self._wire, torch.float32)
            if row_hashes(tensor.data, len(tensor.data) // count) != answer.rows:
                raise ProofError("The output is not the one that its node signed for", why=f"step {step}")
        except (ProofError, ProtocolError) as error:
            raise session.lied(error) from None
        check_theirs(output, session, "a training step")
        session.prove(step)
        check_signatures([(session, session.proved)])
        self._speeds.delivered(session.leg.peer)
        self._speeds.judge(session.leg.peer, time.monotonic() - began, session.leg.published(work(kind, count)))
        return output

    async def _paid_for(
        self, session: RemoteSession, step: Step, kind: int, data: bytes, count: int
    ) -> tuple[StepReceipt, Tensor | None]:
        """The node's answer to a step, asked for a second time at most. Raises what a refusal means."""
        while True:
            (paid,) = await self._sources[session].take(work(kind, count))
            request = session.prepare(0, count, paid, kind=kind)
            await session.send(request, data)
            answer, tensor = await _answer(session)
            match answer:
                case StepReceipt():
                    return answer, tensor
                case Closed():
                    session.closed.set()
                    raise session.ended(answer)
                case Refused():
                    if (error := await session.refused(answer)) is not None:
                        raise error


async def _sign_off(session: RemoteSession) -> None:
    """Close a session; nobody else reads its link, so the farewell is heard here."""

    async def hear() -> None:
        with contextlib.suppress(SwarmError):
            while not isinstance(await session.link.receive(), Closed):
                pass
        session.closed.set()

    hearing = asyncio.create_task(hear())
    try:
        await session.close()
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


async def _answer(session: RemoteSession) -> tuple[StepReceipt | Refused | Closed, Tensor | None]:
    """The answer to the one step in flight, and the tensor before it."""
    tensor = None
    while True:
        match message := await session.link.receive():
            case Tensor() if tensor is None:
                tensor = message
            case StepReceipt() | Refused() | Closed():
                return message, tensor
            case _:
                raise ProtocolError(f"A node sent a {type(message).__name__} in a training session")
