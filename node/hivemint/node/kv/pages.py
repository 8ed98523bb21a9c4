"""Paged memory for keys and values on devices that commit memory at once, and the plan of a step over it.

One tensor a block holds all sessions' pages; a session owns a list of page numbers. Taking a page copies nothing,
crop is a number, and any page serves any session, so nothing fragments. Sessions that begin alike may read the same
pages; who writes to one that others read takes a page of its own first. Page 0 is nobody's: padding rows of a captured
step write there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from hivemint.node.kv.shape import KvShape

PAGE = 64
"""Tokens a page. 64 tokens of one head (64 x 32 fp32 at least) fill whole 4 KiB pages of the system."""

Table = np.ndarray[Any, np.dtype[np.int32]]
"""A session's page numbers, in the order of its tokens."""

EMPTY: Table = np.empty(0, np.int32)


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)


class PagePool:
    """Memory of `pages` pages in every block: keys `[pages + 1, heads, PAGE, key_dim]`, values alike."""

    def __init__(self, shapes: Sequence["KvShape"], pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes, self.pages = tuple(shapes), pages
        self.dtype, self.device = dtype, device
        room: dict[str, Any] = {"dtype": dtype, "device": device}
        self.keys = [torch.empty(pages + 1, s.heads, PAGE, s.key_dim, **room) for s in shapes]
        self.values = [torch.empty(pages + 1, s.heads, PAGE, s.value_dim, **room) for s in shapes]
        self.forwards: dict[Any, Any] = {}
        """Forwards captured over this memory, by decoder (`graphs.py`)."""
        self._free = list(range(pages, 0, -1))
        self._readers = np.zeros(pages + 1, np.int32)  # sessions that a page belongs to

    def take(self, count: int) -> Table:
        """The numbers of `count` pages that nobody has. The store has counted before that there are as many."""
        if not count:
            return EMPTY
        taken = np.array(self._free[-count:], np.int32)
        del self._free[-count:]
        self._readers[taken] = 1
        return taken

    def share(self, table: Table) -> None:
        """One more session reads these pages."""
        self._readers[table] += 1

    def shared(self, table: Table) -> Table:
        """At which places of `table` stand pages that other sessions read too."""
        return np.flatnonzero(self._readers[table] > 1).astype(np.int32)

    def give_back(self, table: Table) -> int:
        """One session less for each of these pages. How many are free by that."""
        self._readers[table] -= 1
        free = table[self._readers[table] == 0].tolist()
        self._free.extend(free)
        return len(free)

    def copy(self, page: int, to: int) -> None:
        """Copy a page in all blocks."""
        for memory in (*self.keys, *self.values):
            memory[to] = memory[page]


class PagedView:
    """One session's pages for one step that adds positions `start .. end - 1`."""

    def __init__(self, pool: PagePool, table: Table, start: int, end: int) -> None:
        self.pool, self.table = pool, table
        self.start, self.end = start, end
        self._where: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the step's rows `[heads, count, dim]` of one block."""
        page, offset, _ = self._places()
        self.pool.keys[layer][page, :, offset] = keys.transpose(0, 1)
        self.pool.values[layer][page, :, offset] = values.transpose(0, 1)

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of positions `0 .. end - 1`, gathered: `[1, heads, end, dim]` each."""
        table = self._places()[2]
        keys, values = (
            memory[table].transpose(0, 1).reshape(1, memory.shape[1], -1, memory.shape[3])[:, :, : self.end]
            for memory in (self.pool.keys[layer], self.pool.values[layer])
        )
        return keys, values

    def _places(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Page and offset of each new row, and all pages in use; made once a step, on the device."""
        if self._where is None:
            used = torch.from_numpy(self.table[: -(-self.end // PAGE)].astype(np.int64)).to(self.pool.device)
            at = torch.arange(self.start, self.end, device=self.pool.device)
            self._where = used[at // PAGE], at % PAGE, used
        return self._where


@dataclass(frozen=True, eq=False)
class PagePlan:
    """Where each row of a step belongs, for the kernels: one int32 vector on the device.

    `[width, position of each row, session of each row, page numbers of each session (width each)]`.
    """

    numbers: torch.Tensor
    rows: int

    def positions(self) -> torch.Tensor:
        """`[1, rows]`, as transformers' decoders take them."""
        return self.numbers[1 : self.rows + 1].unsqueeze(0).long()


def plan_numbers(parts: Sequence[tuple[int, int, Table]], padded: int = 0) -> Table:
    """A plan of parts (start, end, pages), padded to `padded` rows; padding rows are position 0 of page 0."""
    padded = max(padded, sum(end - start for start, end, _ in parts))
    sessions = len(parts)
    width = max(-(-end // PAGE) for _, end, _ in parts)
    numbers = np.zeros(plan_size(padded, sessions, width), np.int32)
    numbers[0] = width
    place = 1 + 2 * padded
    for _, end, table in parts:
        used = -(-end // PAGE)
        numbers[place : place + used] = table[:used]
        place += width
    row = 1 + sum(end - start for start, end, _ in parts)
    if row == sessions + 1:  # a decode step: the usual case, and the one in a hurry
        numbers[1:row] = [start for start, _, _ in parts]
        numbers[padded + 1 : padded + row] = np.arange(sessions)
    else:
        numbers[1:row] = np.concatenate([np.arange(start, end) for start, end, _ in parts])
        numbers[padded + 1 : padded + row] = np.repeat(np.arange(sessions), [end - start for start, end, _ in parts])
    numbers[padded + row : 2 * padded + 1] = sessions
    return numbers


def plan_size(rows: int, sessions: int, width: int) -> int:
    """Numbers in a plan: one more session than there are stands for the padding."""
    return 1 + 2 * rows + (sessions + 1) * width
