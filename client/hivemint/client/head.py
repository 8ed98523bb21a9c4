"""The head of a model: the last hidden state to one number for each token of the vocabulary.

It is the client's largest piece of work: 49,152 x 576 weights are read for each token. Two ways spare most of it:

- weights in oneDNN's blocked order: 2.0 ms a row instead of 4.6 (SmolLM2, one thread of an EPYC);
- where only the largest number is asked for (greedy search), an 8-bit copy of the weights first tells which tokens
  can have it, and the exact weights decide among those few.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

_largest_only: ContextVar[bool] = ContextVar("largest_only", default=False)


@contextmanager
def largest_only() -> Iterator[None]:
    """Within it, heads need to be right about the largest number of a row alone."""
    token = _largest_only.set(True)
    try:
        yield
    finally:
        _largest_only.reset(token)


class Head(nn.Module):
    """`linear` over `[1, rows, hidden]` or `[rows, hidden]`, fp32. Its weight may be mapped from a file; both copies
    are made when they are first needed. Thread-safe."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight, self._bias = linear.weight.detach(), linear.bias
        self._making = threading.Lock()
        self._packed: torch.Tensor | None = None
        self._screen: Screen | None = None
        self._screens = self._bias is None and self._weight.shape[1] % 16 == 0  # what torch's int8 kernel takes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _largest_only.get() and x.numel() == x.shape[-1] and self._screens:
            with self._making:
                if self._screen is None:
                    self._screen = Screen(self._weight)
                    self._screens = faster(self._screen.logits, self._exact, x.view(1, -1))
            return self._screen.logits(x.view(1, -1)).view(*x.shape[:-1], -1)
        return self._exact(x)

    def _exact(self, x: torch.Tensor) -> torch.Tensor:
        wants_gradient = torch.is_grad_enabled() and x.requires_grad
        if wants_gradient or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return nn.functional.linear(x, self._weight, self._bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, 1)
        logits: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return logits


class Screen:
    """Which outputs of a linear can be the largest, by an 8-bit copy of its weight.

    With w = q + r (q the rounded row, r the rest), h the hidden state and b its bf16 form,

        |w h - q b|  <=  |r| |h| + |q| |h - b|                                              (Cauchy-Schwarz)

    and the kernel adds its own rounding: fp32 sums (1e-4 |q| |h| is ample for rows below 10^4 numbers) and a bf16
    result (2^-8 of it). An output whose upper bound lies below another one's lower bound can't be the largest.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        """`weight` `[out, in]`, fp32; kept, not copied."""
        self._exact = weight
        scales = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).bfloat16()
        wide = scales.float().unsqueeze(1)
        self._weight = (weight / wide).round_().clamp_(-127, 127).to(torch.int8)
        self._scales = scales
        rounded = self._weight.float().mul_(wide)
        self._norms = rounded.norm(dim=1)
        self._rests = (weight - rounded).norm(dim=1) + 1e-4 * self._norms

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[1, in]` to `[1, out]`: exact where the largest may be, within the bound elsewhere and smaller than it."""
        short = hidden.bfloat16()
        rough: torch.Tensor = torch.ops.aten._weight_int8pack_mm(short, self._weight, self._scales)[0].float()
        bound = self._rests * hidden.norm()
        bound.add_(self._norms * (hidden - short.float()).norm()).add_(rough.abs(), alpha=2**-8)
        able = (rough + bound >= (rough - bound).max()).nonzero()[:, 0]
        if not len(able):  # not a number, or infinite: nothing can be said
            exact: torch.Tensor = nn.functional.linear(hidden, self._exact)
            return exact
        rough[able] = self._exact[able] @ hidden[0]
        return rough.unsqueeze(0)


def faster(
    one: Callable[[torch.Tensor], torch.Tensor], other: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor,
    clock: Callable[[], float] = time.thread_time,
) -> bool:  # fmt: skip
    """Whether `one` takes less CPU time than `other` on this machine, by the medians of alternated runs."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(5):
        for spent, function in zip(seconds, (one, other), strict=True):
            began = clock()
            function(x)
            spent.append(clock() - began)
    return statistics.median(seconds[0]) < statistics.median(seconds[1])
