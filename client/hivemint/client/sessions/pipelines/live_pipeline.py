"""The pipeline over real sessions: one per hop, in step with each other, receipts checked beside the next token.

For each step every hop gets its own request; the tensor goes to the first hop, its output from
node to node, and the last hidden state comes back. It may be used at once: the receipts of a step are compared while
the caller samples, and their signatures checked before any voucher is signed that binds that step. In decode one step
is in flight, in prefill as many as all nodes of the route take.
"""

import asyncio
import contextlib
from collections.abc import Callable

import torch

from hivemint.client.pipeline import Plan, Rows
from hivemint.client.sessions.errors import NodeGone, NodeLied
from hivemint.client.sessions.payer import Paid
from hivemint.client.sessions.pipelines.chunking import Chunking
from hivemint.client.sessions.pipelines.faults import NodeSlow
from hivemint.client.sessions.pipelines.finite import check_own
from hivemint.client.sessions.pipelines.in_flight import StepsInFlight
from hivemint.client.sessions.pipelines.proofs import StepProofs, StepState
from hivemint.client.sessions.pipelines.receiver import Receiver
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import FAREWELL, RemoteSession, check_signatures
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, LinkClosed, ProofError
from hivemint.protocol.ids import Step
from hivemint.swarm.messages import RowMode, StepRequest
from hivemint.swarm.rows import to_wire

_LAST_WORDS = 2.5
"""Seconds that a closing pipeline waits for receipts that are still due."""
_DRAW_AFTER, _DRAW_WITHIN = 1 / 3, 0.05
"""The part of the nodes' time for a step after which the next vouchers are drawn, and seconds at most."""


class LivePipeline:
    """One sequence. Implements `client.pipeline.Pipeline`; made by `SwarmClient.open`, owned by one event loop."""

    def __init__(
        self,
        sessions: list[RemoteSession],
        plan: Plan,
        hidden_size: int,
        settings: ClientSettings,
        speeds: Speeds,
        source: VoucherSource,
        on_error: Callable[[HivemintError], None],
    ) -> None:
        self._sessions, self._hidden_size, self._settings = sessions, hidden_size, settings
        self.plan, self._speeds, self._source = plan, speeds, source
        self._wire = sessions[0].leg.wire
        self._position = 0
        self._last = Step(0)
        self._steps = StepProofs(sessions, hidden_size, self._wire, speeds)
        self._in_flight = StepsInFlight(sessions, self._steps, settings.step_timeout, on_error)
        self._receiver = Receiver(sessions, self._steps, self._in_flight, source, self._send_again)
        self._chunking = Chunking(sessions, settings, speeds)
        for one in sessions:
            speeds.opened(one.leg.peer)
        self._told = False  # the caller has been told what broke it
        self._closing: asyncio.Task[None] | None = None

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    @property
    def position(self) -> int:
        return self._position

    @property
    def price(self) -> int:
        """See `Pipeline.price`."""
        return sum(one.price for one in self._sessions)

    @property
    def spent(self) -> int:
        """See `Pipeline.spent`."""
        return sum(one.spent for one in self._sessions)

    @property
    def signed(self) -> int:
        """See `Pipeline.signed`."""
        return sum(one.signed for one in self._sessions)

    @property
    def slow(self) -> NodeSlow | None:
        """See `Pipeline.slow`."""
        late = [hop for hop, one in enumerate(self._sessions) if self._speeds.slow(one.leg.peer)]
        if not late:
            return None
        hop = max(late, key=lambda hop: self._speeds.lateness(self._sessions[hop].leg.peer))
        return NodeSlow(self._sessions[hop].leg, *(one.leg for one in self._sessions[max(0, hop - 1) : hop]))

    @property
    def open(self) -> bool:
        """False once `close` has been called."""
        return self._closing is None

    def offered_as(self, settings: ClientSettings) -> bool:
        """Whether it was opened for this bid and ceiling."""
        mine = self._settings
        return (mine.bid, mine.max_price) == (settings.bid, settings.max_price)

    @property
    def sessions(self) -> tuple[RemoteSession, ...]:
        """Hop by hop: terms, newest checked receipt, what was spent."""
        return tuple(self._sessions)

    async def forward(self, hidden: torch.Tensor, *, rows: Rows = "last") -> torch.Tensor:
        """See `Pipeline.forward`."""
        try:
            return await self._forward(hidden, rows)
        except HivemintError:
            self._told = True
            raise

    def crop(self, length: int) -> None:
        """See `Pipeline.crop`. The nodes learn of it by the lower start of the next step."""
        if not 0 <= length <= self._position:
            raise ValueError(f"cannot go back to {length}: {self._position} positions are cached")
        self._position = length

    async def _forward(self, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        count, width = hidden.shape
        if width != self._hidden_size or count < 1:
            raise ValueError(f"expected [count, {self._hidden_size}], got {tuple(hidden.shape)}")
        self._in_flight.check_usable()
        for session in self._sessions:
            session.admit(count, self._position + count)
        outputs: list[asyncio.Future[torch.Tensor]] = []
        at = 0
        while at < count:
            await self._in_flight.room(self._chunking.window(count))
            size = min(count - at, self._chunking.rows(count))
            want: RowMode = rows if rows == "all" or at + size == count else "none"
            output = await self._send(hidden[at : at + size], want)
            if output is not None:
                outputs.append(output)
            at += size
        tensors = [await self._in_flight.output(one) for one in outputs]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    async def settle(self) -> None:
        """Until no step is in flight and all receipts have been checked. Raises what broke the pipeline."""
        await self._in_flight.room(1)

    async def fork(self, parent: "LivePipeline", count: int) -> None:
        """Begin with the first `count` positions of a settled pipeline over the same nodes, before anything else.

        Nothing is computed and nothing paid for them. Raises SessionLimit where a node has them no more; then, as
        after any other error, only `close` may follow.
        """
        self._in_flight.check_usable()
        step = self._last = Step(1)
        self._position = count
        state = self._steps.add_fork(step, count)
        for hop, (session, its) in enumerate(zip(self._sessions, parent.sessions, strict=True)):
            await self._dispatch(hop, state, session.prepare_fork(step, its.newest, count))
        await self.settle()

    async def cancel(self) -> None:
        """See `Pipeline.cancel`."""
        if self._in_flight.error is None and self._closing is None:
            with contextlib.suppress(TimeoutError):  # a node that reads nothing learns it when the stream ends
                async with asyncio.timeout(FAREWELL):
                    await asyncio.gather(*(session.cancel() for session in self._sessions))

    async def close(self) -> None:
        """See `Pipeline.close`. Raises NodeLied if the last receipts do not hold."""
        if self._closing is None:
            self._in_flight.closing = True
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # ---- out

    async def _send(self, hidden: torch.Tensor, rows: RowMode) -> "asyncio.Future[torch.Tensor] | None":
        """One step: a request with its voucher to every hop, the tensor to the first."""
        step, start, count = Step(self._last + 1), self._position, hidden.shape[0]
        check_own(hidden, data := to_wire(hidden, self._wire), self._wire)
        try:
            paid = await self._source.take(step, count)
        except NodeLied as error:
            self._in_flight.fail(error)
            raise
        state = self._steps.add(step, start, count, rows, data)
        self._last, self._position = step, start + count
        requests = [self._prepare(hop, state, one) for hop, one in enumerate(paid)]
        for hop, request in enumerate(requests):
            await self._dispatch(hop, state, request)
        if count == 1:
            self._source.draw_ahead(self._position + 1, min(_DRAW_WITHIN, _DRAW_AFTER * self._nodes_time()))
        return state.output

    def _nodes_time(self) -> float:
        """Seconds that a step of decode takes at all nodes together, as measured here; 0 where nothing is known."""
        known = ((self._speeds.of(one.leg.peer).step or 0.0, one.session.blocks) for one in self._sessions)
        return sum(step * blocks for step, blocks in known)

    def _prepare(self, hop: int, state: StepState, paid: Paid) -> StepRequest:
        first, last = hop == 0, hop == len(self._sessions) - 1
        return self._sessions[hop].prepare(
            state.number, state.start, state.count, paid, first=first, last=last, rows=state.rows
        )

    async def _dispatch(self, hop: int, state: StepState, request: StepRequest) -> None:
        session = self._sessions[hop]
        try:
            self._in_flight.check_usable()  # while the voucher was drawn, a node may have been found lying
            async with asyncio.timeout(self._settings.step_timeout):
                await session.send(request, (state.data or None) if hop == 0 else None)  # a fork has no rows
        except TimeoutError:
            why = f"it read no request for {self._settings.step_timeout:g} s"
            self._in_flight.fail(NodeGone(session.leg, "takes nothing", why))
            self._in_flight.check_usable()
        except LinkClosed as error:
            self._in_flight.fail(NodeGone(session.leg, "went away", error.why or error.what))
            self._in_flight.check_usable()

    async def _send_again(self, hop: int, state: StepState) -> None:
        """The same step with a new voucher, to a node that has refused the first."""
        await self._dispatch(hop, state, self._prepare(hop, state, await self._source.again(hop, state.count)))

    # ---- the end

    async def _close(self) -> None:
        await self._in_flight.drain(_LAST_WORDS)
        await self._source.put_back()
        try:
            check_signatures([(session, session.proved) for session in self._sessions])
        except NodeLied as error:
            self._in_flight.fail(error)
        await asyncio.gather(*(session.close() for session in self._sessions))
        for session in self._sessions:
            self._speeds.opened(session.leg.peer, -1)
        await self._receiver.stop()
        self._in_flight.discard()
        if isinstance(self._in_flight.error, ProofError) and not self._told:
            raise self._in_flight.error
