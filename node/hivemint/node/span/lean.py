"""A leaner layer for the Llama layout, in the place of the library's, inside the library's decoder.

A third of a small model's step is dispatch: 7 linears, 9 operations for rope, 12 for two norms. Here q, k and v are
one linear, gate and up another, the residual is added in the linear's own kernel, and rope is one complex product:
the rows of q and k are interleaved at load so that the two halves of a rotated pair are neighbours (scores don't
change, as both sides of each dot product are permuted alike). On a GPU rope and the K/V write are one kernel of
ours, and so is the gated SiLU. Proven equal to the library's layer by test and, at
load, on random input.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from hivemint.node.span import kernels
from hivemint.node.span.attention import attend_all, packed_attention
from hivemint.node.span.linear import PackedLinear, trim
from hivemint.node.span.lora import Place
from hivemint.node.span.packing import Packing, Paged

_LAYOUT = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""How far a lean layer may be from the library's, as a share of the largest output."""


class FastLinear(Protocol):
    """A linear that can add a residual: `added(x, other)` is `self(x) + other`."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor: ...


class LeanLayer(nn.Module):
    """Norm, grouped-query attention with rope, norm, gated SiLU: `[B, T, hidden]` -> the same."""

    def __init__(self, layer: Any, linear: Callable[[nn.Linear], FastLinear]) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        everywhere = getattr(attention.config, "sliding_window", None)  # Mistral's layers ask their config
        self.sliding_window: int | None = getattr(attention, "sliding_window", everywhere)
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.heads = attention.q_proj.out_features // self.head_dim
        pairs = torch.arange(self.head_dim).view(2, -1).T.flatten()
        q, k = (_reordered(p, pairs) for p in (attention.q_proj, attention.k_proj))
        self.qkv = linear(_joined(q, k, attention.v_proj))
        self.o = linear(attention.o_proj)
        self.gate_up = linear(_joined(mlp.gate_proj, mlp.up_proj))
        self.down = linear(mlp.down_proj)
        self.norms = (layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach())
        self.eps: float = layer.input_layernorm.variance_epsilon
        self.head_norms: torch.Tensor | None = None
        if hasattr(attention, "q_norm"):
            weights = (
                attention.q_norm.weight.expand(self.heads, -1),
                attention.k_norm.weight.expand(self.kv_heads, -1),
            )
            self.head_norms = torch.cat(weights).detach()[:, pairs]

    def places(self) -> dict[str, Place]:
        """Where the library's linears are: the one that holds it, its first row there, its rows, their order."""
        q, kv, half = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.gate_up.out_features // 2
        pairs = torch.arange(self.head_dim).view(2, -1).T.flatten()
        q_order, k_order = _head_rows(self.heads, pairs), _head_rows(self.kv_heads, pairs)
        return {
            "self_attn.q_proj": Place("qkv", 0, q, self.qkv.in_features, q_order),
            "self_attn.k_proj": Place("qkv", q, kv, self.qkv.in_features, k_order),
            "self_attn.v_proj": Place("qkv", q + kv, kv, self.qkv.in_features),
            "self_attn.o_proj": Place("o", 0, self.o.out_features, self.o.in_features),
            "mlp.gate_proj": Place("gate_up", 0, half, self.gate_up.in_features),
            "mlp.up_proj": Place("gate_up", half, half, self.gate_up.in_features),
            "mlp.down_proj": Place("down", 0, self.down.out_features, self.down.in_features),
        }

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        packing: Packing | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Called by the library's decoder with the library's cos and sin, `[1, T, head_dim]`."""
        batch, count, _width = hidden_states.shape
        if packing is not None and packing.paged is not None:
            return self._paged(hidden_states, position_embeddings, packing, packing.paged)
        x = functional.rms_norm(hidden_states, hidden_states.shape[-1:], self.norms[0], self.eps)
        qkv = self.qkv(x).view(batch, count, -1, self.head_dim)
        turned = self._turn(qkv[:, :, : self.heads + self.kv_heads], position_embeddings, packing)
        query, key = turned[:, :, : self.heads].transpose(1, 2), turned[:, :, self.heads :].transpose(1, 2)
        value = qkv[:, :, self.heads + self.kv_heads :].transpose(1, 2)
        mixed, _none = packed_attention(
            self, query, key, value, None, self.scaling, self.sliding_window, packing=packing
        )
        hidden_states = self.o.added(mixed.reshape(batch, count, -1), hidden_states)
        x = functional.rms_norm(hidden_states, hidden_states.shape[-1:], self.norms[1], self.eps)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down.added(functional.silu(gate) * up, hidden_states)

    def _paged(
        self, rows: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], packing: Packing, paged: Paged
    ) -> torch.Tensor:
        """The same by the kernels, keys and values in pages."""
        qkv = self.qkv(kernels.norm(rows, self.norms[0], self.eps)).view(rows.shape[1], -1, self.head_dim)
        if self.head_norms is not None:
            turned = qkv[:, : self.heads + self.kv_heads]
            turned.copy_(functional.rms_norm(turned, (self.head_dim,), None, self.eps) * self.head_norms)
        kernels.place(paged.pool, self.layer_idx, paged.plan, qkv, self.heads, angles)
        query = qkv[:, : self.heads]
        mixed = attend_all(packing, self.layer_idx, query, self.scaling, self.sliding_window or 0)
        rows, x = kernels.add_norm(self.o(mixed.reshape(1, rows.shape[1], -1)), rows, self.norms[1], self.eps)
        return self.down.added(kernels.gated(self.gate_up(x)[0]).unsqueeze(0), rows)

    def _turn(
        self, rows: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], packing: Packing | None
    ) -> torch.Tensor:
        """Rope over interleaved pairs: (a + ib) (cos + i sin)."""
        if self.head_norms is not None:
            rows = functional.rms_norm(rows, (self.head_dim,), None, self.eps) * self.head_norms
        angles = None if packing is None else packing.angles
        if angles is None:
            cos, sin = (half[..., : self.head_dim // 2] for half in position_embeddings)
            angles = torch.complex(cos.float().contiguous(), sin.float().contiguous()).unsqueeze(2)
            if packing is not None:
                packing.angles = angles
        pairs = torch.view_as_complex(rows.float().view(*rows.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * angles).flatten(-2).to(rows.dtype)


def lean_layers(layers: nn.ModuleList, linear: Callable[[nn.Linear], FastLinear] = PackedLinear) -> None:
    """Replace each layer of the known layout in place, one at a time, so that weights are never held twice.

    `linear` makes the lean layer's linears from plain ones.
    """
    for index, layer in enumerate(layers):
        if _fits(layer):
            lean = LeanLayer(layer, linear)
            if _agree(layer, lean):
                layers[index] = lean
                del layer
                trim()


def _agree(layer: nn.Module, lean: LeanLayer) -> bool:
    """Whether both give the same for three tokens of noise, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    dtype, device = lean.norms[0].dtype, lean.norms[0].device
    rows = torch.randn(1, 3, lean.qkv.in_features, generator=generator).to(device, dtype)
    angles = torch.randn(1, 3, lean.head_dim // 2, generator=generator).repeat(1, 1, 2)
    embeddings = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    with torch.inference_mode():
        ours = lean(rows, position_embeddings=embeddings)
        theirs = layer(rows, position_embeddings=embeddings, attention_mask=None)
    return bool((ours - theirs).abs().max() <= ROUNDING[dtype] * theirs.abs().max())


def _fits(layer: Any) -> bool:
    return (
        type(layer).__name__ in _LAYOUT
        and type(layer).__module__.startswith("transformers.models.")
        and layer.self_attn.config.hidden_act in ("silu", "swish")
        and layer.input_layernorm.weight.dtype in ROUNDING
    )


def _reordered(linear: nn.Linear, order: torch.Tensor) -> nn.Linear:
    """The same linear with each head's output rows in another order."""
    rows = _head_rows(linear.out_features // len(order), order)
    return _linear(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _head_rows(heads: int, order: torch.Tensor) -> torch.Tensor:
    return (torch.arange(heads).unsqueeze(1) * len(order) + order).flatten()


def _joined(*linears: nn.Linear) -> nn.Linear:
    """Linears of one input as one, outputs side by side."""
    bias = None
    if any(linear.bias is not None for linear in linears):
        bias = torch.cat([torch.zeros_like(x.weight[:, 0]) if x.bias is None else x.bias for x in linears])
    return _linear(torch.cat([linear.weight for linear in linears]), bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
