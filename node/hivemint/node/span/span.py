"""A span: consecutive blocks of one model, loaded, and run over packed steps of many sessions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hivemint.model.anatomy import Anatomy
from hivemint.node.kv.cache import Blocks, KvStore
from hivemint.node.kv.pages import PagePool
from hivemint.node.kv.shape import KvShape
from hivemint.node.span import kernels, loader, memory
from hivemint.node.span.fused_decode import Decoding
from hivemint.node.span.graphs import DecodeGraphs
from hivemint.node.span.lora import Adapter, Adapters, adapted
from hivemint.node.span.packing import BadWork, Packing, Part, Work, check
from hivemint.node.span.precision import Precision
from hivemint.node.span.unpacked import SessionCache
from hivemint.node.span.weights import Check, Progress
from hivemint.protocol.ids import BlockIndex

__all__ = ["Span", "Work"]


class Span:
    """Blocks `first .. end - 1` of a model in one precision on one device. One thread at a time may call `run`."""

    def __init__(
        self,
        decoder: PreTrainedModel,
        anatomy: Anatomy,
        first: BlockIndex,
        precision: Precision,
        device: torch.device,
        shapes: list[KvShape],
    ) -> None:
        self._decoder, self._shapes = decoder, shapes
        self._parts: dict[Blocks, PreTrainedModel] = {}
        self._decodings: dict[PreTrainedModel, Decoding | None] = {}
        self.anatomy = anatomy
        self.first, self.end = first, BlockIndex(first + len(shapes))
        self.hidden_size: int = decoder.config.hidden_size
        self.precision, self.dtype, self.device = precision, precision.dtype, device
        self._layers = loader.find_layers(decoder, len(shapes))[1]
        self.packs = loader.packs(decoder)
        """Whether sessions share each forward. Some families' attention can't: theirs run one after the other."""
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
        precision: Precision | str | None = None,
        device: str = "cpu",
        on_progress: Progress | None = None,
        check: Check | None = None,
    ) -> "Span":
        """Read a span from a Hugging Face folder of safetensors; `on_progress(bytes_done, bytes_in_all)`.

        `check(name, stored_bytes)` sees each tensor before it is used and may raise: `Manifest.check_tensor` fits,
        and what it saw is what runs. It is called from several threads. `precision` (`int8/bf16`) stands above
        `dtype`, which is both of weights and computation.

        Raises ModelError: folder missing or damaged, span outside the model, family without a passing test, a
        precision that this machine or family can't do or that doesn't pay there.
        """
        if precision is None:
            precision = Precision.of(dtype)
        elif isinstance(precision, str):
            precision = Precision.parse(precision)
        anatomy = Anatomy.read(folder)
        place = torch.device(device)
        with memory.exact():
            decoder = loader.load_decoder(anatomy, (first, end), precision, device, on_progress, check)
            shapes = loader.check_decoder(decoder, precision.dtype, place)
            loader.quicken(decoder, precision, place)
        return cls(decoder, anatomy, first, precision, place, shapes)

    def new_store(self, budget_bytes: int | None = None) -> KvStore:
        """Room for sessions' keys and values. None: half of the free memory (four fifths on a GPU)."""
        return KvStore(self._shapes, self.dtype, self.device, budget_bytes)

    def run(self, batch: Sequence[Work]) -> list[torch.Tensor]:
        """One forward for all of `batch`: prefill chunks, decode and verify steps mixed. Outputs `[count, hidden]`.

        Sessions of parts of the span (`cache.blocks`) share it block by block: each block's weights are read once.
        Keys and values of the new tokens are written and `cache.length` becomes `start + count`. Raises BadWork or
        OutOfRoom before anything has been computed; pages taken by then stay with their sessions.
        """
        if not batch:
            return []
        check(batch, self.hidden_size, self.max_positions)
        for work in batch:
            work.cache.reserve(work.end, work.start)
        for work in batch:
            work.cache.crop(work.start)
        with torch.inference_mode():
            in_parts = any(work.cache.blocks for work in batch)
            outputs = self._run_parts(batch) if in_parts else self._run(batch, None)
        for work in batch:
            work.cache.length = work.end
        return outputs

    def prepare(self, store: KvStore, rows: int = 64) -> None:
        """Capture decode steps of up to `rows` rows over `store` before anybody waits. Does nothing on a CPU."""
        if (graphs := self._graphs_of(store.pool)) is not None:
            with torch.inference_mode():
                graphs.prepare(rows)

    def backward(
        self,
        hidden: torch.Tensor,
        gradient: torch.Tensor,
        blocks: Blocks | None = None,
        adapter: Adapter | None = None,
    ) -> torch.Tensor:
        """The gradient with respect to a span's input, given that of its output: all `[B, count, hidden_size]`.

        `hidden` is the input of `B` whole sequences from position 0; the forward is computed again and nothing is
        kept. The span's own weights are frozen, and so are the adapter's. `blocks`: the part of the span, None for all
        of it. Raises BadWork.
        """
        *_, output = self.backward_in_turns(hidden, gradient, blocks, adapter, len(self._shapes))
        assert output is not None  # noqa: S101 - the last turn's
        return output

    def backward_in_turns(
        self, hidden: torch.Tensor, gradient: torch.Tensor, blocks: Blocks | None, adapter: Adapter | None, most: int
    ) -> Iterator[torch.Tensor | None]:
        """`backward` in turns of at most `most` blocks, so that others may compute in between; the last one gives it.

        Where there are several, each block's input is computed first, and its own forward again with its gradient: a
        third more work than in one turn, and the memory of one turn's blocks. Raises BadWork at the first turn.
        """
        if hidden.dim() != 3 or hidden.shape[2] != self.hidden_size or gradient.shape != hidden.shape:
            raise BadWork(
                f"no gradient for states of shape {tuple(hidden.shape)} and gradients of {tuple(gradient.shape)}",
                why=f"expected [B, count, {self.hidden_size}] twice",
            )
        if not 0 < hidden.shape[1] <= self.max_positions:
            raise BadWork(f"{hidden.shape[1]} positions can't be run", why=f"the model has {self.max_positions}")
        first, end = blocks or (0, len(self._shapes))
        turns = [(at, min(at + most, end)) for at in range(first, end, most)]
        states = [hidden.to(self.device, self.dtype)]
        for turn in turns[:-1]:
            with torch.inference_mode(False), torch.no_grad():
                states.append(self._unpacked(turn, states[-1].clone(), adapter))
            yield None
        gradient = gradient.to(self.device, self.dtype)
        for turn in reversed(turns):
            gradient = self._gradient(turn, states.pop(), gradient, adapter)
            yield None if states else gradient

    def _gradient(
        self, turn: Blocks, state: torch.Tensor, gradient: torch.Tensor, adapter: Adapter | None
    ) -> torch.Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            rows = state.clone().requires_grad_(True)
            return torch.autograd.grad(self._unpacked(turn, rows, adapter), rows, gradient)[0]

    def _unpacked(self, turn: Blocks, rows: torch.Tensor, adapter: Adapter | None) -> torch.Tensor:
        """Whole sequences `[B, count, hidden]` through some blocks, without K/V."""
        positions = torch.arange(rows.shape[1], device=self.device).unsqueeze(0)
        decoder = self._part(None if turn == (0, len(self._shapes)) else turn)
        with adapted(self._layers, [(0, rows.shape[1], adapter)] if adapter else []):
            output: torch.Tensor = decoder(
                inputs_embeds=rows, position_ids=positions, use_cache=False
            ).last_hidden_state
        return output

    def _run_parts(self, batch: Sequence[Work]) -> list[torch.Tensor]:
        """Sessions of several parts of the span: whatever these are, each block runs once, over all that need it."""
        whole = 0, len(self._shapes)
        spans = [work.cache.blocks or whole for work in batch]
        states = [work.hidden for work in batch]
        for stage in pairwise(sorted({edge for span in spans for edge in span})):
            inside = [n for n, (first, end) in enumerate(spans) if first <= stage[0] and stage[1] <= end]
            works = [replace(batch[n], hidden=states[n]) for n in inside]
            for n, output in zip(inside, self._run(works, None if stage == whole else stage), strict=True):
                states[n] = output
        return states

    def _run(self, batch: Sequence[Work], blocks: Blocks | None) -> list[torch.Tensor]:
        counts = [work.count for work in batch]
        graphed = blocks is None and not any(work.adapter for work in batch)
        output = self._replay(batch, counts) if graphed else None
        if output is None:
            rows = batch[0].hidden if len(batch) == 1 else torch.cat([work.hidden for work in batch])
            packing = Packing(batch, self.dtype, self.device)
            output = self._forward(self._part(blocks), rows.to(self.device, self.dtype), packing)
        return list(torch.split(output, counts))

    def _part(self, blocks: Blocks | None) -> PreTrainedModel:
        """The decoder over a part of the span: the same blocks, weights and K/V places."""
        if blocks is None:
            return self._decoder
        if blocks not in self._parts:
            self._parts[blocks] = loader.part(self._decoder, *blocks)
        return self._parts[blocks]

    def new_adapters(self, max_bytes: int, max_rank: int) -> Adapters:
        """What reads clients' adapters for this span."""
        return Adapters(self._layers, self.first, self.dtype, self.device, max_bytes=max_bytes, max_rank=max_rank)

    def _graphs_of(self, pool: PagePool | None) -> DecodeGraphs | None:
        if pool is None or not self.packs or not kernels.available(self.device):
            return None
        if self._decoder not in pool.forwards:
            pool.forwards[self._decoder] = DecodeGraphs(self._decoder, pool, self.max_positions)
        graphs: DecodeGraphs = pool.forwards[self._decoder]
        return graphs

    def _replay(self, batch: Sequence[Work], counts: list[int]) -> torch.Tensor | None:
        """The step as a CUDA graph; None where there is none for it."""
        graphs = self._graphs_of(batch[0].cache.pool)
        if graphs is None or not graphs.takes(counts):
            return None
        return graphs.run([work.hidden for work in batch], [(work.start, work.end, work.cache.table) for work in batch])

    def _forward(self, decoder: PreTrainedModel, rows: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Rows `[T, hidden]` through the library's own decoder: packed, or session by session if they can't be."""
        if not self.packs:
            pieces = zip(packing.parts, torch.split(rows, packing.counts), strict=True)
            return torch.cat([self._alone(decoder, part, piece) for part, piece in pieces])
        decoding = self._decoding_of(decoder)
        if decoding is not None and decoding.takes(packing):
            return decoding.run(rows, packing)
        with adapted(self._layers, packing.shares()):
            output = decoder(
                inputs_embeds=rows.unsqueeze(0), position_ids=packing.positions(), use_cache=False, packing=packing
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _decoding_of(self, decoder: PreTrainedModel) -> Decoding | None:
        """What runs its decode steps at one go, if anything can."""
        if decoder not in self._decodings:
            layers = loader.find_layers(decoder, decoder.config.num_hidden_layers)[1]
            on_cpu = self.device.type == "cpu"
            self._decodings[decoder] = Decoding.of(decoder, list(layers), self._shapes, self.dtype) if on_cpu else None
        return self._decodings[decoder]

    def _alone(self, decoder: PreTrainedModel, part: Part, rows: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(part.start, part.end, device=self.device).unsqueeze(0)
        cache = SessionCache(part)
        with adapted(self._layers, [(0, rows.shape[0], part.adapter)] if part.adapter else []):
            output = decoder(
                inputs_embeds=rows.unsqueeze(0), position_ids=positions, use_cache=True, past_key_values=cache
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden
