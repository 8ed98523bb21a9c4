"""`hivemint config show`: every setting, its value, and where the value comes from."""

import os
from typing import Any

import typer
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from hivemint.cli.console import JsonFlag, emit, out, shown, table
from hivemint.protocol.home import Home

app = typer.Typer(help="Settings and where each value comes from.")


@app.callback()
def _group() -> None:
    """Settings: flags > HIVEMINT_* in the environment > config.toml > defaults."""


@app.command()
def show(as_json: JsonFlag = False) -> None:
    """Settings of node and client. A flag of the verb itself goes before all of these."""
    from hivemint.client.settings import ClientSettings, read_config_file
    from hivemint.node.settings import node_settings

    home = Home.open()
    in_file = read_config_file(home.root / "config.toml")
    groups: dict[str, tuple[BaseSettings, dict[str, Any]]] = {
        "client": (ClientSettings.load(home), in_file),
        "node": (node_settings(), {}),
    }
    report = {
        group: {name: _origin(settings, name, found) for name in type(settings).model_fields}
        for group, (settings, found) in groups.items()
    }
    if as_json:
        emit({"home": home.root, **report})
        return
    out.print(f"home  {shown(str(home.root))}", highlight=False, soft_wrap=True)
    for group, settings in report.items():
        rows = [(name, one["value"], one["origin"]) for name, one in settings.items()]
        table(group, "setting", "value", "from", rows=rows)


def _origin(settings: BaseSettings, name: str, in_file: dict[str, Any]) -> dict[str, str]:
    variable = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
    value = getattr(settings, name)
    default = type(settings).model_fields[name].default
    if variable in os.environ:
        origin = f"${variable}"
    elif name in in_file:
        origin = "config.toml"
    else:
        origin = "default" if default is not PydanticUndefined else "computed"
    return {"value": str(value), "origin": origin}
