"""The K/V store: one budget in bytes, pages taken as tokens come.

On a CPU a session's keys and values lie contiguous for each head, as attention is fastest over a plain slice: room
for `max_tokens` is only addressed when a session opens, and the system commits memory as pages are written. On other
devices all pages are allocated at once (`pages.py`). Either way the store counts pages: `bytes_used` is what is taken.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import psutil
import torch

from hivemint.contracts.errors import HivemintError
from hivemint.node.pages import EMPTY, PAGE, PagedView, PagePool, Table

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
CPU_SHARE, GPU_SHARE = 0.5, 0.8


class OutOfRoom(HivemintError):
    """The K/V budget cannot hold the tokens that were asked for. Nothing was changed."""


@dataclass(frozen=True)
class KvShape:
    """What one block keeps for a token: `heads` keys of `key_dim` and values of `value_dim` elements."""

    heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_dim + self.value_dim)


class KvStore:
    """A node's room for keys and values. Counting is thread-safe; writing is the compute thread's alone."""

    def __init__(
        self, shapes: Sequence[KvShape], dtype: torch.dtype, device: torch.device, budget_bytes: int | None = None,
        paged: bool | None = None,
    ) -> None:  # fmt: skip
        """`paged`: whether memory is one pool of pages; None: everywhere but on CPUs."""
        self.shapes = tuple(shapes)
        self.dtype, self.device = dtype, device
        self.bytes_per_token = sum(shape.elements for shape in self.shapes) * dtype.itemsize
        budget = free_share(device) if budget_bytes is None else budget_bytes
        self._page_bytes = self.bytes_per_token * PAGE
        self._pages_total = budget // self._page_bytes
        self._pages_taken = 0
        self._lock = Lock()
        self.pool: PagePool | None = None
        if device.type != "cpu" if paged is None else paged:
            try:
                self.pool = PagePool(self.shapes, self._pages_total, dtype, device)
            except torch.OutOfMemoryError as problem:
                why, next_step = str(problem)[:200], "set a smaller budget"
                raise OutOfRoom(f"{budget} bytes of K/V don't fit {device}", why=why, next_step=next_step) from problem

    @property
    def tokens_total(self) -> int:
        return self._pages_total * PAGE

    @property
    def tokens_free(self) -> int:
        """Tokens in pages that nobody has taken. A session may use the rest of its last page besides."""
        return (self._pages_total - self._pages_taken) * PAGE

    @property
    def bytes_used(self) -> int:
        return self._pages_taken * self._page_bytes

    def open(self, max_tokens: int) -> "KvCache":
        """An empty cache for up to `max_tokens`; takes no page yet. Raises OutOfRoom if it could never fill."""
        if max_tokens < 1:
            raise ValueError(f"a cache holds at least one token, not {max_tokens}")
        if pages_for(max_tokens) > self._pages_total:
            raise OutOfRoom(
                f"no room for a session of {max_tokens} tokens",
                why=f"this node keeps {self.tokens_total} tokens in all",
                next_step="ask for fewer tokens, or another node",
            )
        if self._pages_taken >= self._pages_total:
            raise OutOfRoom("no room for another session", why="every K/V page is taken", next_step="try again later")
        return KvCache(self, max_tokens)

    def _take(self, pages: int) -> Table:
        with self._lock:
            if pages > self._pages_total - self._pages_taken:
                raise OutOfRoom(
                    f"no room for {pages * PAGE} more tokens",
                    why=f"{self.tokens_free} of {self.tokens_total} tokens are free",
                    next_step="try again when a session has closed",
                )
            self._pages_taken += pages
            return EMPTY if self.pool is None else self.pool.take(pages)

    def _give_back(self, pages: int, table: Table) -> None:
        with self._lock:
            self._pages_taken -= pages
            if self.pool is not None:
                self.pool.give_back(table)


class KvCache:
    """One session's keys and values in every block of the span. `length` tokens are valid.

    Never evict or close it while a step of its session runs: the step writes to the memory that is given back.
    """

    def __init__(self, store: KvStore, max_tokens: int) -> None:
        self.length = 0
        self.max_tokens = max_tokens
        self.pages = 0
        self._keys: list[torch.Tensor] = []  # per block [1, heads, capacity, key_dim]
        self._values: list[torch.Tensor] = []
        self._all: torch.Tensor | None = None  # where all blocks are alike: [blocks, 2, 1, heads, capacity, dim]
        self.pool = store.pool
        self.table = EMPTY
        """Page numbers, where memory is one pool of pages."""
        self._store = store
        self._mapping: mmap.mmap | None = None
        self._open = True
        if self.pool is None:
            self._map()

    def __len__(self) -> int:
        return self.length

    def reserve(self, length: int) -> None:
        """Take the pages that `length` tokens need. Raises OutOfRoom and changes nothing if there are too few."""
        if not self._open:
            raise OutOfRoom("the session's cache is closed", next_step="open a new session")
        if length > self.max_tokens:
            raise OutOfRoom(
                f"{length} tokens don't fit this session", why=f"it was opened for {self.max_tokens}",
                next_step="open a new session with a higher limit",
            )  # fmt: skip
        needed = pages_for(length)
        if needed <= self.pages:
            return
        fresh = self._store._take(needed - self.pages)
        if len(fresh):
            self.table = np.concatenate((self.table, fresh))
        self.pages = needed

    def view(self, start: int, end: int) -> "KvView | PagedView":
        """The memory for one step: positions `start .. end - 1` to write, `0 .. end - 1` to read."""
        if self.pool is not None:
            return PagedView(self.pool, self.table, start, end)
        if self._all is not None:  # a handful of operations for all blocks together
            pairs = self._all[:, :, :, :, :end].unbind(1)
            return KvView(self._all[:, :, 0, :, start:end].unbind(0), None, pairs[0].unbind(0), pairs[1].unbind(0))
        keys = [block[:, :, :end] for block in self._keys]
        values = [block[:, :, :end] for block in self._values]
        return KvView([block[0, :, start:] for block in keys], [block[0, :, start:] for block in values], keys, values)

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on. O(1); the pages stay with the session."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} tokens to {length}")
        self.length = length

    def evict(self) -> None:
        """Forget everything and give the room back; the session may fill it again later."""
        self.length = 0
        self._store._give_back(self.pages, self.table)
        self.pages, self.table = 0, EMPTY
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give the room back for good. Closing twice is harmless."""
        if self._open:
            self.evict()
            self._open = False
            self._mapping = None
            self._forget()

    def _map(self) -> None:
        """Address room for `max_tokens`; the system commits it page by page as it is written."""
        capacity = pages_for(self.max_tokens) * PAGE
        size = capacity * self._store.bytes_per_token
        try:
            self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        except (OSError, OverflowError) as problem:
            raise OutOfRoom(f"cannot address {size} bytes of K/V", why=str(problem)) from problem
        flat = torch.frombuffer(self._mapping, dtype=torch.uint8).view(self._store.dtype)
        self._carve(flat, capacity)

    def _carve(self, flat: torch.Tensor, capacity: int) -> None:
        self._forget()
        shapes = self._store.shapes
        if len(set(shapes)) == 1 and shapes[0].key_dim == shapes[0].value_dim:
            self._all = flat.view(len(shapes), 2, 1, shapes[0].heads, capacity, shapes[0].key_dim)
        start = 0
        for shape in shapes:
            middle = start + shape.heads * capacity * shape.key_dim
            end = middle + shape.heads * capacity * shape.value_dim
            self._keys.append(flat[start:middle].view(1, shape.heads, capacity, shape.key_dim))
            self._values.append(flat[middle:end].view(1, shape.heads, capacity, shape.value_dim))
            start = end

    def _forget(self) -> None:
        self._keys, self._values, self._all = [], [], None


@dataclass(frozen=True, eq=False)
class KvView:
    """One session's K/V memory for one step, a tensor a block.

    `keys`, `values`: `[1, heads, end, dim]` to attend over. `new`: where the step's rows belong, `[2, heads, count,
    dim]` (keys, then values), or, if blocks differ, `[heads, count, dim]` for the keys and `new_values` beside it.
    """

    new: Sequence[torch.Tensor]
    new_values: Sequence[torch.Tensor] | None
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the step's rows `[heads, count, dim]` of one block."""
        if self.new_values is None:
            self.new[layer].copy_(torch.stack((keys, values)))
        else:
            self.new[layer].copy_(keys)
            self.new_values[layer].copy_(values)

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of positions `0 .. end - 1`: `[1, heads, end, dim]` each."""
        return self.keys[layer], self.values[layer]


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)


def free_share(device: torch.device) -> int:
    """Bytes that a node may sensibly give to K/V: half of the free memory, on a GPU four fifths."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return int(free_memory() * CPU_SHARE)


def free_memory() -> int:
    """Free bytes of this machine, or of this control group if that has fewer."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group with a limit: the machine's answer stands
        pass
    return max(free, 0)
