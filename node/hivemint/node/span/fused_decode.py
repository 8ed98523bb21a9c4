"""A step of decoding as one call: all lean layers of a decoder, for one row of each session, without the interpreter.

Between two operations of a layer Python takes as long as a small one itself, and needs its lock, which the event loop
wants too. TorchScript runs the same operations with neither: 15 blocks of SmolLM2 take 6.4 ms instead of 7.6 for one
row, 18.1 instead of 19.5 for sixteen (one core of an EPYC), and are equal to the last bit. It is deprecated: where a
torch has it no more, steps run as they do for prompts.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from hivemint.node.kv.cache import KvCache, KvStore
from hivemint.node.kv.contiguous import KvView
from hivemint.node.kv.shape import KvShape
from hivemint.node.span.lean import ROUNDING, LeanLayer
from hivemint.node.span.linear import PackedLinear
from hivemint.node.span.packing import Packing, Work


def _layers(
    x: torch.Tensor,
    angles: torch.Tensor,
    weights: list[list[torch.Tensor]],
    biases: list[list[torch.Tensor | None]],
    new: list[list[torch.Tensor]],
    keys: list[list[torch.Tensor]],
    values: list[list[torch.Tensor]],
    heads: int,
    kv_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
) -> torch.Tensor:
    """`[1, rows, hidden]` through all layers; `LeanLayer.forward` and `attention.attend` written out.

    A list an entry a layer: `weights` are the first norm, qkv, o, the second norm, gate and up, down; `new`, `keys`
    and `values` each session's memory. `angles`: rope's complex factors `[1, rows, 1, head_dim / 2]`.
    """
    rows, width, turned_heads = x.size(1), x.size(2), heads + kv_heads
    for layer in range(len(weights)):
        norm, qkv_weight, o_weight, second, gate_up, down = weights[layer]
        qkv_bias, o_bias, gate_up_bias, down_bias = biases[layer]
        y = torch.rms_norm(x, [width], norm, eps)
        qkv = torch.ops.mkldnn._linear_pointwise(y, qkv_weight, qkv_bias, "none", [], "").view(1, rows, -1, head_dim)
        pairs = torch.view_as_complex(qkv[:, :, :turned_heads].float().view(1, rows, turned_heads, head_dim // 2, 2))
        turned = torch.view_as_real(pairs * angles).flatten(-2).to(x.dtype)
        fresh = torch.stack([turned[0, :, heads:], qkv[0, :, turned_heads:]]).transpose(1, 2).unsqueeze(3).unbind(2)
        query = turned[0, :, :heads].reshape(rows, 1, kv_heads, heads // kv_heads, head_dim).unbind(0)
        mixed: list[torch.Tensor] = []
        for session in range(rows):
            new[layer][session].copy_(fresh[session])
            mixed.append(
                torch.ops.aten.scaled_dot_product_attention(
                    query[session], keys[layer][session], values[layer][session], None, 0.0, False, scale=scale
                )
            )
        y = torch.cat(mixed).view(1, rows, -1)
        x = torch.ops.mkldnn._linear_pointwise(y, x, o_weight, o_bias, "add")
        y = torch.rms_norm(x, [width], second, eps)
        halves = torch.ops.mkldnn._linear_pointwise(y, gate_up, gate_up_bias, "none", [], "").chunk(2, -1)
        x = torch.ops.mkldnn._linear_pointwise(torch.ops.aten.silu(halves[0]) * halves[1], x, down, down_bias, "add")
    return x


@cache
def _compiled() -> Any:
    """None where this torch has no TorchScript."""
    script = getattr(torch.jit, "script", None)
    if script is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return script(_layers)


class Decoding:
    """Made by `of` for a decoder whose layers are all lean and packed."""

    def __init__(self, decoder: PreTrainedModel, layers: Sequence[LeanLayer]) -> None:
        self._run, self._decoder, self._first = _compiled(), decoder, layers[0]
        self._numbers = [layer.layer_idx for layer in layers]
        linears = [(layer.qkv, layer.o, layer.gate_up, layer.down) for layer in layers]
        packed = [[linear.packed for linear in each if isinstance(linear, PackedLinear)] for each in linears]
        self._weights = [
            [layer.norms[0], qkv, o, layer.norms[1], gate_up, down]
            for layer, (qkv, o, gate_up, down) in zip(layers, packed, strict=True)
        ]
        self._biases = [[linear.bias for linear in each if isinstance(linear, PackedLinear)] for each in linears]
        self._window = min((layer.sliding_window for layer in layers if layer.sliding_window), default=0)

    @classmethod
    def of(
        cls, decoder: PreTrainedModel, layers: Sequence[Any], shapes: Sequence[KvShape], dtype: torch.dtype
    ) -> "Decoding | None":
        """For a decoder and its layers on the CPU, if it computes there what they do by themselves."""
        if not all(_fits(layer) for layer in layers) or _compiled() is None:
            return None
        made = cls(decoder, layers)
        return made if made._agrees(shapes, dtype) else None

    def takes(self, packing: Packing) -> bool:
        """Whether a step is one row of each session, over memory in one piece, within all windows, no adapters."""
        return (
            packing.single
            and packing.joint
            and packing.paged is None
            and not any(part.adapter for part in packing.parts)
            and (not self._window or max(part.end for part in packing.parts) <= self._window)
        )

    def run(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """`[sessions, hidden]` -> the same, keys and values written."""
        decoder: Any = self._decoder
        first, x = self._first, rows.unsqueeze(0)
        half = first.head_dim // 2
        cos, sin = (part[..., :half].float().contiguous() for part in decoder.rotary_emb(x, packing.positions()))
        memory = [part.kv for part in packing.parts if isinstance(part.kv, KvView)]
        new, keys, values = (
            [[side[number] for side in sides] for number in self._numbers]
            for sides in ([kv.new for kv in memory], [kv.keys for kv in memory], [kv.values for kv in memory])
        )
        jit: Any = torch.jit
        with jit.optimized_execution(False):  # else each new shape is compiled anew
            output = self._run(
                x,
                torch.complex(cos, sin).unsqueeze(2),
                self._weights,
                self._biases,
                new,
                keys,
                values,
                first.heads,
                first.kv_heads,
                first.head_dim,
                first.eps,
                first.scaling,
            )
        hidden: torch.Tensor = decoder.norm(output)[0]
        return hidden

    def _agrees(self, shapes: Sequence[KvShape], dtype: torch.dtype) -> bool:
        """Two tokens of noise: the same as the decoder's own, but for rounding. One row: its kernels serve for good."""
        store = KvStore(list(shapes), dtype, torch.device("cpu"), None)
        memory, generator = store.open(2), torch.Generator().manual_seed(0)
        with torch.inference_mode():
            return all(self._agrees_at(start, memory, generator, dtype) for start in range(2))

    def _agrees_at(self, start: int, memory: KvCache, generator: torch.Generator, dtype: torch.dtype) -> bool:
        rows = torch.randn(1, self._weights[0][0].shape[0], generator=generator).to(dtype)
        memory.reserve(start + 1)
        packing = Packing([Work(memory, start, rows)], dtype, torch.device("cpu"))
        ours, decoder = self.run(rows, packing), cast(Any, self._decoder)
        theirs = decoder(
            inputs_embeds=rows[None], position_ids=packing.positions(), use_cache=False, packing=packing
        ).last_hidden_state[0]
        return bool((ours - theirs).abs().max() <= ROUNDING[dtype] * theirs.abs().max())


def _fits(layer: Any) -> bool:
    return (
        isinstance(layer, LeanLayer)
        and layer.head_norms is None
        and all(isinstance(linear, PackedLinear) for linear in (layer.qkv, layer.o, layer.gate_up, layer.down))
    )
