"""The swapped modules: equal to what they replace, in place where they should be, without a second copy."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel, Qwen3Config, Qwen3Model

from hivemint.node.span.lean import LeanLayer, lean_layers
from hivemint.node.span.linear import PackedLinear, can_pack, pack_linears
from hivemint.node.span.span import Span
from hivemint.protocol.ids import BlockIndex

TINY: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 30,
    "head_dim": 16,
}


@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_packed_linear_equals_the_plain_one(rows: list[int], inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(inner)
    plain = nn.Linear(inner, outer, bias=bias)
    packed, x = PackedLinear(plain), torch.randn(*rows, inner)
    residual = torch.randn(*rows, outer)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(packed.added(x, residual), plain(x) + residual, rtol=1e-5, atol=1e-5)
    ours, theirs = (x.clone().requires_grad_(True) for _ in range(2))
    (our_grad,) = torch.autograd.grad(packed.added(ours, residual), ours, residual)
    (their_grad,) = torch.autograd.grad(plain(theirs), theirs, residual)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-5, atol=1e-5)


def test_packing_keeps_no_plain_weight() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 32)))
    pack_linears(model)
    gc.collect()
    assert [type(m) for m in model.modules() if not list(m.children())] == [PackedLinear, PackedLinear]
    assert sum(p.numel() for p in model.parameters()) == 0


def test_half_precision_is_left_to_the_library() -> None:
    assert not can_pack(torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("config", "kind"),
    [(LlamaConfig, LlamaModel), (MistralConfig, MistralModel), (Qwen3Config, Qwen3Model)],
    ids=["llama", "mistral", "qwen3"],
)
def test_the_llama_layout_runs_in_lean_layers(tmp_path: Path, config: Any, kind: Any, dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip("this processor has no kernels for packed weights of this type")
    kind(config(**TINY)).save_pretrained(tmp_path)
    span = Span.load(tmp_path, BlockIndex(0), BlockIndex(2), dtype=dtype)
    layers: Any = span._decoder.layers
    assert [type(layer) for layer in layers] == [LeanLayer, LeanLayer]


def test_a_layer_that_would_differ_is_left_alone() -> None:
    model: Any = LlamaModel(LlamaConfig(**TINY))
    model.layers[0].mlp.act_fn = nn.Tanh()  # the config still says SiLU
    lean_layers(model.layers)
    assert [isinstance(layer, LeanLayer) for layer in model.layers] == [False, True]
