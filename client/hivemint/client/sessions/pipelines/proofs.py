"""Steps on their way through a route, and what proves them: receipts and row hashes, hop by hop, step by step."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hivemint.client.sessions.pipelines.finite import check_theirs
from hivemint.client.sessions.session import RemoteSession
from hivemint.client.sessions.speeds import Speeds
from hivemint.protocol.errors import ProofError, ProtocolError
from hivemint.protocol.ids import Step
from hivemint.protocol.receipt import SignedReceipt
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


class StepProofs:
    """The steps of one pipeline that are not proved yet, oldest first.

    The client knows its own input; each hop's row hashes give the next hop's input hash; so every head along the
    route is derived here, and no inner tensor is seen. A step is proved when the receipts of all hops fit.
    """

    def __init__(self, sessions: Sequence[RemoteSession], hidden_size: int, wire: str, speeds: Speeds) -> None:
        self._sessions, self._hidden_size, self._wire, self._speeds = sessions, hidden_size, wire, speeds
        self._row_bytes = row_bytes(hidden_size, wire)
        self._loop = asyncio.get_running_loop()
        self._free = [0.0] * len(sessions)  # since when each hop is done with the step before
        self._moved = 0.0
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

    def receipt_of(self, hop: int, step: Step) -> SignedReceipt | None:
        """What a hop has answered here for a step that is not proved yet, or for its newest one."""
        if (state := self.open.get(step)) is not None and hop in state.arrived:
            return state.arrived[hop].receipt
        newest = self._sessions[hop].newest
        return newest.signed if newest.step == step else None

    def unanswered(self) -> int | None:
        """The first hop that has sent no receipt for the oldest step; None: no step is open, or all have."""
        state = next(iter(self.open.values()), None)
        return next((hop for hop in range(len(self._sessions)) if state and hop not in state.arrived), None)

    def age(self, step: Step) -> float:
        """Seconds since a step was sent; of the oldest one, if that one is not open."""
        state = self.open.get(step) or next(iter(self.open.values()), None)
        return self._loop.time() - state.sent if state else 0.0

    def due(self, limit: float) -> float:
        """By the loop's clock: when the oldest step must be proved, `limit` seconds after its turn began."""
        state = next(iter(self.open.values()), None)
        return max(self._moved, state.sent if state else self._loop.time()) + limit

    def receipt(self, hop: int, message: StepReceipt) -> None:
        """Keep a receipt, then check all whose inputs are known: hop by hop, step by step."""
        state = self.open.get(message.receipt.step)
        if state is None or hop in state.arrived or message.receipt.step not in self._sessions[hop].pending:
            raise ProofError("A receipt came that nobody asked for", why=f"step {message.receipt.step}")
        state.arrived[hop] = message
        for one in list(self.open.values()):
            while (at := len(one.hashes) - 1) < len(self._sessions) and at in one.arrived:
                if self._sessions[at].newest.step != one.number - 1:
                    break
                self._check(one, at)
            if len(one.hashes) > len(self._sessions):
                del self.open[one.number]
                self._moved = self._loop.time()
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
        check_theirs(tensor, self._sessions[hop], f"step {state.number}")
        state.output_rows = row_hashes(message.data, self._row_bytes)
        if not state.output.done():
            state.output.set_result(tensor)

    def _learn(self, state: StepState) -> None:
        """Who has delivered, and in what time: from when a hop had its input and was free to when its receipt came."""
        before = state.sent
        for hop, session in enumerate(self._sessions):
            peer = session.leg.peer
            self._speeds.delivered(peer)
            if state.data:
                seconds = state.times[hop] - max(before, self._free[hop])
                self._speeds.judge(peer, seconds, session.leg.published(state.count))
                if state.count == 1:
                    self._speeds.step(peer, seconds, session.session.blocks)
            before = self._free[hop] = state.times[hop]
