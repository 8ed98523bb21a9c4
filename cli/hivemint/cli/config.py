"""`hivemint config show`: every setting, its value, where the value comes from, and what it means."""

import os
from typing import Any

import typer
from rich.padding import Padding
from rich.text import Text

from hivemint.cli.console import JsonFlag, emit, out, shown
from hivemint.protocol.home import Home
from hivemint.protocol.settings import Settings, read_table

app = typer.Typer(help="Settings and where each value comes from.")


@app.callback()
def _group() -> None:
    """Settings: flags > HIVEMINT_* in the environment > config.toml > defaults."""


@app.command()
def show(as_json: JsonFlag = False) -> None:
    """Settings of node and client. A flag of the verb itself goes before all of these."""
    from hivemint.client.settings import ClientSettings
    from hivemint.node.settings import NodeSettings

    home = Home.open()
    kinds = (ClientSettings, NodeSettings)
    report = {
        kind.TABLE: {name: _told(kind.load(home), name, read_table(home, kind.TABLE)) for name in kind.model_fields}
        for kind in kinds
    }
    if as_json:
        emit({"home": home.root, **report})
        return
    out.print(f"home  {shown(str(home.root))}", highlight=False, soft_wrap=True)
    for kind in kinds:
        out.print(f"\n[bold]\\[{kind.TABLE}][/]  {kind.__doc__}", highlight=False)
        for name, one in report[kind.TABLE].items():
            origin = Text(f"{one['origin']}  ${one['variable']}", style="dim")
            line = Text.assemble((name, "bold"), f" = {one['value']}  ", origin)
            out.print(line, highlight=False, soft_wrap=True)
            out.print(Padding(Text(one["meaning"], style="dim"), (0, 0, 0, 4)), highlight=False)


def _told(settings: Settings, name: str, in_file: dict[str, Any]) -> dict[str, str]:
    variable, field = settings.variable(name), type(settings).model_fields[name]
    if variable in os.environ:
        origin = "environment"
    elif name in in_file:
        origin = "config.toml"
    else:
        origin = "default" if not field.is_required() else "computed"
    meaning = " ".join((field.description or "").split())
    return {"value": str(getattr(settings, name)), "origin": origin, "variable": variable, "meaning": meaning}
