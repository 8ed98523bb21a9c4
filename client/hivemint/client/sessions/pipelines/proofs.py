"""Steps on their way through a route, and what proves them: receipts and row hashes, hop by hop, step by step."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hivemint.client.sessions.errors import OtherInput
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
    """One step on its way through some hops of a route, usually all. `hashes[i]` are the row hashes of the input of the
    i-th of them, as far as they are known; `numbers[i]` is the step's number in its session. `source`: what the first
    of them takes its input from, as in `StepRequest`."""

    hops: range
    numbers: tuple[Step, ...]
    start: int
    count: int
    rows: RowMode
    data: bytes
    source: Step | None
    output: "asyncio.Future[torch.Tensor] | None"
    hashes: list[bytes]
    sent: float
    arrived: dict[int, StepReceipt] = field(default_factory=dict)
    output_rows: bytes | None = None
    times: list[float] = field(default_factory=list)

    def number(self, hop: int) -> Step:
        """Raises IndexError for a hop that it does not pass."""
        return self.numbers[self.hops.index(hop)]

    @property
    def forked(self) -> bool:
        """It has no rows."""
        return not self.hashes[0]


class StepProofs:
    """The steps of one circuit that are not proved yet, oldest first.

    The client knows its own input; each hop's row hashes give the next hop's input hash; so every head along the
    route is derived here, and no inner tensor is seen. A step is proved when the receipts of all its hops fit.
    """

    def __init__(self, sessions: Sequence[RemoteSession], hidden_size: int, wire: str, speeds: Speeds) -> None:
        self._sessions, self._hidden_size, self._wire, self._speeds = sessions, hidden_size, wire, speeds
        self._row_bytes = row_bytes(hidden_size, wire)
        self._loop = asyncio.get_running_loop()
        self._free = [0.0] * len(sessions)  # since when each hop is done with the step before
        self._moved = 0.0
        self.open: list[StepState] = []

    def add(
        self, hops: range, start: int, count: int, rows: RowMode, data: bytes, source: Step | None = None
    ) -> StepState:
        """A step about to be sent. `data` are the wire bytes of its input; none with a `source`, as then the outputs of
        the hop before come once more."""
        output = self._loop.create_future() if rows != "none" else None
        if source is None:
            first = row_hashes(data, self._row_bytes)
        else:
            kept = self._sessions[hops.start - 1].output_rows
            first = bytes(kept[start * HASH_SIZE : (start + count) * HASH_SIZE])
        numbers = tuple(self._sessions[hop].next_step for hop in hops)
        return self._open(
            StepState(hops, numbers, start, count, rows, data, source, output, [first], self._loop.time())
        )

    def add_fork(self, count: int) -> StepState:
        """A step without rows: no hop's receipt waits for another's."""
        numbers = tuple(one.next_step for one in self._sessions)
        hops = range(len(self._sessions))
        return self._open(StepState(hops, numbers, 0, count, "none", b"", None, None, [b""], self._loop.time()))

    def _open(self, state: StepState) -> StepState:
        self.open.append(state)
        return state

    def find(self, hop: int, step: Step) -> StepState | None:
        """The open step that has this number at this hop."""
        return next((one for one in self.open if hop in one.hops and one.number(hop) == step), None)

    def receipt_of(self, hop: int, step: Step) -> SignedReceipt | None:
        """What a hop has answered here for a step that is not proved yet, or for its newest one."""
        if (state := self.find(hop, step)) is not None and hop in state.arrived:
            return state.arrived[hop].receipt
        newest = self._sessions[hop].newest
        return newest.signed if newest.step == step else None

    def unanswered(self) -> int | None:
        """The first hop that has sent no receipt for the oldest step; None: no step is open, or all have."""
        if not self.open:
            return None
        return next((hop for hop in self.open[0].hops if hop not in self.open[0].arrived), None)

    def age(self, hop: int, step: Step) -> float:
        """Seconds since a step was sent; of the oldest one, if that one is not open."""
        state = self.find(hop, step) or next(iter(self.open), None)
        return self._loop.time() - state.sent if state else 0.0

    def began(self) -> float:
        """By the loop's clock: when the turn of the oldest step began."""
        return max(self._moved, self.open[0].sent if self.open else self._loop.time())

    def receipt(self, hop: int, message: StepReceipt) -> None:
        """Keep a receipt, then check all whose inputs are known: hop by hop, step by step."""
        state = self.find(hop, message.receipt.step)
        if state is None or hop in state.arrived or message.receipt.step not in self._sessions[hop].pending:
            raise ProofError("A receipt came that nobody asked for", why=f"step {message.receipt.step}")
        state.arrived[hop] = message
        for one in tuple(self.open):
            self._follow(one)
            if len(one.hashes) > len(one.hops):
                self.open.remove(one)
                self._moved = self._loop.time()
                for at, number in zip(one.hops, one.numbers, strict=True):
                    self._sessions[at].prove(number)
                self._learn(one)

    def _follow(self, state: StepState) -> None:
        """Check what has come of one step, as far as each input is known."""
        while (done := len(state.hashes) - 1) < len(state.hops) and state.hops[done] in state.arrived:
            if self._sessions[state.hops[done]].newest.step != state.numbers[done] - 1:
                return
            self._check(state, state.hops[done])

    def _check(self, state: StepState, hop: int) -> None:
        """One receipt of one step. A fault of form is this hop's; another input may be that of the one before it."""
        session, message = self._sessions[hop], state.arrived[hop]
        before = () if state.forked else self._sessions[max(0, hop - 1) : hop]
        try:
            state.hashes.append(session.take(message, state.hashes[-1]))
            if hop == len(self._sessions) - 1 and state.rows != "none":
                expected = message.rows if state.rows == "all" else message.rows[-HASH_SIZE:]
                if state.output_rows is None:
                    raise ProofError("A receipt came without the output that was asked for")
                if state.output_rows != expected:
                    raise ProofError(
                        "The output is not the one that its node signed for", why=f"step {session.newest.step}"
                    )
        except OtherInput as error:
            raise session.lied(error, *before) from None
        except ProofError as error:
            raise session.lied(error) from None
        state.times.append(self._loop.time())

    def output(self, hop: int, message: Tensor) -> None:
        """The last hidden state: the caller may have it at once, its hash waits for the receipt."""
        state = self.find(hop, message.head.step)
        if hop != len(self._sessions) - 1 or state is None or state.output is None or state.output_rows is not None:
            raise ProtocolError("A node sent a tensor that nobody asked for", why=f"step {message.head.step}")
        count = state.count if state.rows == "all" else 1
        tensor = from_wire(message.data, count, self._hidden_size, self._wire, torch.float32)
        check_theirs(tensor, self._sessions[hop], f"step {message.head.step}")
        state.output_rows = row_hashes(message.data, self._row_bytes)
        if not state.output.done():
            state.output.set_result(tensor)

    def _learn(self, state: StepState) -> None:
        """Who has delivered, and in what time: from when a hop had its input and was free to when its receipt came."""
        before = state.sent
        for hop, at in zip(state.hops, state.times, strict=True):
            session, peer = self._sessions[hop], self._sessions[hop].leg.peer
            self._speeds.delivered(peer)
            if not state.forked:
                seconds = at - max(before, self._free[hop])
                self._speeds.judge(peer, seconds, session.leg.published(state.count))
                if state.count == 1:
                    self._speeds.step(peer, seconds, session.session.blocks)
            before = self._free[hop] = at
