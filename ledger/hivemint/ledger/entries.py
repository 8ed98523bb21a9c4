"""What a journal holds: entries on their way in, standings and sessions on their way out, and their rows."""

from dataclasses import dataclass, field
from typing import Any

from hivemint.contracts.errors import ProofError
from hivemint.contracts.ids import Address, Credits, SessionId, Signature, Step, Tokens
from hivemint.contracts.receipt import (
    Countersigned,
    SignedReceipt,
    SignedVoucher,
    check_receipt,
    check_voucher,
)
from hivemint.contracts.signed import Domain, Receipt, Session, Voucher

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


@dataclass(frozen=True, slots=True)
class Book:
    """A client's standing: the highest total that it promised (with its proof in `newest`) and the sum it owes.

    `newest` is None with `highest` > 0 where the chain has paid out more than this journal knows of.
    """

    highest: Credits = NOTHING
    owed: Credits = NOTHING
    newest: Countersigned | None = None
    collected: Credits = NOTHING
    reason: str = ""

    @property
    def open(self) -> Credits:
        """Promised and not yet collected."""
        return Credits(max(0, self.highest - self.collected))


@dataclass(frozen=True, slots=True)
class Donated:
    """A session of the free lane with all that `Emission.claim` asks for."""

    session: Session
    signature: Signature
    delegation: tuple[int, bytes] | None
    newest: Countersigned
    claim: str

    @property
    def work(self) -> int:
        """Token positions times blocks, what the emission weighs (times the model's rate)."""
        return self.newest.receipt.receipt.tokens * self.session.blocks


@dataclass(frozen=True, slots=True)
class Lane:
    """Sums over the sessions of one lane. Credits are tokens times each session's price."""

    sessions: int = 0
    tokens_signed: int = 0
    tokens_countersigned: int = 0
    signed: Credits = NOTHING
    countersigned: Credits = NOTHING

    def plus(self, sessions: int, signed: int, countersigned: int, price: int) -> "Lane":
        return Lane(
            self.sessions + sessions,
            self.tokens_signed + signed,
            self.tokens_countersigned + countersigned,
            Credits(self.signed + price * signed),
            Credits(self.countersigned + price * countersigned),
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """The credit flow of one node: signed -> countersigned -> settled -> minted."""

    paid: Lane = field(default_factory=Lane)
    free: Lane = field(default_factory=Lane)
    promised: Credits = NOTHING
    settled: Credits = NOTHING
    minted: Credits = NOTHING


@dataclass(slots=True)
class OpenSession:
    """A session of this run: what the journal needs to keep its row from going back."""

    client: Address
    price: Credits
    row: dict[str, Any]


def proof_row(newest: Countersigned | None) -> dict[str, Any]:
    """The columns of a countersigned receipt; all NULL without one."""
    if newest is None:
        return dict.fromkeys(("step", "tokens", "head", "receipt_signature", "voucher_signature", "voucher_key"))
    receipt = newest.receipt.receipt
    return {
        "step": receipt.step,
        "tokens": receipt.tokens,
        "head": receipt.head,
        "receipt_signature": newest.receipt.signature,
        "voucher_signature": newest.voucher.signature,
        "voucher_key": newest.voucher.key,
    }


def account_row(owner: int, client: Address, book: Book) -> dict[str, Any]:
    """One row of `accounts`."""
    session = book.newest.receipt.receipt.session_id if book.newest else None
    return {
        "owner": owner,
        "client": client,
        "highest": book.highest,
        "owed": book.owed,
        "collected": book.collected,
        "reason": book.reason,
        "session": session,
    } | proof_row(book.newest)


def session_row(owner: int, session_id: SessionId, session: Session, signature: Signature) -> dict[str, Any]:
    """One row of `sessions` as it opens: nothing signed yet, nothing countersigned."""
    terms = {name: getattr(session, name) for name in Session.__struct_fields__ if name != "node"}
    state = {"delegation_until": None, "delegation_signature": None, "signed_step": 0, "signed_tokens": 0, "claim": ""}
    proof = proof_row(None) | {"tokens": 0, "voucher_total": None}
    return {"owner": owner, "id": session_id, "signature": signature} | terms | state | proof


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


def check_entry(entry: Entry, node: Address) -> None:
    """An entry's proof must be of this node, this client and this session. Raises ProofError."""
    if entry.newest is None:
        return
    receipt = entry.newest.receipt.receipt
    if (receipt.node, receipt.client, receipt.session_id) != (node, entry.client, entry.session):
        raise ProofError(
            "A journal entry and its receipt disagree",
            why=f"the receipt is of client {receipt.client}, session {receipt.session_id.hex()[:12]}, "
            f"the entry of {entry.client}, {entry.session.hex()[:12]}",
        )
