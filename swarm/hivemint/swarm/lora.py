"""A LoRA adapter on the wire: one safetensors blob of low-rank pairs for the blocks of one span.

    3.self_attn.q_proj.A   [rank, in]      block 3 of the whole model, the module's path inside its block
    3.self_attn.q_proj.B   [out, rank]     scaled already: the module's output grows by x A^T B^T

The blob is hashed whole, and its digest stands behind the input rows of every step that uses it. Nothing here imports
torch: names and sizes are checked before any tensor is made.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

import msgspec

from hivemint.protocol.errors import ProtocolError

DTYPES = {"F32": 4, "BF16": 2, "F16": 2}
MAX_HEADER = 1 << 20
_NAME = re.compile(r"(?P<block>\d{1,4})\.(?P<path>[A-Za-z_]\w{0,63}(?:\.\w{1,64}){0,7})\.(?P<side>[AB])", re.ASCII)
_Size = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class _TensorEntry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[_Size, _Size]
    data_offsets: tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's low-rank pair: `A [rank, wide_in]`, `B [wide_out, rank]`."""

    block: int
    path: str
    rank: int
    wide_in: int
    wide_out: int

    @property
    def elements(self) -> int:
        return self.rank * (self.wide_in + self.wide_out)


def digest(data: bytes | memoryview) -> bytes:
    """BLAKE2b-256 of the blob: what is appended to the row hashes."""
    return blake2b(data, digest_size=32).digest()


def read_pairs(data: bytes | memoryview) -> list[Pair]:
    """What a blob claims to hold, checked against its own length. Raises ProtocolError; no tensor is looked at."""
    entries = _header(data)
    sides: dict[tuple[int, str], dict[str, tuple[int, int]]] = {}
    for name, entry in entries.items():
        if (match := _NAME.fullmatch(name)) is None:
            raise _bad(f"{name[:80]!r} is no name of a low-rank pair")
        sides.setdefault((int(match["block"]), match["path"]), {})[match["side"]] = entry.shape
    pairs = []
    for (block, path), shapes in sides.items():
        if set(shapes) != {"A", "B"} or shapes["A"][0] != shapes["B"][1]:
            raise _bad(f"{block}.{path} needs A [rank, in] and B [out, rank], got {shapes}")
        pairs.append(Pair(block, path, shapes["A"][0], shapes["A"][1], shapes["B"][0]))
    return pairs


def _header(data: bytes | memoryview) -> Mapping[str, _TensorEntry]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise _bad("it is no safetensors file")
    try:
        entries = _decoder.decode(data[8 : 8 + length])
        entries.pop("__metadata__", None)
        found = msgspec.convert(entries, dict[str, _TensorEntry])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"its header: {str(error)[:200]}") from None
    if not found:
        raise _bad("its header names no tensors")
    at = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if entry.dtype not in DTYPES:
            raise _bad(f"{name[:80]} is {entry.dtype[:16]}, expected one of {', '.join(DTYPES)}")
        if begin != at or end - begin != math.prod(entry.shape) * DTYPES[entry.dtype]:
            raise _bad(f"{name[:80]} has {list(entry.shape)} x {entry.dtype}, its bytes {begin}:{end} don't fit")
        at = end
    if at != len(data) - 8 - length:
        raise _bad(f"its tensors end at {at}, its data at {len(data) - 8 - length}")
    return found


def _bad(why: str) -> ProtocolError:
    return ProtocolError("An adapter can't be used", why=why, next_step="send safetensors of LoRA pairs")


_decoder = msgspec.json.Decoder(dict[str, dict[str, object]])
