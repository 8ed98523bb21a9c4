"""The structs that keys sign (EIP-712), and their digests; `orders` has those that only wallets sign.

The type strings are those of the contracts, byte for byte. `Receipt` and `Voucher` are signed for every token, so
their digests are packed by hand; the others go through eth-account. A test holds all of them equal to eth-account's
and to the contracts' own (promise P13).
"""

from functools import lru_cache
from typing import Annotated, Any, ClassVar

import msgspec
from eth_account.messages import encode_typed_data
from eth_utils.address import is_checksum_address

from hivemint.protocol.ids import (
    Address,
    BlockIndex,
    Credits,
    Digest,
    Head,
    ModelId,
    SessionId,
    Signature,
    Step,
    Tokens,
)
from hivemint.protocol.keccak import keccak
from hivemint.protocol.signing import Signer

_Len32 = msgspec.Meta(min_length=32, max_length=32)
_Len64 = msgspec.Meta(min_length=64, max_length=64)
Uint32 = Annotated[BlockIndex, msgspec.Meta(ge=0, lt=2**32)]
Uint63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # msgspec's own bound; 2^63 seconds or tokens are enough
Bytes32 = Annotated[bytes, _Len32]
SignatureBytes = Annotated[Signature, _Len64]
MAX_UINT96 = 2**96 - 1


class Domain(msgspec.Struct, frozen=True):
    """Where a signature counts: one chain, one `Settlement` contract."""

    chain_id: int
    settlement: Address

    @property
    def separator(self) -> bytes:
        return _separator(self.chain_id, self.settlement)

    def digest(self, struct_hash: bytes) -> Digest:
        return Digest(keccak(b"\x19\x01", self.separator, struct_hash))

    def typed(self) -> dict[str, Any]:
        """The domain as eth-account and wallets take it."""
        return {
            "name": "Hivemint",
            "version": "1",
            "chainId": self.chain_id,
            "verifyingContract": self.settlement,
        }


@lru_cache(maxsize=64)
def _separator(chain_id: int, settlement: Address) -> bytes:
    kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    return keccak(kind, keccak(b"Hivemint"), keccak(b"1"), _word(chain_id), _address_word(settlement))


class Typed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A struct that keys sign. Outside input: a wrong address or amount raises `msgspec.ValidationError`."""

    TYPE: ClassVar[str]

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, str) and not _is_address(one):
                    raise ValueError(f"{name} is not a checksummed address")
                if isinstance(one, int) and not 0 <= one <= MAX_UINT96:
                    raise ValueError(f"{name} is outside 0 .. 2^96-1")

    def digest(self, domain: Domain) -> Digest:
        """Full EIP-712 digest, domain included."""
        signable = encode_typed_data(domain.typed(), _fields(self.TYPE), self.message())
        return Digest(keccak(b"\x19", signable.version, signable.header, signable.body))

    def sign(self, domain: Domain, signer: Signer) -> Signature:
        return signer.sign(self.digest(domain))

    def message(self) -> dict[str, Any]:
        """Field name on the chain -> value, for eth-account, wallets and the bindings."""
        names = [field["name"] for field in _fields(self.TYPE)[self.TYPE.partition("(")[0]]]
        values = (list(one) if isinstance(one, tuple) else one for one in msgspec.structs.astuple(self))
        return dict(zip(names, values, strict=True))


@lru_cache(maxsize=4096)  # a receipt is made for every token, always with the same two addresses: 12 us each
def _is_address(text: str) -> bool:
    return is_checksum_address(text)


@lru_cache(maxsize=16)
def _fields(type_string: str) -> dict[str, list[dict[str, str]]]:
    name, _, inner = type_string.rstrip(")").partition("(")
    return {name: [{"type": kind, "name": field} for kind, field in (part.split(" ") for part in inner.split(","))]}


class Delegation(Typed, frozen=True, forbid_unknown_fields=True):
    """A wallet allows a session key, until `valid_until` (seconds since 1970).

    paid: also for paid work, so `Settlement` takes it; one that is not is good for donated work alone, wherever shown.
    """

    TYPE: ClassVar[str] = "Delegation(address client,address sessionKey,uint64 validUntil,bool paid)"
    client: Address
    session_key: Address
    valid_until: Uint63
    paid: bool


class Session(Typed, frozen=True, forbid_unknown_fields=True):
    """One client's use of one node's span. `price` is per token for the whole span of the session; amounts in wei."""

    TYPE: ClassVar[str] = (
        "Session(address client,address sessionKey,address node,bytes32 peerIdHash,bytes32 modelId,bytes32 numerics,"
        "uint32 firstBlock,uint32 endBlock,uint96 price,uint96 maxAmount,uint64 maxTokens,uint64 expiry,bytes32 nonce)"
    )
    client: Address
    session_key: Address
    node: Address
    peer_id_hash: Bytes32
    model_id: Annotated[ModelId, _Len32]
    numerics: Bytes32
    first_block: Uint32
    end_block: Uint32
    price: Credits
    max_amount: Credits
    max_tokens: Uint63
    expiry: Uint63
    nonce: Bytes32

    @property
    def blocks(self) -> int:
        return self.end_block - self.first_block

    def session_id(self, domain: Domain) -> SessionId:
        return SessionId(self.digest(domain))


class Receipt(Typed, frozen=True, forbid_unknown_fields=True):
    """A node's statement of all work done so far in a session. `tokens` and `head` are cumulative."""

    TYPE: ClassVar[str] = (
        "Receipt(address node,address client,bytes32 sessionId,uint64 step,uint64 tokens,bytes32 head)"
    )
    node: Address
    client: Address
    session_id: Annotated[SessionId, _Len32]
    step: Annotated[Step, msgspec.Meta(ge=0, le=2**63 - 1)]
    tokens: Annotated[Tokens, msgspec.Meta(ge=0, le=2**63 - 1)]
    head: Annotated[Head, _Len32]

    def digest(self, domain: Domain) -> Digest:
        return domain.digest(
            keccak(
                _RECEIPT_TYPE,
                _address_word(self.node),
                _address_word(self.client),
                self.session_id,
                _word(self.step),
                _word(self.tokens),
                self.head,
            )
        )


class Voucher(Typed, frozen=True, forbid_unknown_fields=True):
    """A client's signature over one receipt and the total that it owes this node, all sessions together, ever."""

    TYPE: ClassVar[str] = "Voucher(bytes32 receipt,uint96 total)"
    receipt: Annotated[Digest, _Len32]
    total: Credits

    def digest(self, domain: Domain) -> Digest:
        return domain.digest(keccak(_VOUCHER_TYPE, self.receipt, _word(self.total)))


class Release(Typed, frozen=True, forbid_unknown_fields=True):
    """A node's word, by its operator key: settled up to `total` wei, the rest of the client's account may go at once.

    Good until `deadline` (seconds since 1970, chain time), which may lie an hour ahead at most. Until then the node
    must take no paid session of that client: a release is used as often as there is something to pay out.
    """

    TYPE: ClassVar[str] = "Release(address node,address client,uint96 total,uint64 deadline)"
    node: Address
    client: Address
    total: Credits
    deadline: Uint63


class Leave(Typed, frozen=True, forbid_unknown_fields=True):
    """A wallet asks a node to release its account. `nonce`: the one that the node gave on this link, good once.

    No contract takes it: shown to anybody else it does nothing.
    """

    TYPE: ClassVar[str] = "Leave(address client,address node,bytes32 nonce)"
    client: Address
    node: Address
    nonce: Bytes32


class Operator(Typed, frozen=True, forbid_unknown_fields=True):
    """An operator key's consent to serve for `owner` with this peer id, at registration."""

    TYPE: ClassVar[str] = "Operator(address owner,address operator,bytes32 peerIdHash)"
    owner: Address
    operator: Address
    peer_id_hash: Bytes32


class Strike(Typed, frozen=True, forbid_unknown_fields=True):
    """Auditors' verdict that a node answered wrong numbers in `epoch`."""

    TYPE: ClassVar[str] = "Strike(address node,uint64 epoch,bytes32 evidence,address accuser)"
    node: Address
    epoch: Uint63
    evidence: Bytes32
    accuser: Address


class Pardon(Typed, frozen=True, forbid_unknown_fields=True):
    """Auditors take a strike back."""

    TYPE: ClassVar[str] = "Pardon(address node,uint64 epoch,bytes32 evidence)"
    node: Address
    epoch: Uint63
    evidence: Bytes32


def numerics_hash(label: str) -> bytes:
    """keccak256 of `weights/compute/wire`, e.g. `nf4/bf16/bf16`: what a node declares about its arithmetic."""
    return keccak(label.encode())


def peer_id_hash(peer_id: bytes) -> bytes:
    """keccak256 of a libp2p peer id's multihash bytes, as sessions and the registry hold it."""
    return keccak(peer_id)


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


@lru_cache(maxsize=4096)
def _address_word(address: Address) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])


_RECEIPT_TYPE = keccak(Receipt.TYPE.encode())
_VOUCHER_TYPE = keccak(Voucher.TYPE.encode())
