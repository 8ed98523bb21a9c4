"""What every verb shares: how results, errors and passwords look on a terminal."""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from hivemint.contracts.errors import ConfigError, HivemintError

out = Console()
err = Console(stderr=True)

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


def table(title: str, *columns: str, rows: Sequence[tuple[str, ...]]) -> None:
    """A tidy table; columns that start with '>' are right-aligned."""
    view = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        view.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        view.add_row(*row)
    out.print(view)


def show_error(error: HivemintError) -> None:
    """What, why, next step: three short lines at most, never a traceback."""
    lines = [f"[bold red]error[/] {_escape(error.what)}"]
    if error.why:
        lines.append(f"  [dim]why[/]   {_escape(error.why)}")
    if error.next_step:
        lines.append(f"  [dim]next[/]  {_escape(error.next_step)}")
    for line in lines:  # unbroken, so that a path can be copied and a log has one line for each
        err.print(" ".join(line.splitlines()), soft_wrap=True, highlight=False)


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


def from_checkout() -> Path:
    """The repository's root, for the verbs that need its Hardhat project. Raises ConfigError from a wheel."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "hardhat" / "package.json").is_file():
            return folder
    raise ConfigError(
        "This verb needs a checkout of Hivemint",
        why="it starts Hardhat's node, and a wheel carries no npm packages",
        next_step="git clone the repository, then `make setup`",
    )


def quiet_libraries() -> None:
    """Progress bars and notices of the libraries underneath stay off a terminal that is ours."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
