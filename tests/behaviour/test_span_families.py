"""Every family that may be served: spans of a tiny random model against the whole model of transformers."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemint.model import families
from hivemint.model.families import FAMILIES
from hivemint.node.kv.cache import KvCache
from hivemint.node.span.span import Span, Work
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex
from support.families import BLOCKS, HIDDEN, TINY, Whole
from support.families import ids as some_ids

CUT, TOKENS = 1, 23


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
    torch.testing.assert_close(ours.cpu(), expected, rtol=2e-4 * slack, atol=5e-5 * slack)


def ids(seed: int, count: int = TOKENS) -> torch.Tensor:
    return some_ids(seed, count)


def caches(spans: list[Span], tokens: int = 64) -> list[KvCache]:
    return [span.new_store(1 << 22).open(tokens) for span in spans]


def test_every_served_family_is_tested() -> None:
    assert {family for family, _ in TINY.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("nanochat", "changes states outside its blocks"),  # a norm of the embeddings without weights
        ("mamba", "bypass the attention hook"),
    ],
)
def test_a_family_that_fails_its_guards_is_refused_by_name(
    family: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entered in the table too hastily, neither could give wrong numbers."""
    monkeypatch.setattr(families, "FAMILIES", {family: families.Outside()})
    with pytest.raises(ModelError, match=f"{family} can't be served.*{why}"):
        Span.load(Whole(family, {}, tmp_path).folder, BlockIndex(0), BlockIndex(2))


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


def test_parts_of_a_span_compute_their_blocks_alone(whole: Whole, spans: list[Span]) -> None:
    """Sessions of the whole span and of parts of it, prefill then decode, in one batch."""
    span, store = spans[1], spans[1].new_store(1 << 22)
    parts = [None, (1, 3), (0, 1), (1, 3), (1, 2)]
    texts = [whole.states(ids(30 + seed)) for seed in range(len(parts))]
    bounds = [(CUT, BLOCKS) if part is None else (CUT + part[0], CUT + part[1]) for part in parts]
    sessions = [store.open(40, blocks=part) for part in parts]
    for start, end in ((0, 20), (20, 21), (21, TOKENS)):
        batch = [Work(s, start, text[a][start:end]) for s, text, (a, _) in zip(sessions, texts, bounds, strict=True)]
        for output, text, (_, b) in zip(span.run(batch), texts, bounds, strict=True):
            close(output, text[b][start:end])


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
    inner = spans[1].backward(states[3], gradient, (2, 3))
    close(spans[1].backward(states[CUT], inner, (0, 2)), middle.cpu())
    ours, size = spans[0].backward(states[0], middle), float(expected.abs().max())
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-3, atol=2e-5 * size)
