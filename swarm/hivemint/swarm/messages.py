"""What peers say to each other: every message of a link, its type number and its greatest size.

A frame is u32 length (big endian, of what follows), u8 type, body. Bodies are msgpack of the frozen structs below;
unknown fields are refused. A tensor's frame holds a u16 header length, the msgpack header, then the raw rows.

A **control link** carries one session: client -> node. Order of talk:

    both    Hello (Prove, in a private swarm)
    node    Terms
    client  Open, Neighbours       node  Opened, Routed             | Refused, and the link closes
    client  Load                   node  Loaded                     | Refused
    client  Step [Tensor] ...      node  [Tensor] StepReceipt ...   | Refused(step)
    client  Resend                 node  nothing here, a Tensor to its next node   | Refused(step)
    client  Cancel                 node  Cancelled
    client  Close                  node  Closed

Instead of a session the wallet itself may ask to be let go, once its sessions are over:

    client  Leave                  node  Left                      | Refused, and the link closes

A **push link** carries outputs of many sessions from one node to the next: Tensor, HopReceipt, in pairs.
Ping keeps either alive; Bye gives the reason of an end.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec

from hivemint.protocol import eip712
from hivemint.protocol.eip712 import Bytes32, Delegation, Session, SignatureBytes, Uint63
from hivemint.protocol.errors import HivemintError, ProtocolError
from hivemint.protocol.ids import Address, Credits, Step
from hivemint.protocol.receipt import Leaf, SignedReceipt, SignedVoucher

PROTOCOL_VERSION = 1
KIB, MIB = 1024, 1024 * 1024
MAX_TENSOR = 64 * MIB
"""Greatest tensor frame. A node publishes the rows that it takes a step (`Terms.max_rows`), far below this."""

PeerIdBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=128)]
ShortText = Annotated[str, msgspec.Meta(max_length=400)]
AddressText = Annotated[str, msgspec.Meta(max_length=200)]
FIRST_RESEND = Step(2**62)
"""Outputs that a node sends once more are numbered from here, apart from its steps."""
StepNumber = Annotated[Step, msgspec.Meta(ge=0, le=2**63 - 1)]
RowMode = Literal["all", "last", "none"]
"""What of a step's output comes back to the client beside the row hashes."""


class Code(StrEnum):
    """Why a node declines. The text beside it says what was expected, what came, and the next step."""

    BUSY = "busy"  # no room in this lane now; retry_after says when
    RATE = "rate"  # too many handshakes or links from this peer
    NETWORK = "network"  # another network, protocol version or swarm key
    NONCE = "nonce"  # unknown, old or spent
    NODE = "node"  # the session names another operator or peer id
    MODEL = "model"
    NUMERICS = "numerics"
    SPAN = "span"
    PRICE = "price"
    EXPIRY = "expiry"
    LIMIT = "limit"  # maxTokens, maxAmount or rows a step
    KEY = "key"  # signature, session key, delegation
    FUNDS = "funds"  # the account does not cover it
    THAWING = "thawing"
    RELEASED = "released"  # the node has signed a release that is still good; retry_after says when it is over
    REVOKED = "revoked"
    VOUCHER = "voucher"  # does not cover the step, binds too old a receipt, forged
    STEP = "step"  # out of order
    CONFLICT = "conflict"  # a step asked again with another request or input
    GAP = "gap"  # start lies beyond the cache; `cached` says how much there is
    INPUT = "input"  # the neighbour's tensor, leaf or receipt disagree
    MISSING = "missing"  # the neighbour's output did not come in time
    DRAINING = "draining"
    PROTOCOL = "protocol"
    FAILED = "failed"  # the node's own fault


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all bodies. `NUMBER` is the frame's type, `LIMIT` the greatest body in bytes."""

    NUMBER: ClassVar[int]
    LIMIT: ClassVar[int] = 4 * KIB


class Hello(Message, frozen=True):
    """First frame of both sides. In a private swarm the answer carries a MAC, and `Prove` the dialer's."""

    NUMBER: ClassVar[int] = 1
    version: int
    network: ShortText
    nonce: Bytes32
    mac: Bytes32 | None = None


class Prove(Message, frozen=True):
    """HMAC(swarm key, both peer ids and nonces) of the dialer."""

    NUMBER: ClassVar[int] = 2
    mac: Bytes32


class Limits(Message, frozen=True):
    """What a node takes of one session, at most."""

    NUMBER: ClassVar[int] = 0  # never a frame of its own
    tokens: int
    """Of K/V room."""
    rows: int
    """Token positions a step."""
    ahead: int
    """Requests in flight."""
    backward_rows: int = 0
    """Token positions a backward step; 0: none are served."""
    adapter_bytes: int = 0
    """Of a LoRA adapter; 0: none are taken."""
    adapter_rank: int = 0
    """Of one of its pairs."""

    @property
    def widest(self) -> int:
        """Rows that a step's input may have in states: a backward step's are a state and a gradient each."""
        return max(self.rows, 2 * self.backward_rows)


class Terms(Message, frozen=True):
    """A node's offer. `ask` is per token and block. `nonce` is good for one session within 60 s."""

    NUMBER: ClassVar[int] = 3
    nonce: Bytes32
    operator: Address
    model_id: Bytes32
    first_block: int
    end_block: int
    numerics: tuple[ShortText, ...]
    ask: Credits
    limits: Limits


class SignedDelegation(Message, frozen=True):
    """A wallet's permission for a session key, shown instead of a record on the chain (donated lane)."""

    NUMBER: ClassVar[int] = 0  # never a frame of its own
    delegation: Delegation
    signature: SignatureBytes


class Open(Message, frozen=True):
    """The session, signed by its session key."""

    NUMBER: ClassVar[int] = 4
    session: Session
    signature: SignatureBytes
    delegation: SignedDelegation | None = None


class Opened(Message, frozen=True):
    """The opening receipt (step 0), and where this client stands with this node."""

    NUMBER: ClassVar[int] = 5
    receipt: SignedReceipt
    highest: SignedVoucher | None  # this client's highest voucher at this node
    owed: Credits


class Peer(Message, frozen=True):
    """Where a node can be dialled."""

    NUMBER: ClassVar[int] = 0
    peer: PeerIdBytes
    addresses: Annotated[tuple[AddressText, ...], msgspec.Meta(max_length=16)]


class Previous(Message, frozen=True):
    """Whose output a session takes: frames from any other peer are dropped."""

    NUMBER: ClassVar[int] = 0
    peer: PeerIdBytes
    operator: Address
    session: Bytes32


class Neighbours(Message, frozen=True):
    """The session's neighbours. The node dials `next` at once and answers `Routed` when that link stands."""

    NUMBER: ClassVar[int] = 6
    LIMIT: ClassVar[int] = 8 * KIB
    previous: Previous | None = None
    next: Peer | None = None


class Routed(Message, frozen=True):
    """Both neighbours are known and reachable."""

    NUMBER: ClassVar[int] = 7


class StepRequest(Message, frozen=True):
    """One step. `source` is the step of the previous node's session whose output is the input; None: a Tensor follows.
    From FIRST_RESEND on it names outputs that are sent once more, for which no receipt follows.

    A backward step (`kind` 1) is a whole sequence from `start` 0. Its rows are the input's state followed by the
    output's gradient, twice as wide; its output is the gradient of the input. The client relays it from node to node.
    `push`: the output goes to `Neighbours.next` too. The voucher covers this step and binds a receipt not older than
    `step - ahead`.

    A fork (`kind` 2) is a session's first step or none: it takes over the K/V of positions `0 .. count - 1` from
    another session of the same key at this node, open or parked, of which a receipt that is still kept has the head
    `parent`. It has no input and no output, and costs nothing.
    """

    NUMBER: ClassVar[int] = 8
    step: StepNumber
    kind: Annotated[int, msgspec.Meta(ge=0, le=2)]
    start: Uint63
    count: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    voucher: SignedVoucher
    source: StepNumber | None = None
    push: bool = False
    rows: RowMode = "none"
    parent: Bytes32 | None = None


class Resend(Message, frozen=True):
    """Send the outputs of positions `start .. start + count - 1` to `Neighbours.next` once more, as the input `step`.

    `step` is the client's choice from FIRST_RESEND on. No receipt and no leaf go with them, and nothing is paid: the
    client has the row hashes. What is not kept any more is refused as a gap, with `step`.
    """

    NUMBER: ClassVar[int] = 23
    step: Annotated[Step, msgspec.Meta(ge=2**62, le=2**63 - 1)]
    start: Uint63
    count: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class StepReceipt(Message, frozen=True):
    """The signed receipt of a step, and the row hashes of its output (32 bytes each)."""

    NUMBER: ClassVar[int] = 9
    LIMIT: ClassVar[int] = MIB
    receipt: SignedReceipt
    rows: bytes


class HopReceipt(Message, frozen=True):
    """The same receipt for the next node, after the tensor, and the leaf that its head ends in."""

    NUMBER: ClassVar[int] = 10
    receipt: SignedReceipt
    leaf: Leaf


class Cancel(Message, frozen=True):
    """Drop the steps from this number on that have not begun."""

    NUMBER: ClassVar[int] = 11
    from_step: StepNumber


class Cancelled(Message, frozen=True):
    """The last step that is or will be signed; what is owed after the cancellation."""

    NUMBER: ClassVar[int] = 12
    last: StepNumber
    owed: Credits


class Close(Message, frozen=True):
    """The client's end of a session, with a voucher for its last receipt."""

    NUMBER: ClassVar[int] = 13
    voucher: SignedVoucher | None = None


class Closed(Message, frozen=True):
    """The session is over. From the node alone: thaw, revocation, expiry, draining."""

    NUMBER: ClassVar[int] = 14
    code: Code | None = None
    reason: ShortText = ""


class Refused(Message, frozen=True):
    """A request that was not done. `step` 0 is the handshake's. Nothing was computed, nothing is owed for it.

    `owed` is the node's word alone. Where it says more than the client knows of, `proof` must show it: the highest
    voucher of this client that the chain would still pay. `evidence`: where a neighbour's tensor or receipt disagree
    (`input`), what that neighbour has signed, so that the client can compare it with what it was shown itself.
    """

    NUMBER: ClassVar[int] = 15
    code: Code
    what: ShortText
    why: ShortText = ""
    next_step: ShortText = ""
    step: StepNumber = Step(0)
    retry_after: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    cached: int = 0  # tokens in the K/V cache, for `gap`
    owed: Credits = Credits(0)
    proof: SignedVoucher | None = None
    evidence: SignedReceipt | None = None

    @classmethod
    def of(cls, error: HivemintError, code: Code, **fields: Any) -> Self:
        """An error's words, as long as they may be."""
        return cls(code, error.what[:400], error.why[:400], error.next_step[:400], **fields)


class Ping(Message, frozen=True):
    """The link is alive."""

    NUMBER: ClassVar[int] = 16


class Bye(Message, frozen=True):
    """The sender is about to close the link."""

    NUMBER: ClassVar[int] = 17
    reason: ShortText


class TensorHead(Message, frozen=True):
    """What stands before a tensor's rows: the step, and from a node its session. What the tensor is follows signed."""

    NUMBER: ClassVar[int] = 0
    LIMIT: ClassVar[int] = KIB
    step: StepNumber
    session: Bytes32 | None = None


class Load(Message, frozen=True):
    """A LoRA adapter (`swarm.lora`) for all steps of this session; before its first step, once."""

    NUMBER: ClassVar[int] = 19
    LIMIT: ClassVar[int] = MAX_TENSOR
    data: bytes


class Loaded(Message, frozen=True):
    """The adapter is in its place. `digest` stands behind the input rows of every step from now on."""

    NUMBER: ClassVar[int] = 20
    digest: Bytes32


class Leave(Message, frozen=True):
    """The client wants to close its account, and all that is left back. Signed by the wallet, by no session key."""

    NUMBER: ClassVar[int] = 21
    leave: eip712.Leave
    signature: SignatureBytes


class Left(Message, frozen=True):
    """The node is settled up to `release.total`: its signature, and the newest receipt and voucher that carry so much.

    Both are None where nothing was ever earned.
    """

    NUMBER: ClassVar[int] = 22
    release: eip712.Release
    signature: SignatureBytes
    receipt: SignedReceipt | None = None
    voucher: SignedVoucher | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """Rows in wire form (`swarm.rows`): `data` is little endian, row-major, `count` rows."""

    NUMBER: ClassVar[int] = 18
    LIMIT: ClassVar[int] = MAX_TENSOR

    head: TensorHead
    data: bytes | memoryview


AnyMessage = Message | Tensor

_BODIES: dict[int, type[Message]] = {
    kind.NUMBER: kind
    for kind in (
        Hello,
        Prove,
        Terms,
        Open,
        Opened,
        Neighbours,
        Routed,
        StepRequest,
        Resend,
        StepReceipt,
        HopReceipt,
        Cancel,
        Cancelled,
        Close,
        Closed,
        Refused,
        Ping,
        Bye,
        Load,
        Loaded,
        Leave,
        Left,
    )
}


def tensor_body(rows: int) -> int:
    """Greatest body of a tensor's frame with so many bytes of rows."""
    return min(MAX_TENSOR, 2 + TensorHead.LIMIT + rows)


def limit_of(number: int) -> int:
    """Greatest body of a frame type, in bytes. Raises ProtocolError for a type that does not exist."""
    if number == Tensor.NUMBER:
        return Tensor.LIMIT
    if number not in _BODIES:
        raise ProtocolError("A peer sent a frame of an unknown type", why=f"type {number}")
    return _BODIES[number].LIMIT


def encode(message: AnyMessage) -> tuple[int, list[bytes | memoryview]]:
    """Frame type and the parts of the body; a tensor's rows are not copied."""
    if isinstance(message, Tensor):
        head = _encoder.encode(message.head)
        return message.NUMBER, [len(head).to_bytes(2, "big"), head, message.data]
    return message.NUMBER, [_encoder.encode(message)]


def decode(number: int, body: bytes | memoryview) -> AnyMessage:
    """Raises ProtocolError for a body that is not exactly one message of that type."""
    if len(body) > limit_of(number):
        raise ProtocolError("A peer sent too large a frame", why=f"type {number}, {len(body)} bytes")
    try:
        if number != Tensor.NUMBER:
            return _decoders[number].decode(body)
        view = memoryview(body)
        end = _head_end(view)
        return Tensor(_tensor_head.decode(view[2:end]), view[end:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # the second: text that is not UTF-8
        kind = "Tensor" if number == Tensor.NUMBER else _BODIES[number].__name__
        raise ProtocolError(f"A peer sent a malformed {kind}", why=str(error)) from None


def begun(part: bytes | memoryview) -> TensorHead | None:
    """Which step a Tensor's body is for, by its first bytes; None while they do not tell. Raises ProtocolError."""
    if len(part) < 2 or len(part) < _head_end(part):
        return None
    try:
        return _tensor_head.decode(part[2 : _head_end(part)])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError("A peer sent a malformed Tensor", why=str(error)) from None


def _head_end(body: bytes | memoryview) -> int:
    """Raises ProtocolError for a header beyond its limit."""
    size = int.from_bytes(body[:2], "big")
    if size > TensorHead.LIMIT:
        raise ProtocolError(
            "A peer sent a malformed Tensor", why=f"a header of {size} bytes, at most {TensorHead.LIMIT}"
        )
    return 2 + size


def to_wire_amount(value: object) -> bytes:
    if isinstance(value, Credits):
        return value.to_bytes(12, "big")
    raise TypeError(f"{type(value).__name__} does not travel")


def from_wire_amount(kind: type, value: object) -> Credits:
    if kind is Credits and isinstance(value, bytes) and len(value) == 12:
        return Credits(int.from_bytes(value, "big"))
    raise ValueError("expected an amount of 12 bytes")


_encoder = msgspec.msgpack.Encoder(enc_hook=to_wire_amount)
_decoders = {number: msgspec.msgpack.Decoder(kind, dec_hook=from_wire_amount) for number, kind in _BODIES.items()}
_tensor_head = msgspec.msgpack.Decoder(TensorHead, dec_hook=from_wire_amount)
