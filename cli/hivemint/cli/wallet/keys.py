"""`hivemint key authorize | revoke`: keys that may sign sessions and vouchers for a wallet."""

from typing import TYPE_CHECKING, Annotated

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption
from hivemint.cli.transact import (
    HoursOption,
    NonceOption,
    Ready,
    SignOnly,
    SignOnlyOption,
    check_address,
    load_network,
    send_or_sign,
)
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined
    from hivemint.protocol.eip712 import Delegation
    from hivemint.protocol.orders import Revoke

app = typer.Typer(help="Session keys of a wallet: authorize, revoke.")
KeyArgument = Annotated[str, typer.Argument(help="The session key: a wallet's name or an address.", metavar="KEY")]


@app.command()
def authorize(
    key: KeyArgument,
    days: Annotated[float, typer.Option(help="How long it may sign, at most 90.")] = 30.0,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    sign_only: SignOnlyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a key sign for the wallet. It can spend what is in escrow, but neither deposit nor withdraw. Once a key."""
    from hivemint.client.sessions.wallet import check_validity

    chosen, seconds = _address(key), check_validity(days)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        until = await contracts.chain.time() + seconds
        return await contracts.settlement.authorize(signer, chosen, until)

    def order(ready: Ready) -> "Delegation":
        from hivemint.protocol.eip712 import Delegation

        return Delegation(ready.client, chosen, ready.now + seconds, paid=True)

    done, signing = f"{chosen} may sign for {days:g} days", SignOnly(sign_only, None, None)
    send_or_sign(load_network(network), wallet, password_file, act, order, done, signing, as_json)


@app.command()
def revoke(
    key: KeyArgument,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    sign_only: SignOnlyOption = None,
    hours: HoursOption = None,
    nonce: NonceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """End a key now and for ever. What it has signed before stays collectable for a while."""
    chosen = _address(key)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        return await contracts.settlement.revoke(signer, chosen)

    def order(ready: Ready) -> "Revoke":
        from hivemint.protocol.orders import Revoke

        return Revoke(ready.client, chosen, ready.nonce, ready.deadline)

    signing = SignOnly(sign_only, hours, nonce)
    send_or_sign(load_network(network), wallet, password_file, act, order, f"{chosen} is revoked", signing, as_json)


def _address(key: str) -> Address:
    return check_address(key) if key.startswith("0x") else Keystores().find(key).address
