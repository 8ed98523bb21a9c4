"""Attention for packed sessions: one function, registered with transformers under `NAME`.

The library's layers compute queries, keys and values for the packed rows `[1, heads, T, dim]` and hand them here;
each session's keys and values are written into its own cache, and its queries attend to its own history alone.
No padding, no gather, and a mask only where a chunk follows earlier tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface, PreTrainedConfig

from hivemint.node.kv.contiguous import KvView
from hivemint.node.kv.shape import KvShape
from hivemint.node.span import kernels
from hivemint.node.span.packing import Packing, Part

NAME = "hivemint_packed"
"""The attention implementation's name. It has no mask function, so transformers builds no masks for it."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query `[1, heads, T, d]`, key and value `[1, kv_heads, T, d]` of the new tokens -> `[1, T, heads, d_value]`.

    Without `packing` the rows are `B` whole sequences from position 0, and nothing is kept (fine-tuning).
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or 0
    if packing is None:
        return _whole(query, key, value, scale, window, softcap, s_aux).transpose(1, 2), None
    write(packing, module.layer_idx, key[0], value[0])
    rows = query[0].transpose(0, 1)
    return attend_all(packing, module.layer_idx, rows, scale, window, softcap, s_aux).unsqueeze(0), None


def attend_all(
    packing: Packing,
    layer: int,
    query: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Packed queries `[T, heads, d]`, each over its own session's history -> `[T, heads, d_value]`."""
    paged = packing.paged
    if paged is not None and paged.short is paged.plan:
        return kernels.attend(paged.pool, layer, paged.plan, query, scale, window, softcap, sinks)
    pieces = list(zip(packing.parts, torch.split(query, packing.counts), packing.counts, strict=True))
    if paged is None or paged.short is None:
        outputs = [
            attend(packing, part, rows, *part.kv.read(layer), scale, window, softcap, sinks) for part, rows, _ in pieces
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    short = kernels.attend(paged.pool, layer, paged.short, query[paged.short_rows], scale, window, softcap, sinks)
    joined = short.new_empty(query.shape[0], *short.shape[1:])
    joined[paged.short_rows] = short
    for (part, rows, count), out in zip(pieces, torch.split(joined, packing.counts), strict=True):
        if count > kernels.SHORT:
            out.copy_(attend(packing, part, rows, *part.kv.read(layer), scale, window, softcap, sinks))
    return joined


def write(packing: Packing, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
    """Copy the packed rows `[kv_heads, T, d]` of one layer to the sessions' own memory."""
    if packing.paged is not None:
        kernels.write(packing.paged.pool, layer, packing.paged.plan, key, value)
        return
    if packing.joint:  # then every part's memory is a KvView
        rows = torch.split(torch.stack((key, value)), packing.counts, dim=2)
        news = [part.kv.new[layer] for part in packing.parts if isinstance(part.kv, KvView)]
        torch._foreach_copy_(news, list(rows))
        return
    for part, keys, values in zip(
        packing.parts, torch.split(key, packing.counts, dim=1), torch.split(value, packing.counts, dim=1), strict=True
    ):
        part.kv.write(layer, keys, values)


def attend(
    packing: Packing,
    part: Part,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """One part's queries `[count, heads, d]` over its history `[1, kv_heads, end, d]` -> `[count, heads, d_value]`."""
    count, heads, dim = query.shape
    kv_heads = keys.shape[1]
    windowed = 0 < window < part.end
    first = max(0, part.start + 1 - window) if windowed else 0
    if first:
        keys, values = keys[:, :, first:], values[:, :, first:]
    if softcap is not None or sinks is not None:
        mask = None if count == 1 else packing.mask(part, first, window if windowed else 0)
        return _explicit(query.transpose(0, 1), keys[0], values[0], mask, scale, softcap, sinks).transpose(0, 1)
    if count == 1:  # the group of heads that shares a key head is the query length: nothing is repeated
        folded = query.reshape(1, kv_heads, heads // kv_heads, dim)
        return sdpa(folded, keys, values, scale=scale).reshape(1, heads, -1)
    rows = query.transpose(0, 1).unsqueeze(0)
    grouped = heads != kv_heads
    if part.start == 0 and not windowed:
        out = sdpa(rows, keys, values, is_causal=True, scale=scale, enable_gqa=grouped)
    else:
        mask = packing.mask(part, first, window if windowed else 0)
        out = sdpa(rows, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)


def _explicit(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out, for scores that a fused kernel can't change: `[..., heads, count, d]`.

    Soft cap: `c * tanh(s / c)` (Gemma 2). Sinks: one more score a head that takes weight and gives nothing (gpt-oss).
    """
    *outer, heads, count, dim = query.shape
    kv_heads = keys.shape[-3]
    folded = query.reshape(*outer, kv_heads, heads // kv_heads * count, dim)
    scores = (folded @ keys.transpose(-1, -2)).view(*outer, heads, count, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    folded = weights.to(values.dtype).view(*outer, kv_heads, heads // kv_heads * count, -1)
    return (folded @ values).view(*outer, heads, count, -1)


def _whole(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`B` whole sequences from position 0, causal, differentiable: `[B, heads, T, d]`."""
    count = query.shape[2]
    windowed = 0 < window < count
    grouped = query.shape[1] != key.shape[1]
    if softcap is None and sinks is None and not windowed:
        return sdpa(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    steps = torch.arange(count, device=query.device)
    behind = steps.unsqueeze(1) - steps
    hidden = (behind < 0) | (behind >= window) if windowed else behind < 0
    mask = torch.zeros(count, count, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
    if softcap is None and sinks is None:
        return sdpa(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return _explicit(query, key, value, mask, scale, softcap, sinks)


@contextmanager
def probing(config: PreTrainedConfig, shapes: dict[int, KvShape], known: set[str]) -> Iterator[set[str]]:
    """While open, a forward with `shapes=shapes` notes each layer's K/V shape there; yields options not in `known`.

    It proves as well that a family hands its keyword arguments through to attention, which `packing` relies on.
    """
    strange: set[str] = set()

    def probe(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        if options.pop("shapes", None) is shapes and attention_mask is None:
            shapes[module.layer_idx] = KvShape(key.shape[1], key.shape[3], value.shape[3])
        strange.update(name for name, option in options.items() if name not in known and option is not None)
        return packed_attention(module, query, key, value, None, **options)

    before = config._attn_implementation
    AttentionInterface.register(f"{NAME}_probe", probe)
    config._attn_implementation = f"{NAME}_probe"
    try:
        yield strange
    finally:
        config._attn_implementation = before


def register() -> None:
    """Make `NAME` known to transformers. Registering again is harmless."""
    AttentionInterface.register(NAME, packed_attention)
