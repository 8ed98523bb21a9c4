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

_GROUP, _LARGE = 256, 16
"""Outputs whose bounds are compared at once; numbers of a hidden state that keep their exact weights."""
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
        self._weight: torch.Tensor = linear.weight.detach()
        self._bias: torch.Tensor | None = None if linear.bias is None else linear.bias.detach()
        self._making = threading.Lock()
        self._packed: torch.Tensor | None = None
        self._screen: Screen | None = None
        self._screens = self._bias is None
        self._here = True
        """Whether the ways of fp32 on a CPU can be gone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _largest_only.get() and x.numel() == x.shape[-1] and self._screens:
            with self._making:
                if self._screen is None:
                    self._screen = Screen(self._weight, x.view(1, -1))
                    self._screens = faster(self._screen.logits, self._exact, x.view(1, -1))
            return self._screen.logits(x.view(1, -1)).view(*x.shape[:-1], -1)
        return self._exact(x)

    @property
    def weight(self) -> torch.Tensor:
        """`[out, in]`, frozen."""
        return self._weight

    def place(self, weight: torch.Tensor) -> None:
        """Go on with the same weights at another device or in another precision. Not while others compute."""
        with self._making:
            self._weight = weight
            self._bias = None if self._bias is None else self._bias.to(weight.device, weight.dtype)
            self._packed = self._screen = None
            self._here = weight.device.type == "cpu" and weight.dtype == torch.float32
            self._screens = self._here and self._bias is None

    def _exact(self, x: torch.Tensor) -> torch.Tensor:
        wants_gradient = torch.is_grad_enabled() and x.requires_grad
        if wants_gradient or not self._here or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return nn.functional.linear(x, self._weight, self._bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, 1)
        logits: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return logits


class Screen:
    """Which outputs of a linear can be the largest, by an 8-bit copy of its weight and of the hidden state.

    A few numbers of a hidden state are far larger than the rest, and in a language model always the same ones: these
    keep their exact weights. Of the rest, with w = q + r (q the rounded row, r what rounding took) and h = b + e,

        |w h - q b|  <=  |r| |h| + |q| |e|                                                  (Cauchy-Schwarz)

    while q b itself is a sum of integers. 1e-5 of |w| |h| is ample for the rounding of the few sums in fp32. An output
    whose upper bound lies below another one's lower bound can't be the largest. Upper bounds are compared by groups
    first: to list the few that are left among all takes longer than to compute all bounds.
    """

    def __init__(self, weight: torch.Tensor, hidden: torch.Tensor) -> None:
        """`weight` `[out, in]`, fp32; kept, not copied. `hidden` `[1, in]`: any, to see which numbers are large."""
        self._exact = weight
        self._large = hidden[0].abs().topk(min(_LARGE, weight.shape[1])).indices
        more = -len(weight) % _GROUP
        few = nn.functional.pad(weight, (0, 0, 0, more))
        self._few = few[:, self._large].T.contiguous()
        rest = few.index_fill_(1, self._large, 0.0)
        self._scales = (rest.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        short = (rest / self._scales.unsqueeze(1)).round_()
        self._weight = short.to(torch.int8)
        rounded = short.mul_(self._scales.unsqueeze(1))
        self._norms = rounded.norm(dim=1)
        self._rests = rest.sub_(rounded).norm(dim=1)
        self._rests[len(weight) :] = -torch.inf  # what is padded can't be the largest
        self._largest_row = float(weight.norm(dim=1).max())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[1, in]` to `[1, out]`: exact where the largest may be, within the bound elsewhere and smaller than it."""
        count = len(self._exact)
        rough, bound = self._rough(hidden)
        lower = float((rough[:count] - bound[:count]).max())
        able = _reaching(bound.add_(rough), lower - 2e-5 * self._largest_row * float(hidden.norm()))
        if not len(able):  # not a number, or infinite: nothing can be said
            exact: torch.Tensor = nn.functional.linear(hidden, self._exact)
            return exact
        rough[able] = self._exact[able] @ hidden[0]
        return rough[:count].unsqueeze(0)

    def _rough(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs, padded, and how far each may be off, but for the rounding of sums."""
        rest = hidden.index_fill(1, self._large, 0.0)
        step = float((rest.abs().max() / 127).clamp_min(torch.finfo(torch.float32).tiny))
        short = (rest / step).round_()
        sums: torch.Tensor = torch._int_mm(short.to(torch.int8), self._weight.T)[0]
        exact = hidden[0, self._large] @ self._few
        rough = torch.addcmul(exact, sums.float(), self._scales, value=step)
        rounding = float(torch.sub(rest, short, alpha=step).norm())
        return rough, torch.mul(self._rests, rest.norm()).add_(self._norms, alpha=rounding)


def _reaching(values: torch.Tensor, limit: float) -> torch.Tensor:
    """Where `values` `[n]` are at least `limit`; `n` is a multiple of `_GROUP`."""
    groups = values.view(-1, _GROUP)
    high = (groups.amax(1) >= limit).nonzero()[:, 0]
    found = (groups[high] >= limit).nonzero()
    return high[found[:, 0]] * _GROUP + found[:, 1]


def faster(
    one: Callable[[torch.Tensor], torch.Tensor],
    other: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    clock: Callable[[], float] = time.thread_time,
) -> bool:
    """Whether `one` takes less CPU time than `other` on this machine, by the medians of alternated runs."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(5):
        for spent, function in zip(seconds, (one, other), strict=True):
            began = clock()
            function(x)
            spent.append(clock() - began)
    return statistics.median(seconds[0]) < statistics.median(seconds[1])
