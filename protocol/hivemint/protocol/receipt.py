"""Receipts and vouchers as states: what was signed, and what this process has checked.

    Receipt -> SignedReceipt -> MatchedReceipt -> CheckedReceipt        Voucher -> SignedVoucher -> CheckedVoucher

Each state holds what was signed as its `body`. Only checked ones can be stored or settled. A head chains the leaves
of all steps of a session; `docs/protocol.md`, section 1, is the source of every formula here.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec

from hivemint.protocol.eip712 import Domain, Receipt, SignatureBytes, Voucher, _Len32, _word
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import (
    BACKWARD,
    FORK,
    FORWARD,
    Address,
    Credits,
    Digest,
    Head,
    SessionId,
    Signature,
    Step,
    TensorHash,
    Tokens,
)
from hivemint.protocol.keccak import keccak
from hivemint.protocol.signing import Signer, recover

_PASSES = {FORWARD: 1, BACKWARD: 2, FORK: 0}


def work(kind: int, count: int) -> int:
    """The tokens that a step counts and costs: a backward pass twice its positions, a fork none."""
    return count * _PASSES[kind]


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one step did. `count` token positions from `start`; hashes are over the wire bytes (`swarm.rows`)."""

    previous: Annotated[Head, _Len32]
    step: Annotated[Step, msgspec.Meta(ge=1, le=2**63 - 1)]
    kind: Annotated[int, msgspec.Meta(ge=0, le=2)]
    start: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    count: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    input_hash: Annotated[TensorHash, _Len32]
    output_hash: Annotated[TensorHash, _Len32]

    def head(self) -> Head:
        """keccak256(abi.encode(head, step, kind, start, count, inputHash, outputHash))."""
        numbers = _word(self.step) + _word(self.kind) + _word(self.start) + _word(self.count)
        return Head(keccak(self.previous, numbers, self.input_hash, self.output_hash))

    @property
    def tokens(self) -> int:
        """What the step adds to `Receipt.tokens`."""
        return work(self.kind, self.count)


def opening(node: Address, client: Address, session: SessionId) -> Receipt:
    """Step 0 of a session: no tokens, and the session id as the first head."""
    return Receipt(node, client, session, Step(0), Tokens(0), Head(session))


def following(previous: Receipt, leaf: Leaf) -> Receipt:
    """The receipt after one more step. Raises ProofError if the leaf does not continue `previous`."""
    if leaf.previous != previous.head or leaf.step != previous.step + 1:
        raise ProofError(
            "A leaf does not continue its session",
            why=f"expected step {previous.step + 1} on head {previous.head.hex()[:12]}, "
            f"got step {leaf.step} on {leaf.previous.hex()[:12]}",
        )
    return Receipt(
        previous.node,
        previous.client,
        previous.session_id,
        leaf.step,
        Tokens(previous.tokens + leaf.tokens),
        leaf.head(),
    )


class _HasBody(Protocol):
    @property
    def body(self) -> Receipt: ...


class _ReceiptState:
    """What a receipt says, in whatever state it is."""

    __slots__ = ()

    @property
    def step(self: _HasBody) -> Step:
        return self.body.step

    @property
    def tokens(self: _HasBody) -> Tokens:
        return self.body.tokens

    @property
    def head(self: _HasBody) -> Head:
        return self.body.head

    @property
    def session_id(self: _HasBody) -> SessionId:
        return self.body.session_id


class SignedReceipt(_ReceiptState, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A receipt and a signature that nobody has looked at yet."""

    body: Receipt
    signature: SignatureBytes


class SignedVoucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A voucher and a signature that nobody has looked at yet."""

    body: Voucher
    signature: SignatureBytes


def fork(previous: Receipt, parent: Receipt, count: int) -> Leaf:
    """The first leaf of a session that begins with the K/V of another one's positions `0 .. count - 1`.

    In the place of the hashes stand the parent's head, to which all that its K/V came from is bound, and its session.
    """
    came_from = TensorHash(Digest(parent.head)), TensorHash(Digest(parent.session_id))
    return Leaf(previous.head, Step(previous.step + 1), FORK, 0, count, *came_from)


@dataclass(frozen=True, slots=True)
class CheckedReceipt(_ReceiptState):
    """A receipt whose signature recovers to its own `node`. Made by `check_receipt` or `sign_receipt` only."""

    body: Receipt
    signature: Signature
    digest: Digest

    @property
    def signed(self) -> SignedReceipt:
        return SignedReceipt(self.body, self.signature)


@dataclass(frozen=True, slots=True)
class MatchedReceipt(_ReceiptState):
    """A receipt that says what this process derived itself; nobody has looked at its signature yet. Made by `match`."""

    signed: SignedReceipt

    @property
    def body(self) -> Receipt:
        return self.signed.body


@dataclass(frozen=True, slots=True)
class CheckedVoucher:
    """A voucher that an allowed key signed over a receipt we know. Made by `check_voucher` or `sign_voucher` only."""

    body: Voucher
    signature: Signature
    key: Address

    @property
    def total(self) -> Credits:
        return self.body.total

    @property
    def signed(self) -> SignedVoucher:
        return SignedVoucher(self.body, self.signature)


@dataclass(frozen=True, slots=True)
class Countersigned:
    """A receipt with the voucher that binds it: all that the chain needs to pay for a session's work so far."""

    receipt: CheckedReceipt
    voucher: CheckedVoucher

    def __post_init__(self) -> None:
        if self.voucher.body.receipt != self.receipt.digest:
            raise ProofError("A voucher binds another receipt than the one beside it")


def sign_receipt(domain: Domain, receipt: Receipt, signer: Signer) -> CheckedReceipt:
    """The operator signs its own receipt."""
    digest = receipt.digest(domain)
    return CheckedReceipt(receipt, signer.sign(digest), digest)


def check_receipt(domain: Domain, signed: SignedReceipt, expected: Receipt) -> CheckedReceipt:
    """Compare with what this process derived itself, then with the operator's signature. Raises ProofError."""
    return check_signature(domain, match(signed, expected).signed)


def match(signed: SignedReceipt, expected: Receipt) -> MatchedReceipt:
    """A receipt must be what this process derived itself. Says nothing of its signature. Raises ProofError."""
    if signed.body != expected:
        raise ProofError("A receipt is not the expected one", why=_difference(signed.body, expected))
    return MatchedReceipt(signed)


def check_signature(domain: Domain, signed: SignedReceipt) -> CheckedReceipt:
    """A receipt must carry the signature of the operator that it names. Raises ProofError."""
    digest = signed.body.digest(domain)
    signer = recover(digest, signed.signature)
    if signer != signed.body.node:
        raise ProofError("A receipt is forged", why=f"expected the signature of {signed.body.node}, got {signer}")
    return CheckedReceipt(signed.body, signed.signature, digest)


def sign_voucher(domain: Domain, receipt: CheckedReceipt, total: Credits, signer: Signer) -> CheckedVoucher:
    """The client (its session key) binds a checked receipt and the total that it owes the node."""
    voucher = Voucher(receipt.digest, total)
    return CheckedVoucher(voucher, voucher.sign(domain, signer), signer.address)


def check_voucher(domain: Domain, signed: SignedVoucher, receipt: Digest, key: Address) -> CheckedVoucher:
    """A voucher must bind `receipt` and carry the signature of `key`. Raises ProofError."""
    if signed.body.receipt != receipt:
        raise ProofError(
            "A voucher binds another receipt",
            why=f"expected {receipt.hex()[:12]}, got {signed.body.receipt.hex()[:12]}",
        )
    signer = recover(signed.body.digest(domain), signed.signature)
    if signer != key:
        raise ProofError("A voucher is forged", why=f"expected the signature of {key}, got {signer}")
    return CheckedVoucher(signed.body, signed.signature, key)


def _difference(got: Receipt, expected: Receipt) -> str:
    wrong = [name for name in Receipt.__struct_fields__ if getattr(got, name) != getattr(expected, name)]
    return "; ".join(
        f"{name}: expected {_show(getattr(expected, name))}, got {_show(getattr(got, name))}" for name in wrong
    )


def _show(value: object) -> str:
    return value.hex()[:12] if isinstance(value, bytes) else str(value)
