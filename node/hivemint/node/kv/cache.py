"""The K/V store: one budget in bytes, pages taken as tokens come.

On a CPU a session's keys and values lie contiguous for each head, as attention is fastest over a plain slice: room
for `max_tokens` is only addressed when a session opens, and the system commits memory as pages are written. On other
devices all pages are allocated at once (`pages.py`). Either way the store counts pages: `bytes_used` is what is taken.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import psutil
import torch

from hivemint.node.kv.contiguous import KvView, Slot
from hivemint.node.kv.pages import EMPTY, PAGE, PagedView, PagePool, Table, pages_for
from hivemint.node.kv.shape import KvShape
from hivemint.node.unable import Unable
from hivemint.swarm.messages import Code

CPU_SHARE, GPU_SHARE = 0.5, 0.8
SPARE = 128 << 20
"""Bytes of a CPU's memory that K/V leaves to the steps under way, whatever the budget says."""
_GROUP = Path("/sys/fs/cgroup")


Blocks = tuple[int, int]
"""First block of a part of a span, and the one behind its last."""


class OutOfRoom(Unable):
    """The K/V budget cannot hold the tokens that were asked for. Nothing was changed."""

    code = Code.BUSY
    retry_after = 1.0


@dataclass(eq=False)
class Tally:
    """Pages that a group of sessions holds; one that several of them read counts once."""

    pages: int = 0


class KvStore:
    """A node's room for keys and values. Counting is thread-safe; writing is the compute thread's alone."""

    def __init__(
        self,
        shapes: Sequence[KvShape],
        dtype: torch.dtype,
        device: torch.device,
        budget_bytes: int | None = None,
        paged: bool | None = None,
    ) -> None:
        """`paged`: whether memory is one pool of pages; None: everywhere but on CPUs."""
        self.shapes = tuple(shapes)
        self.dtype, self.device = dtype, device
        self.bytes_per_token = sum(shape.elements for shape in self.shapes) * dtype.itemsize
        budget = free_share(device) if budget_bytes is None else budget_bytes
        self._page_bytes = self.bytes_per_token * PAGE
        self._pages_total = budget // self._page_bytes
        self._pages_taken = 0
        self._rest = Tally()
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

    def open(self, max_tokens: int, tally: Tally | None = None, blocks: Blocks | None = None) -> "KvCache":
        """An empty cache for up to `max_tokens`; takes no page yet. Raises OutOfRoom if it could never fill.

        `tally`: its group's count of pages. Only caches of one group can share any. `blocks`: the part of the span
        that the session asked for, counted from the span's first; a page holds all blocks nevertheless.
        """
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
        return KvCache(self, max_tokens, tally or self._rest, blocks)

    def pages_of(self, nbytes: int) -> int:
        """Pages that stand for so many bytes of something else than keys and values."""
        return -(-nbytes // self._page_bytes)

    def lend(self, pages: int, tally: Tally) -> Table:
        """Take room for something else out of the budget. Raises OutOfRoom."""
        return self._take(pages, tally)

    def take_back(self, pages: int, table: Table, tally: Tally) -> None:
        self._give_back(pages, table, tally)

    def _take(self, pages: int, tally: Tally) -> Table:
        with self._lock:
            if pages > self._pages_total - self._pages_taken:
                raise OutOfRoom(
                    f"no room for {pages * PAGE} more tokens",
                    why=f"{self.tokens_free} of {self.tokens_total} tokens are free",
                    next_step="try again when a session has closed",
                )
            if self.pool is None and (free := free_memory()) < pages * self._page_bytes + SPARE:
                raise OutOfRoom(  # the budget was made when others had taken less; the system would kill this process
                    f"no memory for {pages * PAGE} more tokens",
                    why=f"this machine has {free >> 20} MB left",
                    next_step="try again later, or another node",
                )
            self._pages_taken += pages
            tally.pages += pages
            return EMPTY if self.pool is None else self.pool.take(pages)

    def _give_back(self, pages: int, table: Table, tally: Tally) -> None:
        with self._lock:
            free = pages if self.pool is None else self.pool.give_back(table)
            self._pages_taken -= free
            tally.pages -= free


class KvCache:
    """One session's keys and values in every block of the span. `length` tokens are valid.

    Never evict or close it while a step of its session runs: the step writes to the memory that is given back.
    """

    def __init__(self, store: KvStore, max_tokens: int, tally: Tally, blocks: Blocks | None = None) -> None:
        self.length = 0
        self.blocks = blocks
        self.max_tokens = max_tokens
        self.pages = 0
        self.pool = store.pool
        self.table = EMPTY
        """Page numbers, where memory is one pool of pages."""
        self._store, self._tally = store, tally
        self._shared = 0  # pages from here on are read by this session alone
        self._open = True
        self._slot = None if self.pool is not None else self._address()

    def __len__(self) -> int:
        return self.length

    def missing(self, length: int, start: int | None = None) -> int:
        """Pages that `reserve` would take."""
        needed = pages_for(length)
        return max(0, needed - self.pages) + len(self._foreign(self.length if start is None else start, needed))

    def reserve(self, length: int, start: int | None = None) -> None:
        """Take the pages that `length` tokens need, of which those from `start` on (default: the new ones) are written.

        A page to be written that other sessions read is swapped for one of its own. Raises OutOfRoom and changes
        nothing if there are too few.
        """
        if not self._open:
            raise OutOfRoom("the session's cache is closed", next_step="open a new session")
        if length > self.max_tokens:
            raise OutOfRoom(
                f"{length} tokens don't fit this session",
                why=f"it was opened for {self.max_tokens}",
                next_step="open a new session with a higher limit",
            )
        needed, start = pages_for(length), self.length if start is None else start
        foreign = self._foreign(start, needed)
        grown = max(0, needed - self.pages)
        if not grown and not len(foreign):
            return
        fresh = self._store._take(grown + len(foreign), self._tally)
        if len(foreign):
            self._swap(foreign, fresh[: len(foreign)], start)
        if self.pool is not None:
            self.table = np.concatenate((self.table, fresh[len(foreign) :]))
        self.pages += grown

    def fork_pages(self, count: int) -> int:
        """Pages that `fork` would take: all where a session's memory is one piece, else a last one in part."""
        return pages_for(count) if self.pool is None else pages_for(count % PAGE)

    def fork(self, parent: "KvCache", count: int) -> Callable[[], None]:
        """Begin with the first `count` tokens of `parent`, in place of what is here; whole pages of a pool are shared.

        Room is taken now; the call that comes back copies what has to be copied, and is for the compute thread. Until
        it has run, neither session may be evicted or closed. Raises OutOfRoom, and then nothing is here.
        """
        kin = parent is not self and (parent._tally, parent.blocks) == (self._tally, self.blocks)
        if not kin or not 0 < count <= min(parent.length, self.max_tokens):
            raise ValueError(f"{count} tokens of a cache with {parent.length} can't begin one for {self.max_tokens}")
        self.evict()
        fresh = self._store._take(self.fork_pages(count), self._tally)
        self.length = count
        if self._slot is not None and parent._slot is not None:
            self.pages = pages_for(count)
            return partial(torch._foreach_copy_, self._slot.rows(count), parent._slot.rows(count))
        assert self.pool is not None  # noqa: S101 - memory is either
        whole = count // PAGE
        with self._store._lock:
            self.pool.share(parent.table[:whole])
        self.table = np.concatenate((parent.table[:whole], fresh))
        self.pages = len(self.table)
        self._shared, parent._shared = whole, max(parent._shared, whole)
        pairs = [(int(parent.table[whole]), int(fresh[0]))] if len(fresh) else []
        return partial(_copy_pages, self.pool, pairs)

    def view(self, start: int, end: int) -> KvView | PagedView:
        """The memory for one step: positions `start .. end - 1` to write, `0 .. end - 1` to read."""
        if self.pool is not None:
            return PagedView(self.pool, self.table, start, end)
        if self._slot is None:
            raise OutOfRoom("the session's cache is closed", next_step="open a new session")
        return self._slot.view(start, end)

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on. O(1); the pages stay with the session."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} tokens to {length}")
        self.length = length

    def evict(self) -> None:
        """Forget everything and give the room back; the session may fill it again later."""
        self._store._give_back(self.pages, self.table, self._tally)
        self.length, self.pages, self.table, self._shared = 0, 0, EMPTY, 0
        if self._slot is not None:
            self._slot.clear()

    def close(self) -> None:
        """Give the room back for good. Closing twice is harmless."""
        if self._open:
            self.evict()
            self._open, self._slot = False, None

    def _foreign(self, start: int, pages: int) -> Table:
        """Places in the table, from that of token `start` on and below `pages`, of pages that others read too."""
        first = start // PAGE
        if first >= self._shared or self.pool is None:  # nearly always
            return EMPTY
        return self.pool.shared(self.table[first : min(self._shared, pages)]) + first

    def _swap(self, places: Table, fresh: Table, start: int) -> None:
        """Own pages at these places of the table. What stands before `start` in the first one is kept."""
        assert self.pool is not None  # noqa: S101 - nothing is shared elsewhere
        table = self.table.copy()
        gone, table[places] = table[places], fresh
        if places[0] * PAGE < start:
            self.pool.copy(int(gone[0]), int(fresh[0]))
        self._store._give_back(len(gone), gone, self._tally)
        self.table = table

    def _address(self) -> Slot:
        try:
            return Slot(self._store.shapes, self._store.dtype, pages_for(self.max_tokens) * PAGE)
        except (OSError, OverflowError) as problem:
            raise OutOfRoom(f"cannot address the K/V of {self.max_tokens} tokens", why=str(problem)) from problem


def _copy_pages(pool: PagePool, pairs: list[tuple[int, int]]) -> None:
    for page, to in pairs:
        pool.copy(page, to)


def free_share(device: torch.device) -> int:
    """Bytes that a node may sensibly give to K/V: half of the free memory, on a GPU four fifths."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return int(free_memory() * CPU_SHARE)


def free_memory() -> int:
    """Free bytes of this machine, or of this control group if that has fewer. Cached files give way, so they count."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no control group with a limit: the machine's answer stands
        limit = (_GROUP / "memory.max").read_text().strip()
        if limit != "max":
            kinds = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
            files = sum(int(size) for kind, size in kinds if kind in ("active_file", "inactive_file"))
            free = min(free, int(limit) - int((_GROUP / "memory.current").read_text()) + files)
    return max(free, 0)
