"""What every verb shares: how results, errors and passwords look on a terminal."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, cast

import msgspec
import structlog
import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hivemint.cli.terminal.screen import Terminal, fits, records
from hivemint.protocol.errors import ConfigError, HivemintError
from hivemint.protocol.text import plain

out = Terminal()
err = Terminal(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
NetworkOption = Annotated[
    Path | None,
    typer.Option(
        "--network", envvar="HIVEMINT_NETWORK", help="network.toml (see `hivemint testnet up`).", metavar="FILE"
    ),
]
WalletOption = Annotated[str | None, typer.Option("--wallet", envvar="HIVEMINT_WALLET", help="Name of a keystore.")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        help="File with the keystore's password. Otherwise $HIVEMINT_PASSWORD, otherwise asked for.",
        metavar="FILE",
    ),
]


def emit(document: Any) -> None:
    """One JSON document on stdout. Structs and dataclasses are fine; bytes come out as 0x hex."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(document, enc_hook=_plain, builtin_types=(bytes,)), default=_plain))
    sys.stdout.write("\n")
    sys.stdout.flush()


def shown(text: str) -> str:
    """A stranger's text inside of markup: it can neither end ours nor bring its own, nor command the terminal."""
    return escape(plain(text))


def table(title: str, *columns: str, rows: Sequence[tuple[str | Text, ...]]) -> None:
    """A tidy table; columns that start with '>' are right-aligned. Strings are shown as they are, without markup.

    Where the terminal is too narrow for it, each row is a few lines: name and value, which can be read and copied.
    """
    names = [column.lstrip(">") for column in columns]
    cells = [tuple(Text(plain(cell)) if isinstance(cell, str) else cell for cell in row) for row in rows]
    if not fits(out, names, cells):
        return out.print(records(plain(title), names, cells), soft_wrap=True)
    view = Table(
        title=shown(title), title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    for at, (column, name) in enumerate(zip(columns, names, strict=True)):
        widest = max((line.cell_len for row in cells for line in row[at].split()), default=0)
        side: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        view.add_column(name, justify=side, min_width=widest, overflow="fold")  # the names above break, no cell does
    for row in cells:
        view.add_row(*row)
    return out.print_whole(view)


def show_error(error: HivemintError) -> None:
    """What, why, next step: three short lines at most, never a traceback."""
    lines = [f"[bold red]error[/] {_line(error.what)}"]
    if error.why:
        lines.append(f"  [dim]why[/]   {_line(error.why)}")
    if error.next_step:
        lines.append(f"  [dim]next[/]  {_line(error.next_step)}")
    for line in lines:  # unbroken, so that a path can be copied and a log has one line for each
        err.print(line, soft_wrap=True, highlight=False)


NO_NETWORK = (
    "pass --network FILE or set HIVEMINT_NETWORK; of a testnet on this machine `hivemint testnet env` prints it, and "
    "`hivemint testnet up` starts one"
)


def need(value: Any, what: str, next_step: str) -> Any:
    """A setting that a verb cannot do without."""
    if value is None:
        raise ConfigError(what, next_step=next_step)
    return value


def run_async(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a verb's coroutine, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries underneath stay off a terminal that is ours.

    So do our own log lines below an error: what a command has to say is its output, or the refusal that it ends with.
    What goes on running sets up a log of its own (`log_to`).
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def log_to(stream: TextIO, *, for_people: bool) -> None:
    """structlog for people, or as JSON lines."""
    colors = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    renderer: Any = structlog.dev.ConsoleRenderer(colors=colors) if for_people else structlog.processors.JSONRenderer()
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


class _AboveLive:
    """A stream for log lines that prints through our console: above a live view or a bar, never into it."""

    def write(self, text: str) -> int:
        out.print(Text.from_ansi(text.rstrip("\n")), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        out.file.flush()

    def isatty(self) -> bool:
        return out.is_terminal


def log_above_live() -> None:
    """structlog at a terminal on which something is drawn: `Live` and `Progress` know of lines that their own console
    prints, and of no others.
    """
    log_to(cast(TextIO, _AboveLive()), for_people=True)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _line(text: str) -> str:
    return shown(" ".join(text.splitlines()))
