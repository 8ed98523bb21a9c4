"""Reads a span's tensors from safetensors files, one at a time, when they are asked for."""

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch

from hivemint.model.anatomy import TensorEntry
from hivemint.protocol.errors import ModelError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

Check = Callable[[str, memoryview], None]
"""Called with each tensor's name and stored bytes before they are used; raises to refuse them."""

_TORCH_DTYPE = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Reader:
    """Reads tensors with plain reads, so that no mapped file pages count as this process's memory."""

    def __init__(self, total: int, on_progress: Progress | None, check: Check | None) -> None:
        self.total, self.done, self.on_progress, self.check = total, 0, on_progress, check
        self._lock = Lock()  # transformers reads in several threads

    def read(self, entry: TensorEntry) -> torch.Tensor:
        if entry.dtype not in _TORCH_DTYPE:
            raise ModelError(f"{entry.name} is stored as {entry.dtype}", why="such weights can't be served")
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        with entry.file.open("rb", buffering=0) as stream:
            stream.seek(entry.offset)
            array: Any = raw.numpy()
            view, filled = memoryview(array), 0
            while filled < entry.nbytes and (got := stream.readinto(view[filled:])):
                filled += got
        if filled != entry.nbytes:
            raise ModelError(f"{entry.file} is damaged", why=f"{entry.name} ends early", next_step="fetch it again")
        if self.check is not None:
            self.check(entry.name, view)
        with self._lock:
            self.done += entry.nbytes
            if self.on_progress is not None:
                self.on_progress(self.done, self.total)
        return raw.view(_TORCH_DTYPE[entry.dtype]).view(entry.shape)


class LazyTensor:
    """A tensor that is read when transformers slices it, as it does with its own safetensors slices."""

    def __init__(self, entry: TensorEntry, reader: Reader) -> None:
        self._entry, self._reader = entry, reader

    def __getitem__(self, _: object) -> torch.Tensor:
        return self._reader.read(self._entry)
