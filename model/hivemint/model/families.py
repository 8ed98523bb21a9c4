"""The families of models that the swarm runs: one table for nodes, which load the blocks, and clients, which load the
rest. Each is proven on tiny random configs: tests/behaviour/test_span_families.py (blocks), tests/client/test_ends.py
(the rest), tests/integration/test_families.py (both together).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hivemint.model.anatomy import Anatomy
from hivemint.protocol.errors import ModelError


@dataclass(frozen=True)
class Outside:
    """What transformers' decoder of a family does outside its blocks, by the names of its modules.

    `blocks`: the list of blocks. `before`: what word embeddings pass through; `positions`: learned positions, added
    after that. `after`: what the last block's output passes through before the head. A module that a config leaves out
    is None there.
    """

    blocks: str = "layers"
    before: tuple[str, ...] = ()
    positions: str | None = None
    after: tuple[str, ...] = ("norm",)
    experts: bool = False
    """Most weights are in experts, which no quantisation takes."""


LLAMA_LIKE = (
    "cohere",
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
EXPERTS = ("deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe")

FAMILIES: Mapping[str, Outside] = {
    **dict.fromkeys(LLAMA_LIKE, Outside()),
    **dict.fromkeys(EXPERTS, Outside(experts=True)),
    "bloom": Outside(blocks="h", before=("word_embeddings_layernorm",), after=("ln_f",)),
    "falcon": Outside(blocks="h", after=("ln_f",)),
    "gpt2": Outside(blocks="h", positions="wpe", after=("ln_f",)),
    "gpt_neox": Outside(after=("final_layer_norm",)),
    "opt": Outside(before=("project_in",), positions="embed_positions", after=("final_layer_norm", "project_out")),
}
"""By `model_type`. Every other family is refused by name."""


def outside_of(anatomy: Anatomy) -> Outside:
    """The family's entry. Raises ModelError for a family without passing tests."""
    if anatomy.family not in FAMILIES:
        raise ModelError(
            f"models of the family {anatomy.family!r} can't be run yet",
            why="no test proves that its spans compute what the whole model computes",
            next_step=f"choose one of: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[anatomy.family]
