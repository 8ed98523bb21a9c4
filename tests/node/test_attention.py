"""Packed attention against the definition, for every shape of step and every variant that a family may ask for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.node.kv.cache import KvCache, KvStore
from hivemint.node.kv.shape import KvShape
from hivemint.node.span.attention import packed_attention
from hivemint.node.span.packing import Packing, Work

PLACES = [("cpu", False), ("cpu", True)] + [("cuda", True)] * torch.cuda.is_available()
"""Device, and whether memory is paged."""


class Layer(torch.nn.Module):
    layer_idx = 0


def definition(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    start: int,
    window: int,
    cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax attention row by row in fp64: query `[heads, count, d]` at positions from `start`, keys from 0."""
    heads, count, dim = query.shape
    group = heads // keys.shape[0]
    out = torch.empty(count, heads, values.shape[2], dtype=torch.float64, device=query.device)
    for row in range(count):
        low = max(0, start + row + 1 - window) if window else 0
        for head in range(heads):
            k, v = keys[head // group, low : start + row + 1].double(), values[head // group, low : start + row + 1]
            scores = k @ query[head, row].double() / math.sqrt(dim)
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1].double()])
            weights = torch.softmax(scores, 0)[: k.shape[0]]
            out[row, head] = weights @ v.double()
    return out


@pytest.mark.parametrize(("place", "paged"), PLACES)
@given(
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dims=st.sampled_from([(8, 8), (16, 8)]),
    window=st.sampled_from([0, 1, 5, 64]),
    cap=st.sampled_from([None, 2.0]),
    sunk=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_definition(
    steps: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    dims: tuple[int, int],
    window: int,
    cap: float | None,
    sunk: bool,
    place: str,
    paged: bool,
) -> None:
    device = torch.device(place)
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    store = KvStore([KvShape(kv_heads, *dims)], torch.float32, device, 1 << 20, paged)
    heads, caches = kv_heads * group, [store.open(64) for _ in steps]
    histories = [(noise(kv_heads, a + n, dims[0]), noise(kv_heads, a + n, dims[1])) for a, n in steps]
    for cache, (keys, values), (start, count) in zip(caches, histories, steps, strict=True):
        _write(cache, keys[:, :start], values[:, :start])
        cache.reserve(start + count)
    sinks = noise(heads) if sunk else None
    packing = Packing(
        [Work(cache, a, torch.empty(n, 4)) for cache, (a, n) in zip(caches, steps, strict=True)], torch.float32, device
    )
    query = noise(1, heads, sum(n for _, n in steps), dims[0])
    key = torch.cat([keys[:, a:] for (keys, _), (a, _) in zip(histories, steps, strict=True)], dim=1).unsqueeze(0)
    value = torch.cat([values[:, a:] for (_, values), (a, _) in zip(histories, steps, strict=True)], 1).unsqueeze(0)
    out, _ = packed_attention(
        Layer(),
        query,
        key,
        value,
        None,
        scaling=dims[0] ** -0.5,
        sliding_window=window or None,
        softcap=cap,
        s_aux=sinks,
        packing=packing,
    )
    row = 0
    for (keys, values), (start, count) in zip(histories, steps, strict=True):
        expected = definition(query[0, :, row : row + count], keys, values, start, window, cap, sinks)
        torch.testing.assert_close(out[0, row : row + count].double(), expected, rtol=1e-4, atol=1e-5)
        row += count


def _write(cache: KvCache, keys: torch.Tensor, values: torch.Tensor) -> None:
    if not (count := keys.shape[1]):
        return
    cache.reserve(count)
    cache.view(0, count).write(0, keys, values)
    cache.length = count
