"""One session's K/V memory in one piece, on devices that commit memory as it is written."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from hivemint.node.kv.shape import KvShape

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


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


class Slot:
    """Room for `capacity` tokens in every block. It is only addressed; the system commits it as it is written."""

    def __init__(self, shapes: Sequence["KvShape"], dtype: torch.dtype, capacity: int) -> None:
        """Raises OSError and OverflowError for more than can be addressed."""
        size = capacity * sum(shape.elements for shape in shapes) * dtype.itemsize
        self._mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        flat = torch.frombuffer(self._mapping, dtype=torch.uint8).view(dtype)
        self._keys: list[torch.Tensor] = []  # per block [1, heads, capacity, key_dim]
        self._values: list[torch.Tensor] = []
        self._all: torch.Tensor | None = None  # where all blocks are alike: [blocks, 2, 1, heads, capacity, dim]
        if len(set(shapes)) == 1 and shapes[0].key_dim == shapes[0].value_dim:
            self._all = flat.view(len(shapes), 2, 1, shapes[0].heads, capacity, shapes[0].key_dim)
        start = 0
        for shape in shapes:
            middle = start + shape.heads * capacity * shape.key_dim
            end = middle + shape.heads * capacity * shape.value_dim
            self._keys.append(flat[start:middle].view(1, shape.heads, capacity, shape.key_dim))
            self._values.append(flat[middle:end].view(1, shape.heads, capacity, shape.value_dim))
            start = end

    def view(self, start: int, end: int) -> KvView:
        """Positions `start .. end - 1` to write, `0 .. end - 1` to read."""
        if self._all is not None:  # a handful of operations for all blocks together
            pairs = self._all[:, :, :, :, :end].unbind(1)
            return KvView(self._all[:, :, 0, :, start:end].unbind(0), None, pairs[0].unbind(0), pairs[1].unbind(0))
        keys = [block[:, :, :end] for block in self._keys]
        values = [block[:, :, :end] for block in self._values]
        return KvView([block[0, :, start:] for block in keys], [block[0, :, start:] for block in values], keys, values)

    def rows(self, count: int) -> list[torch.Tensor]:
        """All that is kept of the first `count` tokens."""
        if self._all is not None:
            return [self._all[:, :, :, :, :count]]
        return [block[:, :, :count] for block in (*self._keys, *self._values)]

    def clear(self) -> None:
        """Give what was written back to the system; it may be written again."""
        self._mapping.madvise(mmap.MADV_DONTNEED)
