"""One lane of training: the client carries every tensor from node to node itself.

A node's gradient step needs its own input and the gradient of its output, and only the client has both. So no node
knows its neighbours here, a step is one request and its answer, and every output is seen, hashed and compared with
its receipt before the next voucher is signed (P17).
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import torch

from hivemint.client.handshake import Greeting, NodeGone, Payer, blaming
from hivemint.client.purse import Purse
from hivemint.client.session import NodeSession, check_signatures
from hivemint.contracts.errors import HivemintError, ProofError, ProtocolError, SwarmError
from hivemint.contracts.ids import BACKWARD, FORWARD, Step
from hivemint.contracts.receipt import work
from hivemint.swarm.messages import Closed, Refused, StepReceipt, Tensor
from hivemint.swarm.rows import from_wire, row_hashes, to_wire


class Relay:
    """Sessions of one route. Implements `client.pipeline.Training`; made by `SwarmClient.relay`."""

    def __init__(
        self, sessions: list[NodeSession], hidden_size: int, payer: Payer, timeout: float,
        on_error: Callable[[HivemintError], None],
    ) -> None:  # fmt: skip
        """`timeout`: seconds for one step at one node."""
        self._sessions, self._hidden_size, self._timeout, self._on_error = sessions, hidden_size, timeout, on_error
        self._purses = {session: Purse([session], payer, lambda: False) for session in sessions}
        self._wire = sessions[0].leg.wire
        self._closed = self._interrupted = False

    @property
    def open(self) -> bool:
        """False once `close` has been called."""
        return not self._closed

    @property
    def sessions(self) -> tuple[NodeSession, ...]:
        """Hop by hop: terms, newest checked receipt, what was spent."""
        return tuple(self._sessions)

    @property
    def spans(self) -> tuple[range, ...]:
        return tuple(range(one.leg.first, one.leg.end) for one in self._sessions)

    async def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """See `Training.forward`."""
        states = [hidden]
        for session in self._sessions:
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
            await asyncio.gather(*(_sign_off(session) for session in self._sessions))

    async def _step(self, session: NodeSession, kind: int, rows: torch.Tensor) -> torch.Tensor:
        """A whole sequence through one node: `[count, hidden]`, or twice as wide backward, to `[count, hidden]`."""
        if self._closed or self._interrupted:
            raise SwarmError("The lane can't go on", why="it is closed, or was interrupted", next_step="open a new one")
        self._interrupted = True
        try:
            output = await self._ask(session, kind, rows)
        except HivemintError as error:
            self._on_error(error)
            raise
        self._interrupted = False
        return output

    async def _ask(self, session: NodeSession, kind: int, rows: torch.Tensor) -> torch.Tensor:
        count, data = rows.shape[0], to_wire(rows, self._wire)
        session.admit(work(kind, count), count)
        step = Step(session.newest.receipt.step + 1)
        while True:
            (voucher,) = await self._purses[session].take(step, work(kind, count))
            request = session.prepare(step, 0, count, voucher, first=True, last=True, rows="all", kind=kind)
            with blaming(session.leg, "computing a training step"):
                async with asyncio.timeout(self._timeout):
                    await session.send(request, data)
                    answer, tensor = await _answer(session)
            if isinstance(answer, StepReceipt):
                break
            if isinstance(answer, Closed):
                session.closed.set()
                raise session.ended(answer)
            if (error := session.refused(answer)) is not None:
                raise error
        try:
            session.take(answer, row_hashes(data, len(data) // count))
            if tensor is None:
                raise ProofError("A receipt came without the output that was asked for")
            output = from_wire(tensor.data, count, self._hidden_size, self._wire, torch.float32)
            if row_hashes(tensor.data, len(tensor.data) // count) != answer.rows:
                raise ProofError("The output is not the one that its node signed for", why=f"step {step}")
        except (ProofError, ProtocolError) as error:
            raise session.lied(error) from None
        session.prove(step)
        check_signatures([(session, session.proved)])
        return output


async def _sign_off(session: NodeSession) -> None:
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


async def _answer(session: NodeSession) -> tuple[StepReceipt | Refused | Closed, Tensor | None]:
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


def check_training(greetings: Sequence[Greeting], tokens: int) -> None:
    """Whether all nodes take sequences of `tokens` positions, forward and backward. Raises NodeGone."""
    for one in greetings:
        most = min(one.terms.max_backward, one.terms.max_rows)
        if tokens > most:
            limit = f"it takes {most} positions a step" if most else "it serves no backward steps"
            raise NodeGone(one.leg, f"trains no sequences of {tokens} positions", limit)
