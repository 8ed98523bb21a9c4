"""What the directory costs: requests and bytes of a client's look-up and of a node's publication, for many nodes.

    python benchmarks/lookups.py [--peers 10,30] [--json FILE]

Real hosts in this process, each with its own libp2p daemon, on loopback: one bootstrap peer, so many nodes that each
publish `--span` blocks of a model of `--blocks`, and one client that looks up all blocks. Counted is what comes to and
leaves the directory of each peer: protobuf requests and answers, without libp2p's own frames. Medians of `--looks`.

The formula of docs/scaling.md stands beside every figure (`computed`), and says what 1,000 nodes would need.
"""

import asyncio
import math
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from harness import Bound, finish, options
from rich.console import Console

from hivemint.protocol.ids import BlockIndex, Credits, ModelId, PeerId
from hivemint.protocol.signing import Signer
from hivemint.swarm.dht import directory, places
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.records import LIFETIME, NodeRecord, SignedRecord, sign_record

MODEL = ModelId(b"m" * 32)
REPLICAS, NEAREST, CHUNK = 5, 20, 16
"""hivemind's: peers that keep a block's list, peers that an answer names and a look-up visits, keys of a request."""
PEER_BYTES = 64
"""Of one peer in an answer: 20 of its place, 38 of its id, what protobuf puts around them."""
PLACE_BYTES = places.PLACE_BYTES + places.REST_BYTES
AT_ONCE = 4
KEPT = 280.0
"""Seconds that records are kept here, as many peers on two cores are slower to publish than a node's 20 s."""
PATIENCE = 120.0
"""Seconds for a look-up, and six times what a request has: all peers share these processors."""
PUBLISH_EVERY = 20.0
COMPUTED = (10, 100, 1000, 10_000)


@dataclass
class Traffic:
    """What came to all directories, by kind of request."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes_in: Counter[str] = field(default_factory=Counter)
    bytes_out: Counter[str] = field(default_factory=Counter)
    of: PeerId | None = None

    def count(self, peer: PeerId, kind: str, asked: int, told: int) -> None:
        if self.of is None or peer == self.of:
            self.requests[kind] += 1
            self.bytes_in[kind] += asked
            self.bytes_out[kind] += told

    def begin(self, of: PeerId) -> None:
        self.of = of
        for book in (self.requests, self.bytes_in, self.bytes_out):
            book.clear()

    def told(self) -> dict[str, int]:
        return {
            "requests": sum(self.requests.values()),
            "sent": sum(self.bytes_in.values()),
            "received": sum(self.bytes_out.values()),
        }


class CountedDesk:
    """Stands before a host's own desk."""

    def __init__(self, desk: Any, traffic: Traffic) -> None:
        self._desk, self._traffic = desk, traffic

    async def answer(self, peer: PeerId, raw: bytes, kind: Any, handler: Callable[[Any], Awaitable[Any]]) -> bytes:
        answer: bytes = await self._desk.answer(peer, raw, kind, handler)
        self._traffic.count(peer, kind.__name__, len(raw), len(answer))
        return answer


def record(host: Host, operator: Signer, first: int, end: int) -> SignedRecord:
    said = NodeRecord(
        network="test",
        model_id=MODEL,
        first_block=BlockIndex(first),
        end_block=BlockIndex(end),
        peer=host.peer_id,
        operator=operator.address,
        numerics=("fp32/fp32/fp32",),
        ask=Credits(5 * 10**18),
        addresses=host.addresses,
        tokens_per_s=20.5,
        free_tokens=4096,
        expires=time.time() + KEPT,
    )
    return sign_record(said, operator, host.key)


@dataclass(frozen=True)
class Size:
    """Of a swarm: peers that serve, blocks of its model, blocks a node serves, bytes of a record in a list."""

    nodes: int
    blocks: int
    span: int
    record: int

    @property
    def visited(self) -> int:
        """Peers that are asked for a block."""
        return min(NEAREST, self.nodes + 1)

    def keys_a_request(self, keys: int) -> int:
        return min(max(1, int(keys**0.5)), CHUNK)

    def look_up(self) -> dict[str, float]:
        """A client's, for all blocks: requests, bytes sent and received."""
        asked = self.blocks * self.visited
        requests = asked / self.keys_a_request(self.blocks)
        a_block = min(self.record * self.nodes * self.span / self.blocks, PLACE_BYTES)
        kept = min(REPLICAS, self.nodes + 1) * self.blocks * a_block
        near = asked * min(NEAREST, self.nodes) * PEER_BYTES
        return {"requests": requests, "sent": asked * 22 + requests * 24, "received": kept + near}

    def publication(self) -> dict[str, float]:
        """A node's, once: it finds the peers nearest to each of its blocks, and stores its record with five."""
        visited = min(NEAREST, self.nodes)
        asked = self.span * visited
        finds = asked / self.keys_a_request(self.span)
        stores = self.span * min(REPLICAS, self.nodes)
        a_block = min(self.record * self.nodes * self.span / self.blocks, PLACE_BYTES)
        kept = min(REPLICAS, self.nodes) * self.span * a_block
        near = asked * min(NEAREST, self.nodes) * PEER_BYTES
        return {
            "requests": finds + stores,
            "sent": asked * 22 + finds * 24 + stores * (self.record + 80),
            "received": kept + near,
        }


class Fleet:
    """One bootstrap peer, the nodes of all sizes so far, and a client at a time."""

    def __init__(self, blocks: int, span: int) -> None:
        self.blocks, self.span, self.traffic = blocks, span, Traffic()
        self.boot: Host | None = None
        self.nodes: list[tuple[Host, Signer]] = []
        self.record_bytes = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Fleet":
        self.boot = await self._host()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._stack.aclose()

    async def grow(self, count: int) -> None:
        while len(self.nodes) < count:
            new = min(AT_ONCE, count - len(self.nodes))
            hosts = await asyncio.gather(*(self._host() for _ in range(new)))
            first = len(self.nodes) + 1
            self.nodes += [(host, Signer((first + index).to_bytes(32, "big"))) for index, host in enumerate(hosts)]
            Console(stderr=True).print(f"  {len(self.nodes)} nodes")
        for begin in range(0, count, AT_ONCE):
            await asyncio.gather(*(self.publish(number) for number in range(begin, min(begin + AT_ONCE, count))))

    async def publish(self, number: int) -> None:
        host, operator = self.nodes[number]
        first = number * self.span % self.blocks
        signed = record(host, operator, first, min(first + self.span, self.blocks))
        self.record_bytes = len(signed.to_bytes()) + places.ENTRY_COST // 2
        await host.publish(signed)

    async def look_up(self) -> dict[str, float]:
        """By a client that has just joined; its joining is not counted."""
        assert self.boot is not None
        client = await Host.start(HostSettings("test", listen=(), bootstrap=self.boot.addresses))
        try:
            self.traffic.begin(client.peer_id)
            began = time.perf_counter()
            found = await client.find(MODEL, range(self.blocks))
            return {**self.traffic.told(), "found": len(found), "seconds": time.perf_counter() - began}
        finally:
            await client.close()

    async def published(self, number: int) -> dict[str, float]:
        self.traffic.begin(self.nodes[number][0].peer_id)
        began = time.perf_counter()
        await self.publish(number)
        return {**self.traffic.told(), "seconds": time.perf_counter() - began}

    async def _host(self) -> Host:
        boot = self.boot.addresses if self.boot else ()
        host = await Host.start(HostSettings("test", bootstrap=boot))
        self._stack.push_async_callback(host.close)
        daemon: Any = host._daemon
        daemon.desk = CountedDesk(daemon.desk, self.traffic)
        return host


def medians(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in figures), 3) for name in figures[0]}


async def measure(sizes: Sequence[int], blocks: int, span: int, looks: int) -> list[dict[str, Any]]:
    rows = []
    async with Fleet(blocks, span) as fleet:
        for count in sizes:
            await fleet.grow(count)
            seen = medians([await fleet.look_up() for _ in range(looks)])
            stored = medians([await fleet.published(index * count // looks) for index in range(looks)])
            size = Size(count, blocks, span, fleet.record_bytes)
            rows.append(
                {
                    "nodes": count,
                    "record_bytes": fleet.record_bytes,
                    "look_up": seen,
                    "look_up_computed": size.look_up(),
                    "publication": stored,
                    "publication_computed": size.publication(),
                }
            )
            Console(stderr=True).print(rows[-1])
    return rows


def ratio(rows: Sequence[dict[str, Any]], what: str, figure: str) -> float:
    """How far the formula is from what was measured: the worst of all sizes, at least 1."""
    pairs = [(row[what][figure], row[f"{what}_computed"][figure]) for row in rows]
    return max(math.exp(abs(math.log(measured / computed))) for measured, computed in pairs)


def main() -> None:
    asked = options(__doc__.partition("\n")[0], peers="10,30", blocks=32, span=8, looks=3)
    sizes = [int(one) for one in asked.peers.split(",")]
    kept: Any = places
    kept.LIFETIME = KEPT
    directory.CALL_LIMIT, directory.RPC_LIMIT, directory.CONNECT_LIMIT = PATIENCE, PATIENCE / 6, PATIENCE / 6
    rows = asyncio.run(measure(sizes, asked.blocks, asked.span, asked.looks))
    record_bytes = rows[-1]["record_bytes"]
    computed = []
    for count in COMPUTED:
        size = Size(count, asked.blocks, asked.span, record_bytes)
        computed.append({"nodes": count, "look_up": size.look_up(), "publication": size.publication()})
    figures = {
        "blocks": asked.blocks,
        "span": asked.span,
        "lifetime_s": LIFETIME,
        "publish_every_s": PUBLISH_EVERY,
        "formula_off_look_up": ratio(rows, "look_up", "received"),
        "formula_off_publication": ratio(rows, "publication", "received"),
        "measured": rows,
        "computed": computed,
    }
    bounds = {"formula_off_look_up": Bound(most=1.5), "formula_off_publication": Bound(most=1.5)}
    finish("lookups", figures, bounds, asked.json)


if __name__ == "__main__":
    main()
