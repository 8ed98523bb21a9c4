"""`hivemint swarm`: who serves what, and the peer that others bootstrap from."""

import asyncio
import json
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, emit, need, run_async, table
from hivemint.contracts.credits import format_credits
from hivemint.contracts.ids import PeerId
from hivemint.contracts.network import Network

if TYPE_CHECKING:
    from hivemint.swarm.host import Host

app = typer.Typer(help="Who serves what.")


@app.command()
def status(
    network: NetworkOption = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The nodes of the network's models, as the DHT knows them, and the blocks that nobody serves."""
    path = need(network, "No network file", "pass --network FILE or set HIVEMINT_NETWORK")
    report = run_async(_status(Network.load(path), model))
    if as_json:
        emit(report)
        return
    for served in report:
        rows = [
            (
                node["peer"],
                f"{node['first']}:{node['end']}",
                node["numerics"],
                format_credits(node["ask"], digits=9),
                f"{node['tokens_per_s']:.1f}",
                f"{node['wait_paid_s'] * 1000:.0f} / {node['wait_free_s'] * 1000:.0f}",
                f"{node['free_tokens']:,}",
            )
            for node in served["nodes"]
        ]
        columns = (
            "peer",
            "blocks",
            "numerics",
            ">ask a token and block",
            ">tokens/s",
            ">wait ms paid / free",
            ">free tokens",
        )
        table(f"{served['model']} ({served['blocks']} blocks)", *columns, rows=rows)
        if served["missing"]:
            typer.echo(f"  nobody serves blocks {', '.join(served['missing'])}")


@app.command()
def bootstrap(
    name: Annotated[str, typer.Option(help="Name of the network, as in network.toml.")],
    identity: Annotated[Path | None, typer.Option(help="Key file of the peer id; made if absent.")] = None,
    listen: Annotated[str, typer.Option(help="Where to listen.")] = "/ip4/127.0.0.1/tcp/0",
) -> None:
    """A peer without a model, from which others find the swarm. Prints one ready line, runs until Ctrl-C."""
    run_async(_bootstrap(name, identity, listen))


async def _bootstrap(name: str, identity: Path | None, listen: str) -> None:
    from hivemint.swarm.host import Host, HostSettings
    from hivemint.swarm.identity import peer_text

    host = await Host.start(HostSettings(network=name, identity=identity, listen=(listen,)))
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    ready = {"event": "ready", "peer": peer_text(host.peer_id), "addresses": list(host.addresses)}
    typer.echo(json.dumps(ready))
    await asyncio.wait(
        {asyncio.create_task(stopped.wait()), asyncio.create_task(host.wait_ended())},
        return_when=asyncio.FIRST_COMPLETED,
    )
    await host.close()


async def _status(network: Network, only: str | None) -> list[dict[str, object]]:
    from hivemint.swarm.host import Host, HostSettings

    chosen = [network.model(only)] if only else list(network.models)
    host = await Host.start(HostSettings(network=network.name, listen=(), bootstrap=network.bootstrap))
    try:
        return [await served(host, network, model.name) for model in chosen]
    finally:
        await host.close()


async def served(host: "Host", network: Network, name: str) -> dict[str, object]:
    """One model's block map: its nodes and the ranges of blocks that nobody serves."""
    from hivemint.swarm.identity import peer_text
    from hivemint.swarm.manifest import parse

    model = network.model(name)
    blocks = _block_count(parse(network.manifest(model)).tensors)
    found = await host.find(model.model_id, range(blocks))
    nodes = sorted((checked.record for checked in found), key=lambda record: (record.first_block, record.peer))
    covered = {block for record in nodes for block in range(record.first_block, record.end_block)}
    return {
        "model": name,
        "blocks": blocks,
        "nodes": [
            {
                "peer": peer_text(PeerId(record.peer)),
                "operator": record.operator,
                "first": record.first_block,
                "end": record.end_block,
                "numerics": ", ".join(record.numerics),
                "ask": record.ask,
                "tokens_per_s": record.tokens_per_s,
                "wait_paid_s": record.wait_paid_s,
                "wait_free_s": record.wait_free_s,
                "free_tokens": record.free_tokens,
            }
            for record in nodes
        ],
        "missing": _ranges([block for block in range(blocks) if block not in covered]),
    }


def _block_count(tensors: Iterable[str]) -> int:
    """Of a model, from the names in its manifest: `model.layers.29.mlp.up_proj.weight` tells of 30."""
    return 1 + max(int(found[1]) for name in tensors if (found := re.search(r"\.(\d+)\.", name)))


def _ranges(blocks: list[int]) -> list[str]:
    """[0, 1, 2, 7] -> ["0:3", "7:8"]."""
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and ranges[-1][1] == block:
            ranges[-1][1] = block + 1
        else:
            ranges.append([block, block + 1])
    return [f"{first}:{end}" for first, end in ranges]
