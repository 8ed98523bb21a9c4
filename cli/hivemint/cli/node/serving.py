"""`hivemint node start`: serve a span of blocks, until somebody ends it."""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from hivemint.cli.console import (
    NetworkOption,
    PasswordFileOption,
    WalletOption,
    log_above_live,
    log_to,
    out,
    run_async,
    show_error,
)
from hivemint.cli.node.guided import StartWish, as_told, at_a_terminal, from_nothing
from hivemint.cli.node.operators import NameOption
from hivemint.cli.node.options import (
    AnnounceOption,
    AskOption,
    BlocksOption,
    BootstrapOption,
    CoinADayOption,
    CreditPriceOption,
    DeviceOption,
    DustOption,
    ListenOption,
    MaxFeeOption,
    MaxTipOption,
    MetricsPortOption,
    ModelArgument,
    NewBooksFlag,
    PrecisionOption,
    SettleMinOption,
    ThreadsOption,
    WireOption,
    YesFlag,
)
from hivemint.cli.node.placing import helps
from hivemint.cli.terminal.failures import exit_code
from hivemint.protocol.node_name import node_name

if TYPE_CHECKING:
    from hivemint.node.placement.rule import Choice
    from hivemint.node.running import Running, ServePlan
    from hivemint.node.status import Watcher

LOOK_EVERY = 1.0


def start(
    model: ModelArgument,
    blocks: BlocksOption = None,
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    name: NameOption = None,
    ask: AskOption = None,
    listen: ListenOption = None,
    announce: AnnounceOption = None,
    bootstrap: BootstrapOption = None,
    threads: ThreadsOption = None,
    precision: PrecisionOption = None,
    wire: WireOption = None,
    device: DeviceOption = None,
    metrics_port: MetricsPortOption = None,
    new_books: NewBooksFlag = False,
    settle_min: SettleMinOption = None,
    dust: DustOption = None,
    credit_price: CreditPriceOption = None,
    max_fee: MaxFeeOption = None,
    max_tip: MaxTipOption = None,
    coin_a_day: CoinADayOption = None,
    yes: YesFlag = False,
) -> None:
    """Serve blocks of a model until Ctrl-C, which drains: steps under way are finished, sessions told.

    At a terminal it asks for what it lacks, and registers after one question. A Ctrl-C while it starts ends it at once.
    """
    from hivemint.node.settings import NodeSettings

    settings = NodeSettings.load(
        ask=ask,
        listen=tuple(listen) if listen else None,
        announce=tuple(announce) if announce else None,
        bootstrap=tuple(bootstrap) if bootstrap else None,
        threads=threads,
        precision=precision,
        wire=wire,
        device=device,
        metrics_port=metrics_port,
        settle_min=settle_min,
        dust=dust,
        credit_price=credit_price,
        max_fee=max_fee,
        max_tip=max_tip,
        coin_a_day=coin_a_day,
    )
    wish = StartWish(model, blocks, wallet, network, password_file, name, new_books, yes)
    _serve_to_the_end(from_nothing(wish, settings) if at_a_terminal() else as_told(wish, settings))


def _serve_to_the_end(plan: "ServePlan") -> None:
    """A device that hangs ends the process: its thread can't be joined."""
    from hivemint.node.engine.watchdog import DeviceHung

    try:
        run_async(_serve(plan))
    except DeviceHung as error:
        show_error(error)
        _leave(exit_code(error))


def _leave(code: int) -> None:
    """End the process although the device is at work, or stuck: the interpreter would wait for its thread for ever.

    Sessions, swarm and journal have been closed by now.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


async def _serve(plan: "ServePlan") -> None:
    """At one place after the other: a node that moves has ended at the first one before it begins at the next."""
    stopping = _Stopping()
    live = sys.stdout.isatty()
    if live and sys.stderr.isatty():
        log_above_live()
    else:
        log_to(sys.stderr, for_people=live)
    moved = await _serve_here(plan, stopping, live)
    while moved is not None:
        plan = replace(plan, first=moved.first, end=moved.end)
        gc.collect()  # the blocks that it served are held in circles
        moved = await _serve_here(plan, stopping, live)


async def _serve_here(plan: "ServePlan", stopping: "_Stopping", live: bool) -> "Choice | None":
    """Until it is to end, or to move: then where to."""
    from hivemint.node.start import running
    from hivemint.node.status import Watcher

    starting, watcher, moved = _Starting(live), None, None
    try:
        async with running(plan, starting.tell) as up:
            starting.done()
            stopping.serving = True
            watcher = Watcher(up)
            moved = await (_show if live else _tell)(up, stopping.asked, watcher)
        stopping.serving = False
    except asyncio.CancelledError:
        # All has been closed. asyncio's own end would wait for threads that load weights or compute.
        starting.done()
        if watcher is not None:
            _over(plan, watcher, live)
        _leave(128 + stopping.signal)
    finally:
        starting.done()
        if watcher is not None:
            _over(plan, watcher, live and moved is None)
    return moved if not stopping.asked.is_set() else None


def _over(plan: "ServePlan", watcher: "Watcher", live: bool) -> None:
    """The last word of a node that has served: to its file, and at a terminal as a panel that stays."""
    from hivemint.cli.node.live_view import over
    from hivemint.node.status import write_status

    last = watcher.look(stopped=True)
    write_status(plan.folder, last)
    watcher.running.earnings.save()
    if live:
        out.print(over(last))


class _Stopping:
    """SIGINT and SIGTERM: the first one drains a node that serves, and ends one that starts; a second does not wait."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.serving = False
        self.signal = signal.SIGINT
        self._main = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._heard, number)

    def _heard(self, number: signal.Signals) -> None:
        if self._main is not None and (self.asked.is_set() or not self.serving):
            self.signal = number
            self._main.cancel()
        self.asked.set()


class _Starting:
    """Progress of the start: a bar at a terminal, nothing elsewhere."""

    def __init__(self, live: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (TextColumn("{task.description:>8}"), BarColumn())
        self._bar = Progress(*columns, console=out, transient=True) if live else None
        self._task = self._bar.add_task("start", total=None) if self._bar else None
        if self._bar:
            self._bar.start()

    def tell(self, stage: str, done: int, total: int) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=stage, completed=done, total=total or None)

    def done(self) -> None:
        if self._bar:
            self._bar.stop()


async def _show(up: "Running", stop: asyncio.Event, watcher: "Watcher") -> "Choice | None":
    """The live view, until `stop`; it goes, as what stays is the panel at the end."""
    from rich.live import Live

    from hivemint.cli.node.live_view import view

    with Live(view(watcher.look()), console=out, refresh_per_second=4, transient=True) as live:
        moved = await _serving(up, stop, lambda snapshot: live.update(view(snapshot)), watcher)
    if moved is not None:
        out.print(f"moving to blocks {moved.first}:{moved.end}: {helps(moved)}", highlight=False, soft_wrap=True)
    else:
        out.print("draining: steps under way are finished; a second Ctrl-C does not wait ...")
    return moved


async def _tell(up: "Running", stop: asyncio.Event, watcher: "Watcher") -> "Choice | None":
    """One machine-readable `ready` line, then log lines; what was logged before it went to stderr."""
    now = watcher.look()
    ready = {
        "event": "ready",
        "peer": now.peer,
        "addresses": now.addresses,
        "name": node_name(now.operator),
        "operator": now.operator,
        "model": now.model,
        "blocks": now.blocks,
        "metrics": up.metrics_url,
    }
    typer.echo(json.dumps(ready))
    sys.stdout.flush()
    log_to(sys.stdout, for_people=False)
    moved = await _serving(up, stop, lambda _: None, watcher)
    to = {} if moved is None else {"to": f"{moved.first}:{moved.end}", "why": helps(moved)}
    typer.echo(json.dumps({"event": "draining" if moved is None else "moving", **to}))
    sys.stdout.flush()
    return moved


async def _serving(
    up: "Running", stop: asyncio.Event, show: Callable[[Any], None], watcher: "Watcher"
) -> "Choice | None":
    from hivemint.node.status import write_status

    end = asyncio.Event()
    leaving = asyncio.create_task(_leaving(up, stop, end))
    serving = asyncio.create_task(up.node.run(end))
    while not serving.done():
        snapshot = watcher.look()
        show(snapshot)
        written = await asyncio.to_thread(write_status, up.plan.folder, snapshot)
        if trouble := written or await asyncio.to_thread(up.earnings.save):
            up.node.supervisor.tell("status", trouble)
        else:
            up.node.supervisor.well("status")
        await asyncio.wait({serving}, timeout=LOOK_EVERY)
    leaving.cancel()
    serving.result()
    return leaving.result()


async def _leaving(up: "Running", stop: asyncio.Event, end: asyncio.Event) -> "Choice | None":
    """Sets `end` when the node is to end here: somebody wants it to, or another place helps more, and its sessions have
    been given their time. Then where to."""
    asked = asyncio.create_task(stop.wait())
    try:
        if up.placement is not None:
            either: set[asyncio.Future[Any]] = {asked, up.placement.chosen}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if up.placement is None or asked.done():
            await asked
            return None
        handing = asyncio.create_task(up.node.hand_over(up.plan.settings.hand_over))
        await asyncio.wait({asked, handing}, return_when=asyncio.FIRST_COMPLETED)
        handing.cancel()
        return None if asked.done() else up.placement.chosen.result()
    finally:
        asked.cancel()
        end.set()
