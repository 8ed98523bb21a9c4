import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.protocol.errors import ProtocolError
from hivemint.protocol.ids import Step
from hivemint.swarm.frames import HEAD, FrameReader, pack
from hivemint.swarm.messages import MAX_TENSOR, AnyMessage, Bye, Hello, Ping, Tensor, TensorHead, decode, limit_of
from support.wire import EVERY_TYPE, plain

small = [message for message in EVERY_TYPE if not isinstance(message, Tensor) or len(message.data) < 10_000]


def frames(*messages: AnyMessage) -> bytes:
    return b"".join(pack(messages))


def feed(reader: FrameReader, data: bytes) -> list[object]:
    return [plain(message) for message, _ in reader.feed(data)]


@given(st.lists(st.sampled_from(small), min_size=1, max_size=6), st.lists(st.integers(1, 3000), max_size=12))
@settings(deadline=None)
def test_any_cutting_of_the_stream_gives_the_same_messages(messages: list[AnyMessage], cuts: list[int]) -> None:
    stream, reader = frames(*messages), FrameReader()
    got: list[object] = []
    for cut in [*cuts, len(stream)]:
        got += feed(reader, stream[:cut])
        stream = stream[cut:]
    assert got == [plain(message) for message in messages]
    assert reader.held == 0


def test_byte_by_byte_too() -> None:
    reader = FrameReader()
    got = [message for byte in frames(*small) for message in feed(reader, bytes((byte,)))]
    assert got == [plain(message) for message in small]


@given(st.integers(1, 4000), st.integers(0, 3), st.binary(max_size=300), st.lists(st.integers(1, 900), max_size=30))
def test_a_frame_that_is_skipped_leaves_its_neighbours_whole(
    at: int, before: int, rows: bytes, cuts: list[int]
) -> None:
    """Skipped at any of its bytes: what came before it and what follows are read as if it had not been there."""
    ping, skipped = Ping(), Tensor(TensorHead(Step(7)), rows)
    raw, end = frames(*[ping] * before), before
    start, frame = len(raw), frames(skipped)
    reader = FrameReader()
    cut = start + 1 + at % (len(frame) - 1)
    assert feed(reader, (raw + frame)[:cut]) == [plain(ping)] * end
    assert reader.held == cut - start
    head = reader.tensor()
    assert head is None or head == skipped.head
    if reader.held < HEAD:  # it is not known yet how long it is
        return
    reader.skip()
    assert reader.held == 0
    rest, found = (raw + frame + frames(ping, skipped, ping))[cut:], []
    for size in (*cuts, len(rest)):
        found += feed(reader, rest[:size])
        rest = rest[size:]
    assert found == [plain(ping), plain(skipped), plain(ping)]


def test_a_tensors_header_is_bounded_before_it_is_waited_for() -> None:
    reader = FrameReader()
    head = (100_000).to_bytes(4, "big") + bytes((Tensor.NUMBER,))
    assert feed(reader, head + b"\xff\xff") == []
    with pytest.raises(ProtocolError, match="malformed Tensor"):
        reader.tensor()


def test_the_sizes_told_are_those_on_the_wire() -> None:
    stream = frames(*EVERY_TYPE)
    assert sum(size for _, size in FrameReader().feed(stream)) == len(stream)


@given(st.integers(0, 255), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_an_impossible_head_is_refused_before_its_body(number: int, length: int) -> None:
    head = length.to_bytes(4, "big") + bytes((number,))
    try:
        allowed = 1 <= length <= limit_of(number) + 1
    except ProtocolError:
        allowed = False
    reader = FrameReader()
    if not allowed:
        with pytest.raises(ProtocolError):
            feed(reader, head)
    elif length > 1:
        assert feed(reader, head) == []
        assert reader.held == HEAD


def test_good_messages_before_a_bad_frame_are_still_read() -> None:
    arriving = FrameReader().feed(frames(*small) + bytes(HEAD))
    assert [plain(message) for message, _ in itertools.islice(arriving, len(small))] == [plain(m) for m in small]
    with pytest.raises(ProtocolError):
        next(arriving)


@given(st.integers(0, 20), st.binary(max_size=300))
@settings(deadline=None)
def test_garbage_is_a_protocol_error_or_a_message_never_anything_else(number: int, body: bytes) -> None:
    try:
        message = decode(number, body)
    except ProtocolError:
        return
    assert number == message.NUMBER


@given(st.sampled_from(small), st.data())
@settings(deadline=None)
def test_a_flipped_bit_is_a_protocol_error_or_another_message(message: AnyMessage, data: st.DataObject) -> None:
    stream = bytearray(frames(message))
    stream[data.draw(st.integers(HEAD, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        got = feed(FrameReader(), bytes(stream))
    except ProtocolError:
        return
    assert got != [plain(message)]


def test_unknown_fields_and_wrong_types_are_refused() -> None:
    for body in ({"reason": "x", "more": 1}, {"reason": 5}, {}, ["x"]):
        with pytest.raises(ProtocolError, match="malformed Bye"):
            decode(Bye.NUMBER, msgspec.msgpack.encode(body))
    with pytest.raises(ProtocolError, match="malformed Hello"):
        decode(Hello.NUMBER, msgspec.msgpack.encode({"version": 1, "network": "n", "nonce": b"short"}))


def test_what_is_too_large_to_receive_is_never_sent() -> None:
    with pytest.raises(ProtocolError, match="too large to send"):
        pack([Tensor(TensorHead(EVERY_TYPE[-1].head.step), bytes(MAX_TENSOR))])  # type: ignore[union-attr]
    assert len(frames(Ping())) <= HEAD + 1
