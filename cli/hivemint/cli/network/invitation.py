"""`hivemint swarm invite | join`: a network in one file, for whoever is to come to it.

The file is JSON: `network.toml` as it is, and the manifests beside it. Where the network has a swarm key it is in
there, so whoever has the file is a member.
"""

import base64
import binascii
import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from hivemint.cli.console import JsonFlag, NetworkOption, emit, need, out, shown
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.home import Home, check_name, private_folder, read_small, write_private
from hivemint.protocol.network import Network

LARGEST = 64 << 20
_NOT_ONE = "ask whoever invited you for the file again; `hivemint swarm invite` writes it"


class Invitation(msgspec.Struct, forbid_unknown_fields=True):
    """What the file holds. `manifests`: base64 by the name of the file."""

    hivemint_invitation: int
    network: str
    manifests: dict[str, str]


def invite(
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    network: NetworkOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write all that a member needs into one file: the network file, its manifests, its swarm key if it has one."""
    place = Network.load(need(network, "No network file", "pass --network FILE or set HIVEMINT_NETWORK"))
    if not place.bootstrap:
        raise ConfigError(
            f"Nobody would find the network {place.name}",
            why="its file names no bootstrap peer",
            next_step="start one with `hivemint swarm bootstrap --add --listen /ip4/YOUR-ADDRESS/tcp/4001`",
        )
    manifests = {one.manifest: base64.b64encode(place.manifest(one)).decode() for one in place.models}
    text = need(place.path, "No network file", "").read_text(encoding="utf-8")
    try:
        write_private(file, msgspec.json.encode(Invitation(1, text, manifests)), replace=True)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written", why=error.strerror or str(error)) from None
    if as_json:
        emit({"file": file, "network": place.name, "members_only": place.swarm_key is not None})
        return
    out.print(f"[green]wrote[/] {shown(str(file))}", highlight=False, soft_wrap=True)
    if place.swarm_key is not None:
        out.print("      whoever has it is a member: send it by a way that others don't read")
    out.print(
        f"[dim]next[/]  there: hivemint swarm join {shown(shlex.quote(file.name))}", highlight=False, soft_wrap=True
    )


def join(
    file: Annotated[Path, typer.Argument(help="What `swarm invite` has written.", metavar="FILE")],
    as_json: JsonFlag = False,
) -> None:
    """Keep an invitation's network in the home folder; prints the line that points a shell at it."""
    place = accept(_read(file), Home.open())
    if as_json:
        emit({"network": place.path, "name": place.name, "models": [model.name for model in place.models]})
        return
    models = ", ".join(model.name for model in place.models) or "no model yet"
    out.print(f"[green]joined[/] {shown(place.name)}: {shown(models)}", highlight=False, soft_wrap=True)
    out.print(
        f"[dim]next[/]  export HIVEMINT_NETWORK={shown(shlex.quote(str(place.path)))}", highlight=False, soft_wrap=True
    )


def accept(invitation: Invitation, home: Home) -> Network:
    """The network of an invitation, once it is checked and lies in `$HIVEMINT_HOME/networks/NAME`.

    The same network again takes the old one's place; another one of that name does not. Raises ConfigError, BadInput.
    """
    files = {check_name(name, "manifest file"): _bytes(name, text) for name, text in invitation.manifests.items()}
    networks = private_folder(home.root / "networks")
    with tempfile.TemporaryDirectory(dir=networks, prefix=".joining-") as scratch:
        tried = Path(scratch) / "network.toml"
        tried.write_text(invitation.network, encoding="utf-8")
        for name, content in files.items():
            (Path(scratch) / name).write_bytes(content)
        place = Network.load(tried)
        for model in place.models:
            place.manifest(model)
    folder = networks / place.name
    path = folder / "network.toml"
    if path.exists() and Network.load(path).domain != place.domain:
        raise ConfigError(
            f"You have another network of the name {place.name}",
            why=f"its contracts are others: {path}",
            next_step="move that folder away if you want this one in its place",
        )
    private_folder(folder)
    for name, content in files.items():
        write_private(folder / name, content, replace=True)
    write_private(path, invitation.network.encode(), replace=True)
    return Network.load(path)


def _read(file: Path) -> Invitation:
    content = read_small(file, LARGEST, "invitation")
    try:
        found = msgspec.json.decode(content, type=Invitation)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no invitation", why=str(error), next_step=_NOT_ONE) from None
    if found.hivemint_invitation != 1:
        raise BadInput(
            f"{file} is an invitation of another version",
            why=f"it says {found.hivemint_invitation}, this program knows 1",
            next_step="bring both programs to one version",
        )
    return found


def _bytes(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(
            f"The invitation's {name[:80]!r} is damaged", why="it is no base64", next_step=_NOT_ONE
        ) from None
