"""`hivemint testnet`: the whole of Hivemint on this machine, for developers and for a first look."""

import asyncio
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.panel import Panel
from rich.text import Text

from hivemint.cli.console import JsonFlag, emit, out, run_async, shown, table
from hivemint.cli.network.devchain import chain, exports
from hivemint.cli.network.faucet import faucet
from hivemint.cli.terminal.failures import fail_with
from hivemint.model import local_models
from hivemint.protocol.credits import exact_credits, format_credits
from hivemint.protocol.errors import ConfigError, HivemintError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import named, node_name
from hivemint.testnet.checkout import from_checkout
from hivemint.testnet.devchain import CHAIN_ID, dev_signers
from hivemint.testnet.localnet import PEOPLE, Layout, LocalNet, State, read_state, stop

app = typer.Typer(help="The whole thing on this machine: up, env, status, epoch, faucet, chain, demo, down.")

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
    epochs: Annotated[
        int,
        typer.Option(min=0, max=30, help="Let so many days pass first; with 3 there are credits, earned and minted."),
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Start chain, contracts, bootstrap peer, nodes and ledger in the background; print where everything is.

    `--epochs 3`: nodes do donated work, claim and mint while days pass on the chain's clock, and their owners send Bob
    a part. There is no premint: the credits come from real receipts.
    """
    from_checkout()
    net = LocalNet(default_folder(), local_models.resolve(model, home=own_home()))
    with out.status("starting ...") as spinner:

        def tell(what: str) -> None:
            spinner.update(f"starting: {what} ...")

        state = run_async(net.up(Layout(nodes=nodes), tell))
        credits = _first_credits(net, epochs, lambda what: spinner.update(f"{what} ..."), as_json)
    if as_json:
        emit({**describe(net.folder, state), **({"credits": credits} if epochs else {})})
        return
    show(net.folder, state, net.model_argument)
    if epochs:
        _tell_credits(credits, len(state.nodes))


def _first_credits(net: LocalNet, epochs: int, tell: Callable[[str], None], quiet: bool) -> dict[str, Credits]:
    """What people hold when the epochs have passed; the testnet stays up if that fails, and the error says so."""
    if not epochs:
        return {}
    from hivemint.testnet.first_credits import earn

    def told(what: str) -> None:
        tell(what)
        if not quiet:
            out.print(f"[dim]{what}[/]", highlight=False)

    return asyncio.run(earn(net, epochs, told))


def _tell_credits(credits: dict[str, Credits], nodes: int) -> None:
    """Who has what, and what to do with it."""
    out.print("\n[bold]Credits[/]  minted for donated work; nothing was there before")
    for name, amount in credits.items():
        if amount:
            out.print(f"  {name:<6} {format_credits(amount)}", highlight=False)
    if each := credits.get("bob", 0) // (nodes + 1):  # a part stays in the wallet, to top up with
        words = shlex.join(("hivemint", "account", "fund", f"{exact_credits(each)}", "--wallet", "bob"))
        out.print(f"pay    {words}", highlight=False, soft_wrap=True)


@app.command()
def env() -> None:
    """Print the lines that point a shell at the testnet: `eval "$(hivemint testnet env)"`."""
    folder = default_folder()
    running(folder)
    typer.echo(exports(folder))


app.command()(faucet)
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
    table("nodes", "node", "", rows=node_rows(state))
    where = {"network": folder / "network.toml", "chain": state.chain_url, "ledger": state.ledger_url}
    for name, text in where.items():
        out.print(f"{name:<8} {shown(str(text))}", highlight=False, soft_wrap=True)
    if gone := [one.name for one in state.children if not one.alive]:
        out.print(
            f"{' and '.join(gone)} ended by accident: the log says why. `hivemint testnet down`, then `up` starts all "
            "anew; the chain forgets what was earned.",
            highlight=False,
            soft_wrap=True,
        )


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
    from hivemint.testnet.first_credits import held, pass_epoch

    now = await pass_epoch(network, state.nodes)
    return {"epoch": now, "credits": await held(network)}


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
    if not figures.sound:
        failed = HivemintError("The demo ran, but not all that it claims came true", why="see its figures")
        fail_with(msgspec.structs.asdict(figures), failed, as_json)
    if as_json:
        emit(figures)
    else:
        total = figures.seconds["total"]
        story.tell(f"\n[bold]Done[/] in {total:.0f} s. Next: `hivemint testnet up`, and look around.")


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
        "nodes": [
            {
                "name": node_name(plan.address),
                "operator": plan.address,
                "wallet": plan.operator,
                "owner": plan.owner,
                "blocks": plan.blocks,
            }
            for plan in state.nodes
        ],
    }


def node_rows(state: State) -> list[tuple[str, str]]:
    """Each node's wallet, then the name and the operator that all other views show."""
    return [(plan.operator, f"{named(plan.address)}, blocks {plan.blocks}, owner {plan.owner}") for plan in state.nodes]


def show(folder: Path, state: State, model: str = local_models.DEMO) -> None:
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
    rows: list[tuple[str, ...]] = [("chain", f"{state.chain_url}  (id {CHAIN_ID})"), ("ledger", state.ledger_url)]
    rows += [(name, getattr(contracts, name)) for name in contracts.__dataclass_fields__]
    rows += node_rows(state)
    rows += [("network file", str(folder / "network.toml")), ("password file", str(folder / "password"))]
    table("Testnet", "what", "where", rows=rows)
    words = shlex.join(
        ("hivemint", "chat", *(() if model == local_models.DEMO else ("--model", model)), "--wallet", "bob")
    )
    more = "hivemint testnet status   # also: env, epoch, faucet, demo, down"
    out.print("\nnext")
    for line in (*exports(folder).splitlines(), words, more):  # each of them runs as printed
        out.print(shown(line), highlight=False, soft_wrap=True)
