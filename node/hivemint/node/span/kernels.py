# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-redef,attr-defined,import-not-found,import-untyped"
"""Triton kernels of the decode step: rope and K/V write, attention over pages, gated SiLU.

Attention reads each key and value once: a program holds the query heads that share a key head of one row, walks its
share of the row's pages with the running softmax of FlashAttention, and a second kernel joins the shares (as
Flash-Decoding does). Rows of one session see each other's keys, as all are written before any is read.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from hivemint.node.kv.pages import PAGE, PagePlan, PagePool

if TYPE_CHECKING or importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:  # the CPU builds of torch come without it, and nothing here runs on a CPU

    class triton:
        jit = staticmethod(lambda function: function)

    class tl:
        constexpr = int


SHORT = 8
"""Longest part whose rows attend one by one; longer chunks attend together over a gathered history."""

_PROGRAMS = 1024  # attention programs to aim for: eight for each of an H100's multiprocessors


def available(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def place(
    pool: PagePool, layer: int, plan: PagePlan, qkv: torch.Tensor, heads: int, angles: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Turn the queries and keys of `qkv` `[rows, heads + 2 kv_heads, dim]` in place, keep keys and values.

    Pairs to turn are neighbours (`lean.py`); `angles`: cos and sin `[1, rows, dim]`, of which the first half counts.
    """
    rows, _, dim = qkv.shape
    kv_heads = pool.shapes[layer].heads
    cos, sin = angles
    _place[(rows, heads + kv_heads)](
        qkv, pool.keys[layer], pool.values[layer], plan.numbers, cos, sin, plan.rows, qkv.stride(0), cos.stride(1),
        heads, kv_heads, dim, triton.next_power_of_2(dim), PAGE,
    )  # fmt: skip


def write(pool: PagePool, layer: int, plan: PagePlan, key: torch.Tensor, value: torch.Tensor) -> None:
    """Keep keys and values `[kv_heads, rows, dim]` of one block where the plan says."""
    kv_heads, rows, dim = key.shape
    value_dim = value.shape[2]
    key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (key, value))
    _write[(rows, kv_heads)](
        key, value, pool.keys[layer], pool.values[layer], plan.numbers, plan.rows, key.stride(1), key.stride(0),
        value.stride(1), value.stride(0), kv_heads, dim, value_dim, triton.next_power_of_2(dim),
        triton.next_power_of_2(value_dim), PAGE,
    )  # fmt: skip


def attend(
    pool: PagePool,
    layer: int,
    plan: PagePlan,
    query: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries `[rows, heads, dim]`, each over its session's positions up to its own -> `[rows, heads, value_dim]`."""
    rows, heads, dim = query.shape
    shape = pool.shapes[layer]
    group = heads // shape.heads
    if query.stride(2) != 1:
        query = query.contiguous()
    shares = min(64, max(1, triton.next_power_of_2(_PROGRAMS // (rows * shape.heads))))
    room: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    partial = torch.empty(rows, heads, shares, shape.value_dim, **room)
    weights = torch.empty(rows, heads, shares, 2, **room)
    _attend[(rows, shape.heads, shares)](
        query, pool.keys[layer], pool.values[layer], plan.numbers, partial, weights, plan.rows, query.stride(0),
        query.stride(1), scale, window, softcap or 0.0, shape.heads, group, max(16, triton.next_power_of_2(group)),
        dim, max(16, triton.next_power_of_2(dim)), shape.value_dim, max(16, triton.next_power_of_2(shape.value_dim)),
        shares, PAGE, softcap is not None, num_warps=4, num_stages=3,
    )  # fmt: skip
    out = torch.empty(rows, heads, shape.value_dim, dtype=query.dtype, device=query.device)
    _join[(rows, heads)](
        partial, weights, out if sinks is None else sinks, out, heads, shape.value_dim,
        triton.next_power_of_2(shape.value_dim), shares, sinks is not None,
    )  # fmt: skip
    return out


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` for `[rows, 2 width]` -> `[rows, width]`."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _gated[(rows, triton.cdiv(width, 1024))](gate_up, out, width, 1024)
    return out


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of rows `[..., width]`."""
    return add_norm(x, None, weight, eps)[1]


def add_norm(
    x: torch.Tensor, other: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + other` and its RMS norm, rows `[..., width]`; torch's own norm takes four times as long for few rows."""
    width = x.shape[-1]
    rows = x.numel() // width
    total, out = x if other is None else torch.empty_like(x), torch.empty_like(x)
    wide = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        x, x if other is None else other, weight, total, out, eps, width, wide, other is not None,
        num_warps=min(16, max(1, wide // 512)),
    )  # fmt: skip
    return total, out


@triton.jit
def _add_norm(x, other, weight, total, out, eps, width, WIDE: tl.constexpr, ADDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDE)
    inside = at < width
    value = tl.load(x + row * width + at, inside, 0.0).to(tl.float32)
    if ADDS:
        value += tl.load(other + row * width + at, inside, 0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty).to(tl.float32)
        tl.store(total + row * width + at, value.to(total.dtype.element_ty), inside)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    factor = tl.load(weight + at, inside, 0.0).to(tl.float32)
    tl.store(out + row * width + at, (value * scale * factor).to(out.dtype.element_ty), inside)


@triton.jit
def _place(
    qkv, keys, values, plan, cos, sin, padded, row_stride, angle_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    at = tl.arange(0, WIDE // 2)
    inside = at < DIM // 2
    here = qkv + row.to(tl.int64) * row_stride + head * DIM + 2 * at
    a = tl.load(here, inside, 0.0).to(tl.float32)
    b = tl.load(here + 1, inside, 0.0).to(tl.float32)
    c = tl.load(cos + row * angle_stride + at, inside, 0.0).to(tl.float32)
    s = tl.load(sin + row * angle_stride + at, inside, 0.0).to(tl.float32)
    first = a * c - b * s
    second = a * s + b * c
    if head < HEADS:
        tl.store(here, first.to(qkv.dtype.element_ty), inside)
        tl.store(here + 1, second.to(qkv.dtype.element_ty), inside)
    else:
        width = tl.load(plan)
        position = tl.load(plan + 1 + row)
        session = tl.load(plan + 1 + padded + row)
        page = tl.load(plan + 1 + 2 * padded + session * width + position // PAGE).to(tl.int64)
        kv_head = head - HEADS
        there = ((page * KV_HEADS + kv_head) * PAGE + position % PAGE) * DIM
        tl.store(keys + there + 2 * at, first.to(keys.dtype.element_ty), inside)
        tl.store(keys + there + 2 * at + 1, second.to(keys.dtype.element_ty), inside)
        all_at = tl.arange(0, WIDE)
        value = tl.load(qkv + row.to(tl.int64) * row_stride + (head + KV_HEADS) * DIM + all_at, all_at < DIM, 0.0)
        tl.store(values + there + all_at, value, all_at < DIM)


@triton.jit
def _write(
    key, value, keys, values, plan, padded, key_row, key_head, value_row, value_head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDE: tl.constexpr, VALUE_WIDE: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    width = tl.load(plan)
    position = tl.load(plan + 1 + row)
    session = tl.load(plan + 1 + padded + row)
    page = tl.load(plan + 1 + 2 * padded + session * width + position // PAGE).to(tl.int64)
    slot = (page * KV_HEADS + head) * PAGE + position % PAGE
    at = tl.arange(0, WIDE)
    one = tl.load(key + row.to(tl.int64) * key_row + head * key_head + at, at < DIM, 0.0)
    tl.store(keys + slot * DIM + at, one, at < DIM)
    at = tl.arange(0, VALUE_WIDE)
    two = tl.load(value + row.to(tl.int64) * value_row + head * value_head + at, at < VALUE_DIM, 0.0)
    tl.store(values + slot * VALUE_DIM + at, two, at < VALUE_DIM)


@triton.jit
def _attend(
    query, keys, values, plan, partial, weights, padded, row_stride, head_stride, scale, window, softcap,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_WIDE: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDE: tl.constexpr, SHARES: tl.constexpr, PAGE: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    share = tl.program_id(2)
    width = tl.load(plan)
    last = tl.load(plan + 1 + row)
    session = tl.load(plan + 1 + padded + row)
    table = plan + 1 + 2 * padded + session * width
    first = 0
    if window > 0:
        first = tl.maximum(last + 1 - window, 0)
    first_page = first // PAGE
    end_page = last // PAGE + 1
    each = (end_page - first_page + SHARES - 1) // SHARES
    begin = first_page + share * each
    end = tl.minimum(begin + each, end_page)

    member = tl.arange(0, GROUP_WIDE)
    at = tl.arange(0, WIDE)
    value_at = tl.arange(0, VALUE_WIDE)
    token = tl.arange(0, PAGE)
    q = tl.load(
        query + row.to(tl.int64) * row_stride + (kv_head * GROUP + member)[:, None] * head_stride + at[None, :],
        (member < GROUP)[:, None] & (at < DIM)[None, :], 0.0,
    )  # fmt: skip
    top = tl.full((GROUP_WIDE,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_WIDE,), tl.float32)
    mixed = tl.zeros((GROUP_WIDE, VALUE_WIDE), tl.float32)
    for index in range(begin, end):
        page = tl.load(table + index).to(tl.int64)
        slot = (page * KV_HEADS + kv_head) * PAGE + token
        position = index * PAGE + token
        seen = (position <= last) & (position >= first)
        k = tl.load(keys + slot[None, :] * DIM + at[:, None], (at < DIM)[:, None] & seen[None, :], 0.0)
        score = tl.dot(q, k, input_precision="ieee") * scale
        if CAPPED:  # c tanh(s / c), written with a sigmoid
            score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        fade = tl.exp(top - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * fade + tl.sum(weight, 1)
        v = tl.load(values + slot[:, None] * VALUE_DIM + value_at[None, :],
                    seen[:, None] & (value_at < VALUE_DIM)[None, :], 0.0)  # fmt: skip
        mixed = mixed * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        top = higher
    out = ((row * KV_HEADS + kv_head).to(tl.int64) * GROUP + member) * SHARES + share
    tl.store(weights + out * 2, top, member < GROUP)
    tl.store(weights + out * 2 + 1, total, member < GROUP)
    tl.store(partial + out[:, None] * VALUE_DIM + value_at[None, :], mixed,
             (member < GROUP)[:, None] & (value_at < VALUE_DIM)[None, :])  # fmt: skip


@triton.jit
def _join(
    partial, weights, sinks, out, HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_WIDE: tl.constexpr,
    SHARES: tl.constexpr, SUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    share = tl.arange(0, SHARES)
    at = tl.arange(0, VALUE_WIDE)
    here = (row.to(tl.int64) * HEADS + head) * SHARES + share
    top = tl.load(weights + here * 2)
    total = tl.load(weights + here * 2 + 1)
    highest = tl.max(top, 0)
    sink = 0.0
    if SUNK:  # takes weight and gives nothing
        logit = tl.load(sinks + head).to(tl.float32)
        highest = tl.maximum(highest, logit)
        sink = tl.exp(logit - highest)
    fade = tl.exp(top - highest)
    mixed = tl.load(partial + here[:, None] * VALUE_DIM + at[None, :], (at < VALUE_DIM)[None, :], 0.0)
    whole = tl.sum(mixed * fade[:, None], 0) / (tl.sum(total * fade, 0) + sink)
    where = (row.to(tl.int64) * HEADS + head) * VALUE_DIM + at
    tl.store(out + where, whole.to(out.dtype.element_ty), at < VALUE_DIM)


@triton.jit
def _gated(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * width + at, at < width, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, at < width, 0.0).to(tl.float32)
    tl.store(out + row * width + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), at < width)
