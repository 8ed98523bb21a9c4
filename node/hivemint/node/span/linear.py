"""Linear layers over weights in oneDNN's blocked order, in the place of `nn.Linear` on CPUs.

torch's fp32 matrix product goes to MKL, which is slow for few rows and on AMD's CPUs at any number. oneDNN over
blocked weights is 1.6 to 2.5 times as fast there (EPYC with AVX-512, one thread, linears of 15 SmolLM2 blocks:
1 row 8.1 -> 4.9 ms, 16 rows 22 -> 8.6, 128 rows 110 -> 47; bf16 halves that again). The blocked copy replaces the
plain weight, one module at a time, so no second copy of the weights stays.
"""

import ctypes
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

_PACK_ROWS = 128  # the row count to lay weights out for: measured best or equal from 1 to 512 rows
_TRIM_BYTES = 16 << 20
_PACKED_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """Computes what `linear` does for `[..., in_features]`; frozen, but lets gradients through to its input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACK_ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            function: Any = _Through
            rows: torch.Tensor = function.apply(x.reshape(-1, self.in_features), self.packed, self.bias)
            return rows.view(*x.shape[:-1], -1)  # a view made here may be added to in place, as Falcon does
        return _linear(x, self.packed, self.bias)

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`linear(x) + other`, in one kernel where no gradient is wanted."""
        if torch.is_grad_enabled() and (x.requires_grad or other.requires_grad):
            return self.forward(x) + other
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "add")
        return total

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PlainLinear(nn.Module):
    """The same face over a plain weight, for GPUs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def added(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`linear(x) + other`."""
        return self.forward(x) + other


def _linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


class _Through(torch.autograd.Function):
    """The gradient of a frozen linear with respect to its input: `grad @ weight`.

    By oneDNN too, over a transposed copy made for the moment: 0.7 of the time of MKL's product at 128 rows (SmolLM2's
    linears, one thread of an EPYC), where a second packed weight that stays would take 0.4 and double the memory.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.packed = packed
        return _linear(x, packed, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        turned = ctx.packed.to_dense().t().contiguous().to_mkldnn()
        return _linear(grads[0].contiguous(), turned, None), None, None


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU's oneDNN computes in `dtype`."""
    if dtype not in _PACKED_DTYPES or not torch._C._has_mkldnn:
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_plain(module: nn.Module) -> bool:
    """Whether it is a linear that may be replaced. Falcon's own class computes the same."""
    return type(module) is nn.Linear or type(module).__name__ == "FalconLinear"


def pack_linears(decoder: nn.Module, make: Callable[[nn.Linear], nn.Module] = PackedLinear) -> None:
    """Replace every plain linear of a CPU decoder by its packed form, in place, freeing weight after weight."""
    names = [name for name, module in decoder.named_modules() if is_plain(module)]
    freed = 0
    for name in names:  # by name: a list of the modules would keep every plain weight alive until the end
        linear = cast(nn.Linear, decoder.get_submodule(name))
        decoder.set_submodule(name, make(linear))
        freed += linear.weight.nbytes
        del linear
        if freed > _TRIM_BYTES:
            freed = 0
            trim()
    trim()


def trim() -> None:
    """Give freed memory back to the system; glibc keeps it otherwise, other C libraries need no telling."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
