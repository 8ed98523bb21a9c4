"""`hivemint swarm`: who serves what, the peer that others bootstrap from, and how members come to a network."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hivemint.cli.console import NO_NETWORK, JsonFlag, NetworkOption, emit, log_to, need, run_async, table
from hivemint.cli.network.answering import answering, notes
from hivemint.cli.network.invitation import invite, join
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import BadInput, ChainError, SwarmError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import ModelId, PeerId
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import node_name
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.swarm.host import Host

app = typer.Typer(help="Who serves what, and how members come to a network.")
app.command()(invite)
app.command()(join)


@app.command()
def status(
    network: NetworkOption = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The nodes of the network's models, as the DHT knows them, which of them answer, and the blocks that nobody
    serves."""
    path = need(network, "No network file", NO_NETWORK)
    report = run_async(_status(Network.load(path), model))
    if as_json:
        emit(report)
        return
    for served in report:
        rows = [
            (
                node["name"],
                f"{node['first']}:{node['end']}",
                node["numerics"],
                format_credits(node["ask"], digits=9),
                f"{node['tokens_per_s']:.1f}",
                f"{node['wait_paid_s'] * 1000:.0f} / {node['wait_donated_s'] * 1000:.0f}",
                f"{node['free_tokens']:,}",
                {True: "yes", False: "no", None: "?"}[node["registered"]],
                {True: "yes", False: "does not answer", None: "?"}[node["answers"]],
            )
            for node in served["nodes"]
        ]
        columns = (
            "node",
            "blocks",
            "numerics",
            ">ask a token and block",
            ">tokens/s",
            ">wait ms paid / donated",
            ">free tokens",
            "registered",
            "answers",
        )
        table(f"{served['model']} ({served['blocks']} blocks)", *columns, rows=rows)
        if served["missing"]:
            typer.echo(f"  nobody serves blocks {', '.join(served['missing'])}")
        for note in served["notes"]:
            typer.echo(f"  {plain(note)}")


@app.command()
def bootstrap(
    name: Annotated[str | None, typer.Option(help="Name of the network; else a network file says it.")] = None,
    network: NetworkOption = None,
    add: Annotated[bool, typer.Option("--add", help="Write this peer's addresses into the network file.")] = False,
    identity: Annotated[Path | None, typer.Option(help="Key file of the peer id; made if absent.")] = None,
    listen: Annotated[str, typer.Option(help="Where to listen.")] = "/ip4/127.0.0.1/tcp/0",
    announce: Annotated[list[str] | None, typer.Option(help="Multiaddress to tell others instead.")] = None,
) -> None:
    """A peer without a model, from which others find the swarm. Prints one ready line, runs until Ctrl-C."""
    from hivemint.swarm.addresses import trouble_of

    for flag, address in (("--listen", listen), *(("--announce", one) for one in announce or ())):
        if trouble := trouble_of(address):
            raise BadInput(f"The address of {flag} cannot be used", why=trouble, next_step=f"change {flag}")
    place = None
    if name is None or add:
        place = Network.load(need(network, "No network file", "pass --network FILE, or --name for a peer without one"))
    run_async(_bootstrap(name or (place.name if place else ""), place, add, identity, listen, announce or []))


async def _bootstrap(
    name: str, place: Network | None, add: bool, identity: Path | None, listen: str, announce: Sequence[str]
) -> None:
    from hivemint.swarm.host import Host, HostSettings
    from hivemint.swarm.identity import peer_text

    log_to(sys.stderr, for_people=sys.stderr.isatty())
    key = place.swarm_key if place else None
    settings = HostSettings(name, identity=identity, listen=(listen,), announce=tuple(announce), swarm_key=key)
    host = await Host.start(settings)
    if add and place is not None and place.path is not None:
        named = dict.fromkeys((*place.bootstrap, *host.addresses))
        replace(place, bootstrap=tuple(named)).save(place.path)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    ready = {"event": "ready", "peer": peer_text(host.peer_id), "addresses": list(host.addresses)}
    typer.echo(json.dumps(ready))
    ended = asyncio.create_task(host.wait_ended())
    await asyncio.wait({asyncio.create_task(stopped.wait()), ended}, return_when=asyncio.FIRST_COMPLETED)
    await host.close()
    if not stopped.is_set():
        raise SwarmError("The bootstrap peer has ended", why=await ended, next_step="start it again")


async def _status(network: Network, only: str | None) -> list[dict[str, object]]:
    chosen = [network.model(only)] if only else list(network.models)
    async with visiting(network) as host:
        return [await served(host, network, model.name) for model in chosen]


@asynccontextmanager
async def visiting(network: Network) -> "AsyncIterator[Host]":
    """A client's peer in the swarm, which knows who is registered if the chain answers. Raises SwarmError."""
    from hivemint.contracts.bindings import Bindings
    from hivemint.swarm.host import Host, HostSettings

    known = Home.open().client / f"peers-{network.name}.json"
    async with AsyncExitStack() as stack:
        host = await Host.start(
            HostSettings(network.name, listen=(), bootstrap=network.bootstrap, swarm_key=network.swarm_key, known=known)
        )
        stack.push_async_callback(host.close)
        with suppress(ChainError):
            contracts = await stack.enter_async_context(await Bindings.connect(network))
            host.rank_by(contracts.registry)
            host.clock.see_block(await contracts.chain.time())
        yield host


async def served(host: "Host", network: Network, name: str) -> dict[str, object]:
    """One model's block map: its nodes and the ranges of blocks that nobody serves.

    `registered` None: the chain does not answer. Where it does, a node without registration serves nothing here, nor
    does one that does not answer; `answers` None: it was not asked, as there are so many. `notes`: clocks that are off,
    and operators that are listed twice.
    """
    from hivemint.model.manifest import parse
    from hivemint.swarm.identity import peer_text

    model = network.model(name)
    blocks = _block_count(parse(network.manifest(model)).tensors)
    found = await host.find(model.model_id, range(blocks))
    nodes = sorted((checked.record for checked in found), key=lambda record: (record.first_block, record.peer))
    registered = {one.peer: host.is_registered(one) for one in found} if host.ranks else {}
    told = await answering(host, found)
    answers = {peer: seconds is not None for peer, seconds in told.items()}
    counted = [
        record
        for record in nodes
        if registered.get(PeerId(record.peer), True) and answers.get(PeerId(record.peer), True)
    ]
    covered = {block for record in counted for block in range(record.first_block, record.end_block)}
    return {
        "model": name,
        "blocks": blocks,
        "nodes": [
            {
                "name": node_name(record.operator),
                "peer": peer_text(PeerId(record.peer)),
                "operator": record.operator,
                "registered": registered.get(PeerId(record.peer)),
                "answers": answers.get(PeerId(record.peer)),
                "first": record.first_block,
                "end": record.end_block,
                "numerics": ", ".join(record.numerics),
                "ask": record.ask,
                "tokens_per_s": record.tokens_per_s,
                "wait_paid_s": record.wait_paid_s,
                "wait_donated_s": record.wait_donated_s,
                "free_tokens": record.free_tokens,
            }
            for record in nodes
        ],
        "missing": _ranges([block for block in range(blocks) if block not in covered]),
        "notes": notes(host, found, told),
    }


def block_counts(network: Network) -> dict[ModelId, int]:
    """How many blocks each of the network's models has. Raises ConfigError, ProofError for a damaged manifest."""
    from hivemint.model.manifest import parse

    return {model.model_id: _block_count(parse(network.manifest(model)).tensors) for model in network.models}


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
