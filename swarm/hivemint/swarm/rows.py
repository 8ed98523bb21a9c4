"""Hidden states as bytes: the wire form of a row, and its hashes.

One row is one token position: `hidden` numbers, little endian, in the wire form that `numerics` names
(`weights/compute/wire`). Both ends of a link hash these same bytes, whatever they compute in:

    hash of a tensor = B(B(row_0) || B(row_1) || ...),   B = BLAKE2b-256          (docs/protocol.md, section 1)
"""

import math
import sys
from hashlib import blake2b
from typing import TYPE_CHECKING

from hivemint.protocol.errors import ProtocolError
from hivemint.protocol.ids import TensorHash

if TYPE_CHECKING:
    import torch

WIRES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Wire form -> bytes of one number."""
HASH_SIZE = 32

if sys.byteorder != "little":  # torch writes numbers in the machine's order
    raise ImportError("Hivemint's wire form is little endian; this machine is not")


def row_bytes(hidden: int, wire: str) -> int:
    """Bytes of one row. Raises ProtocolError for an unknown wire form."""
    return hidden * _number_bytes(wire)


def to_wire(tensor: "torch.Tensor", wire: str, *, finite: bool = False) -> bytes:
    """Rows of `tensor` [..., hidden], in order, any dtype and device. Raises ProtocolError for an unknown form.

    `finite`: also for NaN or infinity among the numbers as they would travel.
    """
    import torch

    rows = tensor.detach().to(device="cpu", dtype=_dtype(wire)).contiguous()
    if finite:
        check_finite(rows)
    return bytes(rows.view(-1).view(torch.uint8).numpy())


def from_wire(
    data: "bytes | bytearray | memoryview", count: int, hidden: int, wire: str, dtype: "torch.dtype"
) -> "torch.Tensor":
    """[count, hidden] in `dtype`, in its own memory. Raises ProtocolError unless `data` is exactly that many rows."""
    import torch

    expected = count * row_bytes(hidden, wire)
    if count < 1 or len(data) != expected:
        raise ProtocolError(
            "A tensor has the wrong size", why=f"expected {count} rows of {hidden}, {expected} bytes; got {len(data)}"
        )
    numbers = torch.frombuffer(bytearray(data), dtype=_dtype(wire))  # a copy: aligned, writable, and nobody else's
    return numbers.view(count, hidden).to(dtype)


def check_finite(numbers: "torch.Tensor") -> None:
    """Raises ProtocolError if one of them is NaN or infinite. One pass over them, which makes nothing."""
    import torch

    low, high = torch.aminmax(numbers)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ProtocolError("A tensor holds NaN or infinity", why=f"its numbers lie from {low:g} to {high:g}")


def row_hashes(data: "bytes | bytearray | memoryview", row_bytes: int) -> bytes:
    """BLAKE2b-256 of each row, 32 bytes each, in order. Raises ProtocolError unless `data` is whole rows."""
    if row_bytes < 1 or not len(data) or len(data) % row_bytes:
        raise ProtocolError("A tensor is not whole rows", why=f"{len(data)} bytes in rows of {row_bytes}")
    view = memoryview(data)
    return b"".join(
        blake2b(view[at : at + row_bytes], digest_size=HASH_SIZE).digest() for at in range(0, len(view), row_bytes)
    )


def tensor_hash(rows: bytes) -> TensorHash:
    """The hash of a tensor from its row hashes. Raises ProtocolError unless they are whole ones."""
    if not rows or len(rows) % HASH_SIZE:
        raise ProtocolError("Row hashes have the wrong size", why=f"{len(rows)} bytes, expected {HASH_SIZE} a row")
    return TensorHash(blake2b(rows, digest_size=HASH_SIZE).digest())


def _number_bytes(wire: str) -> int:
    try:
        return WIRES[wire]
    except KeyError:
        raise ProtocolError(f"{wire!r} is not a wire form", why="known ones: " + ", ".join(WIRES)) from None


def _dtype(wire: str) -> "torch.dtype":
    import torch

    _number_bytes(wire)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wire]
