"""Frames on a stream: u32 length (big endian, of what follows), u8 type, body.

The length is checked as soon as these five bytes are there, against what this peer may send now: a type that its
turn does not allow has no room at all.
"""

from collections.abc import Iterable, Iterator, Mapping

from hivemint.protocol.errors import ProtocolError
from hivemint.swarm.messages import AnyMessage, Load, StepReceipt, Tensor, TensorHead, begun, decode, encode, limit_of

HEAD = 5
_LENGTH = 4
STRANGER = (Tensor, Load, StepReceipt)
"""What a peer that nothing is known of may not send at all: the types whose frames could be large."""


def pack(messages: Iterable[AnyMessage]) -> list[bytes | memoryview]:
    """The parts of the frames in order, for one write; a tensor's rows are not copied. Raises ProtocolError."""
    parts: list[bytes | memoryview] = []
    for message in messages:
        number, body = encode(message)
        size = sum(len(part) for part in body)
        if size > limit_of(number):
            raise ProtocolError(
                f"A {type(message).__name__} is too large to send", why=f"{size} bytes, at most {limit_of(number)}"
            )
        parts.append((size + 1).to_bytes(_LENGTH, "big") + bytes((number,)))
        parts.extend(body)
    return parts


def body_size(head: bytes | memoryview, narrowed: Mapping[int, int] | None = None) -> tuple[int, int]:
    """Type and body size that five bytes announce.

    Raises ProtocolError if that is more than the type's limit, or than `narrowed` (type to bytes) says.
    """
    size, number = int.from_bytes(head[:_LENGTH], "big") - 1, head[_LENGTH]
    most = limit_of(number)
    if narrowed is not None:
        most = min(most, narrowed.get(number, most))
    if not 0 <= size <= most:
        raise ProtocolError(
            "A peer announced a frame of an impossible size", why=f"type {number}, {size} bytes, at most {most} now"
        )
    return number, size


class FrameReader:
    """Cuts a byte stream into messages. Keeps at most one unfinished frame, `held` bytes of it so far.

    `narrowed`: type to bytes, below the types' own limits; it counts for frames that begin later. `whole` counts the
    frames that were complete.
    """

    def __init__(self) -> None:
        self.narrowed: dict[int, int] = {}
        self.whole = 0
        self._rest = bytearray()
        self._need = HEAD
        self._skipped = 0

    @property
    def held(self) -> int:
        return len(self._rest)

    @property
    def awaited(self) -> int:
        """Bytes of the unfinished frame, as far as it has told."""
        return self._need

    def feed(self, data: bytes) -> Iterator[tuple[AnyMessage, int]]:
        """Messages that `data` completes, each with its size on the wire; read all of them before the next call.

        Raises ProtocolError after the good ones; the stream is then useless. A tensor's rows are a view of the bytes
        read: nothing is copied, nothing is written again.
        """
        if self._skipped:
            passed = min(self._skipped, len(data))
            self._skipped -= passed
            data = data[passed:]
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            whole, self._rest = self._rest, bytearray()
            view = memoryview(whole)
        else:
            view = memoryview(data)
        at, end = 0, len(view)
        self._need = HEAD
        while end - at >= HEAD:
            number, size = body_size(view[at : at + HEAD], self.narrowed)
            if end - at < HEAD + size:
                self._need = HEAD + size
                break
            self.whole += 1
            yield decode(number, view[at + HEAD : at + HEAD + size]), HEAD + size
            at += HEAD + size
        if at < end:
            self._rest = bytearray(view[at:])

    def tensor(self) -> TensorHead | None:
        """Of the unfinished frame, if it is a Tensor and has told its step. Raises ProtocolError."""
        if len(self._rest) < HEAD or self._rest[_LENGTH] != Tensor.NUMBER:
            return None
        return begun(bytes(self._rest[HEAD : HEAD + 2 + TensorHead.LIMIT]))

    def skip(self) -> None:
        """The unfinished frame is nobody's: what is here of it goes, what comes of it is not kept."""
        self._skipped = self._need - len(self._rest)
        self._rest, self._need = bytearray(), HEAD
