"""`hivemint wallet send`: credits or coin to a wallet of one's own or to an address."""

import sys
from dataclasses import astuple
from typing import TYPE_CHECKING, Annotated

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption, out, run_async
from hivemint.cli.transact import check_address, load_network, tell_mined, unlocked
from hivemint.cli.wallet.sources import ways_to_credits
from hivemint.protocol.credits import exact_credits, format_credits, parse_coins, parse_credits
from hivemint.protocol.errors import BadInput, HivemintError
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined

TRANSFER_GAS = 80_000
"""More than a transfer of credits takes (about 52,000 where the receiver is new); one of coin takes 21,000."""


def send(
    to: Annotated[str, typer.Argument(help="A wallet's name, or an address.", metavar="TO")],
    amount: Annotated[str, typer.Argument(help="How much, e.g. 2.5", metavar="AMOUNT")],
    coin: Annotated[bool, typer.Option("--coin", help="The chain's coin, which pays for gas; not credits.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Send credits, or with --coin the chain's coin. It cannot be taken back.

    Balance and gas are looked at first. At a terminal it asks; in a script --yes is needed.
    """
    wei = parse_coins(amount) if coin else int(parse_credits(amount))
    if not wei:
        raise BadInput("There is nothing to send", why="the amount is zero")
    place, payee = load_network(network), _receiver(to)
    asks = sys.stdin.isatty() and not as_json
    if not yes and not asks:
        raise BadInput(
            "Nobody is there to confirm", why="what is sent cannot be taken back", next_step="look at it, and add --yes"
        )
    signer = unlocked(wallet, password_file)
    text = f"{exact_credits(wei)} of the chain's coin" if coin else f"{exact_credits(wei)} HMC"
    mined: Mined = run_async(_send(place, signer, payee, wei, coin, None if yes else f"Send {text} to {to}?"))
    tell_mined(mined, f"{text} sent to {payee}", as_json, to=payee, amount_wei=wei, coin=coin)


def _receiver(to: str) -> Address:
    return check_address(to) if to.startswith("0x") else Keystores().find(to).address


async def _send(
    network: Network, signer: Signer, payee: Address, wei: int, coin: bool, question: str | None
) -> "Mined":
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Transfer

    async with await Bindings.connect(network) as contracts:
        await _check(network, contracts, signer, payee, wei, coin)
        if question is not None:
            out.print(f"from {signer.address}\nto   {payee}", highlight=False, soft_wrap=True)
            if not typer.confirm(question, default=False):
                raise HivemintError("Nothing was sent", why="you said no")
        if coin:
            doing = "Sending coin"
            return await contracts.chain.send(signer, Transfer(contracts.chain, payee), doing=doing, value=wei)
        return await contracts.token.transfer(signer, payee, wei)


async def _check(network: Network, contracts: "Bindings", signer: Signer, payee: Address, wei: int, coin: bool) -> None:
    """Raises BadInput for a receiver that keeps nothing, and for a wallet that has too little or no gas."""
    chain = contracts.chain
    if payee == signer.address or payee in astuple(network.contracts):
        whose = "the sender's own" if payee == signer.address else "a contract's that gives nothing back"
        raise BadInput("That would reach nobody", why=f"{payee} is {whose}", next_step="check the address")
    has_coin = await chain.balance(signer.address)
    gas = await chain.fees.price(chain.w3) * TRANSFER_GAS
    if not coin:
        has = await contracts.token.balance(signer.address)
        if has < wei:
            raise BadInput(
                "This wallet has too few credits",
                why=f"it has {format_credits(has, 9)}, to be sent are {format_credits(wei, 9)}",
                next_step="send less, or get some: " + "; ".join(ways_to_credits(network, signer.address)),
            )
    needed = gas + (wei if coin else 0)
    if has_coin < needed:
        raise BadInput(
            "This wallet has too little coin",
            why=f"it has {exact_credits(has_coin)}, needed are about {exact_credits(needed)} with gas",
            next_step="send some of the chain's coin to it first"
            if not coin
            else "send less: gas comes from the same coin",
        )
