"""`hivemint account fund | thaw | cancel | withdraw | close | send-order | list | new-books`: credits in escrow."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from hivemint.cli.node_argument import operator_of
from hivemint.cli.transact import (
    HoursOption,
    NodeArgument,
    NonceOption,
    Ready,
    SignOnly,
    SignOnlyOption,
    check_address,
    load_network,
    send_or_sign,
    send_transaction,
)
from hivemint.cli.wallet.closing import close
from hivemint.protocol.credits import format_credits, parse_credits
from hivemint.protocol.errors import BadInput, SwarmError
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.orders import CancelThaw, Fund, Thaw, Withdraw
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings, Settlement
    from hivemint.contracts.chain import Mined

NodeAct = Callable[["Settlement", Signer, Address], Awaitable["Mined"]]
NodeOrder = type[CancelThaw] | type[Thaw] | type[Withdraw]
app = typer.Typer(help="Credits in escrow at nodes: fund, thaw, cancel, withdraw, close, send-order, list, new-books.")
app.command()(close)


@app.command()
def fund(
    amount: Annotated[str, typer.Argument(help="Credits for each node, e.g. 2.5", metavar="AMOUNT")],
    node: Annotated[
        list[str] | None,
        typer.Option(help="A node's name or operator address; may be repeated. Default: all in the swarm."),
    ] = None,
    client: Annotated[str | None, typer.Option(help="Deposit for another wallet's address.")] = None,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    sign_only: SignOnlyOption = None,
    hours: HoursOption = None,
    nonce: NonceOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deposit credits, so that these nodes take your bids. Fund more nodes than one route needs."""
    credits = parse_credits(amount)
    if not credits:
        raise BadInput("There is nothing to deposit", why="the amount is zero")
    place = load_network(network)
    nodes = [operator_of(one, place, quiet=as_json) for one in node or ()]
    payee = check_address(client) if client else None
    if payee and sign_only:
        raise BadInput("An order deposits for its own wallet", next_step="leave --client or --sign-only out")

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        chosen = await _chosen(place, nodes)
        return await contracts.settlement.fund(signer, dict.fromkeys(chosen, int(credits)), client=payee)

    async def order(ready: Ready) -> Fund:
        chosen = tuple(dict.fromkeys(await _chosen(place, nodes)))
        return Fund(ready.client, chosen, (credits,) * len(chosen), ready.nonce, ready.deadline)

    done = f"{format_credits(credits)} deposited at each node"
    signing = SignOnly(sign_only, hours, nonce)
    send_or_sign(place, wallet, password_file, act, order, done, signing, as_json)


def _at_a_node(name: str, text: str, done: str, act: NodeAct, kind: NodeOrder) -> None:
    """A verb about the account at one node: a transaction, or the order of the same meaning. `text`: of --help."""

    def verb(
        node: NodeArgument,
        network: NetworkOption = None,
        wallet: WalletOption = None,
        password_file: PasswordFileOption = None,
        sign_only: SignOnlyOption = None,
        hours: HoursOption = None,
        nonce: NonceOption = None,
        as_json: JsonFlag = False,
    ) -> None:
        place = load_network(network)
        operator = operator_of(node, place, wallet=wallet, quiet=as_json)

        async def send(contracts: "Bindings", signer: Signer) -> "Mined":
            return await act(contracts.settlement, signer, operator)

        def order(ready: Ready) -> CancelThaw | Thaw | Withdraw:
            return kind(ready.client, operator, ready.nonce, ready.deadline)

        signing = SignOnly(sign_only, hours, nonce)
        send_or_sign(place, wallet, password_file, send, order, done, signing, as_json)

    app.command(name, help=text)(verb)


_at_a_node(
    "thaw",
    "Close an account for new work; what is left can be withdrawn after the thaw.",
    "the account thaws",
    lambda settlement, signer, node: settlement.thaw(signer, node),
    Thaw,
)
_at_a_node(
    "cancel",
    "Take a thaw back: the account is open again.",
    "the account is open again",
    lambda settlement, signer, node: settlement.cancel_thaw(signer, node),
    CancelThaw,
)
_at_a_node(
    "withdraw",
    "All that is left in a thawed account, back to the wallet.",
    "withdrawn",
    lambda settlement, signer, node: settlement.withdraw(signer, node),
    Withdraw,
)


@app.command("send-order")
def send_order(
    file: Annotated[Path, typer.Argument(help="What --sign-only has written.", metavar="FILE")],
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Send an order that some wallet has signed; this wallet pays the gas and nothing else."""
    from hivemint.cli.wallet import orders
    from hivemint.contracts import order_file

    place, signed = load_network(network), order_file.read(file)
    orders.check_place(place, signed)

    async def act(contracts: "Bindings", signer: Signer) -> "Mined":
        await orders.check(contracts, signed)
        return await orders.send(contracts, signer, signed)

    send_transaction(place, wallet, password_file, act, f"{signed.kind} of {signed.order.client} is done", as_json)


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


@app.command("new-books")
def new_books(network: NetworkOption = None, wallet: WalletOption = None, as_json: JsonFlag = False) -> None:
    """Begin with nothing promised on a chain that began anew. What was promised on the old one stays on file."""
    from hivemint.ledger.books.voucher_book import VoucherBook
    from hivemint.protocol.home import Home

    place = load_network(network)
    client = Keystores().find(need(wallet, "No wallet", "pass --wallet NAME or set HIVEMINT_WALLET")).address
    genesis = run_async(_genesis(place))
    VoucherBook.open(Home.open().client / "vouchers.db", place.domain, client, genesis, begin_anew=True).close()
    if as_json:
        emit({"client": client, "genesis": genesis})
    else:
        out.print(
            f"[green]the books of {client} are of the chain that begins with 0x{genesis.hex()}[/]", soft_wrap=True
        )


async def _genesis(network: Network) -> bytes:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        return await contracts.chain.genesis()


async def _accounts(network: Network, client: Address) -> list[dict[str, Any]]:
    from hivemint.client.sessions.wallet import funded_nodes
    from hivemint.contracts.bindings import Bindings
    from hivemint.ledger.books.voucher_book import VoucherBook
    from hivemint.protocol.home import Home

    async with await Bindings.connect(network) as contracts:
        accounts = await funded_nodes(contracts, client, network.deployed_block)
        now = await contracts.chain.time()
        genesis = await contracts.chain.genesis()
    book = VoucherBook.open(Home.open().client / "vouchers.db", network.domain, client, genesis)
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


async def _chosen(network: Network, named: list[Address]) -> list[Address]:
    """`named`, else all that serve. Raises BadInput for one that nobody registered: it could never be paid."""
    from hivemint.contracts.bindings import Bindings

    if not named:
        return await _serving(network)
    async with await Bindings.connect(network) as contracts:
        for node, known in zip(named, await contracts.registry.nodes(named), strict=True):
            if known is None:
                raise BadInput(
                    f"{node} is no registered node",
                    why="credits there serve nobody until a thaw is over",
                    next_step="check the address: `hivemint swarm status --json` names the operators of nodes",
                )
    return named


async def _serving(network: Network) -> list[Address]:
    """Operators of all registered nodes that now serve one of the network's models."""
    from hivemint.cli.swarm import served, visiting

    async with visiting(network) as host:
        reports: list[dict[str, Any]] = [await served(host, network, model.name) for model in network.models]
    nodes = [node for report in reports for node in report["nodes"] if node["registered"] is not False]
    found = sorted({Address(node["operator"]) for node in nodes})
    if not found:
        raise SwarmError("Nobody serves this network's models now", next_step="name the nodes with --node")
    return found
