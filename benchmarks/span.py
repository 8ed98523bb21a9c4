"""The span engine against transformers' own layers on one CPU thread: packed steps, single steps, prefill, loading.

    python benchmarks/span.py [--json FILE] [--pairs 5] [--skip-wide]

Plain = the library's decoder with sdpa and DynamicCache on the same random weights (fp32, without embeddings and
last norm). Both sides run in one process, alternated; each figure is the median of the pairs' ratios.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from hivemint.node.span.span import Span, Work
from hivemint.protocol.ids import BlockIndex

SESSIONS = 16


@dataclass(frozen=True)
class Shape:
    """A Llama of random weights, and the tokens that each session holds before the measured step."""

    name: str
    context: int
    measures: dict[str, Any]


SMOLLM2 = Shape(
    "smollm2",
    128,
    {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 15,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
    },
)
WIDE = Shape(
    "wide",
    1024,
    {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
    },
)


class Sides:
    """The same blocks twice: as transformers runs them, and as a node does."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        config = LlamaConfig(vocab_size=32, max_position_embeddings=2048, **shape.measures)
        torch.manual_seed(0)
        LlamaModel(config).save_pretrained(folder)
        library: Any = LlamaModel
        self.plain = library.from_pretrained(folder, attn_implementation="sdpa")
        self.plain.train(False)
        self.plain.norm = torch.nn.Identity()
        self.span = Span.load(folder, BlockIndex(0), BlockIndex(config.num_hidden_layers))
        self.width: int = config.hidden_size
        self.store = self.span.new_store(2 << 30)
        history = torch.randn(shape.context, self.width)
        self.tokens = torch.randn(SESSIONS, 1, self.width)
        self.ours = [self.store.open(shape.context + 64) for _ in range(SESSIONS)]
        self.theirs = [DynamicCache(config=config) for _ in range(SESSIONS)]
        self.span.run([Work(self.ours[0], 0, history)])
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            if ours is not self.ours[0]:
                self.span.run([Work(ours, 0, history)])
            self.plain_step(history, theirs)

    def plain_step(self, rows: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        with torch.inference_mode():
            out = self.plain(inputs_embeds=rows.unsqueeze(0), past_key_values=cache, use_cache=True)
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def plain_singles(self, count: int) -> float:
        """Seconds of `count` single steps, one session after the other; the caches end as they began."""
        began = time.perf_counter()
        for token, cache in zip(self.tokens[:count], self.theirs, strict=False):
            self.plain_step(token, cache)
        seconds = time.perf_counter() - began
        for cache in self.theirs[:count]:
            cache.crop(-1)
        return seconds

    def packed(self, count: int) -> float:
        """Seconds of one step that holds a token of each of `count` sessions."""
        began = time.perf_counter()
        at = self.shape.context
        self.span.run([Work(c, at, token) for token, c in zip(self.tokens[:count], self.ours, strict=False)])
        return time.perf_counter() - began

    def plain_prefill(self, rows: torch.Tensor) -> float:
        began = time.perf_counter()
        self.plain_step(rows, DynamicCache(config=self.plain.config))
        return time.perf_counter() - began

    def chunked_prefill(self, rows: torch.Tensor, chunk: int = 128) -> float:
        began = time.perf_counter()
        cache = self.store.open(len(rows))
        for start in range(0, len(rows), chunk):
            self.span.run([Work(cache, start, rows[start : start + chunk])])
        cache.close()
        return time.perf_counter() - began


def alternate(ours: Callable[[], float], plain: Callable[[], float], pairs: int, inner: int) -> dict[str, float]:
    """Medians over `pairs` of ours and plain in ms (each the median of `inner` runs), and of ours / plain."""
    ours(), plain()
    rows = []
    for pair in range(pairs):
        sides = [ours, plain] if pair % 2 else [plain, ours]
        timed = {side: statistics.median(side() for _ in range(inner)) for side in sides}
        rows.append((timed[ours], timed[plain]))
    return {
        "ours_ms": 1e3 * statistics.median(a for a, _ in rows),
        "plain_ms": 1e3 * statistics.median(b for _, b in rows),
        "ratio": statistics.median(a / b for a, b in rows),
    }


def load_memory(folder: Path, blocks: int) -> dict[str, float]:
    """A process of its own that loads the span and runs 200 tokens: peak above its imports, and PSS at the end."""
    code = (
        "import psutil, sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from hivemint.node.span.span import Span, Work; import transformers.models.llama.modeling_llama\n"
        "p = psutil.Process(); before = p.memory_info().rss\n"
        "s = Span.load(Path(sys.argv[1]), 0, int(sys.argv[2]))\n"
        "k = s.new_store(1 << 28).open(256); s.run([Work(k, 0, torch.randn(200, s.hidden_size))])\n"
        "peak = int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024\n"
        "print(peak - before, p.memory_full_info().pss)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(blocks)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    peak, pss = map(int, done.stdout.split())
    return {"peak": peak, "pss": pss}


def measure(pairs: int, wide: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "pairs": pairs, "sessions": SESSIONS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sides = Sides(SMOLLM2, folder)
        single = alternate(lambda: sides.packed(1), lambda: sides.plain_singles(1), pairs, 15)
        packed = alternate(lambda: sides.packed(SESSIONS), lambda: sides.plain_singles(SESSIONS), pairs, 3)
        rows = torch.randn(512, sides.width)
        prefill = alternate(lambda: sides.chunked_prefill(rows), lambda: sides.plain_prefill(rows), pairs, 1)
        result |= {
            "single_to_plain_time": single["ratio"],
            "packed16_smollm2": 1 / packed["ratio"],
            "prefill512_to_plain_time": prefill["ratio"],
            "single": single,
            "packed16": packed,
            "prefill512": prefill,
        }
        weights = sum(sides.span.anatomy.block_bytes(BlockIndex(block), 4) for block in range(15))
        memory = load_memory(folder, 15)
        result["span_mb"] = weights / 1e6
        result["process_pss_mb"] = memory["pss"] / 1e6
        result["load_peak_to_span"] = memory["peak"] / weights
    if wide:
        del sides
        with tempfile.TemporaryDirectory() as temporary:
            large = Sides(WIDE, Path(temporary))
            packed = alternate(lambda: large.packed(SESSIONS), lambda: large.plain_singles(SESSIONS), pairs, 1)
            result |= {"packed16_wide": 1 / packed["ratio"], "packed16_wide_steps": packed}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--pairs", type=int, default=5, help="alternated pairs, at least 5 for figures to publish")
    parser.add_argument("--skip-wide", action="store_true", help="leave out the 2048-wide model (3 GB of memory)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.pairs, not options.skip_wide)
    targets = {
        "single_to_plain_time": "<= 1.0",
        "packed16_smollm2": ">= 6",
        "packed16_wide": ">= 4.3",
        "prefill512_to_plain_time": "<= 1.0",
        "load_peak_to_span": "< 1.3",
    }
    print(f"{'figure':28}{'measured':>10}   target")
    for key, target in targets.items():
        if key in result:
            print(f"{key:28}{result[key]:>10.3f}   {target}")
    for key in ("single", "packed16", "prefill512", "packed16_wide_steps"):
        if key in result:
            print(f"{key:28}{result[key]['ours_ms']:>10.2f} ms ours, {result[key]['plain_ms']:.2f} ms plain")
    print(f"{'memory of a bare span':28}{result['process_pss_mb']:>10.0f} MB (weights {result['span_mb']:.0f} MB)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
