"""What a journal holds: entries on their way in, standings and sessions on their way out, and their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from hivemint.protocol.eip712 import Domain, Receipt, Session, Voucher
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, Credits, SessionId, Signature, Step, Tokens
from hivemint.protocol.receipt import (
    Countersigned,
    SignedReceipt,
    SignedVoucher,
    check_receipt,
    check_voucher,
)

NOTHING = Credits(0)
NO_STEP, NO_TOKENS = Step(0), Tokens(0)


@dataclass(frozen=True, slots=True)
class Entry:
    """What must be durable before the next receipt of a session leaves.

    `owed`: the sum that the client owes after this, all its sessions together. `newest`: the newest countersigned
    receipt of this session, None if no voucher came. `signed_step`, `signed_tokens`: the newest receipt that the
    node has signed in this session, for the live view.
    """

    client: Address
    session: SessionId
    owed: Credits
    newest: Countersigned | None = None
    signed_step: Step = NO_STEP
    signed_tokens: Tokens = NO_TOKENS


def rank(pair: Countersigned) -> tuple[int, int, bytes]:
    """Of two claims the one with the higher total counts, at equal totals that with the newer receipt."""
    receipt = pair.receipt.body
    return pair.voucher.total, receipt.step, receipt.session_id


@dataclass(frozen=True, slots=True)
class Book:
    """A client's standing. `owed`: the price of all work that this node has signed receipts for.

    `proofs`: for each key the voucher with the highest total that is not above `owed`; they are stored, and they are
    all that the node ever claims. `promised`: vouchers with higher totals, lowest first, in memory alone; each becomes
    a proof when `owed` reaches it. `collected`: what the chain was last believed to have paid. Nothing here follows
    from it, so that an answer that was wrong leaves no trace once it is corrected. `worthless_since`: the time
    since which no look has found anything to claim; 0: there is something, or a session is open. `released_until`: the
    account may be closed by a release until then, in seconds since 1970 by the chain's time.
    """

    owed: Credits = NOTHING
    collected: Credits = NOTHING
    reason: str = ""
    worthless_since: int = 0
    proofs: Mapping[Address, Countersigned] = field(default_factory=lambda: MappingProxyType({}))
    promised: tuple[Countersigned, ...] = ()
    released_until: int = 0

    @property
    def best(self) -> Countersigned | None:
        """The proof with the highest total."""
        return max(self.proofs.values(), key=rank, default=None)

    @property
    def earned(self) -> Credits:
        """The highest total that the node can claim."""
        return Credits(max((pair.voucher.total for pair in self.proofs.values()), default=0))

    @property
    def open(self) -> Credits:
        """Earned and not yet collected."""
        return Credits(max(0, self.earned - self.collected))

    @property
    def debt(self) -> Credits:
        """What the next voucher builds on. The chain having paid more than is owed here means that this journal lost
        entries (an old copy of the disk), or that the client overpaid: either way those vouchers are spent.
        """
        return Credits(max(self.owed, self.collected))

    def proved(self, pair: Countersigned) -> "Book":
        """With one more claim: the highest of each key stays."""
        known = self.proofs.get(pair.voucher.key)
        if known is not None and rank(known) >= rank(pair):
            return self
        return replace(self, proofs=MappingProxyType({**self.proofs, pair.voucher.key: pair}))


@dataclass(frozen=True, slots=True)
class Donated:
    """A session of the donated lane with all that `Emission.claim` asks for."""

    session: Session
    signature: Signature
    delegation: tuple[int, bytes] | None
    newest: Countersigned
    claim: str

    @property
    def work(self) -> int:
        """Token positions times blocks, what the emission weighs (times the model's rate)."""
        return self.newest.receipt.tokens * self.session.blocks


@dataclass(frozen=True, slots=True)
class LaneTotals:
    """Sums over the sessions of one lane. Credits are tokens times each session's price."""

    sessions: int = 0
    tokens_signed: int = 0
    tokens_countersigned: int = 0
    signed: Credits = NOTHING
    countersigned: Credits = NOTHING

    def plus(self, sessions: int, signed: int, countersigned: int, price: int) -> "LaneTotals":
        return LaneTotals(
            self.sessions + sessions,
            self.tokens_signed + signed,
            self.tokens_countersigned + countersigned,
            Credits(self.signed + price * signed),
            Credits(self.countersigned + price * countersigned),
        )


@dataclass(slots=True)
class Lanes:
    """The sums of both lanes, counted on as sessions open and work."""

    paid: LaneTotals
    donated: LaneTotals

    def count(self, price: Credits, sessions: int, signed: int, countersigned: int) -> None:
        if price:
            self.paid = self.paid.plus(sessions, signed, countersigned, price)
        else:
            self.donated = self.donated.plus(sessions, signed, countersigned, 0)


@dataclass(frozen=True, slots=True)
class NodeTotals:
    """The credit flow of one node: signed -> countersigned -> settled -> minted."""

    paid: LaneTotals = field(default_factory=LaneTotals)
    donated: LaneTotals = field(default_factory=LaneTotals)
    promised: Credits = NOTHING
    settled: Credits = NOTHING
    minted: Credits = NOTHING


def proof_row(newest: Countersigned | None) -> dict[str, Any]:
    """The columns of a countersigned receipt; all NULL without one."""
    if newest is None:
        return dict.fromkeys(("step", "tokens", "head", "receipt_signature", "voucher_signature", "voucher_key"))
    receipt = newest.receipt.body
    return {
        "step": receipt.step,
        "tokens": receipt.tokens,
        "head": receipt.head,
        "receipt_signature": newest.receipt.signature,
        "voucher_signature": newest.voucher.signature,
        "voucher_key": newest.voucher.key,
    }


def account_row(owner: int, client: Address, book: Book) -> dict[str, Any]:
    """One row of `accounts`. The proofs are in the rows of their sessions."""
    return {
        "owner": owner,
        "client": client,
        "owed": book.owed,
        "collected": book.collected,
        "reason": book.reason,
        "worthless_since": book.worthless_since,
        "released_until": book.released_until,
    }


def session_row(owner: int, session_id: SessionId, session: Session, signature: Signature) -> dict[str, Any]:
    """One row of `sessions` as it opens: nothing signed yet, nothing countersigned."""
    terms = {name: getattr(session, name) for name in Session.__struct_fields__ if name != "node"}
    state = {"delegation_until": None, "delegation_signature": None, "signed_step": 0, "signed_tokens": 0, "claim": ""}
    proof = proof_row(None) | {"tokens": 0, "voucher_total": None}
    return {"owner": owner, "id": session_id, "signature": signature} | terms | state | proof


def row_after(row: dict[str, Any], pair: Countersigned) -> dict[str, Any]:
    """A session's row once `pair` is its proof: one that ranks below the stored one changes nothing."""
    receipt, total = pair.receipt.body, pair.voucher.total
    if row["step"] is not None and (total, receipt.step) <= (row["voucher_total"], row["step"]):
        return row
    after = row | proof_row(pair) | {"voucher_total": total}
    if receipt.step > row["signed_step"]:
        after |= {"signed_step": receipt.step, "signed_tokens": receipt.tokens}
    return after


def proof_from(row: Any, domain: Domain, node: Address, session: SessionId, total: Credits) -> Countersigned:
    """A stored proof, its signatures checked again: a file is outside input too. Raises ProofError."""
    receipt = Receipt(node, row.client, session, row.step, row.tokens, row.head)
    checked = check_receipt(domain, SignedReceipt(receipt, row.receipt_signature), receipt)
    voucher = Voucher(checked.digest, total)
    signed = SignedVoucher(voucher, row.voucher_signature)
    return Countersigned(checked, check_voucher(domain, signed, checked.digest, row.voucher_key))


def session_from(row: Any, node: Address) -> Session:
    """The signed terms of a stored session."""
    terms: dict[str, Any] = {name: getattr(row, name) for name in Session.__struct_fields__ if name != "node"}
    return Session(node=node, **terms)


def check_pair(pair: Countersigned, node: Address, client: Address, session: SessionId) -> None:
    """A proof must be of this node, this client and this session. Raises ProofError."""
    receipt = pair.receipt.body
    if (receipt.node, receipt.client, receipt.session_id) != (node, client, session):
        raise ProofError(
            "A journal entry and its receipt disagree",
            why=f"the receipt is of client {receipt.client}, session {receipt.session_id.hex()[:12]}, "
            f"the entry of {client}, {session.hex()[:12]}",
        )
