"""`hivemint testnet`: the whole of Hivemint on this machine, for developers and for a first look."""

import asyncio
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.text import Text

from hivemint.cli.console import JsonFlag, emit, out, run_async, shown, table
from hivemint.cli.network.devchain import chain, exports
from hivemint.model import local_models
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import ConfigError, HivemintError
from hivemint.protocol.home import Home
from hivemint.protocol.network import Network
from hivemint.testnet.checkout import from_checkout
from hivemint.testnet.devchain import CHAIN_ID, dev_signers
from hivemint.testnet.localnet import PEOPLE, Layout, LocalNet, State, next_epoch, read_state, stop

app = typer.Typer(help="The whole thing on this machine: up, env, status, epoch, chain, demo, down.")

NODES_TIME = 15.0
"""Seconds in which a node of the testnet has looked at the chain at least twice."""
ModelArgument = Annotated[str, typer.Argument(help="Name of a pulled model, a folder, or a hub id.")]


def own_home() -> Home:
    """The user's home, also in a shell that the lines of `up` have pointed at the testnet's."""
    home = Home.open()
    folder = home.root.parent
    inside = home.root.name == "home" and folder.name == "testnet" and (folder / "network.toml").is_file()
    return Home.open(folder.parent) if inside else home


def default_folder() -> Path:
    """Where `testnet up` keeps its files."""
    return own_home().root / "testnet"


@app.command()
def up(
    model: ModelArgument = local_models.DEMO,
    nodes: Annotated[int, typer.Option(min=1, max=6, help="The blocks are shared out evenly.")] = 2,
    as_json: JsonFlag = False,
) -> None:
    """Start chain, contracts, bootstrap peer, nodes and ledger in the background; print where everything is."""
    from_checkout()
    net = LocalNet(default_folder(), local_models.resolve(model, home=own_home()))
    with out.status("starting ...") as spinner:

        def tell(what: str) -> None:
            spinner.update(f"starting: {what} ...")

        state = run_async(net.up(Layout(nodes=nodes), tell))
    if as_json:
        emit(describe(net.folder, state))
    else:
        show(net.folder, state)


@app.command()
def env() -> None:
    """Print the lines that point a shell at the testnet: `eval "$(hivemint testnet env)"`."""
    folder = default_folder()
    running(folder)
    typer.echo(exports(folder))


app.command()(chain)


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """What runs, and where."""
    folder = default_folder()
    state = running(folder)
    if as_json:
        emit(describe(folder, state))
        return
    rows = [
        (one.name, "up" if one.alive else Text("down", style="red"), str(one.pid), one.log) for one in state.children
    ]
    table("testnet", "process", "state", ">pid", "log", rows=rows)
    where = {"network": folder / "network.toml", "chain": state.chain_url, "ledger": state.ledger_url}
    for name, text in where.items():
        out.print(f"{name:<8} {shown(str(text))}", highlight=False, soft_wrap=True)


@app.command()
def epoch(as_json: JsonFlag = False) -> None:
    """Let an epoch pass: nodes claim what they donated in the last one, and mint what they claimed before.

    An epoch is a day. Stake counts from the first whole one on; a thaw takes three.
    """
    folder = default_folder()
    state = running(folder)
    with out.status("the nodes claim and mint ..."):
        document = run_async(_epoch(Network.load(folder / "network.toml"), state))
    if as_json:
        emit(document)
        return
    out.print(f"epoch {document['epoch']} begins", highlight=False)
    for name, amount in document["credits"].items():
        out.print(f"  {name:<6} {format_credits(amount)}", highlight=False)


async def _epoch(network: Network, state: State) -> dict[str, Any]:
    """The new epoch, and what the wallets hold when the nodes have claimed and minted, or have had their time to."""
    from hivemint.contracts.bindings import Bindings, Status

    keys = dict(zip(PEOPLE, dev_signers()[1::2], strict=False))
    nodes = [dev_signers()[PEOPLE.index(plan.owner) * 2 + 2].address for plan in state.nodes]
    now = await next_epoch(network)
    async with await Bindings.connect(network) as contracts:
        emission, deadline = contracts.emission, time.monotonic() + NODES_TIME
        while time.monotonic() < deadline:
            claimed = [(await emission.claim_of(node, now - 1)).units > 0 for node in nodes]
            owed = [(await emission.pending(node, now - 2)).status is Status.MINTABLE for node in nodes]
            if all(claimed) and not any(owed):
                break
            await asyncio.sleep(0.5)
        credits = {name: await contracts.token.balance(signer.address) for name, signer in keys.items()}
    return {"epoch": now, "credits": credits}


@app.command()
def down(as_json: JsonFlag = False) -> None:
    """End what `testnet up` started: nodes first, so that they drain and settle; then ledger, bootstrap peer, chain."""
    folder = default_folder()
    state = running(folder)
    with out.status("ending ..."):
        stop(state.children)
    (folder / "state.json").unlink(missing_ok=True)
    if as_json:
        emit({"ended": [child.name for child in state.children]})
    else:
        out.print("testnet is down")


@app.command()
def demo(
    model: ModelArgument = local_models.DEMO,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, alone on stdout.")] = False,
) -> None:
    """The life of a token on a testnet of its own: chat, receipts, mints, priority, settlement, attacks refused."""
    from hivemint.testnet.demo.acts import run_demo
    from hivemint.testnet.demo.story import Story

    from_checkout()
    story = Story(silent=as_json)
    figures = asyncio.run(run_demo(local_models.resolve(model, home=own_home()), story))
    if as_json:
        emit(figures)
    else:
        total = figures.seconds["total"]
        story.tell(f"\n[bold]Done[/] in {total:.0f} s. Next: `hivemint testnet up`, and look around.")
    if not figures.sound:
        raise HivemintError("The demo ran, but not all that it claims came true", why="see the figures above")


def running(folder: Path) -> State:
    """The state of the testnet in `folder`. Raises ConfigError if none is up."""
    state = read_state(folder)
    if state is None:
        raise ConfigError("No testnet is up", next_step="start one with `hivemint testnet up`")
    return state


def describe(folder: Path, state: State) -> dict[str, object]:
    """For --json."""
    return {
        "network": folder / "network.toml",
        "chain_url": state.chain_url,
        "chain_id": CHAIN_ID,
        "ledger_url": state.ledger_url,
        "processes": [
            {"name": child.name, "pid": child.pid, "alive": child.alive, "log": child.log} for child in state.children
        ],
    }


def show(folder: Path, state: State) -> None:
    """Accounts the way Hardhat prints them, then one table of addresses and URLs."""
    signers = dev_signers()
    out.print("[bold]Accounts[/]  10,000 coins each; wallets of these names lie in the testnet's home")
    for index, name in enumerate(PEOPLE):
        signer = signers[index * 2 + 1]
        out.print(f"  {name:<6} {signer.address}  key 0x{signer.secret().hex()}", highlight=False, soft_wrap=True)
    out.print(
        Panel("These keys are known to everybody. Whatever is sent to them on a public chain is lost.", style="yellow")
    )
    contracts = Network.load(folder / "network.toml").contracts
    rows = [("chain", f"{state.chain_url}  (id {CHAIN_ID})"), ("ledger", state.ledger_url)]
    rows += [(name, getattr(contracts, name)) for name in contracts.__dataclass_fields__]
    rows += [(plan.operator, f"blocks {plan.blocks}, owner {plan.owner}") for plan in state.nodes]
    rows += [("network file", str(folder / "network.toml")), ("password file", str(folder / "password"))]
    table("Testnet", "what", "where", rows=rows)
    place = shown(shlex.quote(str(folder)))
    out.print(
        f"\nnext  export HIVEMINT_NETWORK={place}/network.toml HIVEMINT_HOME={place}/home\n"
        "      export HIVEMINT_PASSWORD=hivemint\n"
        "      hivemint chat --wallet bob\n"
        "      hivemint testnet status | epoch | demo | down",
        highlight=False,
        soft_wrap=True,
    )
