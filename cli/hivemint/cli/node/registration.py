"""`hivemint node register | offer | accept | unbond | withdraw`: a node's record in the registry."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption, run_async
from hivemint.cli.node.leaving import agree_to_leave, what_leaves
from hivemint.cli.node.operators import (
    NameOption,
    OwnerOption,
    OwnerPasswordOption,
    operator_and_owner,
    operator_wallet,
    pay_of,
    report,
    standing,
    unlock,
    with_contracts,
)
from hivemint.cli.node.options import YesFlag
from hivemint.cli.node.registering import Difference, Wanted, agree, carry_out, check_coin, coins, difference
from hivemint.cli.node_argument import operator_of
from hivemint.cli.transact import NodeArgument, check_address, load_network
from hivemint.protocol.credits import parse_coins
from hivemint.protocol.errors import BadInput
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address
from hivemint.protocol.node_name import named
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings, Registry

Act = Callable[["Registry", Signer, Address], Awaitable[object]]


def register(
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    owner_password_file: OwnerPasswordOption = None,
    name: NameOption = None,
    stake: Annotated[
        str | None, typer.Option(help="Coins that shall be bonded in all; default: the minimum.", metavar="AMOUNT")
    ] = None,
    add: Annotated[str | None, typer.Option(help="Coins to bond on top of what is bonded.", metavar="AMOUNT")] = None,
    payout: Annotated[str | None, typer.Option(help="Address that credits are minted to; default: the owner.")] = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Register the operator key with its peer id, and bond a stake. Later: names what would change, and asks.

    At a terminal the first registration is asked about, too; without one the command itself is the agreement to it.
    """
    from hivemint.protocol.eip712 import peer_id_hash
    from hivemint.swarm.identity import PeerKey

    target, more = (None if one is None else parse_coins(one) for one in (stake, add))
    paid_to = check_address(payout) if payout else None
    wallet = operator_wallet(wallet)
    home, where = Home.open(), load_network(network)
    operator = unlock(home, wallet, password_file)
    holder = unlock(home, owner, owner_password_file or password_file) if owner else operator
    peer = PeerKey.load(home.node(name or wallet) / "peer.key").peer_id
    wanted = Wanted(peer_id_hash(peer), paid_to, target, more)

    async def compare(contracts: "Bindings") -> dict[str, Any]:
        known = await contracts.registry.node(operator.address)
        minimum = await contracts.registry.minimum_stake()
        change = difference(known, wanted, minimum, holder.address)
        return {"change": change, "balance": await check_coin(contracts, holder.address, change)}

    found = run_async(with_contracts(network, compare))
    change: Difference = found["change"]
    node = (
        f"node: {named(operator.address)}",
        f"owner: {holder.address}, who holds {coins(found['balance'])}",
        f"payout: {paid_to or holder.address}",
    )
    agreed = agree(change, yes=yes, quiet=as_json, node=node)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        if agreed:
            await carry_out(contracts, where, holder, operator, peer, change)
        done = await standing(contracts, operator.address)
        return done | {"changed": change.lines if agreed else [], "pay": await pay_of(contracts, where, done)}

    report(run_async(with_contracts(network, work)), as_json)


def offer(
    to: Annotated[str | None, typer.Argument(help="Address of the new owner.", metavar="ADDRESS")] = None,
    take_back: Annotated[bool, typer.Option("--take-back", help="Nobody is offered the node any more.")] = False,
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Offer the node to another owner, with its stake and its pay; nothing changes before that one accepts."""
    if (to is None) == (not take_back):
        raise BadInput("Who shall own the node?", next_step="name an address, or pass --take-back")
    heir = None if to is None else check_address(to)
    _as_owner(
        wallet,
        owner,
        network,
        password_file,
        as_json,
        lambda registry, holder, operator: registry.offer_ownership(holder, operator, heir),
    )


def accept(
    node: NodeArgument,
    wallet: WalletOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take over a node that was offered to this wallet; its pay goes where it went until you change that."""
    operator = operator_of(node, load_network(network), quiet=as_json)
    heir = unlock(Home.open(), operator_wallet(wallet), password_file)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        offered = await contracts.registry.offered_to(operator)
        if offered != heir.address:
            raise BadInput(
                "This node was not offered to this wallet",
                why=f"{named(operator)} is offered to {offered or 'nobody'}, this wallet is {heir.address}",
                next_step=f"its owner runs `hivemint node offer {heir.address}`",
            )
        await contracts.registry.accept_ownership(heir, operator)
        return await standing(contracts, operator)

    report(run_async(with_contracts(network, work)), as_json)


def unbond(
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to it; without a terminal nothing is done else.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Begin to leave: the stake carries no donated work from now on, and can be withdrawn when UNBOND is over.

    It says first what that means, and asks; nothing takes it back.
    """
    operator, holder = operator_and_owner(Home.open(), operator_wallet(wallet), owner, password_file)

    async def look(contracts: "Bindings") -> dict[str, Any]:
        return {"leave": await what_leaves(contracts, operator, holder.address)}

    agree_to_leave(run_async(with_contracts(network, look))["leave"], yes=yes, quiet=as_json)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        await contracts.registry.unbond(holder, operator)
        return await standing(contracts, operator)

    report(run_async(with_contracts(network, work)), as_json)


def withdraw(
    wallet: WalletOption = None,
    owner: OwnerOption = None,
    network: NetworkOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take the stake back after UNBOND."""
    _as_owner(
        wallet,
        owner,
        network,
        password_file,
        as_json,
        lambda registry, holder, operator: registry.withdraw_stake(holder, operator),
    )


def _as_owner(
    wallet: str | None, owner: str | None, network: Path | None, password_file: Path | None, as_json: bool, act: Act
) -> None:
    """What the owner of a node's record does with it, and how the record stands then."""
    operator, holder = operator_and_owner(Home.open(), operator_wallet(wallet), owner, password_file)

    async def work(contracts: "Bindings") -> dict[str, Any]:
        await act(contracts.registry, holder, operator)
        return await standing(contracts, operator)

    report(run_async(with_contracts(network, work)), as_json)
