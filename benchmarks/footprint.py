"""Memory of a node, and how fast a late node gets a waiting client its first token.

    python benchmarks/footprint.py [--json FILE]

`node_pss_mb`: one node of 15 blocks, fp32, alone on the host, after 200 tokens: PSS summed over its process tree (the
libp2p daemon included). `first_token_s`: from exec of the second node's command to the first token at a client that
already waits for the missing blocks; page cache warm; median of 3.
"""

import asyncio
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import Bound, bars, finish, generate, options, prompt, swarm
from paying import CHEAP, open_client

from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.swarm_client import connect
from hivemint.protocol.ids import Address, BlockIndex, Credits
from hivemint.protocol.signing import Signer

TOKENS = 200


def pss_mb(pid: int) -> float:
    """Proportional set size of a process and all below it, in MB of 10^6 bytes."""
    root = psutil.Process(pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total / 1e6


def node_alone(net: Any) -> float:
    """The first node's PSS after `TOKENS` tokens, with no other process of ours but chain and bootstrap peer."""
    return asyncio.run(_serve_half(net))


async def _serve_half(net: Any) -> float:
    """Hidden states through the first span alone: a client may ask for any part of the model."""
    client = await connect(net.model, network=net.network_file, wallet=Signer(b"\x07" * 32), home=net.model.home)
    try:
        width = net.model.anatomy.hidden_size
        operator = net.signer(net.plans[0].operator).address
        record = next(one.record for one in await client.nodes.usable() if one.record.operator == operator)
        first, end = BlockIndex(record.first_block), BlockIndex(record.end_block)
        leg = Leg(record, first, end, Credits(0), record.numerics[0], 0.0, 0.0)
        pipeline = await client.along(Route((leg,)), TOKENS)
        await pipeline.forward(torch.randn(TOKENS // 2, width))
        for _ in range(TOKENS - TOKENS // 2):
            await pipeline.forward(torch.randn(1, width))
        pss = pss_mb(net.child(net.plans[0].operator).pid)
        await pipeline.close()
        return pss
    finally:
        await client.close()


def late_node(net: Any) -> float:
    """Stop the second node, let a client wait, start the node again; seconds from exec to the first token."""
    plan = net.plans[1]
    net.child(plan.operator).stop()
    _wait_until_missing(net, net.signer(plan.operator).address)
    ids, seen = prompt(16), list[float]()
    with open_client(net, Signer(b"\x08" * 32), bid="free", wait_for_blocks=120.0) as model:
        asking = threading.Thread(target=lambda: seen.append(generate(model, ids, 1)[1].times[0]))
        asking.start()
        began = time.perf_counter()
        asyncio.run(net.start_node(plan))
        asking.join()
    if not seen:
        raise RuntimeError("the waiting client got no token")
    return seen[0] - began


def _wait_until_missing(net: Any, operator: Address) -> None:
    """Until the record of the stopped node has expired (a minute at most)."""

    async def look() -> None:
        client = await connect(net.model, network=net.network_file, wallet=None, home=net.model.home)
        try:
            while any(one.record.operator == operator for one in await client.nodes.usable()):
                client.nodes.forget()
                await asyncio.sleep(0.5)
        finally:
            await client.close()

    asyncio.run(look())


def main() -> None:
    args = options(__doc__ or "")
    with swarm(CHEAP) as net:
        net.child(net.plans[1].operator).stop()
        pss = node_alone(net)
        asyncio.run(net.start_node(net.plans[1]))
        starts = [late_node(net) for _ in range(3)]
    figures = {"node_pss_mb": pss, "first_token_s": statistics.median(starts), "starts": starts}
    bounds = {"node_pss_mb": Bound(most=750), "first_token_s": Bound(most=15)}
    chart = bars(["this node", "Petals, least", "Petals, most"], [pss, 1036, 1610], "Memory of 15 blocks, fp32", "MB")
    finish("footprint", figures, bounds, args.json, chart)


if __name__ == "__main__":
    main()
