"""What each node would cost one wish: seconds and wei, from its record, this client's own measurements and its word.

    a leg's cost = wait(lane, bid) + trip + compute + lambda * price                  (docs/protocol.md, section 6)

in seconds a token. Waits and room come once a leg, compute and price by the block, trips by the pair of neighbours.
"""

import time
from dataclasses import dataclass

import numpy as np

from hivemint.client.sessions.route import bid_weight, session_amount
from hivemint.client.sessions.routing.view import Flags, Floats, Ints, NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import UNKNOWN_TRIP, Speeds
from hivemint.protocol.ids import ONE_CREDIT, Credits

CROWDED = 5.0
"""Seconds added for a node that publishes too little K/V room for the session."""
PREFERRED = 0.5
"""A preferred node's time counts so much."""
OWN_QUEUE = 0.5
"""Every second session of this client has a step at its node when another one comes."""
_NO_LIMIT = 2**31
_SURELY = 0.999
"""Accounts that hold more than this share of what is needed are counted to the wei."""


@dataclass(frozen=True, slots=True)
class Costs:
    """One number a node. `wait`, `room` in seconds a leg, `compute` in seconds a block, `trip`: a round trip from here.

    `bids` in wei per token and block, None where the bid does not reach; `price` the same in credits. `most`: blocks
    that the account admits. `factor`: how much of its time counts when routes are compared. `trusted`: may see a
    text's ends. `seen`: the same as `trip`, NaN where this client has not measured it. `trips` between nodes, NaN where
    nobody has measured.
    """

    bids: list[Credits | None]
    wait: Floats
    room: Floats
    compute: Floats
    trip: Floats
    seen: Floats
    price: Floats
    most: Ints
    factor: Floats
    trusted: Flags
    trips: Floats
    relayed: bool

    def between(self, some: Ints, others: Ints) -> Floats:
        """Seconds one way from each of `some` to each of `others`, [some, others]; none leads to itself.

        A relayed tensor comes back to the client between two nodes. Two nodes are at least as far from each other as
        their distances from here differ, whatever they say; where one was never measured from here, their word stands.
        """
        here, there = self.trip[some][:, None], self.trip[others][None, :]
        if self.relayed:
            way = (here + there) / 2
        else:
            said = self.trips[np.ix_(some, others)]
            least = np.abs(self.seen[some][:, None] - self.seen[others][None, :])
            guess = np.maximum(np.abs(here - there), UNKNOWN_TRIP)
            way = np.where(np.isnan(said), guess, np.fmax(said, least)) / 2
        way[some[:, None] == others[None, :]] = np.inf
        return way

    def way(self, one: int, other: int) -> float:
        """The same from one node to another one."""
        return float(self.between(np.array([one]), np.array([other]))[0, 0])


def costs_of(view: NodeView, wish: Wish, speeds: Speeds, now: float | None = None) -> Costs:
    """As things stand. `now` in seconds since 1970, by default this machine's clock."""
    bids = view.bids(wish.bid)
    price = np.array([np.inf if bid is None else bid / ONE_CREDIT for bid in bids], dtype=np.float64)
    wait, seen = _waits_and_trips(view, wish, bids, speeds, time.time() if now is None else now)
    step = wait + view.compute * (view.end - view.first)
    share = wish.tokens / np.maximum(view.free, 1.0)
    choice = wish.choice
    factor = 1.0 + wish.spread * view.dice(wish.salt)
    if choice.preferred:
        factor[[row for row, one in enumerate(view.records) if choice.prefers(one.record)]] *= PREFERRED
    trusted = np.ones(len(view.records), dtype=np.bool_)
    if choice.trusted:
        trusted[:] = [choice.trusts(one.record) for one in view.records]
    return Costs(
        bids=bids,
        wait=wait,
        room=np.where(share > 1.0, CROWDED, step * share),
        compute=view.compute,
        trip=np.where(np.isnan(seen), UNKNOWN_TRIP, seen),
        seen=seen,
        price=price,
        most=_most_blocks(view, wish, bids, price),
        factor=factor,
        trusted=trusted,
        trips=view.trips,
        relayed=wish.work > 0,
    )


def _waits_and_trips(
    view: NodeView, wish: Wish, bids: list[Credits | None], speeds: Speeds, now: float
) -> tuple[Floats, Floats]:
    """What nodes publish, corrected by what was seen of them: see `PeerSpeed`. Own open sessions join the queue. NaN is
    a trip that this client has not measured."""
    wait = view.waits(now, paid=wish.bid.paid).copy()
    if wish.bid.kind == "amount" or wish.bid.millionths != 1_000_000:
        asks = [one.record.ask for one in view.records]
        wait /= [bid_weight(bid or ask, ask) for bid, ask in zip(bids, asks, strict=True)]
    trip = np.full(len(view.records), np.nan)
    clock = time.monotonic()
    for peer, seen in speeds.seen.items():
        if (row := view.rows.get(peer)) is None:
            continue
        trip[row] = np.nan if seen.trip is None else seen.trip
        weight, said = seen.weight(clock), wait[row] + seen.understated(clock)
        if seen.step is None:
            wait[row] = said
            continue
        known = UNKNOWN_TRIP if seen.trip is None else seen.trip
        own = max(0.0, (seen.step - view.compute[row]) * seen.blocks - known)
        wait[row] = weight * own + (1 - weight) * said
    for peer, sessions in speeds.sessions.items():
        if sessions and (row := view.rows.get(peer)) is not None:
            wait[row] += OWN_QUEUE * sessions * view.compute[row] * (view.end[row] - view.first[row])
    return wait, trip


def _most_blocks(view: NodeView, wish: Wish, bids: list[Credits | None], price: Floats) -> Ints:
    """How many blocks the account at each node admits for sessions of this wish."""
    most: Ints = np.full(len(bids), _NO_LIMIT, dtype=np.int64)
    if wish.funds is None:
        return most
    positions = wish.work or wish.tokens
    held = np.array([wish.funds.get(one.record.operator, 0) / ONE_CREDIT for one in view.records], dtype=np.float64)
    needed = price * (view.end - view.first) * positions * wish.margin
    for row in np.flatnonzero(needed > _SURELY * held).tolist():
        record, bid = view.records[row].record, bids[row]
        funds, length = wish.funds.get(record.operator, 0), record.end_block - record.first_block
        if not bid or session_amount(bid * length, positions, wish.margin) <= funds:
            continue
        blocks = min(length, funds // max(1, session_amount(bid, positions, wish.margin)) + 1)
        while blocks and session_amount(bid * blocks, positions, wish.margin) > funds:
            blocks -= 1
        most[row] = blocks
    return most
