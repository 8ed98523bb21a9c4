"""Records of a node that nobody runs, and of a host."""

import time

import msgspec

from hivemint.protocol.ids import BlockIndex, Credits, ModelId
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.records import NodeRecord, SignedRecord, sign_record
from support.wire import NETWORK

OPERATOR, OTHER = Signer(b"\1" * 32), Signer(b"\2" * 32)
KEY, OTHER_KEY = PeerKey(b"\3" * 32), PeerKey(b"\4" * 32)
MODEL = ModelId(b"m" * 32)


def record(
    key: PeerKey = KEY,
    operator: Signer = OPERATOR,
    blocks: tuple[int, int] = (0, 15),
    life: float = 60.0,
    network: str = NETWORK,
    model: bytes = MODEL,
) -> NodeRecord:
    return NodeRecord(
        network=network,
        model_id=model,
        first_block=BlockIndex(blocks[0]),
        end_block=BlockIndex(blocks[1]),
        peer=key.peer_id,
        operator=operator.address,
        numerics=("fp32/fp32/fp32",),
        ask=Credits(5 * 10**20),
        addresses=("/ip4/127.0.0.1/tcp/1",),
        tokens_per_s=20.5,
        free_tokens=4096,
        expires=time.time() + life,
    )


def signed(**changes: object) -> SignedRecord:
    return sign_record(record(**changes), OPERATOR, KEY)  # type: ignore[arg-type]


def of(host: Host, blocks: tuple[int, int], **changes: object) -> SignedRecord:
    mine = msgspec.structs.replace(record(key=host.key, blocks=blocks), addresses=host.addresses, **changes)
    return sign_record(mine, OPERATOR, host.key)
