"""Two receipts of one step that a node has both signed, and that differ: what `Disputes` slashes it for.

Kept as a JSON file that `hivemint node report` reads, and anybody else:

    {"chain_id": 31337, "settlement": "0x...",
     "receipts": [{"node": "0x...", "client": "0x...", "session_id": "0x...", "step": 7, "tokens": 12, "head": "0x...",
                   "signature": "0x..."}, {...}]}
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from eth_utils.address import is_checksum_address

from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import BadInput, ProofError
from hivemint.protocol.home import private_folder, read_small, write_private
from hivemint.protocol.ids import Address
from hivemint.protocol.receipt import CheckedReceipt, SignedReceipt, check_signature

MOST = 64
"""Files that one folder keeps: a node's second lie proves no more than its first."""
_LIMIT = 16_384
"""Bytes of a file that is looked at."""


@dataclass(frozen=True, slots=True)
class Equivocation:
    """A proof against `node`. Made by `prove` and `read` only."""

    domain: Domain
    one: CheckedReceipt
    other: CheckedReceipt

    @property
    def node(self) -> Address:
        return self.one.body.node


def prove(domain: Domain, one: SignedReceipt, other: SignedReceipt) -> Equivocation:
    """Two receipts of one node, session and step, both signed by that node, that differ. Raises ProofError."""
    a, b = one.body, other.body
    if (a.node, a.session_id, a.step) != (b.node, b.session_id, b.step):
        raise ProofError("These receipts are of different steps", why=f"{a.node} step {a.step}, {b.node} step {b.step}")
    if a == b:
        raise ProofError("These receipts say the same", why="nobody has signed two things")
    return Equivocation(domain, check_signature(domain, one), check_signature(domain, other))


def to_json(proof: Equivocation) -> bytes:
    """As a file holds it."""
    receipts = [_shown(one) for one in (proof.one, proof.other)]
    document = {"chain_id": proof.domain.chain_id, "settlement": proof.domain.settlement, "receipts": receipts}
    return json.dumps(document, indent=2).encode() + b"\n"


def from_json(data: bytes) -> Equivocation:
    """Raises BadInput for what is not such a document, ProofError for one that proves nothing."""
    try:
        document = msgspec.json.decode(data, type=_EvidenceFile)
        domain = Domain(document.chain_id, document.settlement)
        one, other = (msgspec.convert(_bytes(entry), SignedReceipt) for entry in document.receipts)
    except (msgspec.MsgspecError, ValueError, UnicodeDecodeError) as error:
        raise BadInput(
            "This is no evidence", why=str(error), next_step="take a file that a client or a node has written"
        ) from None
    return prove(domain, one, other)


def read(path: Path) -> Equivocation:
    """Raises BadInput, ProofError."""
    return from_json(read_small(path, _LIMIT, "evidence"))


def keep(folder: Path, proof: Equivocation) -> Path | None:
    """Write it into `folder` (0600), unless there are enough. The file; None where none was written.

    Raises ConfigError for a folder that cannot be used, OSError for a full disk.
    """
    receipt = proof.one.body
    path = private_folder(folder) / f"{receipt.node}-{receipt.session_id.hex()[:16]}-{receipt.step}.json"
    if path.exists() or sum(1 for _ in folder.glob("*.json")) >= MOST:
        return None
    try:
        write_private(path, to_json(proof))
    except FileExistsError:  # another process was first
        return None
    return path


class _ReceiptEntry(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    client: str
    session_id: str
    step: int
    tokens: int
    head: str
    signature: str


class _EvidenceFile(msgspec.Struct, forbid_unknown_fields=True):
    chain_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    settlement: Address
    receipts: tuple[_ReceiptEntry, _ReceiptEntry]

    def __post_init__(self) -> None:
        if not is_checksum_address(self.settlement):
            raise ValueError("settlement is not a checksummed address")


def _shown(receipt: CheckedReceipt) -> dict[str, Any]:
    fields = {**msgspec.structs.asdict(receipt.body), "signature": receipt.signature}
    return {name: "0x" + value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}


def _bytes(entry: _ReceiptEntry) -> dict[str, Any]:
    """As `msgspec.convert` takes a SignedReceipt. Raises ValueError."""
    fields = msgspec.structs.asdict(entry)
    for name in ("session_id", "head", "signature"):
        fields[name] = bytes.fromhex(fields[name].removeprefix("0x"))
    signature = fields.pop("signature")
    return {"body": fields, "signature": signature}
