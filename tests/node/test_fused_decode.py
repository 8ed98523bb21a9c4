"""Decode steps as one call: to the last bit what the layers compute one by one, and only where they compute that."""

from pathlib import Path

import pytest
import torch

from hivemint.node.span import fused_decode
from hivemint.node.span.fused_decode import Decoding
from hivemint.node.span.linear import can_pack
from hivemint.node.span.span import Span, Work
from hivemint.protocol.ids import BlockIndex
from support.families import BLOCKS, TINY, Whole

LENGTHS = (5, 1, 9, 3)


def loaded(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Span:
    whole = Whole(*TINY[name], folder)
    return Span.load(whole.folder, BlockIndex(0), BlockIndex(BLOCKS), dtype=dtype)


def decode(span: Span, tokens: int, blocks: tuple[int, int] | None = None) -> list[torch.Tensor]:
    """Sessions of different lengths, `tokens` steps of one row each."""
    torch.manual_seed(3)
    store = span.new_store(64 << 20)
    caches = [store.open(64, blocks=blocks) for _ in LENGTHS]
    for cache, length in zip(caches, LENGTHS, strict=True):
        span.run([Work(cache, 0, torch.randn(length, span.hidden_size))])
    outputs = []
    for _ in range(tokens):
        outputs += span.run([Work(cache, cache.length, torch.randn(1, span.hidden_size)) for cache in caches])
    return outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "llama_biased", "llama3_rope", "mistral", "qwen2"])
def test_one_call_computes_what_the_layers_do(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_pack(dtype):
        pytest.skip("this processor has no kernels for packed weights of this type")
    span = loaded(name, tmp_path / "model", dtype)
    assert span._decoding_of(span._decoder) is not None
    at_once = decode(span, 4)
    monkeypatch.setattr(Decoding, "takes", lambda *_: False)
    for ours, theirs in zip(at_once, decode(span, 4), strict=True):
        assert torch.equal(ours, theirs)


def test_a_part_of_a_span_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    span = loaded("llama", tmp_path / "model")
    at_once = decode(span, 2, blocks=(1, 2))
    assert all(found is not None for found in span._decodings.values())
    monkeypatch.setattr(Decoding, "takes", lambda *_: False)
    for ours, theirs in zip(at_once, decode(span, 2, blocks=(1, 2)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_window_that_is_passed_is_left_to_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    span = loaded("mistral_window", tmp_path / "model")
    assert span._decoding_of(span._decoder) is not None
    whole = decode(span, 2)  # the longest session has 10 tokens, the window 7
    monkeypatch.setattr(Decoding, "takes", lambda *_: False)
    for ours, theirs in zip(whole, decode(span, 2), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["qwen3", "llama_gelu", "gpt2"])
def test_other_layers_are_left_to_the_library(name: str, tmp_path: Path) -> None:
    span = loaded(name, tmp_path / "model")
    assert span._decoding_of(span._decoder) is None


def test_what_does_not_agree_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Decoding.run
    monkeypatch.setattr(Decoding, "run", lambda *its: run(*its) * 1.01)
    span = loaded("llama", tmp_path / "model")
    assert span._decoding_of(span._decoder) is None


def test_a_torch_without_script_serves_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = decode(loaded("llama", tmp_path / "model"), 2)
    fused_decode._compiled.cache_clear()
    monkeypatch.delattr(torch.jit, "script")
    span = loaded("llama", tmp_path / "model")
    assert span._decoding_of(span._decoder) is None
    monkeypatch.undo()
    fused_decode._compiled.cache_clear()
    for ours, theirs in zip(before, decode(span, 2), strict=True):
        assert torch.equal(ours, theirs)
