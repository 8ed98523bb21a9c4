"""Who pays and by what books, and whom this client believes about what it owes.

A node's word on the sum owed is taken as far as this machine's books can account for it. Above that something has to
prove that this wallet has promised it elsewhere: a voucher by the wallet or a key of it, or what the chain has paid
out (the contract pays for vouchers of this wallet alone; that remains when both ends have lost their books).
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from hivemint.client.sessions.route import Leg
from hivemint.client.sessions.wallet import ChainPort, Identity
from hivemint.ledger.books.voucher_book import Owing, Shown, UnprovenDebt, VoucherBook
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import ProofError, SwarmError
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.receipt import SignedVoucher
from hivemint.protocol.signing import recover


@dataclass(frozen=True, slots=True)
class Payer:
    """Who signs, where signatures count, and what has been promised so far.

    `chain` None: no accounts are known. `funded`: what the account at each node holds in all, in wei, as last read; 0
    while it thaws.
    """

    who: Identity
    domain: Domain
    book: VoucherBook
    chain: ChainPort | None = None
    funded: dict[Address, Credits] = field(default_factory=dict)

    async def look(self, nodes: Iterable[Address]) -> None:
        """Read these accounts anew; no voucher passes what they hold. Raises ChainError."""
        if self.chain is not None and (wanted := sorted(set(nodes))):
            accounts = await self.chain.accounts(self.who.client, wanted)
            self.funded.update({node: account.funded for node, account in accounts.items()})

    async def expiry(self, seconds: float) -> int:
        """When a session of so many seconds ends that is signed now, in seconds since 1970. Raises ChainError.

        By the later of the two clocks; never beyond a separate key's own end.
        """
        now = int(time.time())
        if self.chain is not None:
            now = max(now, await self.chain.time())
        expiry = now + int(seconds)
        return min(expiry, self.who.valid_until or expiry)

    def owing(self, node: Address, amount: int, receipt: bytes, room: int) -> Owing:
        """A step's price and its limits: the account's, and the session's `room`."""
        return Owing(node, Credits(amount), receipt, self.funded.get(node), Credits(max(0, room)))


@dataclass(frozen=True, slots=True)
class Paid:
    """A step's voucher, and by how much it raised the highest total signed for its node."""

    voucher: SignedVoucher
    rise: int = 0


class NodeUnproven(SwarmError):
    """A node claims more than this wallet knows to owe it. Nothing more is signed for it; `peers` are set aside."""

    def __init__(self, leg: Leg, error: UnprovenDebt) -> None:
        super().__init__(
            f"The {leg} claims a debt that it cannot prove",
            why=error.why,
            next_step="ask again: a new route is planned without it",
        )
        self.peers = (leg.peer,)


async def believe(payer: Payer, leg: Leg, owed: Credits, proof: SignedVoucher | None) -> None:
    """Take a node's word on the sum owed, with what proves it. Raises NodeUnproven, StoreError, ChainError."""
    try:
        return payer.book.learn(leg.operator, owed)
    except UnprovenDebt as error:
        unproven = error
    for look in (partial(_own_voucher, proof=proof), _paid_out):
        try:
            if (shown := await look(payer, leg.operator, owed)) is not None:
                return payer.book.learn(leg.operator, owed, shown)
        except UnprovenDebt as error:
            unproven = error
    raise NodeUnproven(leg, unproven)


async def _own_voucher(payer: Payer, _: Address, owed: Credits, proof: SignedVoucher | None) -> Shown | None:
    """The voucher that a node shows, if it reaches `owed` and this wallet's keys have signed it."""
    if proof is None or proof.body.total < owed:
        return None
    who, voucher = payer.who, proof.body
    try:
        signer = recover(voucher.digest(payer.domain), proof.signature)
    except ProofError:
        return None
    ours = signer in (who.client, who.key.address)
    if not ours and payer.chain is not None:
        ours = await payer.chain.on_record(who.client, signer)
    return Shown(voucher.total, voucher.receipt) if ours else None


async def _paid_out(payer: Payer, node: Address, _: Credits) -> Shown | None:
    if payer.chain is None:
        return None
    accounts = await payer.chain.accounts(payer.who.client, [node])
    return Shown(accounts[node].collected)
