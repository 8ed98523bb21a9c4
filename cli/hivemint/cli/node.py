"""`hivemint node`: serve a span of blocks, and the operator's business with the contracts."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from hivemint.cli.account import check_address
from hivemint.cli.console import (
    JsonFlag,
    NetworkOption,
    PasswordFileOption,
    WalletOption,
    emit,
    need,
    out,
    run_async,
    show_error,
    table,
)
from hivemint.contracts.credits import format_credits, parse_coins
from hivemint.contracts.errors import ConfigError
from hivemint.contracts.home import Home
from hivemint.contracts.ids import Address
from hivemint.contracts.keystore import Keystores, read_password
from hivemint.contracts.network import Network
from hivemint.contracts.signature import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.node.assembly import Plan, Running

app = typer.Typer(help="Serve a span of blocks.")
ONE_COIN = 10**18
LOOK_EVERY = 1.0

NameOption = Annotated[str | None, typer.Option("--name", help="Folder of this node in the home; default: the wallet.")]
OwnerOption = Annotated[
    str | None, typer.Option("--owner", help="Wallet that holds the stake; default: the operator's own.")
]
OwnerPasswordOption = Annotated[
    Path | None, typer.Option("--owner-password-file", help="Password of --owner, if it has one of its own.")
]


@app.command()
def start(
    model: Annotated[str, typer.Argument(help="A pulled model, or a Hugging Face folder.")],
    blocks: Annotated[str, typer.Option(help="Blocks to serve, FIRST:END, e.g. 0:15.")],
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    name: NameOption = None,
    ask: Annotated[str | None, typer.Option(help="Price per token and block, e.g. 0.0000001 or '5 wei'.")] = None,
    listen: Annotated[list[str] | None, typer.Option(help="Multiaddress to listen on.")] = None,
    announce: Annotated[list[str] | None, typer.Option(help="Multiaddress to tell others instead.")] = None,
    bootstrap: Annotated[list[str] | None, typer.Option(help="More bootstrap peers.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads; 0 = the cores that are free.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of weights: fp32, bf16, fp16, int8, nf4; or with the computation's, nf4/fp16.")
    ] = None,
    wire: Annotated[
        str | None, typer.Option(help="Of rows between hops: fp32, bf16, fp16; default: as computed.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus on 127.0.0.1; 0 = any free port.")] = None,
) -> None:
    """Serve blocks of a model until Ctrl-C, which drains: steps under way are finished, sessions told."""
    from hivemint.node.assembly import Plan, find_model, parse_blocks
    from hivemint.node.settings import node_settings

    first, end = parse_blocks(blocks)
    settings = node_settings(
        ask=ask, listen=tuple(listen) if listen else None, announce=tuple(announce) if announce else None,
        bootstrap=tuple(bootstrap) if bootstrap else None, threads=threads, precision=precision, wire=wire,
        device=device, metrics_port=metrics_port,
    )  # fmt: skip
    where = _network(network)
    wallet = _wallet(wallet)
    home = Home.open()
    found = find_model(where, model, first, end, home)
    signer = _unlock(home, wallet, password_file)
    plan = Plan(where, found, first, end, name or wallet, signer, settings, home)
    from hivemint.node.watchdog import DeviceHung

    try:
        run_async(_serve(plan))
    except DeviceHung as error:
        show_error(error)
        _leave(1)
    except KeyboardInterrupt:
        _leave(130)


def _leave(code: int) -> None:
    """End the process although the device is at work, or stuck: the interpreter would wait for its thread for ever.

    Sessions, swarm and journal have been closed by now.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _serve(plan: "Plan") -> None:
    from hivemint.node.assembly import running

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()

    def stopped() -> None:
        if stop.is_set() and main is not None:  # a second Ctrl-C does not wait
            main.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped)
    live = sys.stdout.isatty()
    _log_to(sys.stderr, for_people=live)
    starting = _Starting(live)
    try:
        async with running(plan, starting.tell) as up:
            starting.done()
            await (_show(up, stop) if live else _tell(up, stop))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        starting.done()


class _Starting:
    """Progress of the start: a bar at a terminal, nothing elsewhere."""

    def __init__(self, live: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(TextColumn("{task.description:>8}"), BarColumn(), transient=True) if live else None
        self._task = self._bar.add_task("start", total=None) if self._bar else None
        if self._bar:
            self._bar.start()

    def tell(self, stage: str, done: int, total: int) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=stage, completed=done, total=total or None)

    def done(self) -> None:
        if self._bar:
            self._bar.stop()


async def _show(up: "Running", stop: asyncio.Event) -> None:
    """The live view, until `stop`."""
    from rich.live import Live

    from hivemint.node.status import Watcher, view

    watcher = Watcher(up)
    with Live(view(watcher.look()), console=out, refresh_per_second=4) as live:
        await _serving(up, stop, lambda snapshot: live.update(view(snapshot)), watcher)
        live.console.print("draining ...")


async def _tell(up: "Running", stop: asyncio.Event) -> None:
    """One machine-readable `ready` line, then log lines; what was logged before it went to stderr."""
    from hivemint.node.status import Watcher

    watcher = Watcher(up)
    now = watcher.look()
    ready = {
        "event": "ready", "peer": now.peer, "addresses": now.addresses, "operator": now.operator,
        "model": now.model, "blocks": now.blocks, "metrics": up.metrics_url,
    }  # fmt: skip
    typer.echo(json.dumps(ready))
    sys.stdout.flush()
    _log_to(sys.stdout, for_people=False)
    await _serving(up, stop, lambda _: None, watcher)
    typer.echo(json.dumps({"event": "draining"}))


async def _serving(up: "Running", stop: asyncio.Event, show: Callable[[Any], None], watcher: Any) -> None:
    from hivemint.node.status import write_status

    serving = asyncio.create_task(up.node.run(stop))
    while not serving.done():
        snapshot = watcher.look()
        show(snapshot)
        await asyncio.to_thread(write_status, up.plan.folder, snapshot)
        await asyncio.wait({serving}, timeout=LOOK_EVERY)
    serving.result()


@app.command()
def register(
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    owner_password_file: OwnerPasswordOption = None,
    name: NameOption = None,
    stake: Annotated[str | None, typer.Option(help="Coins to bond; default: the minimum.", metavar="AMOUNT")] = None,
    payout: Annotated[str | None, typer.Option(help="Address that credits are minted to; default: the owner.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Register the operator key with its peer id, and bond a stake; later: bond more, renew the peer id."""
    from hivemint.swarm.identity import PeerKey

    coins = None if stake is None else parse_coins(stake)
    paid_to = check_address(payout) if payout else None
    wallet = _wallet(wallet)
    home = Home.open()
    operator = _unlock(home, wallet, password_file)
    holder = _unlock(home, owner, owner_password_file or password_file) if owner else operator
    peer = PeerKey.load(home.node(name or wallet) / "peer.key").peer_id

    async def work(contracts: "Bindings") -> dict[str, Any]:
        from hivemint.contracts.signed import peer_id_hash

        registry = contracts.registry
        known = await registry.node(operator.address)
        wei = await registry.minimum_stake() if coins is None and known is None else coins or 0
        if known is None:
            await registry.register(holder, operator, peer, _network(network).domain, payout=paid_to, stake=wei)
        else:
            if known.peer_id_hash != peer_id_hash(peer):
                await registry.set_peer(holder, operator, peer, _network(network).domain)
            if paid_to and known.payout != paid_to:
                await registry.set_payout(holder, operator.address, paid_to)
            if wei:
                await registry.bond(holder, operator.address, wei)
        return await _standing(contracts, operator.address)

    _report(run_async(_with_contracts(network, work)), as_json)


@app.command()
def status(
    wallet: WalletOption = None, network: NetworkOption = None, name: NameOption = None, as_json: JsonFlag = False
) -> None:
    """The node's standing on the chain, and what it said of itself last."""
    wallet = _wallet(wallet)
    home = Home.open()
    operator = Keystores(home.keystores).find(wallet).address

    async def work(contracts: "Bindings") -> dict[str, Any]:
        return await _standing(contracts, operator)

    report = run_async(_with_contracts(network, work))
    path = home.node(name or wallet) / "status.json"
    if path.is_file():
        report["last_seen"] = _last_seen(path)
    _report(report, as_json)


@app.command()
def unbond(
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Begin to leave: no lane-B weight from now on; the stake can be withdrawn when UNBOND is over."""
    home, wallet = Home.open(), _wallet(wallet)
    operator, holder = _operator_and_owner(home, wallet, owner, password_file)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        await contracts.registry.unbond(holder, operator)
        return await _standing(contracts, operator)

    _report(run_async(_with_contracts(network, work)), as_json)


@app.command()
def withdraw(
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take the stake back after UNBOND."""
    home, wallet = Home.open(), _wallet(wallet)
    operator, holder = _operator_and_owner(home, wallet, owner, password_file)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        await contracts.registry.withdraw_stake(holder, operator)
        return await _standing(contracts, operator)

    _report(run_async(_with_contracts(network, work)), as_json)


@app.command()
def claim(
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    name: NameOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Settle vouchers, claim donated work, mint its share: what a running node does by itself."""
    home, wallet = Home.open(), _wallet(wallet)
    operator = _unlock(home, wallet, password_file)
    folder = home.node(name or wallet)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        from hivemint.ledger.journal import Journal
        from hivemint.ledger.payments import ContractPayments
        from hivemint.ledger.settlement import Settler

        url = f"sqlite:///{folder / 'journal.db'}"
        journal = await asyncio.to_thread(Journal.open, url, _network(network).domain, operator.address)
        try:
            settler = Settler(journal, ContractPayments(contracts, operator, node=operator.address))
            burned = await settler.settle_now()
            await settler.round()
            return {
                "operator": operator.address, "settled_wei": int(burned),
                "donated_minted_wei": int(settler.donated_minted), "reasons": settler.reasons,
            }  # fmt: skip
        finally:
            await journal.close()

    _report(run_async(_with_contracts(network, work)), as_json)


# ---- shared


def _network(path: Path | None) -> Network:
    return Network.load(need(path, "No network file", "pass --network FILE or set HIVEMINT_NETWORK"))


def _wallet(name: str | None) -> str:
    return str(need(name, "No wallet is named", "pass --wallet NAME (see `hivemint wallet list`)"))


def _unlock(home: Home, wallet: str, password_file: Path | None) -> Signer:
    keystores = Keystores(home.keystores)
    keystores.find(wallet)
    return keystores.unlock(wallet, read_password(wallet, file=password_file))


def _operator_and_owner(
    home: Home, wallet: str, owner: str | None, password_file: Path | None
) -> tuple[Address, Signer]:
    """The operator needs no key here; the owner signs."""
    operator = Keystores(home.keystores).find(wallet).address
    return operator, _unlock(home, owner or wallet, password_file)


async def _with_contracts(
    network: Path | None, work: Callable[["Bindings"], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(_network(network)) as contracts:
        return await work(contracts)


async def _standing(contracts: "Bindings", operator: Address) -> dict[str, Any]:
    """The registry's record and the shares of the last epochs."""
    known = await contracts.registry.node(operator)
    if known is None:
        return {"operator": operator, "registered": False}
    now = await contracts.emission.current_epoch()
    shares = {}
    for epoch in range(max(0, now - 3), now + 1):
        pending = await contracts.emission.pending(operator, epoch)
        shares[str(epoch)] = {"wei": int(pending.amount), "status": pending.status.name.lower()}
    return {
        "operator": operator, "registered": True, "owner": known.owner, "payout": known.payout,
        "bonded_wei": int(known.bonded), "unbonding_wei": int(known.unbonding), "unbond_end": known.unbond_end,
        "retired": known.retired, "peer_id_hash": known.peer_id_hash, "epoch": now, "shares": shares,
    }  # fmt: skip


def _last_seen(path: Path) -> dict[str, Any]:
    """What the node wrote of itself. Raises ConfigError for a damaged file."""
    try:
        told = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged", why=str(error), next_step="remove it: a node that runs writes it anew"
        ) from None
    if not isinstance(told, dict) or not told.keys() >= {"model", "blocks", "credits", "reasons"}:
        raise ConfigError(f"{path} is not a node's status", next_step="remove it: a node that runs writes it anew")
    return told


def _report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(report)
        return
    rows: list[tuple[str, ...]] = []
    for key, value in report.items():
        if key == "shares":
            shares = ", ".join(f"{epoch}: {format_credits(s['wei'])} {s['status']}" for epoch, s in value.items())
            rows.append(("shares by epoch", shares))
        elif key == "last_seen":
            rows.append(("blocks", f"{value['model']} {value['blocks']}"))
            rows += [(stage, format_credits(amount)) for stage, amount in value["credits"].items()]
            rows += [(f"why {stage}", text) for stage, text in value["reasons"].items()]
        elif key == "reasons":
            rows += [(f"why {stage}", text) for stage, text in value.items() if text]
        elif key in ("bonded_wei", "unbonding_wei"):
            rows.append((key.removesuffix("_wei"), f"{value / ONE_COIN:,.4f} coins"))
        elif key.endswith("_wei"):
            rows.append((key.removesuffix("_wei").replace("_", " "), format_credits(value)))
        else:
            rows.append((key.replace("_", " "), "0x" + value.hex() if isinstance(value, bytes) else str(value)))
    table("node", "", "", rows=rows)


def _log_to(stream: TextIO, *, for_people: bool) -> None:
    """structlog for people, or as JSON lines."""
    import structlog

    renderer: Any = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
