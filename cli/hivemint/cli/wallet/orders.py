"""Orders that a wallet has signed, checked before somebody pays for sending them."""

from typing import TYPE_CHECKING

from hivemint.contracts.bindings.token import NO_PERMIT
from hivemint.contracts.order_file import SignedOrder
from hivemint.protocol.credits import format_credits
from hivemint.protocol.eip712 import Delegation
from hivemint.protocol.errors import BadInput, ProofError
from hivemint.protocol.network import Network
from hivemint.protocol.orders import Close, Fund
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import utc

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.chain import Mined


def check_place(network: Network, signed: SignedOrder) -> None:
    """The order must be of this network's chain and contract. Raises BadInput."""
    there, here = signed.domain, network.domain
    if there != here:
        raise BadInput(
            f"The order is not for {network.name}",
            why=f"it was signed for {there.settlement} on chain {there.chain_id}, this network has "
            f"{here.settlement} on chain {here.chain_id}",
            next_step="pass the --network of the wallet that signed it",
        )


async def check(contracts: "Bindings", signed: SignedOrder) -> None:
    """Signature, time, nonce, and for a deposit the credits. Raises BadInput, ProofError, ChainError."""
    client = signed.order.client
    if not await contracts.chain.code(client):  # a contract wallet is asked by the contract
        _check_signer(signed)
    now = await contracts.chain.time()
    end = signed.order.valid_until if isinstance(signed.order, Delegation) else signed.order.deadline
    if signed.closing is not None:
        end = min(end, signed.closing.release.deadline)
    if end < now:
        raise BadInput(
            "The order is over",
            why=f"it was good until {utc(end)}, the chain's newest block is of {utc(now)}",
            next_step="have it signed again",
        )
    if not isinstance(signed.order, Delegation):
        _check_nonce(signed.order.nonce, await contracts.settlement.nonce(client))
    if isinstance(signed.order, Fund):
        total, has = sum(signed.order.amounts), await contracts.token.balance(client)
        if has < total:
            raise BadInput(
                "The wallet that ordered this deposit has too few credits",
                why=f"the deposit is {format_credits(total)} in all, {client} has {format_credits(has)}",
            )


async def send(contracts: "Bindings", sender: Signer, signed: SignedOrder) -> "Mined":
    """`sender` pays the gas. Raises ChainError for what the contract refuses."""
    settlement, order = contracts.settlement, signed.order
    if isinstance(order, Fund):
        return await settlement.send_fund(sender, order, signed.signature, signed.permit or NO_PERMIT)
    if isinstance(order, Delegation):
        return await settlement.authorize_by_sig(sender, order, signed.signature)
    if not isinstance(order, Close):
        return await settlement.send_order(sender, order, signed.signature)
    if signed.closing is None:
        raise BadInput("A Close needs the node's release", next_step="`hivemint account close` asks for one")
    closing = signed.closing
    return await settlement.close_by_sig(
        sender, order, signed.signature, closing.release, closing.signature, closing.items
    )


def _check_signer(signed: SignedOrder) -> None:
    signer = signed.signer()
    if signer != signed.order.client:
        raise ProofError(
            "The order is not signed by its wallet",
            why=f"expected the signature of {signed.order.client}, got {signer}: something in the file was changed, "
            "or another key signed it",
        )
    if isinstance(signed.order, Delegation) and not signed.order.paid:
        raise BadInput("This delegation is for donated work alone", why="the contract takes those for paid work")


def _check_nonce(its: int, expected: int) -> None:
    if its < expected:
        raise BadInput(
            "The order was sent already, or another took its place",
            why=f"it has number {its} of its wallet's orders, the next one is {expected}",
        )
    if its > expected:
        raise BadInput(
            "An earlier order of this wallet has to go first",
            why=f"this one has number {its}, the next one is {expected}",
        )
