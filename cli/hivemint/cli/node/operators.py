"""What the verbs of an operator share: its wallet and owner, its standing on the chain, and how that is told."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import emit, need, table
from hivemint.cli.transact import load_network
from hivemint.protocol.credits import format_credits
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores, read_password
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import node_name
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import utc

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings

ONE_COIN = 10**18

NameOption = Annotated[str | None, typer.Option("--name", help="Folder of this node in the home; default: the wallet.")]
OwnerOption = Annotated[
    str | None, typer.Option("--owner", help="Wallet that holds the stake; default: the operator's own.")
]
OwnerPasswordOption = Annotated[
    Path | None, typer.Option("--owner-password-file", help="Password of --owner, if it has one of its own.")
]


def operator_wallet(name: str | None) -> str:
    return str(need(name, "No wallet is named", "pass --wallet NAME (see `hivemint wallet list`)"))


def unlock(home: Home, wallet: str, password_file: Path | None) -> Signer:
    keystores = Keystores(home.keystores)
    keystores.find(wallet)
    return keystores.unlock(wallet, read_password(wallet, file=password_file))


def operator_and_owner(
    home: Home, wallet: str, owner: str | None, password_file: Path | None
) -> tuple[Address, Signer]:
    """The operator needs no key here; the owner signs."""
    operator = Keystores(home.keystores).find(wallet).address
    return operator, unlock(home, owner or wallet, password_file)


async def with_contracts(
    network: Path | None, work: Callable[["Bindings"], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(load_network(network)) as contracts:
        return await work(contracts)


async def standing(contracts: "Bindings", operator: Address) -> dict[str, Any]:
    """The registry's record and the shares of the last epochs."""
    known = await contracts.registry.node(operator)
    if known is None:
        return {"name": node_name(operator), "operator": operator, "registered": False}
    offered = await contracts.registry.offered_to(operator)
    now = await contracts.emission.current_epoch()
    shares = {}
    for epoch in range(max(0, now - 3), now + 1):
        pending = await contracts.emission.pending(operator, epoch)
        shares[str(epoch)] = {"wei": int(pending.amount), "status": pending.status.name.lower()}
    return {
        "name": node_name(operator),
        "operator": operator,
        "registered": True,
        "owner": known.owner,
        "payout": known.payout,
        "bonded_wei": int(known.bonded),
        "unbonding_wei": int(known.unbonding),
        "unbond_end": known.unbond_end,
        "retired": known.retired,
        "peer_id_hash": known.peer_id_hash,
        "epoch": now,
        "shares": shares,
    } | ({"offered_to": offered} if offered else {})


async def pay_of(contracts: "Bindings", network: Network, known: dict[str, Any]) -> str:
    """When donated work of this node is paid, by its stake; of the network's first model."""
    from hivemint.ledger.settlement.outlook import PayOutlook

    if not network.models:
        return ""
    return (await PayOutlook(contracts, known["operator"], network.models[0].model_id).look()).text()


def report(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(told)
        return
    rows: list[tuple[str, ...]] = []
    for key, value in told.items():
        if key == "shares":
            shares = ", ".join(f"{epoch}: {format_credits(s['wei'])} {s['status']}" for epoch, s in value.items())
            rows.append(("shares by epoch", shares))
        elif key == "reasons":
            rows += [(f"why {stage}", text) for stage, text in value.items() if text]
        elif key in ("bonded_wei", "unbonding_wei"):
            rows.append((key.removesuffix("_wei"), f"{value / ONE_COIN:,.4f} coins"))
        elif key == "unbond_end":
            rows.append(("unbonded", utc(value) if value else "-"))
        elif key.endswith("_wei"):
            rows.append((key.removesuffix("_wei").replace("_", " "), format_credits(value)))
        elif isinstance(value, list):
            rows.append((key.replace("_", " "), "; ".join(map(str, value)) or "nothing"))
        else:
            rows.append((key.replace("_", " "), "0x" + value.hex() if isinstance(value, bytes) else str(value)))
    table("node", "", "", rows=rows)
