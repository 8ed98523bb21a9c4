"""`hivemint account fund | thaw | cancel | withdraw | list`: credits in escrow at nodes."""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from eth_utils.address import is_address, to_checksum_address

from hivemint.cli.console import (
    JsonFlag,
    NetworkOption,
    PasswordFileOption,
    WalletOption,
    emit,
    need,
    out,
    run_async,
    table,
)
from hivemint.contracts.credits import format_credits, parse_credits
from hivemint.contracts.errors import BadInput, SwarmError
from hivemint.contracts.ids import Address
from hivemint.contracts.keystore import Keystores, read_password
from hivemint.contracts.network import Network
from hivemint.contracts.signature import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined

app = typer.Typer(help="Credits in escrow at nodes: fund, thaw, cancel, withdraw, list.")
NodeArgument = Annotated[str, typer.Argument(help="The node's operator address.", metavar="NODE")]


@app.command()
def fund(
    amount: Annotated[str, typer.Argument(help="Credits for each node, e.g. 2.5", metavar="AMOUNT")],
    node: Annotated[
        list[str] | None, typer.Option(help="A node's operator address; may be repeated. Default: all in the swarm.")
    ] = None,
    client: Annotated[str | None, typer.Option(help="Deposit for another wallet's address.")] = None,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deposit credits, so that these nodes take your bids. Fund more nodes than one route needs."""
    credits = parse_credits(amount)
    if not credits:
        raise BadInput("There is nothing to deposit", why="the amount is zero")
    place, nodes = load_network(network), [check_address(one) for one in node or ()]
    payee = check_address(client) if client else None

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        chosen = nodes or await _serving(place)
        return await contracts.settlement.fund(signer, dict.fromkeys(chosen, int(credits)), client=payee)

    send_transaction(place, wallet, password_file, act, f"{format_credits(credits)} deposited at each node", as_json)


@app.command()
def thaw(
    node: NodeArgument,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Close an account for new work; what is left can be withdrawn after the thaw."""
    operator = check_address(node)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        return await contracts.settlement.thaw(signer, operator)

    send_transaction(load_network(network), wallet, password_file, act, "the account thaws", as_json)


@app.command()
def cancel(
    node: NodeArgument,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take a thaw back: the account is open again."""
    operator = check_address(node)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        return await contracts.settlement.cancel_thaw(signer, operator)

    send_transaction(load_network(network), wallet, password_file, act, "the account is open again", as_json)


@app.command()
def withdraw(
    node: NodeArgument,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """All that is left in a thawed account, back to the wallet."""
    operator = check_address(node)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        return await contracts.settlement.withdraw(signer, operator)

    send_transaction(load_network(network), wallet, password_file, act, "withdrawn", as_json)


@app.command("list")
def list_accounts(network: NetworkOption = None, wallet: WalletOption = None, as_json: JsonFlag = False) -> None:
    """A wallet's accounts: what is there, what nodes have collected, what was promised by vouchers."""
    name = need(wallet, "No wallet", "pass --wallet NAME or set HIVEMINT_WALLET")
    rows = run_async(_accounts(load_network(network), Keystores().find(name).address))
    if as_json:
        emit(rows)
    elif not rows:
        out.print("no accounts yet: `hivemint account fund AMOUNT` opens some")
    else:
        lines = [
            (
                row["node"],
                *(format_credits(row[sum_], symbol=False) for sum_ in ("balance", "collected", "promised")),
                row["state"],
            )
            for row in rows
        ]
        table(f"Accounts of {name}, in HMC", "node", ">balance", ">collected", ">promised", "state", rows=lines)


async def _accounts(network: Network, client: Address) -> list[dict[str, Any]]:
    from hivemint.client.wallet import funded_nodes
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.home import Home
    from hivemint.ledger.vouchers import VoucherBook

    async with await Bindings.connect(network) as contracts:
        accounts = await funded_nodes(contracts, client, network.deployed_block)
        now = await contracts.chain.time()
    book = VoucherBook.open(Home.open().client / "vouchers.db", network.domain, client)
    promised = book.totals()
    book.close()
    return [
        {
            "node": node,
            "balance": account.balance,
            "collected": account.collected,
            "promised": promised.get(node, (0, 0))[0],
            "thaw_end": account.thaw_end,
            "state": _state(account.thaw_end, now),
        }
        for node, account in accounts.items()
    ]


def _state(thaw_end: int, now: int) -> str:
    if not thaw_end:
        return "open"
    if thaw_end < now:
        return "thawed: `hivemint account withdraw`"
    return "thaws until " + time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(thaw_end)) + " UTC"


async def _serving(network: Network) -> list[Address]:
    """Operators of all registered nodes that now serve one of the network's models."""
    from hivemint.cli.swarm import served
    from hivemint.swarm.host import Host, HostSettings

    host = await Host.start(HostSettings(network=network.name, listen=(), bootstrap=network.bootstrap))
    try:
        reports: list[dict[str, Any]] = [await served(host, network, model.name) for model in network.models]
    finally:
        await host.close()
    found = sorted({Address(node["operator"]) for report in reports for node in report["nodes"]})
    if not found:
        raise SwarmError("Nobody serves this network's models now", next_step="name the nodes with --node")
    return found


def check_address(text: str) -> Address:
    """Raises BadInput unless it is an address; mixed case must carry the right checksum."""
    if not is_address(text):
        raise BadInput(
            f"{text!r} is not an address",
            why="an address is 0x and 40 hex digits, mixed case with the checksum of EIP-55",
            next_step="`hivemint swarm status --json` names the operators of nodes",
        )
    return Address(to_checksum_address(text))


def unlocked(wallet: str | None, password_file: Any) -> Signer:
    """The key of `--wallet`. Raises ConfigError without one, WalletError."""
    name = need(wallet, "No wallet", "pass --wallet NAME or set HIVEMINT_WALLET")
    keystores = Keystores()
    keystores.find(name)
    return keystores.unlock(name, read_password(name, file=password_file))


def load_network(path: Any) -> Network:
    return Network.load(need(path, "No network file", "pass --network FILE or set HIVEMINT_NETWORK"))


def send_transaction(
    network: Network,
    wallet: str | None,
    password_file: Any,
    act: "Callable[[Bindings, Signer], Awaitable[Mined]]",
    done: str,
    as_json: bool,
) -> None:
    """Sign a transaction of the wallet, wait until it is mined, tell its cost."""
    signer = unlocked(wallet, password_file)

    async def run() -> "Mined":
        from hivemint.contracts.bindings import Bindings

        async with await Bindings.connect(network) as contracts:
            return await act(contracts, signer)

    mined = run_async(run())
    if as_json:
        emit({"transaction": mined.hash, "block": mined.block, "gas": mined.gas_used})
    else:
        out.print(f"[green]{done}[/]  [dim]transaction[/] 0x{mined.hash.hex()}", highlight=False, soft_wrap=True)
