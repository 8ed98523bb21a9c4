"""`hivemint testnet faucet`: coin and credits of the local testnet for a wallet or an address."""

from typing import TYPE_CHECKING, Annotated

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, emit, out, run_async
from hivemint.cli.transact import check_address
from hivemint.protocol.credits import exact_credits, parse_coins, parse_credits
from hivemint.protocol.errors import BadInput
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.text import shown_url

if TYPE_CHECKING:
    from hivemint.testnet.localnet import State


def faucet(
    to: Annotated[str, typer.Argument(help="A wallet's name, or an address.", metavar="NAME|ADDRESS")],
    coin: Annotated[str, typer.Option(help="How much coin, at most 100.")] = "10",
    credits: Annotated[
        str | None,
        typer.Option(help="How many credits of those that node owners have earned. Default: half of each's."),
    ] = None,
    network: NetworkOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Coin from the testnet's rich account, and credits from the owners of its nodes. Nothing is minted for it.

    On the local testnet alone: another network is refused.
    """
    from hivemint.cli.testnet import default_folder, running
    from hivemint.testnet.first_credits import drip

    wei, wanted = parse_coins(coin), None if credits is None else int(parse_credits(credits))
    if wanted == 0:
        raise BadInput(
            "There are no credits to send",
            why="--credits is zero",
            next_step="say how many, or leave it out: then it is a part of what the owners hold",
        )
    folder = default_folder()
    place = Network.load(network) if network is not None else None
    state = running(folder)
    own = Network.load(folder / "network.toml")
    if place is not None and (why := _another(place, own, state)):
        raise BadInput(
            "The faucet is of the local testnet alone",
            why=f"{place.name} (chain {place.chain_id}) is another network: {why}",
            next_step="leave --network and HIVEMINT_NETWORK out",
        )
    address = check_address(to) if to.startswith("0x") else Keystores().find(to).address
    given, sent = run_async(drip(own, state.nodes, address, wei, wanted))
    if as_json:
        emit({"to": address, "coin_wei": given, "credits_wei": sent})
        return
    enough = "" if given == wei else " (the faucet fills nobody above 10,000)"
    out.print(f"[green]{exact_credits(given)} coin[/] sent to {address}{enough}", highlight=False, soft_wrap=True)
    if sent:
        out.print(f"[green]{exact_credits(sent)} HMC[/] sent by the owners of the testnet's nodes", highlight=False)
    else:
        out.print(
            "no credits: the owners of the testnet's nodes hold none yet. Ask the nodes something, then let two days "
            "pass with `hivemint testnet epoch`, or begin with `hivemint testnet up --epochs 3`",
            soft_wrap=True,
            highlight=False,
        )


def _another(place: Network, own: Network, state: "State") -> str:
    """What tells `place` from the testnet that runs; nothing if it is that one.

    Chain id and contracts don't say: every development chain has that id, and the first deployment on each these
    addresses.
    """
    if (place.chain_id, place.contracts) != (own.chain_id, own.contracts):
        return "it has another chain id or other contracts"
    strange = [url for url in place.rpc_urls if url.rstrip("/") != state.chain_url.rstrip("/")]
    return f"its chain is at {shown_url(strange[0])}, the testnet's at {state.chain_url}" if strange else ""
