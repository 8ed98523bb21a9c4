"""What a backward pass needs of memory, measured, so that one which doesn't fit is refused before it begins.

A forward of a span keeps nothing but keys and values. A backward keeps what every operation of every block will ask
for, a hundred times a row's own size and more, and on a CPU memory that isn't there ends the process instead of
raising an error. So short passes are run when a node starts and their peaks measured; what `n` rows take is
`fixed + n * row + n^2 * pair` bytes (the last for attention that is written out).
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hivemint.node.kv.cache import free_share
from hivemint.node.span import memory
from hivemint.node.unable import Unable
from hivemint.swarm.messages import Code

LONGEST_PROBE = 64
"""Rows of the longest pass that is measured. A half and a quarter of it are the others: three settle three terms."""


@dataclass(frozen=True)
class Need:
    """Bytes of a backward pass: `fixed + rows * row + rows^2 * pair`."""

    fixed: float = 0.0
    row: float = 0.0
    pair: float = 0.0

    def bytes_for(self, rows: int) -> int:
        return int(self.fixed + rows * self.row + rows * rows * self.pair)

    def most_rows(self, room: int, limit: int) -> int:
        """The longest pass of up to `limit` rows that fits `room` bytes; 0: none does."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.bytes_for(middle) <= room:
                low = middle
            else:
                high = middle - 1
        return low

    def check(self, rows: int, device: torch.device) -> None:
        """Raises NoMemory if the pass doesn't fit what is free now. A GPU says so itself when it is tried."""
        if device.type == "cuda":
            return
        needed, room = self.bytes_for(rows), free_share(device)
        if needed > room:
            raise NoMemory(
                "No memory for a backward pass now",
                why=f"{rows} rows take {needed >> 20} MB, {room >> 20} are free",
                next_step="try again later, or train on shorter sequences",
            )


NOTHING = Need()


class NoMemory(Unable):
    """A pass doesn't fit the memory that is free. Nothing was changed."""

    code = Code.BUSY
    retry_after = 1.0


class Trains(Protocol):
    """`span.Span`, as far as it is measured."""

    hidden_size: int
    max_positions: int
    device: torch.device

    def backward(self, hidden: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor: ...


def measure(span: Trains) -> Need:
    """What passes of this span take. Takes the time of three short ones."""
    longest = min(LONGEST_PROBE, span.max_positions)
    probes = sorted({max(1, longest // 4), max(1, longest // 2), longest})
    peaks = []
    for rows in probes:
        hidden, gradient = torch.zeros(2, 1, rows, span.hidden_size)
        peaks.append(_peak(partial(span.backward, hidden, gradient), span.device))
    memory.trim()  # what the passes took (60 MB for 15 blocks of SmolLM2) would stay with the process
    return fit(probes, peaks)


def fit(probes: list[int], peaks: list[float]) -> Need:
    """The terms that give `peaks` at `probes` rows; none below 0, so that no length is promised for nothing."""
    if len(probes) < 3:  # a model of three positions
        return Need(row=max(peaks))
    (n0, n1, n2), (p0, p1, p2) = probes, peaks
    pair = max(0.0, ((p2 - p1) / (n2 - n1) - (p1 - p0) / (n1 - n0)) / (n2 - n0))
    row = max(0.0, (p2 - p1) / (n2 - n1) - pair * (n1 + n2))
    return Need(max(0.0, p2 - row * n2 - pair * n2 * n2), row, pair)


def _peak(run: Callable[[], object], device: torch.device) -> float:
    """Most bytes of tensors that lived at once while `run` ran, those of before not counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    with _Counting() as counting:
        run()
    return float(counting.peak)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation makes, until nothing refers to it any more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in map(_storage, args) if storage}  # a view of a weight is nothing new
        for one in result if isinstance(result, tuple | list) else (result,):
            if (storage := _storage(one)) and storage._cdata not in given | self._known:
                self._note(storage)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _storage(value: object) -> torch.UntypedStorage | None:
    return value.untyped_storage() if isinstance(value, torch.Tensor) and value.layout is torch.strided else None
