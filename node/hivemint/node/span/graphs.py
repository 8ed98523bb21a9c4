"""Decode steps as CUDA graphs: a decoder's forward over a fixed number of rows, captured once, replayed as one launch.

A small step is hundreds of kernels of microseconds each, which Python can't launch fast enough. A captured forward
reads its rows and its plan (positions, page tables) from fixed memory, so that any sessions of any length can be
replayed through it; a step of fewer rows is padded with rows that write to nobody's page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from transformers import PreTrainedModel

from hivemint.node.kv.pages import PAGE, PagePlan, PagePool, Table, plan_numbers, plan_size
from hivemint.node.span import kernels
from hivemint.node.span.packing import Packing

FAMILIES = frozenset(
    {
        "cohere",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Families whose forward launches the same kernels whatever the rows hold. Experts are chosen by the rows."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Rows of the captured forwards. Up to here a linear's time is that of reading its weights."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Captured:
    """A graph with the fixed memory that it reads and writes: `rows`, `output` `[size, hidden]`."""

    graph: Any
    rows: torch.Tensor
    numbers: torch.Tensor
    output: torch.Tensor


class DecodeGraphs:
    """The captured forwards of one decoder over one pool of pages."""

    def __init__(self, decoder: PreTrainedModel, pool: PagePool, max_positions: int) -> None:
        self._decoder, self._pool = decoder, pool
        self._width = -(-max_positions // PAGE)
        self._captured: dict[int, Captured] = {}
        self._memory: Any = None
        self._staging: torch.Tensor | None = None
        self._staged: Any = None
        self.refused = "" if decoder.config.model_type in FAMILIES else "its forward depends on what the rows hold"
        """Why this decoder runs without graphs, if it does."""
        if getattr(decoder, "is_loaded_in_8bit", False):
            self.refused = "bitsandbytes' int8 asks the device for outliers in every linear"

    def takes(self, counts: Sequence[int]) -> bool:
        """Whether a step of parts of these row counts can be replayed."""
        return not self.refused and sum(counts) <= SIZES[-1] and max(counts) <= kernels.SHORT

    def run(self, pieces: Sequence[torch.Tensor], parts: Sequence[tuple[int, int, Table]]) -> torch.Tensor | None:
        """One step: pieces `[count, hidden]` -> `[T, hidden]` in memory of its own. None if it can't be captured.

        `parts`: start, end and page table of each session's part.
        """
        count = sum(end - start for start, end, _ in parts)
        size = next(size for size in SIZES if size >= count)
        if (captured := self._captured.get(size)) is None and (captured := self._try(size)) is None:
            return None
        numbers = plan_numbers(parts, size)
        # pageable memory is staged before the call returns, so its source may change right after
        captured.numbers[: len(numbers)].copy_(torch.from_numpy(numbers), non_blocking=True)
        self._fill(captured.rows[:count], pieces)
        captured.graph.replay()
        return captured.output[:count].clone()

    def _fill(self, rows: torch.Tensor, pieces: Sequence[torch.Tensor]) -> None:
        """Put the pieces, from the host or the device, into a captured forward's memory."""
        if all(piece.is_cuda and piece.dtype == rows.dtype for piece in pieces):
            torch.cat(list(pieces), out=rows)
            return
        if any(piece.is_cuda for piece in pieces):
            rows.copy_(torch.cat([piece.to(rows.device, rows.dtype) for piece in pieces]))
            return
        if self._staging is None:
            self._staging = torch.empty(SIZES[-1], rows.shape[1], dtype=rows.dtype, pin_memory=True)
            self._staged = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._staged.synchronize()  # the last step's copy has been read from there
        staging = self._staging[: len(rows)]
        staging.copy_(torch.cat(list(pieces)))
        rows.copy_(staging, non_blocking=True)
        self._staged.record()

    def prepare(self, rows: int = SIZES[-1]) -> None:
        """Capture the forwards for up to `rows` rows now, largest first, so that no session waits for it."""
        for size in reversed([size for size in SIZES if size <= rows]):
            if not self.refused and size not in self._captured:
                self._try(size)

    def _try(self, size: int) -> Captured | None:
        try:
            captured = self._captured[size] = self._capture(size)
        except RuntimeError as problem:  # torch's word for an operation that a capture can't hold
            self.refused = str(problem)[:300]
            log.warning("steps run without CUDA graphs", why=self.refused)
            return None
        return captured

    def _capture(self, size: int) -> Captured:
        """The forward over padding alone is captured: a replay reads what is in its memory by then."""
        room: dict[str, Any] = {"device": self._pool.device}
        rows = torch.zeros(size, self._decoder.config.hidden_size, dtype=self._pool.dtype, **room)
        numbers = torch.zeros(plan_size(size, size, self._width), dtype=torch.int32, **room)
        plan = PagePlan(numbers, size)

        def forward() -> torch.Tensor:
            packing = Packing([], self._pool.dtype, self._pool.device, fixed=(self._pool, plan))
            output = self._decoder(
                inputs_embeds=rows.unsqueeze(0), position_ids=plan.positions(), use_cache=False, packing=packing
            )
            hidden: torch.Tensor = output.last_hidden_state[0]
            return hidden

        now, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(now)
        with torch.cuda.stream(side):  # kernels are compiled and libraries set up outside of the capture
            for _ in range(2):
                forward()
        now.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            output = forward()
        self._memory = graph.pool()
        return Captured(graph, rows, numbers, output)
