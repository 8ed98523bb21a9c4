"""`hivemint testnet chain | env`: a development chain that others can reach, and the testnet's place for a shell."""

import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hivemint.cli.console import err, log_to, run_async
from hivemint.protocol.errors import ChainError
from hivemint.testnet.devchain import CHAIN_ID, DevChain
from hivemint.testnet.localnet import PASSWORD


def chain(
    host: Annotated[str, typer.Option(help="Address to listen on. Who reaches it can do all to this chain.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8545,
    block_time: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds from block to block.")] = 2.0,
) -> None:
    """A development chain alone, until Ctrl-C. Prints one ready line. It forgets everything when it ends.

    It has no keeper: whoever reaches it can give himself coin and move its clock. For people who trust each other.
    """
    log_to(sys.stderr, for_people=sys.stderr.isatty())
    run_async(_chain(host, port, block_time))


async def _chain(host: str, port: int, block_time: float) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    with await asyncio.to_thread(DevChain.start, host=host, port=port, detached=True) as running:
        running.mine_every(block_time)
        if host not in ("127.0.0.1", "localhost", "::1"):
            err.print("[yellow]whoever reaches this chain can make coin on it: keep it within a network of friends[/]")
        typer.echo(json.dumps({"event": "ready", "url": running.url, "chain_id": CHAIN_ID}))
        ended = asyncio.create_task(asyncio.to_thread(running.wait))
        await asyncio.wait({asyncio.create_task(stopped.wait()), ended}, return_when=asyncio.FIRST_COMPLETED)
        running.stop()
        await ended
    if not stopped.is_set():
        raise ChainError("The development chain has ended", next_step="start it again: it begins anew")


def exports(folder: Path) -> str:
    """The lines that point a shell at the testnet in `folder`."""
    values = {
        "HIVEMINT_NETWORK": str(folder / "network.toml"),
        "HIVEMINT_HOME": str(folder / "home"),
        "HIVEMINT_PASSWORD": PASSWORD,
    }
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())
