"""Leaving a node together: it releases the account, one transaction settles what is owed and pays the rest back.

Nothing that the node says is taken without a check: its release must be for this account, for now, and for a sum that
this wallet owes by its own books, or that a voucher of another machine proves (rule C3).
"""

import asyncio
import time
from dataclasses import dataclass

from hivemint.client.sessions.errors import NodeLied
from hivemint.client.sessions.opening import expect, greet
from hivemint.client.sessions.payer import Payer, believe
from hivemint.client.sessions.route import Leg
from hivemint.contracts.bindings import Account
from hivemint.protocol.credits import format_credits
from hivemint.protocol.eip712 import Domain, Leave, Release
from hivemint.protocol.errors import ProofError, Refusal, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, ModelId, Signature
from hivemint.protocol.node_name import named
from hivemint.protocol.receipt import (
    CheckedReceipt,
    CheckedVoucher,
    Countersigned,
    SignedReceipt,
    SignedVoucher,
    check_signature,
    check_voucher,
)
from hivemint.protocol.signing import Signer, recover
from hivemint.swarm.host import Host
from hivemint.swarm.messages import Code, Left
from hivemint.swarm.messages import Leave as LeaveMessage
from hivemint.swarm.records import NodeRecord

LONGEST_RELEASE = 3600
"""Seconds that a release may be good for; the contract takes none for longer."""
SHORTEST_RELEASE = 60
"""Seconds that are left at least, so that the transaction has a chance."""
WAIT = 20.0
"""Seconds for a node whose last session of this client is ending."""


@dataclass(frozen=True, slots=True)
class Parting:
    """What a close takes to the chain. `items`: at most one, the newest voucher that the account still has to pay."""

    release: Release
    signature: Signature
    items: tuple[Countersigned, ...]


async def find_node(host: Host, node: Address, spans: dict[ModelId, int]) -> NodeRecord:
    """The record of an operator's node that serves one of these models. `spans`: model -> its number of blocks.

    Raises SwarmError.
    """
    for model, blocks in spans.items():
        for one in await host.find(model, range(blocks)):
            if one.record.operator == node:
                return one.record
    raise SwarmError(f"The node {named(node)} is not in the swarm", why="nobody publishes a record of that operator")


async def part(host: Host, record: NodeRecord, payer: Payer, wallet: Signer, *, timeout: float = 10.0) -> Parting:
    """Ask a node to release the wallet's account, and check what it answers. `wallet`: the wallet's own key.

    Raises SwarmError, Refusal, ProofError for a node that is away, refuses, or claims what does not hold; ChainError.
    """
    leg = Leg(
        record, BlockIndex(record.first_block), BlockIndex(record.end_block), Credits(0), record.numerics[0], 0.0, 0.0
    )
    left = await _ask(host, leg, payer.domain, wallet, timeout)
    chain = payer.chain
    if chain is None:
        raise SwarmError("An account is closed on a chain", why="this client knows none")
    account = (await chain.accounts(wallet.address, [leg.operator]))[leg.operator]
    try:
        check_release(payer.domain, left, leg.operator, wallet.address, await chain.time())
        items = await _items(payer, left, account)
    except ProofError as error:
        raise NodeLied((leg,), error) from None
    if left.release.total > account.collected:
        await believe(payer, leg, left.release.total, left.voucher)
    _check_rest(left.release, account)
    return Parting(left.release, left.signature, items)


async def _ask(host: Host, leg: Leg, domain: Domain, wallet: Signer, timeout: float) -> Left:
    """A node that is still writing down the last session of this client is asked again for a while."""
    deadline = time.monotonic() + WAIT
    while True:
        greeting = await greet(host, leg, timeout)
        try:
            leave = Leave(wallet.address, leg.operator, greeting.terms.nonce)
            message = LeaveMessage(leave, leave.sign(domain, wallet))
            return await expect(greeting, message, Left, timeout, "releasing the account")
        except Refusal as error:
            if error.code != Code.CONFLICT or time.monotonic() + error.retry_after > deadline:
                raise
            await asyncio.sleep(max(0.1, error.retry_after))
        finally:
            await greeting.link.close("the client has left")


def check_release(domain: Domain, left: Left, node: Address, client: Address, now: int) -> None:
    """It must be of this account, good now and not for long, and signed by the operator. Raises ProofError."""
    release = left.release
    if (release.node, release.client) != (node, client):
        raise ProofError("A release is of another account", why=f"{release.client} at {release.node}")
    if not now + SHORTEST_RELEASE <= release.deadline <= now + LONGEST_RELEASE:
        raise ProofError(
            "A release has a deadline that cannot be used",
            why=f"{release.deadline} lies {release.deadline - now} s ahead by the chain's time, "
            f"expected {SHORTEST_RELEASE} to {LONGEST_RELEASE}",
        )
    signer = recover(release.digest(domain), left.signature)
    if signer != node:
        raise ProofError("A release is forged", why=f"expected the signature of {node}, got {signer}")


async def _items(payer: Payer, left: Left, account: Account) -> tuple[Countersigned, ...]:
    """What has to be settled first: a voucher of this wallet for the very sum that the node releases for.

    Raises ProofError, ChainError.
    """
    if left.release.total <= account.collected:
        return ()
    if left.receipt is None or left.voucher is None or left.voucher.body.total != left.release.total:
        shown = "none" if left.voucher is None else format_credits(left.voucher.body.total)
        raise ProofError(
            "The node shows no voucher for what it claims",
            why=f"it releases for {format_credits(left.release.total)}, its voucher is for {shown}",
        )
    receipt = _checked_receipt(payer.domain, left.receipt, left.release)
    return (Countersigned(receipt, await _checked_voucher(payer, left.voucher, receipt)),)


def _checked_receipt(domain: Domain, signed: SignedReceipt, release: Release) -> CheckedReceipt:
    if (signed.body.node, signed.body.client) != (release.node, release.client):
        raise ProofError("The node shows a receipt of another account", why=f"client {signed.body.client}")
    return check_signature(domain, signed)


async def _checked_voucher(payer: Payer, signed: SignedVoucher, receipt: CheckedReceipt) -> CheckedVoucher:
    """By the wallet, or a key of it that the chain has on record."""
    client = payer.who.client
    signer = recover(signed.body.digest(payer.domain), signed.signature)
    if signer != client and (payer.chain is None or not await payer.chain.on_record(client, signer)):
        raise ProofError("The node shows a voucher of somebody else", why=f"{signer} is no key of {client}")
    return check_voucher(payer.domain, signed, receipt.digest, signer)


def _check_rest(release: Release, account: Account) -> None:
    """Raises SwarmError where a close would revert, or pay nothing back."""
    held = account.balance + account.collected
    if release.total > held:
        raise SwarmError(
            "The account does not hold what this wallet owes the node",
            why=f"{format_credits(release.total)} are owed in all, {format_credits(held)} were ever deposited and kept",
            next_step="there is nothing to get back from it",
        )
