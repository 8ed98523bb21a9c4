"""Routes: the cheapest way of a hidden state through all blocks of a model, over checked records.

    cost of a leg = wait(lane, bid) + round trip + compute + lambda * price          (docs/protocol.md, section 6)

in seconds a token. A leg may be any part of a node's span. What this client measured itself stands in for what a
node published, for a while.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hivemint.client.pipeline import Hop, Plan
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import MAX_TIMES, Bid
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import OverLimit, SwarmError
from hivemint.protocol.ids import ONE_CREDIT, Address, BlockIndex, Credits, PeerId
from hivemint.protocol.node_name import named, node_name
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import CheckedRecord, NodeRecord
from hivemint.swarm.rows import WIRES

UNKNOWN_SPEED = 10.0
"""Tokens/s assumed of a node that publishes none."""
CROWDED = 5.0
"""Seconds added for a node that publishes too little K/V room for the session."""


class MissingBlocks(SwarmError):
    """Some blocks are served by nobody now."""


class NotCovered(OverLimit):
    """All blocks are there at the bid, but the escrow accounts do not cover a route."""


def short_name(peer: PeerId) -> str:
    """For people: the end of a peer id, where ids differ."""
    return peer_text(peer)[-8:]


@dataclass(frozen=True, slots=True)
class Leg:
    """One hop: blocks `[first, end)` at `record`'s node. `bid` in wei per token and block; times in seconds."""

    record: NodeRecord
    first: BlockIndex
    end: BlockIndex
    bid: Credits
    numerics: str
    wait: float
    seconds: float

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
    def wire(self) -> str:
        return wire_of(self.numerics)

    def published(self, count: int = 1) -> float:
        """Seconds for a step of `count` positions by the node's own record: its queue for this bid, and compute."""
        return _wait(self.record, self.bid) + count * _compute(self.record, self.end - self.first)

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

    def plan(self, tokens: int, margin: float) -> Plan:
        """For people and for `dry_run`: what `tokens` positions cost, and what the sessions would reserve."""
        return Plan(
            hops=tuple(
                Hop(leg.peer, leg.name, leg.first, leg.end, leg.price, leg.wait * 1000, leg.operator)
                for leg in self.legs
            ),
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


@dataclass(frozen=True, slots=True)
class Wish:
    """What a route is for: sessions of `tokens` positions.

    `work`: positions that they compute in all, where that is more (training); 0: as many. `funds`: wei that the account
    at each operator still admits; None: don't ask. `ceiling`: wei per token through all blocks. Without one, nodes that
    ask more than `times_median` times the median of all asks are left out; None: no node is. `first` and `end` (None:
    the model's) name a part of the model to find a way through; `wire`: the wire form that its neighbours speak (None:
    any).
    """

    blocks: int
    tokens: int
    bid: Bid
    ceiling: Credits | None = None
    seconds_per_credit: float = 10.0
    margin: float = 1.25
    funds: Mapping[Address, int] | None = field(default=None, repr=False)
    work: int = 0
    times_median: float | None = None
    first: int = 0
    end: int | None = None
    wire: str | None = None

    @property
    def part(self) -> range:
        """The blocks that the route leads through."""
        return range(self.first, self.blocks if self.end is None else self.end)


def session_amount(price: int, tokens: int, margin: float) -> Credits:
    """`maxAmount` of a session: price x tokens x margin, rounded up."""
    return Credits(-(-price * tokens * round(margin * 1000) // 1000))


def wire_of(numerics: str) -> str:
    """The wire form in `weights/compute/wire`; "" if the label is none of ours."""
    parts = numerics.split("/")
    return parts[2] if len(parts) == 3 and parts[2] in WIRES else ""


def plan_route(records: Sequence[CheckedRecord], wish: Wish, speeds: Speeds) -> Route:
    """The cheapest route that the ceiling and the funds allow. Raises SwarmError that says what is missing."""
    _check_covered(records, wish.part, wish.blocks)
    usual, notes = _usual(records, wish)
    return replace(_within_ceiling(usual, wish, speeds), notes=notes)


def _usual(records: Sequence[CheckedRecord], wish: Wish) -> tuple[Sequence[CheckedRecord], tuple[str, ...]]:
    """The nodes that ask what this swarm usually asks, and a note on what that is. The user's own word goes before.

    Raises SwarmError where blocks are served by dearer ones alone: these blocks are not missing.
    """
    if not _compares(records, wish):
        return records, ()
    most = highest_usual(records, wish)
    if most is None:
        return records, ("no price ceiling: there is one node alone to compare with",)
    note = f"price ceiling {format_credits(most, 18)} a token and block, {wish.times_median:g}x the median ask"
    usual = [one for one in records if one.record.ask <= most]
    served = {block for one in usual for block in one.record.blocks}
    if dear := [block for block in wish.part if block not in served]:
        lowest = min(one.record.ask for one in records if not set(dear).isdisjoint(one.record.blocks))
        raise OverLimit(
            f"Blocks {_spans(dear)} cost more than the default price ceiling",
            why=f"{note}; their nodes ask {format_credits(lowest, 18)} or more",
            next_step="name a ceiling of your own (--max-price), or use the donated lane (--bid free)",
        )
    return usual, (note,)


def highest_usual(records: Sequence[CheckedRecord], wish: Wish) -> Credits | None:
    """The most that a node may ask for a token and block; None where no other node's ask bounds it."""
    if wish.times_median is None or not _compares(records, wish) or len({one.record.operator for one in records}) == 1:
        return None
    asks = [one.record.ask for one in records if one.record.ask]
    return Credits(statistics.median_low(asks) * round(wish.times_median * 1000) // 1000)


def _compares(records: Sequence[CheckedRecord], wish: Wish) -> bool:
    own_word = wish.times_median is None or wish.ceiling is not None or wish.bid.kind in ("free", "amount")
    return not own_word and any(one.record.ask for one in records)


def _within_ceiling(records: Sequence[CheckedRecord], wish: Wish, speeds: Speeds) -> Route:
    route = _cheapest(records, wish, speeds, wish.seconds_per_credit)
    if route is None:
        raise _nobody(records, wish)
    if wish.ceiling is None or route.price <= wish.ceiling:
        return route
    low, high, found = wish.seconds_per_credit, 1e12, _cheapest(records, wish, speeds, 1e12)
    if found is None or found.price > wish.ceiling:
        lowest = found.price if found else route.price
        raise OverLimit(
            f"No route costs at most {format_credits(wish.ceiling)} a token",
            why=f"the cheapest one costs {format_credits(lowest)}",
            next_step="raise the ceiling (--max-price), lower the bid, or use the donated lane (--bid free)",
        )
    for _ in range(24):  # the least weight of price that stays below the ceiling: fastest route of those on the hull
        middle = (low * high) ** 0.5 if low > 0 else high / 1e6
        tried = _cheapest(records, wish, speeds, middle)
        if tried is not None and tried.price <= wish.ceiling:
            high, found = middle, tried
        else:
            low = middle
        if high < low * 1.01:
            break
    return found


def _cheapest(records: Sequence[CheckedRecord], wish: Wish, speeds: Speeds, weight: float) -> Route | None:
    """Over all wire forms that are wished: neighbours must speak the same one."""
    routes = [_by_wire(records, wish, speeds, weight, wire) for wire in WIRES if wish.wire in (None, wire)]
    found = [route for route in routes if route is not None]
    return min(found, key=lambda route: _cost(route.seconds, route.price, weight), default=None)


def _by_wire(records: Sequence[CheckedRecord], wish: Wish, speeds: Speeds, weight: float, wire: str) -> Route | None:
    """Shortest path by block: every leg leads to a higher block, so one sweep in order is enough."""
    offers = [
        (one.record, label)
        for one in records
        if (label := next((name for name in one.record.numerics if wire_of(name) == wire), None)) is not None
    ]
    start, last = wish.part.start, wish.part.stop
    edges = {start, last} | {edge for one, _ in offers for edge in (one.first_block, one.end_block)}
    stops = sorted(edge for edge in edges if start <= edge <= last)
    best: dict[int, tuple[float, tuple[Leg, ...]]] = {start: (0.0, ())}
    for first in stops:
        if first not in best:
            continue
        cost, legs = best[first]
        for record, label in offers:
            for end in (stop for stop in stops if record.first_block <= first < stop <= record.end_block):
                leg = _leg(record, first, end, label, wish, speeds)
                if leg is None:
                    continue
                total = cost + _cost(leg.seconds, leg.price, weight)
                if end not in best or total < best[end][0]:
                    best[end] = (total, (*legs, leg))
    return Route(best[last][1]) if last in best else None


def _leg(record: NodeRecord, first: int, end: int, label: str, wish: Wish, speeds: Speeds) -> Leg | None:
    bid = wish.bid.at(record.ask)
    if bid is None:
        return None
    if wish.funds is not None and bid:
        needed = session_amount(bid * (end - first), wish.work or wish.tokens, wish.margin)
        if needed > wish.funds.get(record.operator, 0):
            return None
    seen = speeds.of(PeerId(record.peer))
    compute, wait = _compute(record, end - first), _wait(record, bid)
    if seen.step is not None:
        wait = max(0.0, seen.step * (end - first) - compute - seen.trip)
    if record.free_tokens < wish.tokens:
        wait += CROWDED
    seconds = wait + seen.trip + compute
    return Leg(record, BlockIndex(first), BlockIndex(end), bid, label, wait, seconds)


def _compute(record: NodeRecord, blocks: int) -> float:
    """Seconds a token for so many blocks of a node's span, by its record."""
    return blocks / (record.end_block - record.first_block) / (record.tokens_per_s or UNKNOWN_SPEED)


def _wait(record: NodeRecord, bid: int) -> float:
    """Seconds in the queue that a bid (wei per token and block) waits in, by the node's record."""
    if not bid:
        return record.wait_donated_s
    return record.wait_paid_s / (min(MAX_TIMES, bid / record.ask) if record.ask else 1.0)


def _cost(seconds: float, price: int, weight: float) -> float:
    return seconds + weight * price / ONE_CREDIT


def _check_covered(records: Iterable[CheckedRecord], part: range, blocks: int) -> None:
    served = {block for one in records for block in one.record.blocks if block < blocks}
    missing = [block for block in part if block not in served]
    if missing:
        spans = _spans(missing)
        raise MissingBlocks(
            f"No node serves blocks {spans}",
            why=f"the model has blocks 0:{blocks}, the swarm has {_spans(sorted(served)) or 'none of them'}",
            next_step=f"start one: hivemint node start MODEL --blocks {spans.split(',')[0]}; or try again later",
        )


def _spans(blocks: Sequence[int]) -> str:
    """`0:10, 15:30`"""
    if not blocks:
        return ""
    breaks = [at + 1 for at, (one, other) in enumerate(pairwise(blocks)) if other != one + 1]
    starts, ends = [0, *breaks], [*breaks, len(blocks)]
    return ", ".join(f"{blocks[start]}:{blocks[end - 1] + 1}" for start, end in zip(starts, ends, strict=True))


def _nobody(records: Sequence[CheckedRecord], wish: Wish) -> SwarmError:
    """All blocks are there, but not on these conditions: say which condition it is."""
    asks = sorted({one.record.ask for one in records})
    if wish.bid.kind == "amount" and wish.bid.amount < asks[-1]:
        return OverLimit(
            f"A bid of {wish.bid} per token and block does not reach all blocks",
            why=f"nodes ask from {format_credits(asks[0], 18)} to {format_credits(asks[-1], 18)}",
            next_step="bid more, or `--bid ask`, or use the donated lane with `--bid free`",
        )
    if wish.funds is not None and wish.bid.paid:
        needs = [
            f"{named(one.record.operator)}: "
            f"{format_credits(session_amount((wish.bid.at(one.record.ask) or 0) * len(one.record.blocks), wish.work or wish.tokens, wish.margin))}"  # noqa: E501
            for one in records
        ]
        return NotCovered(
            "The escrow accounts do not cover a paid route",
            why=f"for {wish.work or wish.tokens} tokens the nodes need " + ", ".join(sorted(set(needs))[:6]),
            next_step="fund them with `hivemint account fund`, ask for fewer tokens, or use `--bid free`",
        )
    return SwarmError(
        "The nodes of this swarm cannot be chained",
        why=f"no node for all of its blocks speaks the wire form {wish.wire}"
        if wish.wire
        else "no wire form is spoken by nodes for all blocks",
        next_step="look at `hivemint swarm status`, and try again later",
    )
