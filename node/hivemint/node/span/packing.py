"""One step over many sessions: tokens of all of them packed into one `[1, T, hidden]` forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from hivemint.node.kv.cache import KvCache
from hivemint.node.kv.contiguous import KvView
from hivemint.node.kv.pages import EMPTY, PagedView, PagePlan, PagePool, Table, plan_numbers
from hivemint.node.span import kernels
from hivemint.node.span.lora import Adapter, Share
from hivemint.protocol.errors import HivemintError


class BadWork(HivemintError):
    """A step that doesn't fit its session or span. Nothing was computed or changed."""


@dataclass(frozen=True, eq=False)
class Work:
    """One session's part of a step: `hidden` `[count, hidden_size]` for positions `start .. start + count - 1`.

    `start` <= `cache.length`; a smaller start crops the cache first (rollback, rejected drafts). `adapter`: what its
    client has loaded for it.
    """

    cache: KvCache
    start: int
    hidden: torch.Tensor
    adapter: Adapter | None = None

    @cached_property
    def count(self) -> int:
        return self.hidden.shape[0]

    @cached_property
    def end(self) -> int:
        return self.start + self.count


@dataclass(frozen=True, eq=False)
class Part:
    """One session's rows in the forward: positions `start .. end - 1`, over its own K/V memory."""

    start: int
    end: int
    kv: KvView | PagedView
    adapter: Adapter | None = None

    @property
    def table(self) -> Table:
        """The session's pages. Only where memory is paged."""
        return self.kv.table if isinstance(self.kv, PagedView) else EMPTY


@dataclass(frozen=True, eq=False)
class Paged:
    """A step as the kernels see it: where all rows belong, and the rows that attend one by one.

    `short` is `plan` if all do, None if none does; else `short_rows` are their numbers.
    """

    pool: PagePool
    plan: PagePlan
    short: PagePlan | None
    short_rows: torch.Tensor | None = None


class Packing:
    """The layout of one packed forward: parts in the order of the rows, and masks that layers share."""

    def __init__(
        self,
        batch: Sequence[Work],
        dtype: torch.dtype,
        device: torch.device,
        fixed: tuple[PagePool, PagePlan] | None = None,
    ) -> None:
        """`fixed`: the pool and the plan of a step that is being captured, in place of a batch."""
        self.parts = [Part(work.start, work.end, work.cache.view(work.start, work.end), work.adapter) for work in batch]
        self.counts = [work.count for work in batch]
        self.single = max(self.counts, default=0) == 1
        """Whether each part is one row."""
        self.joint = all(isinstance(part.kv, KvView) and part.kv.new_values is None for part in self.parts)
        """Whether each part's keys and values are written by one copy."""
        self.angles: torch.Tensor | None = None
        """Rope's complex factors, kept by the first layer for the others."""
        self._dtype, self._device = dtype, device
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}
        self.paged = fixed and Paged(*fixed, fixed[1])
        """How the kernels see the step, on devices that have them; None: each part is written and read by itself."""
        if batch and batch[0].cache.pool is not None and kernels.available(device):
            self.paged = self._pages(batch[0].cache.pool)

    def shares(self) -> list[Share]:
        """Whose rows an adapter changes."""
        spread = zip(accumulate(self.counts), self.counts, self.parts, strict=True)
        return [(end - count, end, part.adapter) for end, count, part in spread if part.adapter]

    def positions(self) -> torch.Tensor:
        """Position ids `[1, T]`."""
        if len(self.counts) == sum(self.counts):
            return torch.tensor([[part.start for part in self.parts]], device=self._device)
        ranges = [torch.arange(part.start, part.end, device=self._device) for part in self.parts]
        return torch.cat(ranges).unsqueeze(0)

    def _pages(self, pool: PagePool) -> "Paged":
        plan = self._plan(self.parts)
        if max(self.counts) <= kernels.SHORT:
            return Paged(pool, plan, plan)
        if not (short := [part for part in self.parts if part.end - part.start <= kernels.SHORT]):
            return Paged(pool, plan, None)
        rows = [
            row
            for end, count in zip(accumulate(self.counts), self.counts, strict=True)
            for row in range(end - count, end)
            if count <= kernels.SHORT
        ]
        return Paged(pool, plan, self._plan(short), torch.tensor(rows, device=self._device))

    def _plan(self, parts: Sequence[Part]) -> PagePlan:
        numbers = plan_numbers([(part.start, part.end, part.table) for part in parts])
        return PagePlan(torch.from_numpy(numbers).to(self._device), sum(part.end - part.start for part in parts))

    def mask(self, part: Part, first_key: int, window: int) -> torch.Tensor:
        """Additive causal mask `[count, end - first_key]` for one part, 0 or -inf, kept for the other layers.

        `window` > 0 lets position p see keys p - window + 1 .. p only (transformers' rule for sliding windows).
        """
        key = (part.start, part.end, first_key, window)
        if (mask := self._masks.get(key)) is None:
            queries = torch.arange(part.start, part.end, device=self._device).unsqueeze(1)
            keys = torch.arange(first_key, part.end, device=self._device).unsqueeze(0)
            hidden = keys > queries
            if window:
                hidden |= keys <= queries - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
            mask = self._masks[key] = mask.masked_fill_(hidden, float("-inf"))
        return mask


def check(batch: Sequence[Work], hidden_size: int, max_positions: int) -> None:
    """Refuse work that can't be run, before anything is changed. Raises BadWork."""
    seen: set[int] = set()
    pool = batch[0].cache.pool
    for work in batch:
        hidden = work.hidden
        shape = hidden.shape
        if len(shape) != 2 or shape[1] != hidden_size or shape[0] < 1 or not hidden.dtype.is_floating_point:
            raise BadWork(
                f"hidden states of shape {tuple(shape)}, {hidden.dtype}, can't be run",
                why=f"expected [count >= 1, {hidden_size}] of floats",
            )
        if not 0 <= work.start <= work.cache.length:
            raise BadWork(
                f"a step that starts at position {work.start} can't be run",
                why=f"the session has {work.cache.length} tokens",
                next_step="send the tokens in between first",
            )
        if work.end > max_positions:
            raise BadWork(f"position {work.end - 1} can't be run", why=f"the model has {max_positions} positions")
        if id(work.cache) in seen:
            raise BadWork("one session can't be twice in a batch", next_step="run its steps one after the other")
        if work.cache.pool is not pool:
            raise BadWork("sessions of two stores can't be in one batch")
        seen.add(id(work.cache))
