"""What a shell offers after `--wallet`, `--model`, `--network`: names that are there.

It runs at every press of a key: folders are listed and one small file is read, no key, no model and no chain.
"""

import os
import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hivemint.protocol.errors import HivemintError
from hivemint.protocol.home import Home

_INSTRUCTION = "_HIVEMINT_COMPLETE"
_MAX_BYTES = 1 << 20
_HARMLESS = re.compile(r"[A-Za-z0-9._/@+~=:][A-Za-z0-9._/@+~=:-]*")
"""What is offered goes unquoted onto a command line, and in zsh through an `eval`: names come from files and folders of
others. Whatever a shell could read as more than a word, or a verb as an option, is left out.
"""


def words() -> list[str]:
    """What has been typed after `hivemint`, if a shell asks to complete it; else nothing."""
    if _INSTRUCTION not in os.environ:
        return []
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    try:
        return shlex.split(typed)[1:]
    except ValueError:  # a quotation mark that is still open
        return typed.split()[1:]


def wallets(_context: Any, begun: str) -> Iterable[str]:
    folder = _home() / "keystores"
    return (path.stem for path in _listed(folder) if path.suffix == ".json" and path.stem.startswith(begun))


def models(context: Any, begun: str) -> Iterable[str]:
    """Those on this machine and those that the network file names; then folders."""
    here = (path.name for path in _listed(_home() / "models") if path.is_dir())
    names = sorted({*here, *_of_network(context)})
    found = [name for name in names if name.lower().startswith(begun.lower())]
    return found or (f"{path}/" for path in _below(begun) if path.is_dir())


def networks(_context: Any, begun: str) -> Iterable[str]:
    """The testnet's file, and TOML files below what has been typed."""
    own = _home() / "testnet" / "network.toml"
    if own.is_file() and str(own).startswith(begun):
        yield str(own)
    for path in _below(begun):
        if path.is_dir():
            yield f"{path}/"
        elif path.suffix == ".toml":
            yield str(path)


Values = Callable[[Any, str], Iterable[str]]
OPTIONS: dict[str, Values] = {
    "--wallet": wallets,
    "--owner": wallets,
    "--by": wallets,
    "--session-key": wallets,
    "--model": models,
    "--network": networks,
}
ARGUMENTS: dict[tuple[str, str], Values] = {
    ("wallet show", "name"): wallets,
    ("key authorize", "key"): wallets,
    ("key revoke", "key"): wallets,
    ("model info", "model"): models,
    ("node start", "model"): models,
    ("testnet up", "model"): models,
    ("testnet demo", "model"): models,
}
"""By verb and argument: their names alone say too little."""


def attach(command: Any, path: str = "") -> None:
    """Give the options of all verbs below `command` what completes their values."""
    for param in command.params:
        values = next((OPTIONS[name] for name in param.opts if name in OPTIONS), None)
        if values := values or ARGUMENTS.get((path, param.name)):
            param._custom_shell_complete = _completer(values)  # typer has no way to say this for all of a name
    for name, verb in getattr(command, "commands", {}).items():
        attach(verb, f"{path} {name}".strip())


def _completer(values: Values) -> Any:
    def complete(context: Any, _param: Any, begun: str) -> list[str]:
        return [value for value in values(context, begun) if _HARMLESS.fullmatch(value)]

    return complete


def _home() -> Path:
    try:
        return Home.open().root
    except HivemintError:
        return Path(os.devnull)


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return


def _below(begun: str) -> Iterator[Path]:
    folder = Path(begun) if begun.endswith("/") else Path(begun).parent
    return (path for path in _listed(folder) if str(path).startswith(begun.removeprefix("./")))


def _of_network(context: Any) -> list[str]:
    """Names in the network file that the line or the environment names. A damaged one has none."""
    path = Path(context.params.get("network") or os.environ.get("HIVEMINT_NETWORK") or os.devnull)
    try:
        if not path.is_file():  # a pipe would hold the shell until somebody writes into it
            return []
        with path.open("rb") as file:
            table = tomllib.loads(file.read(_MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return []
    listed = table.get("models", [])
    return (
        [str(one["name"]) for one in listed if isinstance(one, dict) and "name" in one]
        if isinstance(listed, list)
        else []
    )
