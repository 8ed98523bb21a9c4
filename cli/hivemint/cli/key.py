"""`hivemint key authorize | revoke`: keys that may sign sessions and vouchers for a wallet."""

from typing import TYPE_CHECKING, Annotated

import typer
from eth_utils.address import is_address

from hivemint.cli.account import check_address, load_network, send_transaction
from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption
from hivemint.contracts.ids import Address
from hivemint.contracts.keystore import Keystores
from hivemint.contracts.signature import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined

app = typer.Typer(help="Session keys of a wallet: authorize, revoke.")
KeyArgument = Annotated[str, typer.Argument(help="The session key: a wallet's name or an address.", metavar="KEY")]


@app.command()
def authorize(
    key: KeyArgument,
    days: Annotated[float, typer.Option(help="How long it may sign, at most 90.")] = 30.0,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a key sign for the wallet. It can spend what is in escrow, but neither deposit nor withdraw. Once a key."""
    from hivemint.client.wallet import check_validity

    chosen, seconds = _address(key), check_validity(days)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        until = await contracts.chain.time() + seconds
        return await contracts.settlement.authorize(signer, chosen, until)

    send_transaction(load_network(network), wallet, password_file, act, f"{chosen} may sign for {days:g} days", as_json)


@app.command()
def revoke(
    key: KeyArgument,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """End a key now and for ever. What it has signed before stays collectable for a while."""
    chosen = _address(key)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        return await contracts.settlement.revoke(signer, chosen)

    send_transaction(load_network(network), wallet, password_file, act, f"{chosen} is revoked", as_json)


def _address(key: str) -> Address:
    return check_address(key) if key.startswith("0x") or is_address(key) else Keystores().find(key).address
