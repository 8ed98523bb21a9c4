"""The life of each step of one session, from the accepted request to the receipt that leaves.

    input    from the client, or pushed by the previous node
    compute  in a batch with others
    confirm  meanwhile: the previous node's receipt, which followed its tensor and must be of it
    tensor   leaves for the next node and, if asked for, for the client; the step's number is used up
    receipt  rows hashed, leaf chained, signed; leaves when the journal has the voucher of the request (P11)

A step that fails before its tensor leaves costs nothing and takes the steps behind it along.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import structlog
import torch

from hivemint.contracts.errors import HivemintError, LinkClosed, ProofError, ProtocolError, SwarmError
from hivemint.contracts.ids import BACKWARD, FORK, Address, SessionId, Step, TensorHash
from hivemint.contracts.receipt import Countersigned, Leaf, following, fork
from hivemint.ledger.entries import Entry
from hivemint.ledger.journal import Journal
from hivemint.node.admission import Offer
from hivemint.node.backward import NoMemory
from hivemint.node.engine import ComputeFailed, Engine, StepJob
from hivemint.node.kv_cache import OutOfRoom
from hivemint.node.metering import Meter, Source
from hivemint.node.push import Arrival, Inbox, Outlets
from hivemint.node.room import Seat
from hivemint.node.scheduler import Job, Lane, weight_of
from hivemint.node.session import ServedSession, TakenStep
from hivemint.swarm.link import Link
from hivemint.swarm.messages import (
    Code,
    HopReceipt,
    Peer,
    Previous,
    Refused,
    StepReceipt,
    StepRequest,
    Tensor,
    TensorHead,
)
from hivemint.swarm.rows import from_wire, row_bytes, tensor_hash

log = structlog.get_logger(__name__)
INPUT_LIMIT = 30.0
"""Seconds that a step waits for its input; the nodes before may be busy."""
RECEIPT_LIMIT = 5.0
"""Seconds by which a neighbour's receipt may follow its tensor."""


class Stats(Protocol):
    """What is counted: refusals by reason, and tensors that left, by whom they went to."""

    def refused(self, code: Code) -> None: ...
    def sent(self, to: Literal["next", "client"]) -> None: ...


@dataclass(frozen=True)
class Shop:
    """What the steps of all sessions share."""

    offer: Offer
    engine: Engine
    meter: Meter
    journal: Journal
    inbox: Inbox
    outlets: Outlets
    hidden_size: int
    dtype: torch.dtype
    stats: Stats
    seats: dict[SessionId, Seat] = field(default_factory=dict)
    """K/V room of every open session."""


class StepFailed(HivemintError):
    """An accepted step that can't be done. Nothing is owed for it."""

    def __init__(self, code: Code, what: str, why: str = "", next_step: str = "", retry_after: float = 0.0) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.code, self.retry_after = code, retry_after


@dataclass(eq=False, slots=True)
class _Pushed:
    """A step's input from the previous node, and what it must prove to be."""

    arrival: Arrival
    source: Source


class Steps:
    """All steps of one session. `broken` is told of errors that are nobody's message."""

    def __init__(
        self, shop: Shop, link: Link, session: ServedSession, seat: Seat, wire: str,
        broken: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self.previous: Previous | None = None
        self.next: Peer | None = None
        self._shop, self._link, self.session, self._seat, self._wire = shop, link, session, seat, wire
        self._broken = broken
        self._row_bytes = row_bytes(shop.hidden_size, wire)
        self._told = Step(0)  # the newest receipt that the journal knows of
        self._tasks: dict[Step, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._inputs: dict[Step, asyncio.Future[Tensor]] = {}
        self._entering, self._leaving = asyncio.Lock(), asyncio.Lock()  # both first come, first served

    # ---- asked by the conversation

    def check_route(self, request: StepRequest) -> Refused | None:
        """A step that comes from or goes to a neighbour needs a Route that named it."""
        if request.source is not None and self.previous is None:
            return self.session.refused(request, Code.INPUT, "No Route has named a previous node", "", "send a Route")
        if request.push and self.next is None:
            return self.session.refused(request, Code.MISSING, "There is no link to a next node", "", "send a Route")
        return None

    def begin(self, step: TakenStep) -> None:
        """The request was taken: the step goes its way."""
        request, pushed = step.request, None
        if request.kind == FORK:
            self._begin_fork(step)
            return
        if request.source is None or self.previous is None:
            self._inputs[step.number] = asyncio.get_running_loop().create_future()
        else:
            source = Source(Address(self.previous.operator), SessionId(self.previous.session), request.source)
            pushed = _Pushed(self._shop.inbox.want(source.session, source.step), source)
        self._seat.busy += 1
        self._tasks[step.number] = self._spawn(self._serve(step, pushed))

    def give(self, tensor: Tensor) -> None:
        """A client's input. One that no step waits for belongs to a refused request."""
        waiting = self._inputs.get(tensor.head.step)
        if waiting is not None and not waiting.done():
            waiting.set_result(tensor)

    def drop(self, first: Step, *, begun: bool = False) -> list[TakenStep]:
        """Take back the steps from `first` on that have not begun; nothing is owed for them, their vouchers stay."""
        gone = self.session.drop(first, begun=begun)
        for step in gone:
            self._spawn(self.store(0, step.pair))
            task = self._tasks.get(step.number)
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        return gone

    def repeat(self, step: TakenStep, request: StepRequest) -> None:
        """The same request again: the stored answer, if the input is the same too."""
        waiting = None
        if request.source is None and request.kind != FORK:  # the tensor follows at once: there must be a place
            waiting = self._inputs.setdefault(step.number, asyncio.get_running_loop().create_future())
        self._spawn(self._repeat(step, request, waiting))

    async def finish(self) -> None:
        """Until all steps have their answers."""
        await asyncio.gather(*list(self._tasks.values()), return_exceptions=True)

    async def settle(self) -> None:
        """Until nothing of this session is under way, the journal's entries included; it learns of the last receipt."""
        await self.finish()
        if self._told != self.session.receipt.receipt.step:
            self._spawn(self.store(0, None))
        while self._tasks or self._background:
            await asyncio.gather(*list(self._tasks.values()), *list(self._background), return_exceptions=True)

    async def refuse(self, refused: Refused) -> None:
        self._shop.stats.refused(refused.code)
        await self._link.send(refused)

    async def store(self, price: int, pair: Countersigned | None) -> None:
        """A change of the sum owed, and a voucher, into the journal; durable when it returns."""
        session, signed = self.session, self.session.receipt.receipt
        self._told = signed.step
        owed = session.account.entered(price)
        await self._shop.journal.record(
            Entry(session.terms.client, session.session_id, owed, pair, signed.step, signed.tokens)
        )

    # ---- the life of a step

    async def _serve(self, step: TakenStep, pushed: _Pushed | None) -> None:
        beside: asyncio.Task[None] | None = None
        try:
            async with self._entering:
                data = await self._input(step, pushed)
                queued = self._enqueue(step, data)
            beside = asyncio.create_task(self._beside(step, data, pushed))
            output = await self._computed(queued)
            async with self._leaving:
                await beside
                if self.session.steps.get(step.number) is step:  # else an earlier one failed and took it along
                    await self._answer(step, output)
        except StepFailed as failed:
            await self._fail(step, failed)
        finally:
            if beside is not None:
                beside.add_done_callback(lambda task: task.cancelled() or task.exception())
                beside.cancel()
            self._tasks.pop(step.number, None)
            self._inputs.pop(step.number, None)
            if pushed is not None:
                self._shop.inbox.done(pushed.source.session, pushed.source.step)
            self._seat.busy -= 1

    async def _input(self, step: TakenStep, pushed: _Pushed | None) -> bytes | memoryview:
        """The rows in wire form."""
        expected = step.request.count * self._width(step.request)
        waiting = self._inputs[step.number] if pushed is None else pushed.arrival.tensor
        if not waiting.done():  # a client's own comes with its request
            try:
                async with asyncio.timeout(INPUT_LIMIT):
                    await asyncio.shield(waiting)
            except TimeoutError:
                raise StepFailed(
                    Code.MISSING, "The step's input did not come", f"waited {INPUT_LIMIT:.0f} s",
                    "replace the node before",
                ) from None  # fmt: skip
        tensor = waiting.result()
        if len(tensor.data) != expected:
            raise StepFailed(
                Code.INPUT, "The input has the wrong size", f"expected {expected} bytes, got {len(tensor.data)}"
            )
        return tensor.data

    def _width(self, request: StepRequest) -> int:
        """Bytes of an input row: a backward step's is a state followed by a gradient."""
        return self._row_bytes * (2 if request.kind == BACKWARD else 1)

    def _enqueue(self, step: TakenStep, data: bytes | memoryview) -> StepJob:
        session, request, shop = self.session, step.request, self._shop
        passes = 2 if request.kind == BACKWARD else 1
        try:
            hidden = from_wire(data, request.count, passes * shop.hidden_size, self._wire, shop.dtype)
        except ProtocolError as error:
            raise StepFailed(Code.INPUT, error.what, error.why, error.next_step) from None
        flow: object = self._link.peer if session.lane is Lane.FREE else session.session_id
        weight = weight_of(session.terms.price, shop.offer.price(session.terms))
        step.job = Job(session.lane, flow, session.session_id, passes * request.count, weight)
        if request.kind == BACKWARD:
            return shop.engine.enqueue_backward(step.job, self._seat, hidden)
        return shop.engine.enqueue(step.job, self._seat, request.start, hidden)

    async def _computed(self, queued: StepJob) -> torch.Tensor:
        try:
            return await self._shop.engine.finish(queued)
        except (OutOfRoom, NoMemory) as error:
            raise StepFailed(Code.BUSY, error.what, error.why, error.next_step, 1.0) from None
        except ComputeFailed as error:
            raise StepFailed(Code.FAILED, error.what, error.why, error.next_step) from None

    async def _beside(self, step: TakenStep, data: bytes | memoryview, pushed: _Pushed | None) -> None:
        """While the step is computed: what its leaf says of the input, and whether that is the neighbour's word."""
        rows = await self._shop.meter.hash_rows(data, self._width(step.request))
        step.input_hash = tensor_hash(rows + self.session.adapter)
        if pushed is not None:
            await self._confirm(pushed, tensor_hash(rows))

    async def _confirm(self, pushed: _Pushed, given: TensorHash) -> None:
        """The neighbour must have signed for the tensor that it gave, before anything of this step leaves."""
        try:
            async with asyncio.timeout(RECEIPT_LIMIT):
                word = await asyncio.shield(pushed.arrival.receipt)
            await self._shop.meter.check_hop(pushed.source, given, word.leaf, word.receipt)
        except TimeoutError:
            raise StepFailed(
                Code.MISSING, "The neighbour's receipt did not come", f"waited {RECEIPT_LIMIT} s"
            ) from None
        except ProofError as error:
            raise StepFailed(Code.INPUT, error.what, error.why, "set aside both ends of that link") from None

    async def _answer(self, step: TakenStep, output: torch.Tensor) -> None:
        """The tensor leaves first, as the next node need not wait for its proof; then the journal hears of the voucher,
        and only then the receipt leaves (P11).

        Written before the compute, the entry would take the interpreter from the compute's dispatch (1 ms a token).
        """
        session, request, shop = self.session, step.request, self._shop
        if step.input_hash is None:
            raise RuntimeError("a step was computed whose input nobody has hashed")
        session.seal(step)
        data = await shop.meter.encode(output, self._wire)
        head = TensorHead(step.number, session.session_id)
        try:
            if request.push:
                await self._push(Tensor(head, data))
            if request.rows != "none":
                step.tensor = Tensor(head, data if request.rows == "all" else memoryview(data)[-self._row_bytes :])
                await self._link.send(step.tensor)
        finally:  # a client that hangs up now has paid for this step all the same
            stored = self._spawn(self.store(step.price, step.pair))
        await asyncio.sleep(0)  # the journal's thread writes while the receipt is made here
        previous = session.receipt.receipt
        measured = await shop.meter.measure(previous.head, request, step.input_hash, data)
        receipt = await shop.meter.sign(following(previous, measured.leaf))
        await stored
        account = session.account
        answer = StepReceipt(receipt.signed, measured.rows, account.highest, account.owed)
        session.answer(step, receipt, answer)
        if request.push:
            await self._push(HopReceipt(receipt.signed, measured.leaf))
            shop.stats.sent("next")
        await self._link.send(answer)
        if request.rows != "none":
            shop.stats.sent("client")

    def _begin_fork(self, step: TakenStep) -> None:
        """All that is asked of the parent is settled here, before anybody else's turn: its state is the one named."""
        session, shop, count = self.session, self._shop, step.request.count
        parent = session.parent(step.request)
        if parent is None:
            raise RuntimeError("a fork was taken without its parent")
        try:
            copied: asyncio.Future[None] = shop.engine.fork(shop.seats[parent.session_id], self._seat, count)
        except OutOfRoom as error:
            copied = asyncio.get_running_loop().create_future()
            copied.set_exception(error)
        leaf = fork(session.receipt.receipt, parent.receipt.receipt, count)
        self._seat.busy += 1
        self._tasks[step.number] = self._spawn(self._serve_fork(step, leaf, copied))

    async def _serve_fork(self, step: TakenStep, leaf: Leaf, copied: "asyncio.Future[None]") -> None:
        """Nothing is computed and nothing owed; the receipt binds what the K/V came from."""
        session = self.session
        try:
            async with self._entering:  # the steps behind it begin on what was copied
                await self._copied(copied)
            async with self._leaving:
                if session.steps.get(step.number) is step:
                    session.seal(step)
                    await self.store(0, step.pair)
                    signed = await self._shop.meter.sign(following(session.receipt.receipt, leaf))
                    answer = StepReceipt(signed.signed, b"", session.account.highest, session.account.owed)
                    session.answer(step, signed, answer)
                    await self._link.send(answer)
        except StepFailed as failed:
            await self._fail(step, failed)
        finally:
            self._tasks.pop(step.number, None)
            self._seat.busy -= 1

    async def _copied(self, copied: "asyncio.Future[None]") -> None:
        try:
            await asyncio.shield(copied)
        except OutOfRoom as error:
            raise StepFailed(Code.BUSY, error.what, error.why, error.next_step, 1.0) from None
        except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for all of its own
            raise StepFailed(Code.FAILED, "The device failed at this fork", str(error), "try another node") from None

    async def _push(self, message: Tensor | HopReceipt) -> None:
        """A broken link to the next node is the client's to replace: it gets this node's receipt all the same."""
        try:
            if self.next is not None:
                await self._shop.outlets.send(self.next, message)
        except SwarmError as error:
            log.info("the next node is gone", reason=str(error))
            self.next = None

    async def _fail(self, step: TakenStep, failed: StepFailed) -> None:
        if self.drop(step.number, begun=True):
            session = self.session
            await self.refuse(
                Refused(
                    failed.code, failed.what[:400], failed.why[:400], failed.next_step[:400], step.number,
                    failed.retry_after, session.length, session.account.highest, session.account.owed,
                )
            )  # fmt: skip

    async def _repeat(self, step: TakenStep, request: StepRequest, waiting: "asyncio.Future[Tensor] | None") -> None:
        if waiting is not None:
            data = (await asyncio.shield(waiting)).data
            rows = await self._shop.meter.hash_rows(data, self._width(request))
            if step.answer is not None and step.input_hash != tensor_hash(rows + self.session.adapter):
                self._inputs.pop(step.number, None)
                return await self.refuse(self.session.refused(request, Code.CONFLICT, "The step had another input"))
        if step.answer is not None:  # else it is under way and answers by itself
            self._inputs.pop(step.number, None)
            await self._link.send(*([step.tensor] if step.tensor else []), step.answer)
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LinkClosed):
            self._broken(error)
