"""What a step's receipt says: rows hashed, the leaf chained into the head, the receipt signed.

All of it is work of a few microseconds a row; what is long or a stranger's goes to a worker thread. `docs/protocol.md`,
section 1, has the formulas; a number of a session is signed at most once, which `session.py` watches over (P16).
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from hivemint.node.engine.threads import Worker
from hivemint.protocol.eip712 import Domain, Receipt
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, Digest, Head, SessionId, Step, TensorHash
from hivemint.protocol.receipt import (
    CheckedReceipt,
    CheckedVoucher,
    Leaf,
    SignedReceipt,
    SignedVoucher,
    check_receipt,
    check_voucher,
    following,
    sign_receipt,
)
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import StepRequest
from hivemint.swarm.rows import row_hashes, tensor_hash, to_wire

_SMALL = 8192
"""Bytes that are hashed (10 us) in less time than it takes to hand them to the worker."""


@dataclass(frozen=True, slots=True)
class Source:
    """Who must have made a step's input: a node's operator, its session and the step there."""

    operator: Address
    session: SessionId
    step: Step


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """The row hashes of a step's output (32 bytes each) and its leaf."""

    rows: bytes
    leaf: Leaf


class Meter(Protocol):
    """What the node asks of its metering. `ReceiptMeter` is the real one."""

    async def hash_rows(self, data: bytes | memoryview, row_bytes: int) -> bytes: ...

    async def encode(self, output: torch.Tensor, wire: str) -> bytes: ...

    async def prove(
        self, previous: Receipt, request: StepRequest, input_hash: TensorHash, data: bytes
    ) -> tuple[MeasuredRows, CheckedReceipt]: ...

    async def sign(self, receipt: Receipt) -> CheckedReceipt: ...

    async def check_voucher(self, voucher: SignedVoucher, receipt: Digest, key: Address) -> CheckedVoucher: ...

    async def check_hop(self, source: Source, given: TensorHash, leaf: Leaf, signed: SignedReceipt) -> None: ...


class ReceiptMeter:
    """Meters for one operator key in one domain."""

    def __init__(self, domain: Domain, signer: Signer, worker: Worker) -> None:
        self._domain, self._signer, self._worker = domain, signer, worker

    async def hash_rows(self, data: bytes | memoryview, row_bytes: int) -> bytes:
        """`rows.row_hashes` of a step's input."""
        if len(data) <= _SMALL:
            return row_hashes(data, row_bytes)
        return await self._worker.far(row_hashes, data, row_bytes)

    async def encode(self, output: torch.Tensor, wire: str) -> bytes:
        """A step's output `[count, hidden]` in wire form. Raises ProtocolError if it is not all finite numbers."""
        if output.nbytes <= _SMALL:
            return _encode(output, wire)
        return await self._worker.far(_encode, output, wire)

    async def prove(
        self, previous: Receipt, request: StepRequest, input_hash: TensorHash, data: bytes
    ) -> tuple[MeasuredRows, CheckedReceipt]:
        """What a step's output, `data` in wire form, is measured as, and the receipt for it that follows `previous`."""
        measured = await self.measure(previous.head, request, input_hash, data)
        return measured, await self.sign(following(previous, measured.leaf))

    async def measure(self, previous: Head, request: StepRequest, input_hash: TensorHash, data: bytes) -> MeasuredRows:
        """The leaf that follows the head `previous` by a step whose output is `data`, in wire form."""
        if len(data) <= _SMALL:
            return _measure(previous, request, input_hash, data)
        return await self._worker.far(_measure, previous, request, input_hash, data)

    async def sign(self, receipt: Receipt) -> CheckedReceipt:
        """In the event loop: a turn of the worker costs more, and no stranger decides how often a node signs."""
        return sign_receipt(self._domain, receipt, self._signer)

    async def check_voucher(self, voucher: SignedVoucher, receipt: Digest, key: Address) -> CheckedVoucher:
        """Raises ProofError unless `key` signed it over `receipt`."""
        return await self._worker.do(check_voucher, self._domain, voucher, receipt, key)

    async def check_hop(self, source: Source, given: TensorHash, leaf: Leaf, signed: SignedReceipt) -> None:
        """The neighbour's `leaf` must be of the tensor that it gave, and its receipt end in that leaf and be that of
        the operator, session and step that the client named. Raises ProofError.
        """
        await self._worker.do(_check_hop, self._domain, source, given, leaf, signed)


def _encode(output: torch.Tensor, wire: str) -> bytes:
    return to_wire(output, wire, finite=True)


def _measure(previous: Head, request: StepRequest, input_hash: TensorHash, data: bytes) -> MeasuredRows:
    rows = row_hashes(data, len(data) // request.count)
    leaf = Leaf(previous, request.step, request.kind, request.start, request.count, input_hash, tensor_hash(rows))
    return MeasuredRows(rows, leaf)


def _check_hop(domain: Domain, source: Source, given: TensorHash, leaf: Leaf, signed: SignedReceipt) -> None:
    if leaf.output_hash != given:
        raise ProofError(
            "The neighbour's tensor and leaf disagree",
            why=f"expected an output of hash {leaf.output_hash.hex()[:12]}, got {given.hex()[:12]}",
        )
    if leaf.step != source.step:
        raise ProofError("A neighbour's leaf is of another step", why=f"expected {source.step}, got {leaf.step}")
    claimed = signed.body  # its client and its sum of tokens are the neighbour's affair
    expected = Receipt(source.operator, claimed.client, source.session, source.step, claimed.tokens, leaf.head())
    check_receipt(domain, signed, expected)
