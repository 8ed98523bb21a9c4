"""Steps on their way through a route, and what proves them: receipts and row hashes, hop by hop, step by step."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hivemint.client.route import Speeds
from hivemint.client.session import NodeSession
from hivemint.contracts.errors import ProofError, ProtocolError
from hivemint.contracts.ids import Step
from hivemint.swarm.messages import RowMode, StepReceipt, Tensor
from hivemint.swarm.rows import HASH_SIZE, from_wire, row_bytes, row_hashes


@dataclass(eq=False, slots=True)
class StepState:
    """One step on its way. `hashes[i]` are the row hashes of hop i's input, as far as they are known."""

    number: Step
    start: int
    count: int
    rows: RowMode
    data: bytes
    output: "asyncio.Future[torch.Tensor] | None"
    hashes: list[bytes]
    sent: float
    arrived: dict[int, StepReceipt] = field(default_factory=dict)
    output_rows: bytes | None = None
    times: list[float] = field(default_factory=list)


class Steps:
    """The steps of one pipeline that are not proved yet, oldest first.

    The client knows its own input; each hop's row hashes give the next hop's input hash; so every head along the
    route is derived here, and no inner tensor is seen. A step is proved when the receipts of all hops fit.
    """

    def __init__(self, sessions: Sequence[NodeSession], hidden_size: int, wire: str, speeds: Speeds) -> None:
        self._sessions, self._hidden_size, self._wire, self._speeds = sessions, hidden_size, wire, speeds
        self._row_bytes = row_bytes(hidden_size, wire)
        self._loop = asyncio.get_running_loop()
        self.open: dict[Step, StepState] = {}

    def add(self, number: Step, start: int, count: int, rows: RowMode, data: bytes) -> StepState:
        """A step about to be sent; `data` are the wire bytes of its input."""
        output = self._loop.create_future() if rows != "none" else None
        first = row_hashes(data, self._row_bytes)
        state = StepState(number, start, count, rows, data, output, [first], self._loop.time())
        self.open[number] = state
        return state

    def add_fork(self, number: Step, count: int) -> StepState:
        """A step without rows: no hop's receipt waits for another's."""
        state = StepState(number, 0, count, "none", b"", None, [b""], self._loop.time())
        self.open[number] = state
        return state

    def suspect(self) -> NodeSession:
        """The hop that the oldest step waits for."""
        state = next(iter(self.open.values()), None)
        return self._sessions[min(len(state.hashes), len(self._sessions)) - 1 if state else 0]

    def receipt(self, hop: int, message: StepReceipt) -> None:
        """Keep a receipt, then check all whose inputs are known: hop by hop, step by step."""
        state = self.open.get(message.receipt.receipt.step)
        if state is None or hop in state.arrived or message.receipt.receipt.step not in self._sessions[hop].pending:
            raise ProofError("A receipt came that nobody asked for", why=f"step {message.receipt.receipt.step}")
        state.arrived[hop] = message
        for one in list(self.open.values()):
            while (at := len(one.hashes) - 1) < len(self._sessions) and at in one.arrived:
                if self._sessions[at].newest.receipt.step != one.number - 1:
                    break
                self._check(one, at)
            if len(one.hashes) > len(self._sessions):
                del self.open[one.number]
                for session in self._sessions:
                    session.prove(one.number)
                self._learn(one)

    def _check(self, state: StepState, hop: int) -> None:
        """One receipt of one step. A fault is this hop's or that of the one whose output it took."""
        session, message = self._sessions[hop], state.arrived[hop]
        try:
            state.hashes.append(session.take(message, state.hashes[hop]))
            if hop == len(self._sessions) - 1 and state.rows != "none":
                expected = message.rows if state.rows == "all" else message.rows[-HASH_SIZE:]
                if state.output_rows is None:
                    raise ProofError("A receipt came without the output that was asked for")
                if state.output_rows != expected:
                    raise ProofError("The output is not the one that its node signed for", why=f"step {state.number}")
        except ProofError as error:
            before = self._sessions[max(0, hop - 1) : hop] if state.data else ()
            raise session.lied(error, *before) from None
        state.times.append(self._loop.time())

    def output(self, hop: int, message: Tensor) -> None:
        """The last hidden state: the caller may have it at once, its hash waits for the receipt."""
        state = self.open.get(message.head.step)
        if hop != len(self._sessions) - 1 or state is None or state.output is None or state.output_rows is not None:
            raise ProtocolError("A node sent a tensor that nobody asked for", why=f"step {message.head.step}")
        count = state.count if state.rows == "all" else 1
        tensor = from_wire(message.data, count, self._hidden_size, self._wire, torch.float32)
        state.output_rows = row_hashes(message.data, self._row_bytes)
        if not state.output.done():
            state.output.set_result(tensor)

    def _learn(self, state: StepState) -> None:
        """Times of decode steps, hop by hop: from one hop's receipt to the next one's."""
        if state.count != 1 or not state.data:
            return
        before = state.sent
        for session, at in zip(self._sessions, state.times, strict=True):
            self._speeds.step(session.leg.peer, at - before, session.session.blocks)
            before = at
