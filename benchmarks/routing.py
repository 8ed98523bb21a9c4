"""Routing without a network: how long a plan takes, what a refresh costs, and whether clients run in a herd.

    python benchmarks/routing.py [--json FILE]

`plan_ms_500x80`: the median of plans over 500 nodes of all kinds and 80 blocks, in the paid lane, with accounts at all
of them, own measurements of a fifth of them, published round trips, and a view that is there already. Beside it what a
view costs to make, and a second look at 500 signed records of which a tenth has changed, as a share of the first one.

The herd: 200 clients plan at once, by one look-up, over 40 nodes of 16 blocks of 32 (some twice as fast as others). A
node's step then takes its own time for each client that is there, as if none shared a batch. Against it: all take the
best (what one look-up says), and each plans after the other and sees those before it (nobody can know that). What is
told is the mean time of a token over all clients, and the most clients at one node against what its speed would bear.
Then the same 200 in waves of 20, each seeing what was published when the wave before had been served.
"""

import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import msgspec
from harness import Bound, finish, options

from hivemint.client.sessions.routing.planning import plan_route
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid
from hivemint.protocol.ids import PeerId
from hivemint.protocol.signing import Signer
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.records import CheckedRecord, NodeRecord, check_record, sign_record
from support.routes import random_swarm, unsigned

NODES, BLOCKS, PLANS = 500, 80, 60
CLIENTS, HERD_BLOCKS, WAVES = 200, 32, 10
Salt = Callable[[int], bytes]


def plan_ms() -> dict[str, float]:
    """Medians of plans, each after the clock has moved on a little: nothing is taken from a plan before."""
    dice, records = random.Random(2), random_swarm(NODES, BLOCKS, 1)
    speeds = Speeds()
    for one in dice.sample(records, NODES // 5):
        speeds.trip(one.peer, dice.uniform(0.005, 0.1))
        speeds.step(one.peer, dice.uniform(0.02, 0.4), 10)
    funds = {one.record.operator: 10**24 for one in records}
    began = time.perf_counter()
    view = NodeView(records)
    _ = view.trips, view.labels
    figures = {"view_ms_500": 1000 * (time.perf_counter() - began)}
    for name, bid in (("plan_ms_500x80", Bid("times")), ("plan_donated_ms_500x80", Bid("free"))):
        wish = Wish(BLOCKS, 1000, bid, funds=funds, times_median=3.0, salt=b"a client")
        plan_route(view, wish, speeds)
        times = []
        for _ in range(PLANS):
            began = time.perf_counter()
            plan_route(view, wish, speeds)
            times.append(1000 * (time.perf_counter() - began))
        figures[name] = statistics.median(times)
    return figures


def second_look() -> dict[str, float]:
    """Signed records checked, then checked again after a tenth of the nodes has published anew."""
    nodes = [(Signer(number.to_bytes(32, "big")), PeerKey.generate()) for number in range(1, NODES + 1)]
    texts = [_signed(*one, wait=0.0) for one in nodes]
    first = _timed(texts)
    changed = [_signed(*one, wait=1.0) for one in nodes[: NODES // 10]]
    return {"first_look_ms": first, "same_look_ms": _timed(texts), "tenth_new_look_ms": _timed(changed + texts[50:])}


def _timed(texts: Sequence[bytes]) -> float:
    began = time.perf_counter()
    for text in texts:
        check_record(text)
    return 1000 * (time.perf_counter() - began)


def _signed(operator: Signer, key: PeerKey, wait: float) -> bytes:
    record = unsigned(0, 20, peer=bytes(key.peer_id), operator=operator.address, wait_paid_s=wait).record
    return sign_record(record, operator, key).to_bytes()


class Herd:
    """Nodes with a speed each; a client at a node waits for all who are there."""

    def __init__(self) -> None:
        dice = random.Random(4)
        self.records = [
            unsigned(first, first + 16, tokens_per_s=speed, peer=dice.randbytes(38))
            for first in (0, 16)
            for speed in (40.0,) * 10 + (20.0,) * 10
        ]

    def run(self, salt: Salt, waves: int, *, knowing: bool = False) -> tuple[float, float]:
        """Mean seconds of a token, and the busiest node's clients against its fair share. `knowing`: each client sees
        all who have planned before it."""
        there: Counter[PeerId] = Counter()
        ways: list[list[PeerId]] = []
        size = CLIENTS // waves
        for wave in range(waves):
            view = self._view(there)
            for number in range(size):
                seen = self._view(there) if knowing else view
                wish = Wish(HERD_BLOCKS, 100, Bid("free"), salt=salt(wave * size + number))
                ways.append([leg.peer for leg in plan_route(seen, wish, Speeds()).legs])
                if knowing:
                    there.update(ways[-1])
            if not knowing:
                there.update(peer for way in ways[-size:] for peer in way)
        speed = {one.peer: one.record.tokens_per_s for one in self.records}
        mean = statistics.mean(sum(there[peer] / speed[peer] for peer in way) for way in ways)
        fair = {peer: 2 * CLIENTS * its / sum(speed.values()) for peer, its in speed.items()}
        return mean, max(there[peer] / fair[peer] for peer in speed)

    def _view(self, there: Counter[PeerId]) -> NodeView:
        """What is published while so many are at each node."""
        return NodeView([self._loaded(one, there[one.peer]) for one in self.records])

    @staticmethod
    def _loaded(one: CheckedRecord, clients: int) -> CheckedRecord:
        wait = clients / one.record.tokens_per_s
        record: NodeRecord = msgspec.structs.replace(one.record, wait_donated_s=wait, expires=time.time() + 60)
        return CheckedRecord(record, one.signed)


def herd() -> dict[str, float]:
    each: Salt = lambda number: number.to_bytes(4, "big")  # noqa: E731
    none: Salt = lambda number: b""  # noqa: E731
    world = Herd()
    least, _ = world.run(none, 1, knowing=True)
    figures = {"knowing_token_s": least}
    for name, waves in (("at_once", 1), ("waves", WAVES)):
        for who, salt in (("spread", each), ("herd", none)):
            mean, busiest = world.run(salt, waves)
            figures[f"{name}_{who}_to_knowing"] = mean / least
            figures[f"{name}_{who}_busiest_to_fair"] = busiest
    return figures


def main() -> None:
    args = options(__doc__ or "")
    figures: dict[str, Any] = {**plan_ms(), **second_look(), **herd()}
    bounds = {
        "plan_ms_500x80": Bound(most=10),
        "at_once_spread_busiest_to_fair": Bound(most=3),
    }
    finish("routing", figures, bounds, args.json)


if __name__ == "__main__":
    main()
