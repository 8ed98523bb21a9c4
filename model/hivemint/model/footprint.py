"""What a block takes of a machine's memory at each precision, from the shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from hivemint.model.anatomy import Anatomy, TensorEntry
from hivemint.model.families import FAMILIES
from hivemint.protocol.ids import BlockIndex

PRECISIONS: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 2, "nf4": 2}
"""By name of the weights: bytes of a number that is computed with, as norms, biases, keys and values are kept."""

TOKENS = 1000
PEAK = 1.3
"""What loading takes at most, as a share of the weights' size."""

_NF4_BLOCK = 64  # weights with one fp32 scale


@dataclass(frozen=True)
class Footprint:
    """Bytes of one block, the largest of the model, and of `TOKENS` cached tokens in it. `refused`: why not, or ""."""

    block: int
    kv: int
    refused: str = ""


@dataclass(frozen=True)
class Fit:
    """What fits: the most blocks, from block 0 on, with room for one session; and the tokens that have room then."""

    blocks: int
    kv_tokens: int


def footprint(anatomy: Anatomy, weights: str, device: str, wide: bool = False) -> Footprint:
    """`device`: cpu or cuda. `wide`: int8 weights have a bf16 copy for large batches (CPUs with bf16 units).

    Raises ModelError if a shard is not there.
    """
    itemsize = PRECISIONS[weights]
    blocks = [anatomy.block_tensors(BlockIndex(block)) for block in range(anatomy.num_blocks)]
    quantised = weights in ("int8", "nf4")

    def nbytes(entry: TensorEntry) -> int:
        if not quantised or not is_linear(entry):
            return entry.elements * itemsize
        if weights == "nf4":
            return entry.elements // 2 + 4 * -(-entry.elements // _NF4_BLOCK)
        return entry.elements * (3 if wide else 1) + (2 if device == "cpu" else 4) * entry.shape[0]

    return Footprint(
        block=max(sum(map(nbytes, tensors)) for tensors in blocks),
        kv=TOKENS * anatomy.kv_bytes_per_token(1, itemsize),
        refused=_refused(anatomy, weights, device) if quantised else "",
    )


def is_linear(entry: TensorEntry) -> bool:
    """Whether this tensor of a block is a linear's weight, which quantisation takes."""
    return entry.name.endswith(".weight") and len(entry.shape) == 2


def fit(anatomy: Anatomy, need: Footprint, free: int, kv_share: float, context: int) -> Fit:
    """What `free` bytes hold, of which a node gives `kv_share` of what its weights leave to keys and values.

    `context`: the tokens of the session that must have room.
    """
    for blocks in range(anatomy.num_blocks, 0, -1):
        left = (free - blocks * need.block) * kv_share
        tokens = int(left * TOKENS / max(1, blocks * need.kv))
        if tokens >= context and blocks * need.block * PEAK <= free:
            return Fit(blocks, tokens)
    return Fit(0, 0)


def _refused(anatomy: Anatomy, weights: str, device: str) -> str:
    family = FAMILIES.get(anatomy.family)
    if family is not None and family.experts:
        return "its experts are no linears and would stay as they are"
    if device == "cpu" and weights == "nf4":
        return "slower than fp32 on CPUs"
    if device == "cpu" and anatomy.family == "gpt2":
        return "its weights are in no linears and would stay as they are"
    return ""
