"""A span: consecutive blocks of one model, loaded, and run over packed steps of many sessions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hivemint.contracts.ids import BlockIndex
from hivemint.node import loader
from hivemint.node.batch import Packing, Work, check
from hivemint.node.kv_cache import KvShape, KvStore
from hivemint.swarm.anatomy import Anatomy

__all__ = ["Span", "Work"]


class Span:
    """Blocks `first .. end - 1` of a model in one dtype on one device. One thread at a time may call `run`."""

    def __init__(
        self,
        decoder: PreTrainedModel,
        anatomy: Anatomy,
        first: BlockIndex,
        dtype: torch.dtype,
        device: torch.device,
        shapes: list[KvShape],
    ) -> None:
        self._decoder, self._shapes = decoder, shapes
        self.anatomy = anatomy
        self.first, self.end = first, BlockIndex(first + len(shapes))
        self.hidden_size: int = decoder.config.hidden_size
        self.dtype, self.device = dtype, device
        self.num_blocks_of_model = anatomy.num_blocks
        self.max_positions = anatomy.max_positions

    @classmethod
    def load(
        cls,
        folder: Path,
        first: BlockIndex,
        end: BlockIndex,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        on_progress: loader.Progress | None = None,
    ) -> "Span":
        """Read a span from a Hugging Face folder of safetensors; `on_progress(bytes_done, bytes_in_all)`.

        Raises ModelError: folder missing or damaged, span outside the model, family without a passing test.
        """
        anatomy = Anatomy.read(folder)
        decoder = loader.load_decoder(anatomy, first, end, dtype, device, on_progress)
        place = torch.device(device)
        shapes = loader.check_decoder(decoder, dtype, place)
        if place.type == "cpu":
            loader.quicken(decoder, dtype)
        return cls(decoder, anatomy, first, dtype, place, shapes)

    def new_store(self, budget_bytes: int | None = None) -> KvStore:
        """Room for sessions' keys and values. None: half of the free memory (four fifths on a GPU)."""
        return KvStore(self._shapes, self.dtype, self.device, budget_bytes)

    def run(self, batch: Sequence[Work]) -> list[torch.Tensor]:
        """One forward for all of `batch`: prefill chunks, decode and verify steps mixed. Outputs `[count, hidden]`.

        Keys and values of the new tokens are written and `cache.length` becomes `start + count`. Raises BadWork or
        OutOfRoom before anything has been computed; pages taken by then stay with their sessions.
        """
        if not batch:
            return []
        check(batch, self.hidden_size, self.max_positions)
        for work in batch:
            work.cache.reserve(work.end)
        for work in batch:
            work.cache.crop(work.start)
        packing = Packing(batch, self.dtype, self.device)
        with torch.inference_mode():
            rows = batch[0].hidden if len(batch) == 1 else torch.cat([work.hidden for work in batch])
            output = self._forward(rows.to(self.device, self.dtype), packing)
        for work in batch:
            work.cache.length = work.end
        return list(torch.split(output, packing.counts))

    def _forward(self, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Packed rows `[T, hidden]` through the library's own decoder."""
        output = self._decoder(
            inputs_embeds=rows.unsqueeze(0), position_ids=packing.positions(), use_cache=False, packing=packing
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden
