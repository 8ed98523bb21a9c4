"""Joining a network with one of its models, cheapest checks first."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemint.cli.console import NO_NETWORK, err, need
from hivemint.cli.talk.lines import unseen
from hivemint.protocol.errors import BadInput, ModelError
from hivemint.protocol.keystore import Keystores, read_password
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.client import SwarmModelForCausalLM


@dataclass(frozen=True, slots=True)
class Joined:
    """A model, joined to its network, and its tokenizer. `wallet`: who pays; None: nobody does."""

    model: "SwarmModelForCausalLM"
    tokenizer: Any
    name: str
    network: Network
    wallet: str | None


@contextmanager
def joined(
    network: Path | None,
    wallet: str | None,
    session_key: str | None,
    password_file: Path | None,
    model: str | None,
    *,
    quiet: bool,
    banner: bool = False,
    **settings: Any,
) -> Iterator[Joined]:
    """Cheap checks come before the slow imports. `banner`: a person at a terminal is shown one later."""
    from hivemint.client.settings import ClientSettings

    path = need(network, "No network file", NO_NETWORK)
    place = Network.load(path)
    name = model or (place.models[0].name if place.models else None)
    name = need(name, "No model", "pass --model NAME: the network file names none")
    if place.models and not Path(name).is_dir() and "/" not in name:
        place.model(name)
    password = None
    chosen = ClientSettings.load(**settings)
    if wallet is None:
        check_unpaid(str(chosen.bid), session_key, quiet or banner)
    else:
        signing = session_key or wallet
        for needed in (wallet, signing):
            Keystores().find(needed)
        password = read_password(signing, file=password_file)
    with ExitStack() as open_now:
        with unseen(banner), spinner("joining the swarm", quiet):
            from hivemint.client.generation import words
            from hivemint.client.generation.causal_lm import SwarmModelForCausalLM

            open_now.enter_context(words.by_options())
            swarm_model = SwarmModelForCausalLM.from_pretrained(
                name,
                network=path,
                wallet=wallet,
                session_key=session_key,
                password=password,
                progress=False,
                **settings,
            )
        open_now.enter_context(swarm_model)
        yield Joined(swarm_model, tokenizer_of(swarm_model.folder), name, place, wallet)


def check_unpaid(bid: str, session_key: str | None, quiet: bool) -> None:
    """Nobody pays without a wallet, and it is said. Raises BadInput where something else was asked for."""
    asked = "a session key signs for one" if session_key else f"the bid is {bid}" if bid not in ("auto", "free") else ""
    if asked:
        raise BadInput("No wallet", why=asked, next_step="pass --wallet NAME or set HIVEMINT_WALLET")
    if not quiet:
        err.print("[dim]no wallet: asking for donated work (--wallet NAME pays, and is served first)[/]")


def tokenizer_of(folder: Path) -> Any:
    """The model's own. Raises ModelError where its files are missing or damaged."""
    from transformers import AutoTokenizer

    try:
        # The library tells a damaged one by a bare Exception.
        if not isinstance(json.loads((folder / "tokenizer.json").read_bytes()), dict):
            raise _no_tokenizer(folder, "tokenizer.json is no JSON object")
    except FileNotFoundError:
        pass  # some models have an older form
    except ValueError as error:
        raise _no_tokenizer(folder, f"tokenizer.json is no JSON ({error})") from None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _no_tokenizer(folder, str(error).splitlines()[0]) from None


def _no_tokenizer(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{folder} has no usable tokenizer", why=why, next_step="remove the folder and fetch the model again"
    )


@contextmanager
def spinner(text: str, quiet: bool) -> Iterator[None]:
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(text):
        yield
