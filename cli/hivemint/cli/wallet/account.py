"""`hivemint account fund | thaw | cancel | withdraw | close | send-order | list | new-books`: credits in escrow."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from hivemint.cli.node_argument import operator_of
from hivemint.cli.transact import (
    HoursOption,
    NodeArgument,
    NonceOption,
    Ready,
    SignOnly,
    SignOnlyOption,
    load_network,
    send_or_sign,
    send_transaction,
)
from hivemint.cli.wallet.closing import close
from hivemint.cli.wallet.funding import fund
from hivemint.cli.wallet.listing import list_accounts
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.orders import CancelThaw, Thaw, Withdraw
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings, Settlement
    from hivemint.contracts.chain import Mined

NodeAct = Callable[["Settlement", Signer, Address], Awaitable["Mined"]]
NodeOrder = type[CancelThaw] | type[Thaw] | type[Withdraw]
app = typer.Typer(help="Credits in escrow at nodes: fund, thaw, cancel, withdraw, close, send-order, list, new-books.")
app.command()(fund)
app.command("list")(list_accounts)
app.command()(close)


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
