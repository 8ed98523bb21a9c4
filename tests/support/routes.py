"""Records of many nodes for tests and figures of routing, without signatures: planning sees checked ones alone."""

import random
import secrets
import time
from typing import Any

from eth_utils.address import to_checksum_address

from hivemint.protocol.ids import ONE_CREDIT, Address, BlockIndex, Credits, PeerId
from hivemint.swarm.records import LIFETIME, CheckedRecord, NodeRecord, SignedRecord, pack_trips

ASK = Credits(ONE_CREDIT // 10_000)
NUMERICS = "bf16/bf16/bf16"


def unsigned(first: int, end: int, **changes: Any) -> CheckedRecord:
    """A node of its own key, 20 tokens/s, with room for 100,000."""
    values: dict[str, Any] = {
        "network": "test",
        "model_id": b"\x07" * 32,
        "first_block": BlockIndex(first),
        "end_block": BlockIndex(end),
        "peer": secrets.token_bytes(38),
        "operator": Address(to_checksum_address(secrets.token_bytes(20))),
        "numerics": (NUMERICS,),
        "ask": ASK,
        "tokens_per_s": 20.0,
        "free_tokens": 100_000,
        "expires": time.time() + LIFETIME,
    }
    record = NodeRecord(**{**values, **changes})
    return CheckedRecord(record, SignedRecord(b"", b"", b""))  # type: ignore[arg-type]


def random_swarm(nodes: int, blocks: int, seed: int, spans: tuple[int, int] = (8, 40)) -> list[CheckedRecord]:
    """Nodes of all kinds, together serving all blocks; each tells its round trips to 16 others."""
    dice = random.Random(seed)
    peers = [PeerId(dice.randbytes(38)) for _ in range(nodes)]
    made = []
    for number, peer in enumerate(peers):
        length = min(blocks, dice.randint(*spans))
        first = (number * spans[0]) % blocks if number * spans[0] < blocks else dice.randint(0, blocks - length)
        first = min(first, blocks - length)
        near = [(other, dice.uniform(0.001, 0.15)) for other in dice.sample(peers, min(16, nodes))]
        made.append(
            unsigned(
                first,
                first + length,
                peer=peer,
                operator=Address(to_checksum_address(dice.randbytes(20))),
                ask=Credits(dice.randint(ASK, 2 * ASK)),
                tokens_per_s=dice.uniform(5, 60),
                wait_paid_s=dice.uniform(0, 0.2),
                wait_donated_s=dice.uniform(0, 0.5),
                free_tokens=dice.randint(1_000, 100_000),
                trips=pack_trips(near),
                expires=time.time() + dice.uniform(35, 60),
            )
        )
    return made
