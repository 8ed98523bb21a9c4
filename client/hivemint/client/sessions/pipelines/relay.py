"""One lane of training: the client carries every tensor from node to node itself.

A node's gradient step needs its own input and the gradient of its output, and only the client has both. So no node
knows its neighbours here, a step is one request and its answer, and every output is seen, hashed and compared with
its receipt before the next voucher is signed (P17).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import torch

from hivemint.client.sessions.errors import blaming
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.pipelines.faults import NodeSlow
from hivemint.client.sessions.pipelines.finite import check_own, check_theirs
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import RemoteSession, check_signatures
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, ProofError, ProtocolError, SwarmError
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
    ) -> None:
        """`settings.step_timeout`: seconds for one step at one node."""
        self._sessions, self._hidden_size, self._settings = sessions, hidden_size, settings
        self._speeds, self._on_error = speeds, on_error
        self._sources = {session: VoucherSource([session], payer, lambda: False) for session in sessions}
        for session in sessions:
            speeds.opened(session.leg.peer)
        self._wire = sessions[0].leg.wire
        self._closed = self._interrupted = False

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
        return sum(one.spent for one in self._sessions)

    @property
    def signed(self) -> int:
        """See `Pipeline.signed`."""
        return sum(one.signed for one in self._sessions)

    def cost(self, forward: int, backward: int) -> int:
        """See `Training.cost`."""
        counts = ((one, work(FORWARD, forward) + work(BACKWARD, backward)) for one in self._sessions)
        return sum(one.price * (count + self._trial(one, forward)) for one, count in counts)

    @property
    def slow(self) -> NodeSlow | None:
        """See `Pipeline.slow`. Nobody stands between a node and this client here."""
        return next((NodeSlow(one.leg) for one in self._sessions if self._speeds.slow(one.leg.peer)), None)

    @property
    def spans(self) -> tuple[range, ...]:
        return tuple(range(one.leg.first, one.leg.end) for one in self._sessions)

    async def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """See `Training.forward`."""
        states = [hidden]
        for session in self._sessions:
            if small := self._trial(session, len(hidden)):
                await self._step(session, FORWARD, states[-1][:small])
            states.append(await self._step(session, FORWARD, states[-1]))
        return states

    async def backward(self, states: Sequence[torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
        """See `Training.backward`."""
        for session, hidden in zip(reversed(self._sessions), reversed(states[:-1]), strict=True):
            gradient = await self._step(session, BACKWARD, torch.cat([hidden, gradient], dim=1))
        return gradient

    async def close(self) -> None:
        """See `Training.close`."""
        if not self._closed:
            self._closed = True
            for session in self._sessions:
                self._speeds.opened(session.leg.peer, -1)
            await asyncio.gather(*(_sign_off(session) for session in self._sessions))

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
            raise
        self._interrupted = False
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
