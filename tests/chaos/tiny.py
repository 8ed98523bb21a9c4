"""A small random model in Hugging Face's layout, written without torch: the conductor has no other use for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BLOCKS = 2
HIDDEN, MIDDLE, WORDS, HEADS, SHARED_HEADS = 64, 96, 256, 4, 2
CONTEXT = 640
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MIDDLE,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": SHARED_HEADS,
    "vocab_size": WORDS,
    "max_position_embeddings": CONTEXT,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDE = 4.0
"""Logits lie far enough apart that no two tokens are as good as each other but for rounding."""


def write_model(folder: Path) -> Path:
    """The same one each time."""
    dice = np.random.default_rng(1)
    narrow = HIDDEN * SHARED_HEADS // HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (narrow, HIDDEN),
        "self_attn.v_proj": (narrow, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (MIDDLE, HIDDEN),
        "mlp.up_proj": (MIDDLE, HIDDEN),
        "mlp.down_proj": (HIDDEN, MIDDLE),
    }

    def weight(rows: int, columns: int, wide: float = 1.0) -> Any:
        return (wide * dice.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    def norm() -> Any:
        return dice.normal(1.0, 0.2, HIDDEN).astype(np.float32)

    tensors = {"model.embed_tokens.weight": weight(WORDS, HIDDEN, _WIDE), "model.norm.weight": norm()}
    tensors["lm_head.weight"] = weight(WORDS, HIDDEN, _WIDE)
    for block in range(BLOCKS):
        before = f"model.layers.{block}"
        tensors |= {f"{before}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        tensors |= {f"{before}.{name}.weight": norm() for name in ("input_layernorm", "post_attention_layernorm")}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    return folder
