from hashlib import blake2b

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.protocol.errors import ProtocolError
from hivemint.swarm.rows import from_wire, row_bytes, row_hashes, tensor_hash, to_wire

WIRE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
shapes = st.tuples(st.integers(1, 9), st.integers(1, 33))


@given(shapes, st.sampled_from(sorted(WIRE)), st.integers(0, 2**32))
@settings(deadline=None)
def test_rows_come_back_exactly_in_their_own_form(shape: tuple[int, int], wire: str, seed: int) -> None:
    count, hidden = shape
    rows = torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed)).to(WIRE[wire])
    data = to_wire(rows, wire)
    assert len(data) == count * row_bytes(hidden, wire)
    assert torch.equal(from_wire(memoryview(data), count, hidden, wire, WIRE[wire]), rows)
    assert to_wire(from_wire(data, count, hidden, wire, torch.float32), wire) == data


def test_the_wire_is_little_endian_and_row_major_whatever_the_strides() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert to_wire(tensor.t(), "fp32").hex() == "0000803f00004040" + "0000004000008040"
    assert to_wire(tensor[None, 1:], "fp16").hex() == "0042" + "0044"
    assert to_wire(tensor[:1], "bf16").hex() == "803f" + "0040"


def test_a_received_tensor_owns_its_memory() -> None:
    data = bytearray(to_wire(torch.ones(2, 4), "fp32"))
    rows = from_wire(data, 2, 4, "fp32", torch.float32)
    data[:4] = b"\xff" * 4
    rows += 1
    assert torch.equal(rows, torch.full((2, 4), 2.0))


@given(shapes, st.sampled_from(sorted(WIRE)), st.integers(-40, 40).filter(bool))
@settings(deadline=None)
def test_any_other_size_is_refused(shape: tuple[int, int], wire: str, extra: int) -> None:
    count, hidden = shape
    size = max(0, count * row_bytes(hidden, wire) + extra)
    with pytest.raises(ProtocolError, match="wrong size"):
        from_wire(bytes(size), count, hidden, wire, torch.float32)


def test_unknown_forms_and_empty_tensors_are_refused() -> None:
    with pytest.raises(ProtocolError, match="fp32, bf16, fp16"):
        to_wire(torch.ones(1, 1), "int8")
    with pytest.raises(ProtocolError, match="wrong size"):
        from_wire(b"", 0, 4, "fp32", torch.float32)
    with pytest.raises(ProtocolError, match="not whole rows"):
        row_hashes(bytes(10), 4)
    with pytest.raises(ProtocolError, match="not whole rows"):
        row_hashes(b"", 4)
    with pytest.raises(ProtocolError, match="wrong size"):
        tensor_hash(bytes(33))


@given(st.integers(1, 40), st.integers(1, 9), st.data())
@settings(deadline=None)
def test_hashes_follow_the_protocol_and_chunks_share_them(size: int, count: int, data: st.DataObject) -> None:
    rows = data.draw(st.binary(min_size=size * count, max_size=size * count))
    one_by_one = [blake2b(rows[i * size : (i + 1) * size], digest_size=32).digest() for i in range(count)]
    hashes = row_hashes(memoryview(rows), size)
    assert hashes == b"".join(one_by_one)
    assert tensor_hash(hashes) == blake2b(b"".join(one_by_one), digest_size=32).digest()
    cut = data.draw(st.integers(1, count))
    head, tail = rows[: cut * size], rows[cut * size :]
    assert row_hashes(head, size) + (row_hashes(tail, size) if tail else b"") == hashes


@given(st.binary(min_size=8, max_size=64).filter(lambda b: len(b) % 4 == 0), st.data())
@settings(deadline=None)
def test_one_changed_byte_changes_one_row_hash_and_the_tensors(rows: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    other = bytearray(rows)
    other[at] ^= data.draw(st.integers(1, 255))
    before, after = row_hashes(rows, 4), row_hashes(other, 4)
    changed = [i for i in range(len(rows) // 4) if before[32 * i : 32 * i + 32] != after[32 * i : 32 * i + 32]]
    assert changed == [at // 4]
    assert tensor_hash(before) != tensor_hash(after)
