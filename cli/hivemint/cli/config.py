"""`hivemint config show`: every setting, its value, unit and meaning, where the value comes from, and its variable."""

import os
from collections.abc import Iterator
from typing import Any

import typer
from rich.padding import Padding
from rich.text import Text

from hivemint.cli.console import JsonFlag, emit, err, out, shown
from hivemint.cli.setting_units import UNITS, is_amount
from hivemint.protocol.credits import exact_credits
from hivemint.protocol.home import Home
from hivemint.protocol.keystore import PASSWORD_VARIABLE
from hivemint.protocol.settings import Settings, read_table
from hivemint.protocol.text import nearest, plain

app = typer.Typer(help="Settings and where each value comes from.")

EVERYWHERE = {
    "HIVEMINT_HOME": "Where keys, nodes, vouchers, models and config.toml lie.",
    "HIVEMINT_NETWORK": "The network file that verbs take without --network.",
    "HIVEMINT_WALLET": "The wallet that verbs take without --wallet.",
    PASSWORD_VARIABLE: "The wallets' password, where none is asked for; better: --password-file.",
}
"""What only the environment and flags set."""
VERBS = {"client": ("generate",), "node": ("node", "start")}
"""Whose options go before a table's settings."""


@app.callback()
def _group() -> None:
    """Settings: flags > HIVEMINT_* in the environment > config.toml > defaults."""


@app.command()
def show(as_json: JsonFlag = False) -> None:
    """Settings of node and client, and the variables of all verbs. A flag of the verb itself goes before all these."""
    from hivemint.client.settings import ClientSettings
    from hivemint.node.settings import NodeSettings

    home = Home.open()
    kinds = (ClientSettings, NodeSettings)
    tables = {
        kind.TABLE: dict(_table(kind.load(home), read_table(home, kind.TABLE), _flags(kind.TABLE))) for kind in kinds
    }
    unread = _unread(kinds)
    file = home.root / "config.toml"
    if as_json:
        emit({"home": home.root, "file": file, "environment": _everywhere(home), **tables, "unread": unread})
        return
    out.print(f"home  {shown(str(home.root))}", highlight=False, soft_wrap=True)
    there = "" if file.is_file() else "  (there is none)"
    out.print(f"file  {shown(str(file))}{there}", highlight=False, soft_wrap=True)
    out.print("\n[bold]every verb[/]", highlight=False)
    for variable, one in _everywhere(home).items():
        _print(f"${variable}", one["value"] or "not set", one["origin"], one["meaning"])
    for kind in kinds:
        out.print(f"\n[bold]\\[{kind.TABLE}][/]  {kind.__doc__}", highlight=False)
        for name, one in tables[kind.TABLE].items():
            ways = [one["origin"], one["flag"] or "", f"${one['variable']}"]
            _print(name, one["shown"], "  ".join(way for way in ways if way), one["meaning"])
    for variable, step in unread.items():
        err.print(Text(f"\nnothing reads ${plain(variable)}: {step}", style="yellow"), highlight=False, soft_wrap=True)


def _table(settings: Settings, in_file: dict[str, Any], flags: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in type(settings).model_fields.items():
        value, unit, variable = getattr(settings, name), UNITS[settings.TABLE].get(name, ""), settings.variable(name)
        yield (
            name,
            {
                "value": _native(value),
                "unit": f"wei: {unit}" if is_amount(unit) else unit,
                "shown": _shown(value, unit),
                "default": _native(field.get_default()),
                "origin": _origin(variable, name in in_file),
                "variable": variable,
                "flag": flags.get(name),
                "meaning": " ".join((field.description or "").split()),
            },
        )


def _flags(table: str) -> dict[str, str]:
    """Setting -> option of the verb that reads this table, where it has one."""
    from typer.main import get_command

    from hivemint.cli.tree import build

    group, *path = VERBS[table]
    verb: Any = get_command(build(group)).commands[group]  # type: ignore[attr-defined]
    for name in path:
        verb = verb.commands[name]
    return {param.name: param.opts[0] for param in verb.params if param.opts[0].startswith("--")}


def _origin(variable: str, in_file: bool) -> str:
    if any(name.upper() == variable for name in os.environ):
        return "environment"
    return "config.toml" if in_file else "default"


def _everywhere(home: Home) -> dict[str, dict[str, Any]]:
    told = {}
    for variable, meaning in EVERYWHERE.items():
        value = os.environ.get(variable)
        if variable == "HIVEMINT_HOME":
            value = str(home.root)
        elif variable == PASSWORD_VARIABLE and value is not None:
            value = "set, not shown"
        origin = "environment" if os.environ.get(variable) is not None else "default"
        told[variable] = {"value": value, "origin": origin, "meaning": meaning}
    return told


def _unread(kinds: tuple[type[Settings], ...]) -> dict[str, str]:
    """Variables that look like ours and that nothing reads, with what was probably meant."""
    known = {*EVERYWHERE, *(kind.variable(name) for kind in kinds for name in kind.model_fields)}
    found = sorted(one for one in os.environ if one.upper().startswith("HIVEMINT_") and one.upper() not in known)
    meant = {one: nearest(one, known) for one in found}
    return {one: f"did you mean ${near}?" if near else "no setting has that name" for one, near in meant.items()}


def _native(value: Any) -> Any:
    """For JSON: numbers and lists stay what they are."""
    if value is None or isinstance(value, bool | int | float | str):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return list(value) if isinstance(value, tuple) else str(value)


def _shown(value: Any, unit: str) -> str:
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    text = exact_credits(value) if is_amount(unit) and isinstance(value, int) else str(value)
    return f"{text} {unit}".strip()


def _print(name: str, value: str, origin: str, meaning: str) -> None:
    line = Text.assemble((name, "bold"), f" = {plain(value)}  ", (origin, "dim"))
    out.print(line, highlight=False, soft_wrap=True)
    out.print(Padding(Text(meaning, style="dim"), (0, 0, 0, 4)), highlight=False)
