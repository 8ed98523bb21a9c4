"""Int8 weights on a CPU with a real model: argmax agreement with fp32, and time against fp32 and bf16, one thread.

    python benchmarks/int8.py [--json FILE] [--pairs 5]

SmolLM2 as one span. Agreement: the share of positions of the repository's own README at which the largest logit is
the same token's. Times: a step of one row, and one of sixteen sessions' rows, at context 128.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import harness
import torch
from transformers import AutoTokenizer

from hivemint.model import local_models
from hivemint.node.span.span import Span, Work
from hivemint.protocol.ids import BlockIndex

CONTEXT, SESSIONS, TOKENS = 128, 16, 1024


class Side:
    """All blocks of the model in one precision, with sessions of 128 tokens."""

    def __init__(self, folder: Path, blocks: int, precision: str) -> None:
        self.span = Span.load(folder, BlockIndex(0), BlockIndex(blocks), precision=precision)
        self.store = self.span.new_store(1 << 30)
        self.caches = [self.store.open(CONTEXT + 8) for _ in range(SESSIONS)]
        torch.manual_seed(0)
        for cache in self.caches:
            self.span.run([Work(cache, 0, torch.randn(CONTEXT, self.span.hidden_size))])
        self.token = torch.randn(1, self.span.hidden_size)

    def step(self, sessions: int) -> float:
        """CPU seconds of a step, median of 7: other processes share this machine."""
        return statistics.median(self._step(sessions) for _ in range(7))

    def _step(self, sessions: int) -> float:
        began = time.thread_time()
        self.span.run([Work(cache, CONTEXT, self.token) for cache in self.caches[:sessions]])
        return time.thread_time() - began

    def hidden(self, rows: torch.Tensor) -> torch.Tensor:
        """In chunks of four rows, which the int8 kernel takes: larger ones go to the bf16 copy of the same weights."""
        cache = self.store.open(len(rows))
        out = [self.span.run([Work(cache, at, rows[at : at + 4])])[0] for at in range(0, len(rows), 4)]
        cache.close()
        return torch.cat(out).float()


@torch.inference_mode()
def main() -> None:
    options = harness.options(__doc__ or "")
    folder = local_models.pull().folder
    plain: Any = harness.plain_model()
    text = (Path(__file__).parent.parent / "README.md").read_text()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(text)["input_ids"][:TOKENS])
    rows = plain.model.embed_tokens(ids)
    sides = {name: Side(folder, plain.config.num_hidden_layers, name) for name in ("fp32", "bf16", "int8")}
    best = {name: plain.lm_head(plain.model.norm(side.hidden(rows))).argmax(-1) for name, side in sides.items()}
    figures: dict[str, Any] = {"tokens": len(ids)}
    for name in ("bf16", "int8"):
        figures[f"{name}_argmax_agreement"] = float((best[name] == best["fp32"]).double().mean())
    for sessions in (1, SESSIONS):
        for other in ("fp32", "bf16"):
            pairs = harness.alternate(
                lambda sessions=sessions: sides["int8"].step(sessions),  # type: ignore[misc]
                lambda sessions=sessions, other=other: sides[other].step(sessions),  # type: ignore[misc]
                options.pairs,
            )
            figures[f"int8_{sessions}_to_{other}_time"] = harness.median_ratio(pairs)
    bounds = {"int8_argmax_agreement": harness.Bound(least=0.95), "int8_1_to_fp32_time": harness.Bound(most=0.9)}
    harness.finish("int8 weights on a CPU", figures, bounds, options.json)


if __name__ == "__main__":
    main()
