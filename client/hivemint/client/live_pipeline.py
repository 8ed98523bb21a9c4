"""The pipeline over real sessions: one per hop, in step with each other, receipts checked beside the next token.

For each step every hop gets its own request; the tensor goes to the first hop, its output from
node to node, and the last hidden state comes back. It may be used at once: the receipts of a step are compared while
the caller samples, and their signatures checked before any voucher is signed that binds that step. In decode one step
is in flight, in prefill as many as all nodes of the route take.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import torch

from hivemint.client.handshake import NodeGone, NodeLied
from hivemint.client.pipeline import Rows
from hivemint.client.purse import Purse
from hivemint.client.route import Speeds
from hivemint.client.session import NodeSession, check_signatures
from hivemint.client.settings import ClientSettings
from hivemint.client.steps import Steps, StepState
from hivemint.contracts.errors import HivemintError, LinkClosed, ProofError, ProtocolError, SwarmError
from hivemint.contracts.ids import Step
from hivemint.contracts.receipt import SignedVoucher
from hivemint.swarm.messages import (
    AnyMessage,
    Cancelled,
    Closed,
    Code,
    Refused,
    RowMode,
    StepReceipt,
    StepRequest,
    Tensor,
)
from hivemint.swarm.rows import to_wire

_LAST_WORDS = 2.5
"""Seconds that a closing pipeline waits for receipts that are still due."""
_SECOND_HAND = 0.5
"""Seconds that a complaint about a neighbour waits for better news: the neighbour's own link may just have ended."""
_DRAW_AFTER, _DRAW_WITHIN = 1 / 3, 0.05
"""The part of the nodes' time for a step after which the next vouchers are drawn, and seconds at most."""
_ABOUT_A_NEIGHBOUR = (Code.MISSING, Code.INPUT)


class LivePipeline:
    """One sequence. Implements `client.pipeline.Pipeline`; made by `SwarmClient.open`, owned by one event loop."""

    def __init__(
        self,
        sessions: list[NodeSession],
        hidden_size: int,
        settings: ClientSettings,
        speeds: Speeds,
        purse: Purse,
        on_error: Callable[[HivemintError], None],
    ) -> None:
        self._sessions, self._hidden_size, self._settings = sessions, hidden_size, settings
        self._speeds, self._purse, self._on_error = speeds, purse, on_error
        self._wire = sessions[0].leg.wire
        self._position = 0
        self._last = Step(0)
        self._steps = Steps(sessions, hidden_size, self._wire, speeds)
        self._ahead = min(one.terms.ahead for one in sessions)
        self._max_rows = min(one.terms.max_rows for one in sessions)
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
    def open(self) -> bool:
        """False once `close` has been called."""
        return self._closing is None

    @property
    def sessions(self) -> tuple[NodeSession, ...]:
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
        for size, window in self._chunks(count):
            await self._room(window)
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
            await asyncio.gather(*(session.cancel() for session in self._sessions))

    async def close(self) -> None:
        """See `Pipeline.close`. Raises NodeLied if the last receipts do not hold."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    # ---- out

    def _chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """(rows, steps that may be in flight with it). Small enough that all nodes of the route work at once."""
        if count == 1:
            yield 1, 1
            return
        hops, smallest = len(self._sessions), self._settings.min_chunk
        wanted = -(-count // (self._settings.prefill_chunks * hops)) if hops > 1 else count
        size = min(max(wanted, smallest), self._max_rows)
        strangers = any(one.price and not self._speeds.knows(one.leg.peer) for one in self._sessions)
        left = count
        if strangers and self._last == 0 and left > smallest:
            yield min(smallest, size), 1
            left -= min(smallest, size)
            if left:  # nothing more until that node has delivered
                yield min(size, left), 1
                left -= min(size, left)
        while left:
            yield min(size, left), self._ahead
            left -= min(size, left)

    async def _send(self, hidden: torch.Tensor, rows: RowMode) -> "asyncio.Future[torch.Tensor] | None":
        """One step: a request with its voucher to every hop, the tensor to the first."""
        step, start, count = Step(self._last + 1), self._position, hidden.shape[0]
        try:
            vouchers = await self._purse.take(step, count)
        except NodeLied as error:
            self._fail(error)
            raise
        state = self._steps.add(step, start, count, rows, to_wire(hidden, self._wire))
        self._last, self._position = step, start + count
        requests = [self._prepare(hop, state, voucher) for hop, voucher in enumerate(vouchers)]
        for hop, request in enumerate(requests):
            await self._dispatch(hop, state, request)
        if count == 1:
            self._purse.draw_ahead(self._position + 1, min(_DRAW_WITHIN, _DRAW_AFTER * self._nodes_time()))
        return state.output

    def _nodes_time(self) -> float:
        """Seconds that a step of decode takes at all nodes together, as measured here; 0 where nothing is known."""
        known = ((self._speeds.of(one.leg.peer).step or 0.0, one.session.blocks) for one in self._sessions)
        return sum(step * blocks for step, blocks in known)

    def _prepare(self, hop: int, state: StepState, voucher: SignedVoucher) -> StepRequest:
        first, last = hop == 0, hop == len(self._sessions) - 1
        return self._sessions[hop].prepare(
            state.number, state.start, state.count, voucher, first=first, last=last, rows=state.rows
        )

    async def _dispatch(self, hop: int, state: StepState, request: StepRequest) -> None:
        session = self._sessions[hop]
        try:
            self._check_usable()  # while the voucher was drawn, a node may have been found lying
            await session.send(request, (state.data or None) if hop == 0 else None)  # a fork has no rows
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
                    self._fail_later(message.code, session.ended(message))
            case _:
                raise ProtocolError(f"A node sent a {type(message).__name__} in a session")

    async def _take_refusal(self, hop: int, message: Refused) -> None:
        session, state = self._sessions[hop], self._steps.open.get(message.step)
        error = session.refused(message)
        if error is None and state is not None:
            await self._dispatch(hop, state, self._prepare(hop, state, await self._purse.again(hop, state.count)))
        elif error is not None:
            self._fail_later(message.code, error)

    # ---- waiting and failing

    async def _room(self, window: int) -> None:
        """Until fewer than `window` steps are in flight, all their receipts checked. Raises what broke the pipeline."""
        self._check_usable()
        if len(self._steps.open) < window:
            return
        try:
            async with asyncio.timeout(self._settings.step_timeout):
                while len(self._steps.open) >= window:
                    self._news.clear()
                    await self._news.wait()
                    self._check_usable()
        except TimeoutError:
            raise self._too_slow() from None

    async def _output(self, output: "asyncio.Future[torch.Tensor]") -> torch.Tensor:
        try:
            async with asyncio.timeout(self._settings.step_timeout):
                return await output
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> HivemintError:
        """The first hop of the oldest step that has not answered is the one to blame."""
        leg = self._steps.suspect().leg
        self._fail(NodeGone(leg, "does not answer", f"no receipt within {self._settings.step_timeout:g} s"))
        return self._error or SwarmError("The pipeline is broken")

    def _check_usable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing is not None:
            raise SwarmError("The pipeline is closed", next_step="open a new one")

    def _fail_later(self, code: Code | None, error: HivemintError) -> None:
        """What a node says of its neighbour waits a moment, so that the node that really died is named."""
        if code in _ABOUT_A_NEIGHBOUR:
            self._loop.call_later(_SECOND_HAND, self._fail, error)
        else:
            self._fail(error)

    def _fail(self, error: HivemintError) -> None:
        """The first error is the one that counts."""
        if self._error is not None:
            return
        self._error = error
        self._on_error(error)
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
        await self._purse.put_back()
        try:
            check_signatures([(session, session.proved) for session in self._sessions])
        except NodeLied as error:
            self._fail(error)
        await asyncio.gather(*(session.close() for session in self._sessions))
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for state in self._steps.open.values():
            if state.output is not None:
                state.output.cancel()
        self._steps.open.clear()
        if isinstance(self._error, ProofError) and not self._told:
            raise self._error
