"""The pipeline over real sessions: one per hop, in step with each other, receipts checked beside the next token.

For each step every hop gets its own request; the tensor goes to the first hop, its output from node to node, and the
last hidden state comes back. It may be used at once: the receipts of a step are compared while the caller samples, and
their signatures checked before any voucher is signed that binds that step. In decode one step is in flight, in prefill
as many as all nodes of the route take.

A node that fails is replaced in the middle of it: what it had is computed again at another one, and nowhere else.
"""

import asyncio
from collections.abc import Callable, Sequence

import torch

from hivemint.client.kept import TextMark
from hivemint.client.pipeline import Misled, Plan, Rows
from hivemint.client.sessions.errors import NodeLied
from hivemint.client.sessions.pipelines.circuit import Circuit, Section
from hivemint.client.sessions.pipelines.faults import NodeSlow
from hivemint.client.sessions.pipelines.finite import check_own
from hivemint.client.sessions.pipelines.outputs import AwaitedOutputs, HandedOut
from hivemint.client.sessions.pipelines.recalled import RecalledPipeline, mark_of
from hivemint.client.sessions.pipelines.repair import Repair, Replacements
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.session import RemoteSession, check_signatures
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import HivemintError, ProofError, Refusal, SwarmError
from hivemint.swarm.rows import row_bytes, to_wire

_LAST_WORDS = 2.5
"""Seconds that a closing pipeline waits for receipts that are still due."""


class LivePipeline:
    """One sequence. Implements `client.pipeline.Pipeline`; made by `SwarmClient.open`, owned by one event loop."""

    def __init__(
        self,
        sessions: Sequence[RemoteSession],
        plan: Plan,
        hidden_size: int,
        settings: ClientSettings,
        speeds: Speeds,
        swarm: Replacements,
        on_error: Callable[[HivemintError], None],
    ) -> None:
        self._hidden_size, self.settings, self._speeds, self._on_error = hidden_size, settings, speeds, on_error
        self.plan, self._swarm = plan, swarm
        self._wire = sessions[0].leg.wire
        self._row_bytes = row_bytes(hidden_size, self._wire)
        self._position = 0
        self._inputs = bytearray()  # the client's own rows in wire form, for a first hop that is replaced
        self._circuit = self._new_circuit(sessions)
        for one in sessions:
            speeds.opened(one.leg.peer)
        self._repair = Repair(swarm, plan.tokens, settings, self._new_circuit)
        self.admit: Callable[[int], None] = lambda wei: None
        self._handed: HandedOut | None = None
        self._told: HivemintError | None = None  # the caller has been told what broke it
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
        return sum(one.price for one in self.sessions)

    @property
    def spent(self) -> int:
        """See `Pipeline.spent`."""
        return sum(one.spent for one in (*self.sessions, *self._repair.left))

    @property
    def signed(self) -> int:
        """See `Pipeline.signed`."""
        return sum(one.signed for one in (*self.sessions, *self._repair.left))

    @property
    def replayed(self) -> int:
        """See `Pipeline.replayed`."""
        return self._repair.replayed

    @property
    def paid_again(self) -> int:
        """See `Pipeline.paid_again`."""
        return self._repair.paid_again

    @property
    def open(self) -> bool:
        """False once `close` has been called."""
        return self._closing is None

    @property
    def sessions(self) -> tuple[RemoteSession, ...]:
        """Hop by hop: terms, newest checked receipt, what was spent."""
        return self._circuit.sessions

    @property
    def slow(self) -> NodeSlow | None:
        """See `Circuit.slow`."""
        return self._circuit.slow

    @property
    def inputs(self) -> bytearray:
        """The client's own rows of all positions, in wire form."""
        return self._inputs

    async def forward(self, hidden: torch.Tensor, *, rows: Rows = "last") -> torch.Tensor:
        """See `Pipeline.forward`."""
        count, width = hidden.shape
        if width != self._hidden_size or count < 1:
            raise ValueError(f"expected [count, {self._hidden_size}], got {tuple(hidden.shape)}")
        if self._closing is not None:
            raise SwarmError("The pipeline is closed", next_step="open a new one")
        start = self._position
        for session in self.sessions:
            session.admit(count, start + count)
        check_own(hidden, data := to_wire(hidden, self._wire), self._wire)
        self._inputs[start * self._row_bytes :] = data
        self._position = start + count
        wanted = AwaitedOutputs(start, self._position, rows)
        try:
            await self._leave_slow(wanted)
            while True:
                try:
                    output = await self._run(wanted)
                except (SwarmError, ProofError, Refusal) as failure:
                    await self._mend(failure, wanted)
                else:
                    self._repair.held()
                    self._handed = HandedOut(self._position - 1, output[-1], self.sessions[-1].leg)
                    return output
        except HivemintError as told:
            self._told = told
            raise

    def crop(self, length: int) -> None:
        """See `Pipeline.crop`. The nodes learn of it by the lower start of the next step."""
        if not 0 <= length <= self._position:
            raise ValueError(f"cannot go back to {length}: {self._position} positions are cached")
        self._position = length
        self._circuit.crop(length)
        for session in self.sessions:
            session.cached = min(session.cached, length)

    async def settle(self) -> None:
        """Until no step is in flight and all receipts have been checked. Raises what broke the pipeline."""
        await self._circuit.in_flight.room(1)

    async def fork(self, parent: "LivePipeline | RecalledPipeline", count: int) -> None:
        """Begin with the first `count` positions of a settled pipeline over the same nodes, before anything else.

        Nothing is computed and nothing paid for them. Raises SessionLimit where a node has them no more; then, as
        after any other error, only `close` may follow.
        """
        size = count * self._row_bytes
        self._inputs[:] = parent.inputs[:size].ljust(size, b"\0")
        self._position = count
        await self._circuit.fork(parent.sessions, count)

    async def mark(self) -> TextMark | None:
        """See `Swarm.mark`."""
        try:
            await self.settle()
        except HivemintError:  # whoever goes on with it is told
            return None
        return mark_of(self.sessions)

    async def cancel(self) -> None:
        """See `Pipeline.cancel`."""
        if self._circuit.in_flight.error is None and self._closing is None:
            await self._circuit.cancel()

    async def close(self) -> None:
        """See `Pipeline.close`. Raises NodeLied if the last receipts do not hold."""
        if self._closing is None:
            self._circuit.in_flight.closing = True
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    # ---- steps

    async def _run(self, wanted: AwaitedOutputs) -> torch.Tensor:
        """All parts that some hop lacks, from those that a replaced one has to catch up with to the newest."""
        circuit = self._circuit
        circuit.in_flight.check_usable()
        while (part := circuit.next_part(wanted.end)) is not None:
            if circuit.patched and part.hops == circuit.all:
                await circuit.prove_rest()
            await self._send(part, wanted)
        return await wanted.all(circuit.in_flight, circuit.sessions[-1].leg)

    async def _send(self, part: Section, wanted: AwaitedOutputs) -> None:
        """The next step of a part."""
        circuit, chunking = self._circuit, self._circuit.chunking(part)
        end = wanted.cut(part.start, part.end)
        await circuit.in_flight.room(chunking.window(end - part.start))
        count = min(end - part.start, chunking.rows(end - part.start))
        reaches_client = part.hops[-1] == circuit.all[-1]
        rows = wanted.rows(part.start, part.start + count) if reaches_client else "none"
        own = part.hops.start == 0
        at, size = part.start * self._row_bytes, count * self._row_bytes
        data = bytes(memoryview(self._inputs)[at : at + size]) if own else b""
        output = await circuit.send(part.hops, part.start, count, data, rows)
        if output is not None:
            wanted.expect(part.start, part.start + count, output)

    def _new_circuit(self, sessions: Sequence[RemoteSession]) -> Circuit:
        source: VoucherSource = self._swarm.vouchers(sessions)
        return Circuit(sessions, self._hidden_size, self.settings, self._speeds, source, self._on_error)

    # ---- a node that fails, or is slow

    async def _mend(self, error: HivemintError, wanted: AwaitedOutputs) -> None:
        """A new circuit with others in place of those that `error` names. Raises it if that can't be."""
        if isinstance(error, Misled):
            self._on_error(error)
            raise error
        self._replaced(await self._repair.mended(self._circuit, error, self.admit), wanted)

    async def _leave_slow(self, wanted: AwaitedOutputs) -> None:
        """Where a node is far slower than it publishes and another can take its place, that one does."""
        slow, circuit = self.slow, self._circuit
        broken = circuit.in_flight.error is not None
        if slow is None or broken or circuit.recalled or not self._swarm.another_way(slow):
            return
        try:
            await circuit.in_flight.room(1)
            self._replaced(await self._repair.replace(circuit, slow, self.admit), wanted)
        except (SwarmError, ProofError, Refusal) as failure:
            if circuit.in_flight.closing:  # it has been stopped: what went wrong behind that has to be mended
                await self._mend(failure, wanted)
            # else slow is better than nothing; and what is broken is mended by the next step

    def _replaced(self, sessions: Sequence[RemoteSession], wanted: AwaitedOutputs) -> None:
        before, last = {one.leg.peer for one in self.sessions}, self.sessions[-1]
        if last not in sessions:
            wanted.doubt(self._handed, last.length)
        circuit = self._circuit = self._new_circuit(sessions)
        circuit.crop(self._position)
        end = min(circuit.have[-1], wanted.lacks())
        self._repair.paid_again += circuit.have[-1] - end  # it has them, and what it sent was lost
        circuit.have[-1] = end
        for peer in before - {one.leg.peer for one in sessions}:
            self._speeds.opened(peer, -1)
        for peer in {one.leg.peer for one in sessions} - before:
            self._speeds.opened(peer)
        self.plan = self._swarm.plan_of(sessions, self.plan)

    # ---- the end

    async def _close(self) -> None:
        circuit = self._circuit
        await circuit.in_flight.drain(_LAST_WORDS)
        await circuit.source.put_back()
        try:
            check_signatures([(session, session.proved) for session in self.sessions])
        except NodeLied as error:
            circuit.in_flight.fail(error)
        await asyncio.gather(*(session.close() for session in self.sessions), self._repair.close())
        for session in self.sessions:
            self._speeds.opened(session.leg.peer, -1)
        await circuit.stop()
        broken = circuit.in_flight.error
        if isinstance(broken, ProofError) and broken is not self._told:
            raise broken
