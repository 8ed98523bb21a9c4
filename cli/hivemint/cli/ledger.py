"""`hivemint ledger`: the index of the chain, the JSON API, /metrics and the page of the swarm."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import uvicorn

from hivemint.cli.console import NO_NETWORK, NetworkOption, log_to, need, out, run_async
from hivemint.protocol.errors import ConfigError
from hivemint.protocol.home import Home, private_folder
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hivemint.ledger.explorer.queries import SwarmMap

app = typer.Typer(help="Indexer, JSON API and the page of the swarm.")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@app.callback()
def _group() -> None:
    """A group, though it has one verb so far."""


@app.command()
def serve(
    network: NetworkOption = None,
    journal: Annotated[
        list[str] | None,
        typer.Option(
            help="Journal of an own node, as URL or path; its signed work is shown. Repeatable.", metavar="URL"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Others than loopback can read everything.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8800,
    database: Annotated[
        str | None, typer.Option(help="Where the index is kept. Default: a file in the home folder.", metavar="URL")
    ] = None,
    swarm: Annotated[bool, typer.Option(help="Join the swarm for the block map.")] = True,
) -> None:
    """Serve the page, /api and /metrics until Ctrl-C. Prints one ready line with the URL."""
    loaded = Network.load(need(network, "No network file", NO_NETWORK))
    run_async(
        _serve(loaded, [_url(one) for one in journal or []], host, port, database or _own_database(loaded), swarm)
    )


async def _serve(network: Network, journals: list[str], host: str, port: int, database: str, swarm: bool) -> None:
    from hivemint.contracts.bindings import Bindings
    from hivemint.ledger.explorer.api import LOOPBACK, create_app
    from hivemint.ledger.explorer.indexer import Indexer
    from hivemint.ledger.explorer.queries import Explorer
    from hivemint.ledger.explorer.statements import Statements

    log_to(sys.stderr, for_people=sys.stderr.isatty())
    sockets = [_listen(host, port)]
    async with AsyncExitStack() as opened:
        opened.callback(sockets[0].close)
        contracts = await opened.enter_async_context(await Bindings.connect(network))
        indexer = await Indexer.open(database, contracts, network)
        opened.push_async_callback(indexer.close)
        statements = []
        for url in journals:
            statements.append(Statements(url, network))
            opened.callback(statements[-1].close)
        swarm_map = await opened.enter_async_context(_joined(network)) if swarm else None
        explorer = Explorer(indexer, network, statements, swarm_map)
        hosts = [*LOOPBACK] if host in _LOOPBACK else ["*"]
        following = asyncio.create_task(indexer.run())
        try:
            await _run(create_app(explorer, hosts=hosts), sockets, following)
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following


class _Server(uvicorn.Server):
    """Says when it is ready, and leaves signals to us: uvicorn would raise them again before our own clean-up."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and sockets:
            _say_ready(sockets[0])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(application: "FastAPI", sockets: list[socket.socket], following: "asyncio.Task[None]") -> None:
    """Until SIGINT or SIGTERM, or until the indexer fails for a reason other than the chain."""
    server = _Server(uvicorn.Config(application, log_level="warning", access_log=False, timeout_graceful_shutdown=3))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
    serving = asyncio.create_task(server.serve(sockets))
    done, _ = await asyncio.wait({serving, following}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    if following in done:
        following.result()


@asynccontextmanager
async def _joined(network: Network) -> "AsyncIterator[SwarmMap]":
    """The swarm's block map by an own client-only peer."""
    from hivemint.cli.swarm import served, visiting

    async with visiting(network) as host:

        async def swarm_map() -> Sequence[dict[str, Any]]:
            maps: list[dict[str, Any]] = [await served(host, network, model.name) for model in network.models]
            there = ("registered", "answers")
            return [
                one | {"nodes": [n for n in one["nodes"] if all(n[is_] is not False for is_ in there)]} for one in maps
            ]

        yield swarm_map


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"The ledger cannot listen on {host}:{port}",
            why=error.strerror or str(error),
            next_step="choose another --port, or 0 for a free one",
        ) from None
    return found


def _say_ready(listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    if sys.stdout.isatty():
        out.print(f"The ledger is at [bold]{url}[/] (Ctrl-C ends it)")
    else:
        typer.echo(json.dumps({"event": "ready", "url": url}))


def _url(journal: str) -> str:
    """A path is fine too."""
    from hivemint.ledger.store.database import database_url

    return journal if "://" in journal else database_url(Path(journal).expanduser().absolute())


def _own_database(network: Network) -> str:
    from hivemint.ledger.store.database import database_url

    folder = private_folder(Home.open().root / "ledger")
    return database_url(folder / f"{network.name}-{network.chain_id}.db")
