"""For families whose attention can't be replaced (ALiBi, own code): one session a forward, over the same K/V store."""

from typing import Any

import torch
from transformers import Cache

from hivemint.node.kv.shape import KvShape
from hivemint.node.span.packing import Part


class SessionCache(Cache):
    """One session's K/V memory as the cache object that transformers' layers update."""

    def __init__(self, part: Part) -> None:
        super().__init__(layers=[])
        self._part = part

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new rows `[1, kv_heads, count, d]` and hand back the whole history."""
        kv = self._part.kv
        kv.write(layer_idx, key_states[0], value_states[0])
        return kv.read(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._part.start

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._part.end, 0

    def get_query_offset(self, layer_idx: int | None = None) -> int:
        return self._part.start


class ShapeCache(Cache):
    """Keeps nothing, but notes what each layer would keep."""

    def __init__(self, shapes: dict[int, KvShape]) -> None:
        super().__init__(layers=[])
        self._shapes = shapes

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._shapes[layer_idx] = KvShape(key_states.shape[1], key_states.shape[3], value_states.shape[3])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, layer_idx: int | None = None) -> int:
        return 0
