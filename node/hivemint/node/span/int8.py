"""Weights in 8 bits on a CPU: one scale an output row, bf16 activations, and the proof at load that it is worth it.

A step of a few rows takes the time of reading its weights, so a quarter of fp32's bytes takes less (EPYC with
AVX-512, one thread, linears of 15 SmolLM2 blocks, 1 row: fp32 4.5 ms, bf16 2.3, int8 1.8; 4 rows 4.9, 2.7, 2.3). From
8 rows on torch's int8 kernel is the slower one: there a bf16 copy of the same 8-bit numbers takes over, where the CPU
has units for it.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from hivemint.node.span.linear import PackedLinear, can_pack
from hivemint.protocol.errors import ModelError

FEW_ROWS = 6
MEASURED = 32 << 20
"""Weights on which int8 is measured: 128 MB in fp32."""
_PART = 1 << 20  # weights that are converted at a time
MOST_ERROR = 0.012
"""Largest relative error of a block's linears on noise (root mean square): where one token in twenty becomes another.

Argmax agreement of SmolLM2 with noise of this size behind every linear: 0.01 gives 0.96, 0.02 0.90, 0.05 0.80; int8 by
rows and bf16 between the linears, as a node runs, 0.965 (four texts, 2,568 positions; bf16 alone 0.985).
"""
WORTH = 0.9
"""Share of the fp32 time below which int8 counts as faster."""


class Int8Linear(nn.Module):
    """Computes what `linear` does with its weight rounded to 8 bits: bf16 `[..., in_features]`. Frozen."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.scales = _to_int8(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        self.wide: PackedLinear | None = None
        if can_pack(torch.bfloat16):
            with torch.device("meta"):
                same = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
            same.weight = nn.Parameter(self.rounded(), requires_grad=False)
            if self.bias is not None:
                same.bias = nn.Parameter(self.bias, requires_grad=False)
            self.wide = PackedLinear(same)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        wants_gradient = torch.is_grad_enabled() and x.requires_grad
        if wants_gradient or (rows > FEW_ROWS and self.wide is not None):
            wide: torch.Tensor = (
                nn.functional.linear(x, self.rounded(), self.bias) if self.wide is None else self.wide(x)
            )
            return wide
        flat = x.reshape(rows, self.in_features)
        product: torch.Tensor = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scales).view(
            *x.shape[:-1], -1
        )
        return product if self.bias is None else product + self.bias

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`linear(x) + other`."""
        return self.forward(x) + other

    def rounded(self) -> torch.Tensor:
        """The weight that it computes with, in bf16."""
        return self.weight.bfloat16() * self.scales.unsqueeze(1)


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[out, in]` in 8 bits, and each row's scale. By parts, so that no whole fp32 copy is needed."""
    whole = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), dtype=torch.bfloat16)
    step = max(1, _PART // weight.shape[1])
    for first in range(0, len(weight), step):
        part = weight[first : first + step].to(torch.float32, copy=True)
        scale = (part.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
        # by the scale as it is kept, so that its own rounding (up to 0.4 %) is not an error of the whole row
        whole[first : first + step] = part.div_(scale.float().unsqueeze(1)).round_().clamp_(-127, 127)
        scales[first : first + step] = scale
    return whole, scales


def prove(linears: list[nn.Linear], clock: Callable[[], float] = time.thread_time) -> None:
    """Measure int8 on one block's linears. Raises ModelError with the figures if it is wrong or not faster.

    Of a large block the first ones, until no cache holds them: the measure takes memory beside the span.
    """
    sizes = [linear.in_features * linear.out_features for linear in linears]
    linears = [linear for index, linear in enumerate(linears) if sum(sizes[:index]) < MEASURED]
    inputs = [torch.randn(1, linear.in_features, generator=torch.Generator().manual_seed(1)) for linear in linears]
    plain = [PackedLinear(nn.Linear(x.in_features, x.out_features, bias=False).requires_grad_(False)) for x in linears]
    ours = [Int8Linear(linear) for linear in linears]
    errors: list[float] = []
    fp32_s: list[float] = []
    int8_s: list[float] = []
    with torch.inference_mode():
        for linear, mine, x in zip(linears, ours, inputs, strict=True):
            expected = nn.functional.linear(x, linear.weight.float())
            got = mine(x.bfloat16()).float() - (0 if mine.bias is None else mine.bias.float())
            errors.append(float((got - expected).norm() / expected.norm().clamp_min(1e-30)))
        for _ in range(15):
            fp32_s.append(_seconds(plain, inputs, clock))
            int8_s.append(_seconds(ours, [x.bfloat16() for x in inputs], clock))
    error = math.sqrt(statistics.fmean(error**2 for error in errors))
    refuse_unless_worth(error, statistics.median(int8_s) / statistics.median(fp32_s))


def _seconds(modules: Sequence[nn.Module], inputs: Sequence[torch.Tensor], clock: Callable[[], float]) -> float:
    began = clock()
    for module, x in zip(modules, inputs, strict=True):
        module(x)
    return clock() - began


def refuse_unless_worth(error: float, time_to_fp32: float) -> None:
    """Raises ModelError with the figure that speaks against int8."""
    if not error <= MOST_ERROR:
        raise ModelError(
            "int8 weights are refused for this model",
            why=f"they change a block's linears by {error:.3f} of their output, more than {MOST_ERROR}",
            next_step="choose bf16 or fp32",
        )
    if not time_to_fp32 <= WORTH:
        raise ModelError(
            "int8 weights are refused on this machine",
            why=f"a step of one row took {time_to_fp32:.2f} of fp32's time, more than {WORTH}",
            next_step="choose bf16 or fp32",
        )
