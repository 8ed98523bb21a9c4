"""`hivemint account close`: leave a node together with it, so that what is left comes back at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption, emit, out, run_async
from hivemint.cli.node_argument import operator_of
from hivemint.cli.transact import NodeArgument, load_network, unlocked, write_order
from hivemint.cli.wallet import orders
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import BadInput, HivemintError, ProofError, Refusal, SwarmError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import named
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.client.leaving import Parting
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined
    from hivemint.contracts.order_file import SignedOrder


@dataclass(frozen=True, slots=True)
class _Done:
    mined: "Mined"
    settled: int
    paid_back: int


def close(
    node: NodeArgument,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    password_file: PasswordFileOption = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Another wallet of yours, which sends it and pays the gas.")
    ] = None,
    by_password_file: Annotated[
        Path | None, typer.Option("--by-password-file", help="Password of --by, if it has one of its own.")
    ] = None,
    sign_only: Annotated[
        Path | None,
        typer.Option(
            "--sign-only",
            help="Send nothing: write the order to FILE (- for the terminal). It is good for half an hour.",
            metavar="FILE",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Close an account together with its node: what is owed is settled, the rest comes back at once.

    The node takes no paid session of this wallet for half an hour. Where it is away or refuses, `thaw` needs nobody.
    """
    place = load_network(network)
    operator = operator_of(node, place, wallet=wallet, quiet=as_json)
    if by and sign_only:
        raise BadInput("--by sends an order, --sign-only only writes it", next_step="leave one of them out")
    signer = unlocked(wallet, password_file)
    payer = unlocked(by, by_password_file or password_file) if by else None
    if sign_only:
        return write_order(run_async(_signed(place, operator, signer)), sign_only, as_json)
    done: _Done = run_async(_close(place, operator, signer, payer))
    if as_json:
        emit(
            {
                "transaction": done.mined.hash,
                "block": done.mined.block,
                "gas": done.mined.gas_used,
                "settled_wei": done.settled,
                "paid_back_wei": done.paid_back,
            }
        )
        return None
    out.print(
        f"[green]closed[/]  {format_credits(done.settled)} settled, {format_credits(done.paid_back)} paid back  "
        f"[dim]transaction[/] 0x{done.mined.hash.hex()}",
        highlight=False,
        soft_wrap=True,
    )
    return None


async def _close(network: Network, node: Address, wallet: Signer, payer: Signer | None) -> _Done:
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        parting = await _part(network, contracts, node, wallet)
        settlement = contracts.settlement
        if payer is None:
            mined = await settlement.close(wallet, parting.release, parting.signature, parting.items)
        else:
            mined = await orders.send(contracts, payer, await _order(network, contracts, parting, wallet))
        back = settlement.events_in(mined, "Withdrawn")
        return _Done(mined, int(settlement.result(mined).burned), int(sum(event["amount"] for event in back)))


async def _signed(network: Network, node: Address, wallet: Signer) -> "SignedOrder":
    from hivemint.contracts.bindings import Bindings

    async with await Bindings.connect(network) as contracts:
        return await _order(network, contracts, await _part(network, contracts, node, wallet), wallet)


async def _order(network: Network, contracts: "Bindings", parting: "Parting", wallet: Signer) -> "SignedOrder":
    """As good as the release that it goes with."""
    from hivemint.contracts.order_file import Closing, SignedOrder
    from hivemint.protocol.orders import Close

    release = parting.release
    nonce = await contracts.settlement.nonce(wallet.address)
    order = Close(wallet.address, release.node, nonce, release.deadline)
    closing = Closing(release, parting.signature, parting.items)
    return SignedOrder(network.domain, order, order.sign(network.domain, wallet), closing=closing)


async def _part(network: Network, contracts: "Bindings", node: Address, wallet: Signer) -> "Parting":
    """The node's release, checked. Raises what was wrong, with the way out that needs no consent."""
    from hivemint.cli.swarm import block_counts, visiting
    from hivemint.client.leaving import find_node, part
    from hivemint.client.sessions.payer import Payer
    from hivemint.client.sessions.wallet import ContractPort, Identity
    from hivemint.ledger.books.voucher_book import VoucherBook

    account = await contracts.settlement.account(wallet.address, node)
    if not account.balance:
        raise BadInput(
            "There is nothing to get back", why=f"{wallet.address} has no credits in escrow at {named(node)}"
        )
    book = VoucherBook.open(
        Home.open().client / "vouchers.db", network.domain, wallet.address, await contracts.chain.genesis()
    )
    try:
        payer = Payer(Identity.own(wallet), network.domain, book, ContractPort(contracts))
        async with visiting(network) as host:
            return await part(host, await find_node(host, node, block_counts(network)), payer, wallet)
    except (SwarmError, Refusal, ProofError) as error:
        raise _thaw_instead(node, error) from None
    finally:
        book.close()


def _thaw_instead(node: Address, error: HivemintError) -> SwarmError:
    why = f"{error.what}: {error.why}" if error.why else error.what
    more: Any = f"{error.next_step}; or " if isinstance(error, Refusal) and error.next_step else ""
    return SwarmError(
        "The account cannot be closed together with its node",
        why=why,
        next_step=f"{more}`hivemint account thaw {node}` needs nobody's consent; what is left comes back after it",
    )
