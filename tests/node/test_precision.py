"""What a span's weights are kept in: names, refusals with the figure behind them, and int8 on a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel

from hivemint.node.span import int8
from hivemint.node.span.int8 import FEW_ROWS, Int8Linear, prove, refuse_unless_worth
from hivemint.node.span.precision import Precision
from hivemint.node.span.span import Span, Work
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex

HIDDEN = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    where = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
        max_position_embeddings=128,
    )
    LlamaModel(config).save_pretrained(where)
    return where


def load(folder: Path, **options: Any) -> Span:
    return Span.load(folder, BlockIndex(0), BlockIndex(2), **options)


def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 counts as faster, whatever this machine's clock says: speed is for benchmarks."""
    monkeypatch.setattr(int8, "WORTH", float("inf"))


@pytest.mark.parametrize(
    ("text", "name"),
    [("fp32", "fp32/fp32"), ("bf16", "bf16/bf16"), ("int8", "int8/bf16"), ("nf4/fp16", "nf4/fp16")],
)
def test_precisions_have_the_names_that_are_declared(text: str, name: str) -> None:
    assert str(Precision.parse(text)) == name
    assert Precision.parse(name) == Precision.parse(text)


@pytest.mark.parametrize("text", ["", "int4", "fp32/bf16", "bf16/int8", "int8/int8", "/bf16", "int8/bf16/fp32"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="no precision"):
        Precision.parse(text)


@given(
    rows=st.integers(1, 2 * FEW_ROWS),
    inner=st.integers(1, 8),
    outer=st.integers(1, 8),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_an_int8_linear_is_the_rounded_weights_linear(rows: int, inner: int, outer: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    plain = nn.Linear(32 * inner, 16 * outer, bias=bias)
    mine, x = Int8Linear(plain), torch.randn(1, rows, 32 * inner).bfloat16()
    residual = torch.randn(1, rows, 16 * outer).bfloat16()
    step = mine.scales.float().unsqueeze(1)
    assert torch.allclose(step, plain.weight.abs().amax(1, keepdim=True) / 127, rtol=2**-8)
    assert ((mine.weight.float() * step - plain.weight).abs() <= 0.51 * step).all()
    with torch.inference_mode():
        exact = nn.functional.linear(x.float(), mine.rounded().float(), plain.bias)
        assert (mine(x).float() - exact).norm() <= 0.01 * exact.norm() + 1e-3
        assert (mine.added(x, residual).float() - exact - residual.float()).norm() <= 0.01 * exact.norm() + 0.05
    (gradient,) = torch.autograd.grad(mine(x.requires_grad_(True)).sum(), x)
    torch.testing.assert_close(gradient[0, 0], mine.rounded().sum(0), rtol=0.05, atol=0.05)


def test_an_int8_span_is_near_fp32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven(monkeypatch)
    span, exact = load(folder, precision="int8"), load(folder)
    assert (str(span.precision), span.dtype) == ("int8/bf16", torch.bfloat16)
    assert str(exact.precision) == "fp32/fp32"
    assert sum(isinstance(module, Int8Linear) for module in span._decoder.modules()) == 2 * 4
    for count in (1, 3, 20):
        x = torch.randn(count, HIDDEN)
        mine, theirs = (s.run([Work(s.new_store(1 << 22).open(64), 0, x)])[0].float() for s in (span, exact))
        assert (mine - theirs).norm() <= 0.03 * theirs.norm()
    gradient = span.backward(torch.randn(1, 4, HIDDEN), torch.randn(1, 4, HIDDEN))
    assert gradient.isfinite().all()


def test_int8_that_is_not_faster_is_refused_with_the_figure() -> None:
    with pytest.raises(ModelError, match=r"1\.30 of fp32's time"):
        refuse_unless_worth(0.01, 1.3)
    with pytest.raises(ModelError, match=r"0\.020 of their output"):
        refuse_unless_worth(0.02, 0.3)
    refuse_unless_worth(0.01, 0.5)


def test_int8_is_refused_for_weights_that_8_bits_by_rows_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    proven(monkeypatch)
    ordinary, spiky = nn.Linear(64, 64), nn.Linear(64, 64)
    prove([ordinary])
    with torch.no_grad():
        spiky.weight[:, 0] = 1000.0
        spiky.weight[:, 1:] *= 100.0
    x0 = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # a first column that the probe's input cancels leaves only what rounding has lost
        spiky.weight[:, 1] = -1000.0 * x0[0, 0] / x0[0, 1]
    with pytest.raises(ModelError, match="of their output"):
        prove([spiky])


def test_what_a_cpu_refuses(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"nf4.*CPU"):
        load(folder, precision="nf4")
    with pytest.raises(ModelError, match="compute in bf16"):
        load(folder, precision="int8/fp32")


def test_experts_that_would_stay_plain_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mixtral",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=20,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    auto: Any = AutoModel
    auto.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"mixtral.*int8.*no linear"):
        load(tmp_path, precision="int8")
