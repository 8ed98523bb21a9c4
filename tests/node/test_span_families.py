"""Every family that may be served: spans of a tiny random model against the whole model of transformers."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hivemint.contracts.ids import BlockIndex
from hivemint.node.kv_cache import KvCache
from hivemint.node.loader import FAMILIES
from hivemint.node.span import Span, Work

BLOCKS, CUT, HIDDEN, TOKENS = 4, 1, 64, 23

COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 120, "max_position_embeddings": 256,
    "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_biased": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama_gelu": ("llama", {"hidden_act": "gelu"}),
    "llama3_rope": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                                "decoder_sparse_step": 2, "head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 6,
                               "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "phi3": ("phi3", {}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}),
    "cohere": ("cohere", {}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 6,
                            "layer_types": ["sliding_attention", "full_attention"] * 2,
                            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "deepseek_v3": ("deepseek_v3", {
        "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
        "v_head_dim": 10, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 2}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "gpt2": ("gpt2", {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": 4, "n_positions": 256}),
    "bloom": ("bloom", {"n_layer": BLOCKS, "n_head": 4}),
    "falcon_7b": ("falcon", {"new_decoder_architecture": False, "multi_query": True, "alibi": False, "bias": False}),
    "falcon_40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "bias": False}),
    "falcon_rw": ("falcon", {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "bias": True,
                             "parallel_attn": False}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": HIDDEN}),
}  # fmt: skip


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


@pytest.fixture(scope="module", params=sorted(TINY), ids=str)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    family, changes = TINY[request.param]
    return Whole(family, changes, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def spans(whole: Whole, request: pytest.FixtureRequest) -> list[Span]:
    bounds = ((0, CUT), (CUT, BLOCKS))
    return [Span.load(whole.folder, BlockIndex(a), BlockIndex(b), device=request.param) for a, b in bounds]


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    slack = 5 if ours.is_cuda else 1  # the reference ran on the CPU
    torch.testing.assert_close(ours.cpu(), expected, rtol=2e-4 * slack, atol=2e-5 * slack)


def ids(seed: int, count: int = TOKENS) -> torch.Tensor:
    return torch.randint(3, 120, (count,), generator=torch.Generator().manual_seed(seed))


def caches(spans: list[Span], tokens: int = 64) -> list[KvCache]:
    return [span.new_store(1 << 22).open(tokens) for span in spans]


def test_every_served_family_is_tested() -> None:
    assert {family for family, _ in TINY.values()} == FAMILIES


def test_prefill_equals_the_whole_model(whole: Whole, spans: list[Span]) -> None:
    states = whole.states(ids(1))
    first, second = caches(spans)
    middle = spans[0].run([Work(first, 0, states[0])])[0]
    close(middle, states[CUT])
    close(spans[1].run([Work(second, 0, middle)])[0], states[BLOCKS])


def test_chunks_then_decode_equal_the_whole_model(whole: Whole, spans: list[Span]) -> None:
    states = whole.states(ids(2))
    span, cache = spans[1], caches(spans)[1]
    bounds = [0, 1, 9, 10, 14, *range(15, TOKENS + 1)]
    rows = [span.run([Work(cache, a, states[CUT][a:b])])[0] for a, b in pairwise(bounds)]
    close(torch.cat(rows), states[BLOCKS])
    assert cache.length == TOKENS


def test_crop_forgets_what_came_after(whole: Whole, spans: list[Span]) -> None:
    good, bad = whole.states(ids(3)), whole.states(ids(4))
    span, cache = spans[1], caches(spans)[1]
    span.run([Work(cache, 0, good[CUT][:12])])
    span.run([Work(cache, 12, bad[CUT][12:18])])
    again = span.run([Work(cache, 12, good[CUT][12:16])])[0]
    rest = span.run([Work(cache, 16, good[CUT][16:])])[0]
    close(torch.cat([again, rest]), good[BLOCKS][12:])


def test_ragged_batch_of_prefill_chunk_decode_and_verify(whole: Whole, spans: list[Span]) -> None:
    """Sessions at different places of different texts, in one forward, get what each would get alone."""
    span, store = spans[1], spans[1].new_store(1 << 22)
    states = [whole.states(ids(10 + seed)) for seed in range(6)]
    steps = [(0, 5), (8, 9), (22, 23), (4, 11), (13, 17), (20, 21)]  # prefill, decode, decode, chunk, verify, decode
    sessions = [store.open(40) for _ in steps]
    early = [Work(c, 0, s[CUT][:a]) for c, s, (a, _) in zip(sessions, states, steps, strict=True) if a]
    span.run(early)
    batch = [Work(c, a, s[CUT][a:b]) for c, s, (a, b) in zip(sessions, states, steps, strict=True)]
    for output, whole_states, (a, b) in zip(span.run(batch), states, steps, strict=True):
        close(output, whole_states[BLOCKS][a:b])
    assert [cache.length for cache in sessions] == [b for _, b in steps]


def test_backward_equals_the_whole_models_gradient(whole: Whole, spans: list[Span]) -> None:
    """Two texts of one length, a random loss: the gradient of the embeddings, span by span."""
    states = torch.stack([whole.states(ids(21)), whole.states(ids(22))], dim=1)
    gradient = torch.randn(2, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))
    layers = whole.layers()
    kept: list[torch.Tensor] = []

    def enter(_: Any, args: Any) -> Any:
        kept.append(args[0].detach().requires_grad_(True))
        return kept[-1], *args[1:]

    def leave(_: Any, args: Any, out: Any) -> None:
        kept.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layers[0].register_forward_pre_hook(enter), layers[-1].register_forward_hook(leave)]
    whole.model(torch.stack([ids(21), ids(22)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    (expected,) = torch.autograd.grad(kept[1], kept[0], gradient)
    middle = spans[1].backward(states[CUT], gradient)
    ours, size = spans[0].backward(states[0], middle), float(expected.abs().max())
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-3, atol=2e-5 * size)
