"""The life of one step, from the accepted request to the receipt that leaves, in five verbs:

input    from the client, or pushed by the previous node
compute  in a batch with others
confirm  meanwhile: the previous node's receipt, which followed its tensor and must be of it
deliver  the tensor leaves for the next node and, if asked for, for the client; the step's number is used up
sign     rows hashed, leaf chained, signed; leaves when the journal has the voucher of the request (P11)
"""

import asyncio
from collections.abc import Callable, Hashable

import torch

from hivemint.node.engine.scheduler import Lane, weight_of
from hivemint.node.engine.seats import Seat
from hivemint.node.engine.step_job import StepJob
from hivemint.node.sessions.services import Services
from hivemint.node.sessions.session import ServedSession, TakenStep
from hivemint.node.sessions.steps.entries import JournalEntries
from hivemint.node.sessions.steps.inputs import Awaited, Inputs, Pushed
from hivemint.node.sessions.steps.outputs import Outputs
from hivemint.node.unable import StepFailed
from hivemint.protocol.errors import ProtocolError
from hivemint.protocol.ids import BACKWARD, FORWARD, TensorHash
from hivemint.swarm.messages import Code, HopReceipt, StepReceipt, StepRequest, Tensor, TensorHead
from hivemint.swarm.rows import check_finite, from_wire, row_bytes, tensor_hash

Rows = bytes | memoryview


class StepService:
    """What the lives of one session's steps have in common. A step that fails raises Unable: nothing of it counts."""

    def __init__(
        self,
        services: Services,
        session: ServedSession,
        seat: Seat,
        inputs: Inputs,
        outputs: Outputs,
        entries: JournalEntries,
        *,
        wire: str,
        flow: Hashable,
        used: Callable[[], None],
    ) -> None:
        """`flow`: what its compute is shared out by in the donated lane. `used` hears of each signed step."""
        self.services, self.session, self.seat = services, session, seat
        self.inputs, self.outputs, self.entries, self.used = inputs, outputs, entries, used
        self.row_bytes = row_bytes(services.hidden_size, wire)
        self.entering, self.leaving = asyncio.Lock(), asyncio.Lock()  # both first come, first served
        self._wire, self._flow = wire, flow

    def width(self, request: StepRequest) -> int:
        """Bytes of an input row: a backward step's is a state followed by a gradient."""
        return self.row_bytes * (2 if request.kind == BACKWARD else 1)

    def stands(self, step: TakenStep) -> bool:
        """False: an earlier step failed and took it along, or has left and could not be signed: none may follow it.

        Asked where steps leave, one after the other.
        """
        unsigned = any(one.sealed for one in self.session.pending if one.number < step.number)
        return self.session.steps.get(step.number) is step and not unsigned

    async def serve(self, step: TakenStep, awaited: Awaited) -> None:
        confirmed: asyncio.Task[TensorHash] | None = None
        try:
            async with self.entering:
                data = await self.inputs.read(awaited, step.request.count * self.width(step.request))
                queued = self._enqueue(step, data)
            confirmed = asyncio.create_task(self._confirm(step, data, awaited))
            output = await self.services.engine.finish(queued)
            # Steps come here in order; whatever takes longer for one than for the next is behind it.
            async with self.leaving:
                encoded = await self._encode(output)
                step.input_hash = await confirmed
                if self.stands(step):
                    stored = await self._deliver(step, encoded)
                    await self._sign(step, step.input_hash, encoded, stored)
        finally:
            if confirmed is not None:
                confirmed.add_done_callback(lambda task: task.cancelled() or task.exception())
                confirmed.cancel()

    def _enqueue(self, step: TakenStep, data: Rows) -> StepJob:
        session, request, services = self.session, step.request, self.services
        passes = 2 if request.kind == BACKWARD else 1
        try:
            hidden = from_wire(data, request.count, passes * services.hidden_size, self._wire, services.dtype)
            check_finite(hidden)  # as computed with: what is wide on the wire may not fit
        except ProtocolError as error:
            raise StepFailed(Code.INPUT, error.what, error.why, error.next_step) from None
        flow = self._flow if session.lane is Lane.DONATED else session.session_id
        weight = weight_of(session.terms.price, services.offer.price(session.terms))
        step.job = job = StepJob(
            session.lane,
            flow,
            session.session_id,
            passes * request.count,
            weight,
            seat=self.seat,
            start=request.start,
            hidden=hidden,
            backward=request.kind == BACKWARD,
        )
        self.seat.waits -= 1  # it has its input: from here on it counts as busy
        self.seat.busy += 1
        services.engine.enqueue(job)
        return job

    async def _encode(self, output: torch.Tensor) -> bytes:
        """The output in wire form. What is no number is not sent, signed or owed: it would pass for a token."""
        try:
            return await self.services.meter.encode(output, self._wire)
        except ProtocolError as error:
            what, next_step = "The step's output is not finite", "try another node, or another input"
            raise StepFailed(Code.FAILED, what, error.why, next_step) from None

    async def _confirm(self, step: TakenStep, data: Rows, awaited: Awaited) -> TensorHash:
        """While the step is computed: what its leaf says of the input, and whether that is the neighbour's word."""
        rows = await self.services.meter.hash_rows(data, self.width(step.request))
        if isinstance(awaited, Pushed) and not awaited.once_more:
            await self.inputs.confirm(awaited, tensor_hash(rows))
        return tensor_hash(rows + self.session.adapter)

    async def _deliver(self, step: TakenStep, data: bytes) -> "asyncio.Task[None]":
        """The tensor leaves first, as the next node need not wait for its proof; then the journal hears of the voucher.

        Written before the compute, the entry would take the interpreter from the compute's dispatch (1 ms a token).
        """
        request = step.request
        self.session.seal(step)
        self.used()
        if self.outputs.next is not None and request.kind == FORWARD:
            paid = self.session.lane is Lane.PAID
            self.services.kept.keep(self.session.session_id, request.start, data, self.row_bytes, paid=paid)
        head = TensorHead(step.number, self.session.session_id)
        if request.rows != "none":
            step.tensor = Tensor(head, data if request.rows == "all" else memoryview(data)[-self.row_bytes :])
        try:
            await self.outputs.send(request, Tensor(head, data), step.tensor)
        finally:  # a client that hangs up now has paid for this step all the same
            stored = self.entries.begin(step.price, step.pair)
        return stored

    async def _sign(self, step: TakenStep, given: TensorHash, data: bytes, stored: "asyncio.Task[None]") -> None:
        """The receipt leaves when the journal has the voucher (P11)."""
        session, services = self.session, self.services
        await asyncio.sleep(0)  # the journal's thread writes while the receipt is made here
        measured, receipt = await services.meter.prove(session.receipt.body, step.request, given, data)
        await stored
        answer = StepReceipt(receipt.signed, measured.rows)
        session.answer(step, receipt, answer)
        await self.outputs.prove(step.request, HopReceipt(receipt.signed, measured.leaf), answer)
