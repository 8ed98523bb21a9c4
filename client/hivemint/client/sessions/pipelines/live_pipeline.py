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

from hivemint.client.pipeline import Rows
from hivemint.client.sessions.errors import NodeEquivocated, NodeGone, NodeLied
from hivemint.client.sessions.payer import Paid
from hivemint.client.sessions.pipelines.faults import Complaints, NodeSlow
from hivemint.client.sessions.pipelines.finite import check_own
from hivemint.client.sessions.pipelines.proofs import StepProofs, StepState
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import FAREWELL, RemoteSession, check_signatures
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, LinkClosed, ProofError, ProtocolError, SwarmError
from hivemint.protocol.ids import Step
from hivemint.swarm.messages import (
    AnyMessage,
    Cancelled,
    Closed,
    Refused,
    RowMode,
    StepReceipt,
    StepRequest,
    Tensor,
)
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
        hidden_size: int,
        settings: ClientSettings,
        speeds: Speeds,
        source: VoucherSource,
        on_error: Callable[[HivemintError], None],
    ) -> None:
        self._sessions, self._hidden_size, self._settings = sessions, hidden_size, settings
        self._speeds, self._source, self._on_error = speeds, source, on_error
        self._wire = sessions[0].leg.wire
        self._position = 0
        self._last = Step(0)
        self._steps = StepProofs(sessions, hidden_size, self._wire, speeds)
        self._complaints = Complaints(sessions, self._steps, self._fail)
        for one in sessions:
            speeds.opened(one.leg.peer)
        self._ahead = min(one.terms.limits.ahead for one in sessions)
        self._max_rows = min(one.terms.limits.rows for one in sessions)
        self._error: HivemintError | None = None
        self._told = False  # the caller has been told of it
        self._closing: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._readers = [self._loop.create_task(self._read(hop)) for hop in range(len(sessions))]

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
        self._check_usable()
        for session in self._sessions:
            session.admit(count, self._position + count)
        outputs: list[asyncio.Future[torch.Tensor]] = []
        at = 0
        while at < count:
            await self._room(self._window(count))
            size = min(count - at, self._chunk(count))
            want: RowMode = rows if rows == "all" or at + size == count else "none"
            output = await self._send(hidden[at : at + size], want)
            if output is not None:
                outputs.append(output)
            at += size
        tensors = [await self._output(one) for one in outputs]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    async def settle(self) -> None:
        """Until no step is in flight and all receipts have been checked. Raises what broke the pipeline."""
        await self._room(1)

    async def fork(self, parent: "LivePipeline", count: int) -> None:
        """Begin with the first `count` positions of a settled pipeline over the same nodes, before anything else.

        Nothing is computed and nothing paid for them. Raises SessionLimit where a node has them no more; then, as
        after any other error, only `close` may follow.
        """
        self._check_usable()
        step = self._last = Step(1)
        self._position = count
        state = self._steps.add_fork(step, count)
        for hop, (session, its) in enumerate(zip(self._sessions, parent.sessions, strict=True)):
            await self._dispatch(hop, state, session.prepare_fork(step, its.newest, count))
        await self.settle()

    async def cancel(self) -> None:
        """See `Pipeline.cancel`."""
        if self._error is None and self._closing is None:
            with contextlib.suppress(TimeoutError):  # a node that reads nothing learns it when the stream ends
                async with asyncio.timeout(FAREWELL):
                    await asyncio.gather(*(session.cancel() for session in self._sessions))

    async def close(self) -> None:
        """See `Pipeline.close`. Raises NodeLied if the last receipts do not hold."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    # ---- out

    def _strangers(self) -> bool:
        """Whether some node that is paid has not delivered anything to this client yet."""
        return any(one.price and not self._speeds.knows(one.leg.peer) for one in self._sessions)

    def _window(self, count: int) -> int:
        """Steps that may be in flight, of an input of `count` rows."""
        return 1 if count == 1 or self._strangers() else self._ahead

    def _chunk(self, count: int) -> int:
        """Rows of a step: small enough that all nodes of the route work at once, and smaller for strangers."""
        hops, smallest = len(self._sessions), self._settings.min_chunk
        wanted = -(-count // (self._settings.prefill_chunks * hops)) if hops > 1 else count
        return min(smallest if self._strangers() else max(wanted, smallest), self._max_rows)

    async def _send(self, hidden: torch.Tensor, rows: RowMode) -> "asyncio.Future[torch.Tensor] | None":
        """One step: a request with its voucher to every hop, the tensor to the first."""
        step, start, count = Step(self._last + 1), self._position, hidden.shape[0]
        check_own(hidden, data := to_wire(hidden, self._wire), self._wire)
        try:
            paid = await self._source.take(step, count)
        except NodeLied as error:
            self._fail(error)
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
            self._check_usable()  # while the voucher was drawn, a node may have been found lying
            async with asyncio.timeout(self._settings.step_timeout):
                await session.send(request, (state.data or None) if hop == 0 else None)  # a fork has no rows
        except TimeoutError:
            self._fail(NodeGone(session.leg, "takes nothing", f"it read no request for {self._limit}"))
            self._check_usable()
        except LinkClosed as error:
            self._fail(NodeGone(session.leg, "went away", error.why or error.what))
            self._check_usable()

    # ---- in

    async def _read(self, hop: int) -> None:
        """Hand every message of one link on, until it ends."""
        session = self._sessions[hop]
        try:
            while True:
                await self._hear(hop, await session.link.receive())
        except LinkClosed as error:
            session.closed.set()
            if self._closing is None or session.pending:
                self._fail(NodeGone(session.leg, "went away", error.why or error.what))
        except ProtocolError as error:
            self._fail(NodeGone(session.leg, "broke the protocol", f"{error.what}: {error.why}"))
        except NodeLied as error:
            self._fail(error)
        except ProofError as error:
            self._fail(session.lied(error))
        except HivemintError as error:  # our own book can't be written
            self._fail(error)

    async def _hear(self, hop: int, message: AnyMessage) -> None:
        session = self._sessions[hop]
        if isinstance(message, StepReceipt):
            session.heard = max(session.heard, message.receipt.receipt.step)
        if self._error is not None and isinstance(message, StepReceipt | Tensor):
            return  # nothing of this step can be proved any more
        match message:
            case StepReceipt():
                self._steps.receipt(hop, message)
                self._news.set()
            case Tensor():
                self._steps.output(hop, message)
            case Refused():
                await self._take_refusal(hop, message)
            case Cancelled():
                for step in [step for step in session.pending if step > message.last]:
                    session.drop(step)
                self._news.set()
            case Closed():
                session.closed.set()
                if self._closing is None:
                    self._complaints.hear(hop, session.ended(message))
            case _:
                raise ProtocolError(f"A node sent a {type(message).__name__} in a session")

    async def _take_refusal(self, hop: int, message: Refused) -> None:
        session, state = self._sessions[hop], self._steps.open.get(message.step)
        await self._source.put_back()  # what has not left is no debt that a node could speak of
        error = await session.refused(message)
        if error is None and state is not None and self._error is None:
            await self._dispatch(hop, state, self._prepare(hop, state, await self._source.again(hop, state.count)))
        elif error is not None:
            self._complaints.hear(hop, error, message.evidence)

    # ---- waiting and failing

    async def _room(self, window: int) -> None:
        """Until fewer than `window` steps are in flight, all their receipts checked. Raises what broke the pipeline."""
        self._check_usable()
        if len(self._steps.open) < window:
            return
        while len(self._steps.open) >= window:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._time_left()):
                    await self._news.wait()
            self._check_usable()

    async def _output(self, output: "asyncio.Future[torch.Tensor]") -> torch.Tensor:
        while not output.done():
            await asyncio.wait((output,), timeout=self._time_left())
        return output.result()

    def _time_left(self) -> float:
        """Seconds for the oldest step, all that comes of it included. Raises what ends the pipeline when it is late."""
        if (left := self._steps.due(self._settings.step_timeout) - self._loop.time()) > 0:
            return left
        late = self._sessions[self._steps.unanswered() or 0]
        self._fail(NodeGone(late.leg, "does not answer", f"no receipt within {self._limit}"))
        raise self._error or SwarmError("The pipeline is broken")

    @property
    def _limit(self) -> str:
        return f"{self._settings.step_timeout:g} s"

    def _check_usable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing is not None:
            raise SwarmError("The pipeline is closed", next_step="open a new one")

    def _fail(self, error: HivemintError) -> None:
        """The first error is the one that counts; an equivocation is told whatever has gone wrong before."""
        if self._error is None or isinstance(error, NodeEquivocated):
            self._on_error(error)
        if self._error is not None:
            return
        self._error = error
        for state in self._steps.open.values():
            if state.output is not None and not state.output.done():
                state.output.set_exception(error)
                state.output.exception()  # retrieved here, in case nobody waits for it any more
        self._news.set()

    # ---- the end

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                while self._error is None and any(session.pending for session in self._sessions):
                    self._news.clear()
                    await self._news.wait()
        await self._source.put_back()
        try:
            check_signatures([(session, session.proved) for session in self._sessions])
        except NodeLied as error:
            self._fail(error)
        await asyncio.gather(*(session.close() for session in self._sessions))
        self._complaints.close()
        for session in self._sessions:
            self._speeds.opened(session.leg.peer, -1)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for state in self._steps.open.values():
            if state.output is not None:
                state.output.cancel()
        self._steps.open.clear()
        if isinstance(self._error, ProofError) and not self._told:
            raise self._error
