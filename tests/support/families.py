"""Every family that may be served, as tiny random models, and transformers' own forward over each as the reference."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

BLOCKS, HIDDEN, VOCABULARY = 4, 64, 120

COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY: dict[str, tuple[str, dict[str, Any]]] = {  # by a name for tests: family, what its config changes
    "llama": ("llama", {}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_gelu": ("llama", {"hidden_act": "gelu"}),
    "llama3_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "head_dim": 16,
        },
    ),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": (
        "gemma2",
        {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "phi3": ("phi3", {}),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 3.0},
    ),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,
            "v_head_dim": 10,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 2,
        },
    ),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt2": ("gpt2", {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": 4, "n_positions": 256}),
    "bloom": ("bloom", {"n_layer": BLOCKS, "n_head": 4}),
    "falcon_7b": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": False, "bias": False}),
    "falcon_40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "bias": False}),
    "falcon_rw": (
        "falcon",
        {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
    ),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": HIDDEN}),
    "opt_350m": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
}


class Whole:
    """The reference: transformers' own model, and the states between its blocks for one row of embeddings."""

    def __init__(self, family: str, changes: dict[str, Any], folder: Path) -> None:
        torch.manual_seed(7)
        config = AutoConfig.for_model(family, **{**COMMON, **changes})
        auto: Any = AutoModelForCausalLM
        written_out = "sdpa" if family == "falcon" else "eager"  # Falcon's eager code adds its ALiBi twice
        self.model: PreTrainedModel = auto.from_config(config, attn_implementation=written_out).eval()
        for name, weight in self.model.named_parameters():  # norms and biases must not be neutral
            if weight.dim() == 1:
                torch.nn.init.normal_(weight, 0.0 if "bias" in name else 1.0, 0.2)
        self.model.save_pretrained(folder)
        self.folder = folder

    def layers(self) -> torch.nn.ModuleList:
        lists = (m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == BLOCKS)
        return next(lists)

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """The input of every block, then the output of the last one (before the norm): `[BLOCKS + 1, T, HIDDEN]`."""
        seen: list[torch.Tensor] = []
        layers = self.layers()
        hooks = [layers[i].register_forward_pre_hook(lambda _, args: seen.append(args[0])) for i in range(BLOCKS)]

        def last(_: Any, args: Any, out: Any) -> None:
            seen.append(out[0] if isinstance(out, tuple) else out)

        hooks.append(layers[-1].register_forward_hook(last))
        with torch.inference_mode():
            self.model(ids.unsqueeze(0), use_cache=False)
        for hook in hooks:
            hook.remove()
        return torch.cat(seen)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """`[T]` to `[T, vocabulary]`."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(ids.unsqueeze(0), use_cache=False).logits[0]
        return logits


def ids(seed: int, count: int) -> torch.Tensor:
    """Random token ids `[count]`."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
