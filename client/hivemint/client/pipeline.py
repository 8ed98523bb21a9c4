"""What generation asks of the network: chains of sessions, one per sequence, and the plan of what they cost.

Generation knows nothing of nodes, routes or vouchers, and the network nothing of tokens or sampling; they meet here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from hivemint.client.kept import TextMark
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import HivemintError, ProofError, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, PeerId
from hivemint.protocol.text import plain

Rows = Literal["all", "last"]


class Misled(ProofError):
    """A token was made of a state that its node never signed for, and that is wrong: a text cannot go on from it."""

    def __init__(self, peers: tuple[PeerId, ...], why: str) -> None:
        super().__init__(
            "The last token was made of a state that another node does not confirm",
            why=why,
            next_step="ask again from the token before it: a new route is planned without these nodes",
        )
        self.peers = peers


class SessionLimit(SwarmError):
    """A session admits no further step: its tokens, its amount or its time are used up.

    Nothing was computed for the request that raised it. Generation opens a new pipeline and replays the text so far.
    """


class StillBusy(SessionLimit):
    """What a session was to begin with has steps under way: in a moment it has not."""


class RoomLost(SessionLimit):
    """A node ended a session, or gave its room to others, before it was used up: its text must be computed again."""

    def __init__(self, what: str, *, why: str, peers: tuple[PeerId, ...]) -> None:
        super().__init__(what, why=why)
        self.peers = peers


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best route without one node of a plan: its `way` for people, and by how much a token on it is slower (ms)
    and dearer (wei) than on the route of the plan; below 0: faster, cheaper."""

    way: str
    slower_ms: float
    dearer: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One node of a plan: it computes blocks `[first, end)` for `price` credits (wei) a token, the whole span.

    `name` is what people call it, `operator` and `peer` are who it is. What a token takes there, in ms: `wait_ms` in
    the queue of its lane and bid, `trip_ms` on the way there (and back from the last), `compute_ms`, and `room_ms`
    for the risk that its K/V room does not last. `instead`: the best route without it; None where there is none, or
    nobody looked.
    """

    peer: PeerId
    name: str
    first: BlockIndex
    end: BlockIndex
    price: Credits
    wait_ms: float
    operator: Address
    trip_ms: float = 0.0
    compute_ms: float = 0.0
    room_ms: float = 0.0
    instead: Alternative | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A route and what it would cost. `cost` in wei: what `tokens` positions cost; `reserved`: the sessions' limit.

    `unpaid`: why it is one of donated work though the settings would have paid; "" otherwise. It is in `notes` too.
    """

    hops: tuple[Hop, ...]
    tokens: int
    cost: Credits
    reserved: Credits
    lane: Literal["paid", "donated"]
    notes: Sequence[str] = field(default=())
    unpaid: str = ""

    def __str__(self) -> str:
        """One line for people: the way, the lane, the price."""
        way = " -> ".join(f"{hop.name} {hop.first}:{hop.end}" for hop in self.hops)
        price = f"{format_credits(self.cost, digits=9)} for {self.tokens} tokens"
        return "; ".join([f"{way} ({self.lane} lane)", price, *(plain(note) for note in self.notes)])


class Pipeline(Protocol):
    """One chain of sessions through all blocks: the network's half of one sequence, its K/V cache included."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def position(self) -> int:
        """Cached token positions so far."""
        ...

    @property
    def plan(self) -> Plan:
        """The route that it goes along, and what it was planned to cost."""
        ...

    @property
    def price(self) -> int:
        """Of one position through all blocks, in wei; 0 in the donated lane."""
        ...

    @property
    def spent(self) -> int:
        """What its own steps cost so far, in wei: those that were delivered, are under way, or whose fate is unknown.

        What was refused or cancelled is not in it.
        """
        ...

    @property
    def signed(self) -> int:
        """What was signed for its sake, in wei: `spent`, and what refused steps have raised the vouchers by."""
        ...

    @property
    def replayed(self) -> int:
        """Positions that were lost with a node and computed again at another, once for each lost span."""
        ...

    @property
    def paid_again(self) -> int:
        """Positions that were paid a second time, at each span that was."""
        ...

    admit: Callable[[int], None]
    """Is asked, with an amount in wei, before positions are computed again; raises OverLimit if that is too much."""

    async def forward(self, hidden: torch.Tensor, *, rows: Rows = "last") -> torch.Tensor:
        """Run the next `count` positions: fp32 `[count, hidden]` in, the same shape out, or `[1, hidden]` for `last`.

        Long inputs are cut into chunks here. A node that fails, or is far slower than it publishes, is replaced where
        another can take its place, and what it had is computed again there. Raises `SessionLimit` when the session is
        used up, `SwarmError`, `Refusal` or `ProofError` when the chain broke for good, `BadInput` for numbers that are
        not finite. Nothing but `close` may follow an error.
        """
        ...

    def crop(self, length: int) -> None:
        """Go on from an earlier position: the next `forward` starts at `length` (a rejected draft, another answer).

        Nothing is sent and nothing is paid back: what was computed stays owed, and counts in the sessions' limits.
        Raises ValueError unless 0 <= length <= position.
        """
        ...

    async def close(self) -> None:
        """Sign off with every node. Harmless when called again or after an error."""
        ...

    async def cancel(self) -> None:
        """Drop the steps in flight that have not begun (Ctrl-C). `close` follows."""
        ...


@dataclass(eq=False, slots=True)
class Trail:
    """One sequence on its way forward and backward: by block, the state that enters it, and the gradient of that.

    fp32 `[count, hidden]` each. Both begin with one entry: the input at block 0, the result's gradient at the model's
    end. A pass adds what it finds, so one that was broken off goes on from there, at whatever nodes.
    """

    states: dict[int, torch.Tensor]
    gradients: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Positions of the sequence."""
        return len(self.states[0])

    @property
    def end(self) -> int:
        """The last block of which the state behind it is known: after a forward, the model's end."""
        return max(self.states)


class Training(Protocol):
    """One lane of training: sessions at the nodes of a route, each step a whole sequence from position 0."""

    @property
    def price(self) -> int:
        """See `Pipeline.price`."""
        ...

    def cost(self, trail: Trail) -> int:
        """Wei for what is left of a pass: backward if `trail` has a gradient. A trial of unknown nodes is in it."""
        ...

    @property
    def signed(self) -> int:
        """See `Pipeline.signed`."""
        ...

    @property
    def slow(self) -> SwarmError | None:
        """Names a node that is far slower than it publishes. Nothing is broken: the lane may go on here."""
        ...

    async def forward(self, trail: Trail) -> torch.Tensor:
        """Complete the states; gives the last, the result.

        Raises what `Pipeline.forward` raises. Nothing but `mend` and `close` may follow an error.
        """
        ...

    async def backward(self, trail: Trail) -> torch.Tensor:
        """Complete the gradients; gives that of the input. States that are missing at these nodes' first blocks are
        computed anew. Raises what `forward` raises."""
        ...

    async def mend(self) -> bool:
        """Put other nodes in the place of the one at which the last pass failed; all others keep their sessions.

        False where that can't be had: another lane must be opened then. The pass may be asked for again.
        """
        ...

    async def close(self) -> None:
        """Sign off with every node. Harmless when called again or after an error."""
        ...


class Swarm(Protocol):
    """The network as `SwarmModelForCausalLM` holds it. All methods run in the model's own event loop."""

    @property
    def description(self) -> str:
        """In a few words for people, without secrets: the network, who asks, and what is bid."""
        ...

    def offering(self, *, bid: object = None, max_price: object = None) -> "Swarm":
        """The same network for calls with another bid or ceiling (None: as it is). Nodes, links and books are shared.

        Raises ConfigError for what is none; WalletError where there is no wallet that could pay.
        """
        ...

    @property
    def replay_margin(self) -> float:
        """A sequence signs at most this many times what its tokens cost by the plan, replays included."""
        ...

    async def open(self, tokens: int) -> Pipeline:
        """Find a route and shake hands for one sequence of at most `tokens` positions, paid or free as configured."""
        ...

    def another_way(self, error: HivemintError) -> bool:
        """Whether another node can take the place of one that `error` names; then these are left out for a while."""
        ...

    async def fork(self, parent: Pipeline, tokens: int, count: int) -> Pipeline | None:
        """A new pipeline for at most `tokens` positions that begins with the first `count` of `parent`: nothing is
        computed and nothing paid for them. None where that can't be had (now): `open` one and send them.

        The caller alone knows that both texts begin with the same tokens. `parent` must be at rest; it goes on as it
        was, or is closed, at its owner's wish.
        """
        ...

    async def mark(self, pipeline: Pipeline) -> TextMark | None:
        """What names, to its nodes, the positions that a pipeline has computed so far: with it `recall` finds them
        again, in another process too. Waits for receipts that are still due. None where that can't be had.
        """
        ...

    def recall(self, mark: TextMark) -> Pipeline:
        """What nodes may still hold of a text of the same key: good as `parent` of a fork, and for no more."""
        ...

    async def relay(self, tokens: int, work: int) -> Training:
        """The same for training: sequences of at most `tokens` positions, `work` positions computed in all.

        A forward counts each position once, a backward twice.
        """
        ...

    async def plan(self, tokens: int) -> Plan:
        """The route that `open` would take and its price, without paying anything."""
        ...

    async def close(self) -> None: ...
