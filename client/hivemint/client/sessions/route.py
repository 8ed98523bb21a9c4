"""A route: the nodes that a hidden state passes on its way through the blocks of a model, and what each leg costs."""

from dataclasses import dataclass

from hivemint.client.pipeline import Alternative, Hop, Plan
from hivemint.client.settings import MAX_TIMES
from hivemint.protocol.ids import Address, BlockIndex, Credits, PeerId
from hivemint.protocol.node_name import node_name
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import NodeRecord
from hivemint.swarm.rows import WIRES

UNKNOWN_SPEED = 10.0
"""Tokens/s assumed of a node that publishes none."""


def short_name(peer: PeerId) -> str:
    """For people: the end of a peer id, where ids differ."""
    return peer_text(peer)[-8:]


@dataclass(frozen=True, slots=True)
class Leg:
    """One hop: blocks `[first, end)` at `record`'s node. `bid` in wei per token and block; times in seconds a token.

    `wait`: in the node's queue. `trip`: on the way to it, and back if it is the last. `room`: what a session as long
    as this one risks where little K/V room is left. `seconds`: all of these and the compute.
    """

    record: NodeRecord
    first: BlockIndex
    end: BlockIndex
    bid: Credits
    numerics: str
    wait: float
    seconds: float
    trip: float = 0.0
    room: float = 0.0

    @property
    def peer(self) -> PeerId:
        return PeerId(self.record.peer)

    @property
    def operator(self) -> Address:
        return self.record.operator

    @property
    def name(self) -> str:
        """For people (`protocol.node_name`)."""
        return node_name(self.record.operator)

    @property
    def price(self) -> Credits:
        """Per token, the whole leg, in wei."""
        return Credits(self.bid * (self.end - self.first))

    @property
    def compute(self) -> float:
        """Seconds a token, by the node's record."""
        return published_compute(self.record, self.end - self.first)

    @property
    def wire(self) -> str:
        return wire_of(self.numerics)

    def published(self, count: int = 1) -> float:
        """Seconds for a step of `count` positions by the node's own record: its queue for this bid, and compute."""
        return published_wait(self.record, self.bid) + count * self.compute

    def hop(self, instead: Alternative | None = None) -> Hop:
        """For people and for `dry_run`."""
        return Hop(
            peer=self.peer,
            name=self.name,
            first=self.first,
            end=self.end,
            price=self.price,
            wait_ms=self.wait * 1000,
            operator=self.operator,
            trip_ms=self.trip * 1000,
            compute_ms=self.compute * 1000,
            room_ms=self.room * 1000,
            instead=instead,
        )

    def __str__(self) -> str:
        blocks = f"{self.first}:{self.end}"
        return f"node {self.name} (operator {self.operator}, peer ..{short_name(self.peer)}, blocks {blocks})"


@dataclass(frozen=True, slots=True)
class Route:
    """Legs from the first block that was wished to the last. `seconds`: what one token takes, as far as is known."""

    legs: tuple[Leg, ...]
    notes: tuple[str, ...] = ()
    unpaid: str = ""
    """Why nobody is paid, where somebody would have been."""

    @property
    def price(self) -> Credits:
        """Per token through all blocks, in wei."""
        return Credits(sum(leg.price for leg in self.legs))

    @property
    def seconds(self) -> float:
        return sum(leg.seconds for leg in self.legs)

    @property
    def paid(self) -> bool:
        return self.price > 0

    def plan(self, tokens: int, margin: float, instead: tuple[Alternative | None, ...] = ()) -> Plan:
        """For people and for `dry_run`: what `tokens` positions cost, and what the sessions would reserve.

        `instead`: for each leg, the best route without its node.
        """
        others = instead or (None,) * len(self.legs)
        return Plan(
            hops=tuple(leg.hop(other) for leg, other in zip(self.legs, others, strict=True)),
            tokens=tokens,
            cost=Credits(self.price * tokens),
            reserved=Credits(sum(session_amount(leg.price, tokens, margin) for leg in self.legs)),
            lane="paid" if self.paid else "donated",
            notes=self._notes(),
            unpaid=self.unpaid,
        )

    def _notes(self) -> tuple[str, ...]:
        speed = (f"about {1 / self.seconds:.1f} tokens/s",) if self.seconds > 0 else ()
        return speed + self.notes + ((f"donated lane: {self.unpaid}",) if self.unpaid else ())


def session_amount(price: int, tokens: int, margin: float) -> Credits:
    """`maxAmount` of a session: price x tokens x margin, rounded up."""
    return Credits(-(-price * tokens * round(margin * 1000) // 1000))


def wire_of(numerics: str) -> str:
    """The wire form in `weights/compute/wire`; "" if the label is none of ours."""
    parts = numerics.split("/")
    return parts[2] if len(parts) == 3 and parts[2] in WIRES else ""


def published_compute(record: NodeRecord, blocks: int) -> float:
    """Seconds a token for so many blocks of a node's span, by its record."""
    return blocks / (record.end_block - record.first_block) / (record.tokens_per_s or UNKNOWN_SPEED)


def published_wait(record: NodeRecord, bid: int) -> float:
    """Seconds in the queue that a bid (wei per token and block) waits in, by the node's record."""
    if not bid:
        return record.wait_donated_s
    return record.wait_paid_s / bid_weight(bid, record.ask)


def bid_weight(bid: int, ask: int) -> float:
    """How often such a bid goes where a bid of the ask goes once."""
    return min(MAX_TIMES, bid / ask) if ask else 1.0
