"""`hivemint swarm invite | join`: a network in one file, for whoever is to come to it.

The file is JSON: `network.toml` as it is, and the manifests beside it. Where the network has a swarm key it is in
there, so whoever has the file is a member.
"""

import base64
import binascii
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import typer

from hivemint.cli.console import NO_NETWORK, JsonFlag, NetworkOption, emit, err, need, out, shown
from hivemint.protocol.errors import BadInput, ConfigError, HivemintError
from hivemint.protocol.home import Home, check_name, private_folder, read_small, write_private
from hivemint.protocol.network import Model, Network
from hivemint.protocol.text import shown_url

LARGEST = 64 << 20
_NETWORK = "network.toml"
_NOT_ONE = "ask whoever invited you for the file again; `hivemint swarm invite` writes it"


Agree = Callable[[str, Sequence[str]], None]
"""Given a network's name and what would change, a line each; raises where that is not agreed to."""


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
    place = Network.load(need(network, "No network file", NO_NETWORK))
    if not place.bootstrap:
        raise ConfigError(
            f"Nobody would find the network {place.name}",
            why="its file names no bootstrap peer",
            next_step="start one with `hivemint swarm bootstrap --add --listen /ip4/YOUR-ADDRESS/tcp/4001`",
        )
    manifests = {one.manifest: base64.b64encode(place.manifest(one)).decode() for one in place.models}
    text = need(place.path, "No network file", "").read_text(encoding="utf-8")
    try:
        write_private(file, msgspec.json.encode(Invitation(1, text, manifests)))
    except FileExistsError:
        raise BadInput(
            f"{file} exists already",
            why="an invitation replaces no file",
            next_step="the word after `invite` is the file to write: name a new one, e.g. friends.invite",
        ) from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written", why=error.strerror or str(error)) from None
    for url in filter(_may_hold_a_key, place.rpc_urls):
        err.print(
            f"[yellow]warning[/] the RPC address at {shown(urlsplit(url).hostname or '?')} may hold a key or a "
            "password, and the invitation hands it on: remove the file if it is yours alone",
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        emit({"file": file, "network": place.name, "members_only": place.swarm_key is not None})
        return
    out.print(f"[green]wrote[/] {shown(str(file))}", highlight=False, soft_wrap=True)
    if place.swarm_key is not None:
        out.print("      whoever has it is a member: send it by a way that others don't read")
    out.print(
        f"[dim]next[/]  there: hivemint swarm join {shown(shlex.quote(file.name))}", highlight=False, soft_wrap=True
    )


def _may_hold_a_key(url: str) -> bool:
    """Whether it has more than scheme, host and port: providers put keys into the path, the query, or before an @."""
    parts = urlsplit(url)
    return "@" in parts.netloc or bool(parts.query or parts.fragment) or parts.path not in ("", "/")


def join(
    file: Annotated[Path, typer.Argument(help="What `swarm invite` has written.", metavar="FILE")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Change a network that is here already, unasked.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep an invitation's network in the home folder; prints the line that points a shell at it.

    One of other contracts never takes the place of one of the same name. Where RPC address, swarm key, bootstrap peers
    or models change, it shows that and asks at a terminal; in a script --yes is needed.
    """
    place = accept(_read(file), Home.open(), _agreement(yes, as_json))
    if as_json:
        emit({"network": place.path, "name": place.name, "models": [model.name for model in place.models]})
        return
    models = ", ".join(model.name for model in place.models) or "no model yet"
    out.print(f"[green]joined[/] {shown(place.name)}: {shown(models)}", highlight=False, soft_wrap=True)
    out.print(
        f"[dim]next[/]  export HIVEMINT_NETWORK={shown(shlex.quote(str(place.path)))}", highlight=False, soft_wrap=True
    )


def accept(invitation: Invitation, home: Home, agree: Agree) -> Network:
    """The network of an invitation, once it is checked and lies in `$HIVEMINT_HOME/networks/NAME`.

    The same network again takes the old one's place, where something changes only if `agree` does; another one of that
    name does not. Raises ConfigError, BadInput, and what `agree` raises.
    """
    files = {_free(name): _bytes(name, text) for name, text in invitation.manifests.items()}
    content = invitation.network.encode()
    networks = private_folder(home.root / "networks")
    with tempfile.TemporaryDirectory(dir=networks, prefix=".joining-") as scratch:
        place = _checked(Path(scratch), content, files)
    folder = networks / place.name
    path = folder / _NETWORK
    if path.exists():
        old = Network.load(path)
        if (old.chain_id, old.contracts) != (place.chain_id, place.contracts):
            raise ConfigError(
                f"You have another network of the name {place.name}",
                why=f"{', '.join(_others(old, place))} differ from those in {path}",
                next_step="move that folder away if you want this one in its place",
            )
        if lines := changes(old, place):
            agree(place.name, lines)
    private_folder(folder)
    for name, manifest in files.items():
        write_private(folder / name, manifest, replace=True)
    write_private(path, content, replace=True)
    return Network.load(path)


def changes(old: Network, new: Network) -> list[str]:
    """What of a network of the same contracts would be otherwise, a line each. URLs and keys stay untold."""
    lines = []
    if old.rpc_urls != new.rpc_urls:
        before, after = (", ".join(map(shown_url, one.rpc_urls)) for one in (old, new))
        same = " (the same host, another path or key)" if before == after else ""
        lines.append(f"RPC, which says what you have and owe: {before} -> {after}{same}")
    if old.swarm_key != new.swarm_key:
        why = {(True, False): "removed: no stranger is kept out", (False, True): "added"}
        lines.append("swarm key: " + why.get((old.swarm_key is not None, new.swarm_key is not None), "another one"))
    if old.bootstrap != new.bootstrap:
        lines.append(f"bootstrap: {', '.join(old.bootstrap) or 'none'} -> {', '.join(new.bootstrap) or 'none'}")
    before_by_name, after_by_name = ({model.name: model for model in one.models} for one in (old, new))
    for name in dict.fromkeys((*before_by_name, *after_by_name)):
        was, now = before_by_name.get(name), after_by_name.get(name)
        if was != now:
            lines.append(f"model {name}: " + _of_model(was, now))
    for field in ("confirmations", "deployed_block"):
        if (was_so := getattr(old, field)) != (is_so := getattr(new, field)):
            lines.append(f"{field}: {was_so} -> {is_so}")
    return lines


def _of_model(was: Model | None, now: Model | None) -> str:
    if was is None or now is None:
        return "removed" if now is None else "added"
    if was.model_id != now.model_id:
        return f"id 0x{was.model_id.hex()[:16]}... -> 0x{now.model_id.hex()[:16]}..."
    return "the pinned files (tokenizer, chat template) differ" if was.files != now.files else "its manifest's file"


def _others(old: Network, new: Network) -> list[str]:
    differ = [name for name in old.contracts.__slots__ if getattr(old.contracts, name) != getattr(new.contracts, name)]
    return (["chain_id"] if old.chain_id != new.chain_id else []) + differ


def _checked(scratch: Path, content: bytes, files: dict[str, bytes]) -> Network:
    """Exactly these bytes as a network. `files`: its manifests, all of them and nothing else."""
    tried = scratch / _NETWORK
    for name, manifest in files.items():
        (scratch / name).write_bytes(manifest)
    tried.write_bytes(content)
    place = Network.load(tried)
    for model in place.models:
        place.manifest(model)
    if strange := set(files) - {model.manifest for model in place.models}:
        raise BadInput(
            f"The invitation brings a file that is no manifest: {min(strange)}",
            why="no model of its network names it",
            next_step=_NOT_ONE,
        )
    return place


def _free(name: str) -> str:
    """A manifest's name that is not the network file's, also where case makes no difference. Raises BadInput."""
    if check_name(name, "manifest file").lower() == _NETWORK:
        raise BadInput(
            f"A manifest cannot be called {name}", why="that is the network file's own name", next_step=_NOT_ONE
        )
    return name


def _agreement(yes: bool, as_json: bool) -> Agree:
    """Who is asked whether a network that is here already may change."""

    def agree(name: str, lines: Sequence[str]) -> None:
        if not yes and (as_json or not (sys.stdin.isatty() and sys.stdout.isatty())):
            raise BadInput(
                f"You have the network {name} already, and the invitation changes it",
                why="; ".join(lines),
                next_step="ask whoever invited you whether that is so, and add --yes",
            )
        if not as_json:
            out.print(f"You have the network {shown(name)} already; this changes:", highlight=False, soft_wrap=True)
            for line in lines:
                out.print(f"  {shown(line)}", highlight=False, soft_wrap=True)
        if not yes and not typer.confirm("Change it?", default=False):
            raise HivemintError("Nothing was changed", why="you said no")

    return agree


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
