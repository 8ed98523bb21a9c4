"""One step over many sessions: tokens of all of them packed into one `[1, T, hidden]` forward."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hivemint.contracts.errors import HivemintError
from hivemint.node.kv_cache import KvCache, KvView


class BadWork(HivemintError):
    """A step that doesn't fit its session or span. Nothing was computed or changed."""


@dataclass(frozen=True, eq=False)
class Work:
    """One session's part of a step: `hidden` `[count, hidden_size]` for positions `start .. start + count - 1`.

    `start` <= `cache.length`; a smaller start crops the cache first (rollback, rejected drafts).
    """

    cache: KvCache
    start: int
    hidden: torch.Tensor

    @property
    def count(self) -> int:
        return self.hidden.shape[0]

    @property
    def end(self) -> int:
        return self.start + self.hidden.shape[0]


@dataclass(frozen=True, eq=False)
class Part:
    """One session's rows in the forward: positions `start .. end - 1`, over its own K/V memory."""

    start: int
    end: int
    kv: KvView


class Packing:
    """The layout of one packed forward: parts in the order of the rows, and masks that layers share."""

    def __init__(self, batch: Sequence[Work], dtype: torch.dtype, device: torch.device) -> None:
        self.parts = [Part(work.start, work.end, work.cache.view(work.start, work.end)) for work in batch]
        self.counts = [work.count for work in batch]
        self.joint = all(part.kv.new_values is None for part in self.parts)
        """Whether each part's keys and values are written by one copy."""
        self.angles: torch.Tensor | None = None
        """Rope's complex factors, kept by the first layer for the others."""
        self._dtype, self._device = dtype, device
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}

    def positions(self) -> torch.Tensor:
        """Position ids `[1, T]`."""
        if len(self.counts) == sum(self.counts):
            return torch.tensor([[part.start for part in self.parts]], device=self._device)
        ranges = [torch.arange(part.start, part.end, device=self._device) for part in self.parts]
        return torch.cat(ranges).unsqueeze(0)

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
    for work in batch:
        shape = tuple(work.hidden.shape)
        if work.hidden.dim() != 2 or shape[1] != hidden_size or shape[0] < 1 or not work.hidden.is_floating_point():
            raise BadWork(
                f"hidden states of shape {shape}, {work.hidden.dtype}, can't be run",
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
        seen.add(id(work.cache))
