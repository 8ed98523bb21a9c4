"""A wallet's signed order as a JSON file, which anybody may send (`hivemint account send-order`):

    {"chain_id": 31337, "settlement": "0x...", "kind": "Thaw",
     "order": {"client": "0x...", "node": "0x...", "nonce": 0, "deadline": 1764000000}, "signature": "0x..."}

`kind` is the type that was signed. With `Fund` travels the wallet's `permit` for the escrow to take its credits, with
`Close` the node's `release` and the receipt and voucher to settle first. Whoever changes a byte of it, but for these,
has a file that nobody takes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from eth_utils.address import is_checksum_address

from hivemint.contracts.bindings.token import Permit
from hivemint.protocol.eip712 import Delegation, Domain, Release
from hivemint.protocol.errors import BadInput, ConfigError, ProofError
from hivemint.protocol.home import read_small, write_private
from hivemint.protocol.ids import Address, Credits, Signature
from hivemint.protocol.orders import CancelThaw, Close, Fund, Revoke, Thaw, Withdraw
from hivemint.protocol.receipt import Countersigned, SignedReceipt, SignedVoucher, check_signature, check_voucher
from hivemint.protocol.signing import recover

_T = TypeVar("_T", bound=msgspec.Struct)
_DIGITS = 29  # of 2^96 - 1
AnyOrder = Fund | Thaw | CancelThaw | Withdraw | Revoke | Close | Delegation
_KINDS: dict[str, type[AnyOrder]] = {
    kind.__name__: kind for kind in (Fund, Thaw, CancelThaw, Withdraw, Revoke, Close, Delegation)
}
_LIMIT = 131_072
"""Bytes of a file that is looked at."""
_CONTRACT_WALLET = 4096
"""Bytes of a contract wallet's signature at most."""


@dataclass(frozen=True, slots=True)
class Closing:
    """What goes with a `Close`: the node's word, and what is to be settled first."""

    release: Release
    signature: Signature
    items: tuple[Countersigned, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """An order and its wallet's signature, not looked at yet but for its form."""

    domain: Domain
    order: AnyOrder
    signature: bytes
    permit: Permit | None = None
    closing: Closing | None = None

    @property
    def kind(self) -> str:
        return type(self.order).__name__

    def signer(self) -> Address:
        """Whose plain signature (64 or 65 bytes) it is. Raises ProofError for any other, a contract wallet's too."""
        short = self.signature
        if len(short) == 65:
            v = short[64]
            if v not in (27, 28) or short[32] >> 7:
                raise ProofError("A signature is not canonical", why=f"its v is {v}, expected 27 or 28, with a low s")
            short = short[:32] + bytes([short[32] | (v - 27) << 7]) + short[33:64]
        return recover(self.order.digest(self.domain), Signature(short))


def to_json(signed: SignedOrder) -> bytes:
    """As a file holds it."""
    document: dict[str, Any] = {
        "chain_id": signed.domain.chain_id,
        "settlement": signed.domain.settlement,
        "kind": signed.kind,
        "order": _shown(signed.order),
        "signature": _hex(signed.signature),
    }
    if signed.permit is not None:
        permit = signed.permit
        document["permit"] = {
            "value": str(permit.value),
            "deadline": permit.deadline,
            "v": permit.v,
            "r": _hex(permit.r),
            "s": _hex(permit.s),
        }
    if signed.closing is not None:
        closing = signed.closing
        document["release"] = {**_shown(closing.release), "signature": _hex(closing.signature)}
        document["settle"] = [
            {
                "receipt": {**_shown(one.receipt.body), "signature": _hex(one.receipt.signature)},
                "voucher": {**_shown(one.voucher.body), "signature": _hex(one.voucher.signature)},
            }
            for one in closing.items
        ]
    return json.dumps(document, indent=2).encode() + b"\n"


def from_json(data: bytes) -> SignedOrder:
    """Raises BadInput for what is not such a document, ProofError where what goes with it is forged."""
    try:
        document = msgspec.json.decode(data, type=_OrderFile)
        domain = Domain(document.chain_id, document.settlement)
        order = _convert(_raw(document.order), _KINDS[document.kind])
        permit = None if document.permit is None else document.permit.permit()
        closing = _closing(domain, document)
        signature = _bytes(document.signature)
    except KeyError as error:
        raise _bad(f"it knows no kind {error}") from None
    except (msgspec.MsgspecError, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)) from None
    if len(signature) > _CONTRACT_WALLET:
        raise _bad(f"its signature has {len(signature)} bytes")
    if (closing is not None) != isinstance(order, Close) or (permit is not None and not isinstance(order, Fund)):
        raise _bad(f"what goes with it is not what goes with a {document.kind}")
    return SignedOrder(domain, order, signature, permit, closing)


def read(path: Path) -> SignedOrder:
    """Raises BadInput, ProofError."""
    return from_json(read_small(path, _LIMIT, "signed order"))


def write(path: Path, signed: SignedOrder) -> None:
    """A new file (0600). Raises ConfigError where there is one, or none can be."""
    try:
        write_private(path, to_json(signed))
    except FileExistsError:
        raise ConfigError(f"{path} exists already", next_step="name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", why=error.strerror or str(error)) from None


class _Permit(msgspec.Struct, forbid_unknown_fields=True):
    value: str
    deadline: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    v: Annotated[int, msgspec.Meta(ge=0, le=255)]
    r: str
    s: str

    def permit(self) -> Permit:
        """Raises ValueError."""
        value, r, s = int(self.value), _bytes(self.r), _bytes(self.s)
        if not 0 <= value < 2**256 or (len(r), len(s)) != (32, 32):
            raise ValueError("the permit's numbers are out of range")
        return Permit(value, self.deadline, self.v, r, s)


class _Settle(msgspec.Struct, forbid_unknown_fields=True):
    receipt: dict[str, Any]
    voucher: dict[str, Any]


class _OrderFile(msgspec.Struct, forbid_unknown_fields=True):
    chain_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    settlement: Address
    kind: str
    order: dict[str, Any]
    signature: str
    permit: _Permit | None = None
    release: dict[str, Any] | None = None
    settle: Annotated[tuple[_Settle, ...], msgspec.Meta(max_length=50)] = ()

    def __post_init__(self) -> None:
        if not is_checksum_address(self.settlement):
            raise ValueError("settlement is not a checksummed address")


_BYTES = ("session_id", "head")


def _shown(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: _plain(name, value) for name, value in msgspec.structs.asdict(struct).items()}


def _plain(name: str, value: Any) -> Any:
    """Amounts as text: other readers of JSON would round them."""
    if isinstance(value, bytes):
        return _hex(value)
    if name == "amounts":
        return [str(one) for one in value]
    if name == "total":
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _raw(fields: dict[str, Any]) -> dict[str, Any]:
    """As `msgspec.convert` takes a struct. Raises ValueError."""
    return {name: _value(name, value) for name, value in fields.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, str) and name in (*_BYTES, "signature", "receipt"):
        return _bytes(value)
    return value


def _closing(domain: Domain, document: _OrderFile) -> Closing | None:
    """Raises ValueError, msgspec.ValidationError, ProofError."""
    if document.release is None:
        return None
    fields = _raw(document.release)
    signature = msgspec.convert(fields.pop("signature", None), bytes)
    if len(signature) != 64:
        raise ValueError("the release's signature has not 64 bytes")
    release = _convert(fields, Release)
    return Closing(release, Signature(signature), tuple(_pair(domain, one) for one in document.settle))


def _pair(domain: Domain, one: _Settle) -> Countersigned:
    receipt, voucher = _raw(one.receipt), _raw(one.voucher)
    first = _convert({"signature": receipt.pop("signature", None), "body": receipt}, SignedReceipt)
    second = _convert({"signature": voucher.pop("signature", None), "body": voucher}, SignedVoucher)
    checked = check_signature(domain, first)
    key = recover(second.body.digest(domain), second.signature)
    return Countersigned(checked, check_voucher(domain, second, checked.digest, key))


def _convert(fields: dict[str, Any], kind: type[_T]) -> _T:
    """Raises msgspec.ValidationError, also for what a struct's own check refuses."""
    return msgspec.convert(fields, kind, dec_hook=_amount)


def _amount(kind: type, value: object) -> Credits:
    if kind is Credits and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        return Credits(value)
    raise ValueError("expected an amount in wei, as text")


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _bad(why: str) -> BadInput:
    return BadInput("This is no signed order", why=why, next_step="take a file that --sign-only has written")
