"""A span's decode step on one GPU against the memory floor and against plain transformers layers.

    python benchmarks/gpu_span.py [--json FILE] [--pairs 5] [--weights bf16,nf4,int8] [--batches 1,16,64]

Blocks of Llama-70B's shape with random weights, sessions of ragged context (512 to 1,024). Floor: the bytes of the
weights and of the keys and values that the step needs, over the read bandwidth of a matrix-vector product in the same
run. Plain: transformers' own decoder (sdpa, DynamicCache, bitsandbytes) over a batch padded to the longest session.
Ours: `Span.run`. Both by the wall clock over 20 steps, the next handed over while the device works on the last, as a
node with more than one session's work in hand does; `waiting` is a step that is handed over only when the device has
ended the last. Errors are of outputs, against fp32.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaModel

from hivemint.node.span.precision import QUANTISED, Precision
from hivemint.node.span.span import Span, Work
from hivemint.protocol.ids import BlockIndex

GPU = "cuda"
LONGEST = 1024
SHAPE: dict[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
BYTES = {"bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes a weight; nf4 has a scale of 4 bytes for each 64."""
BOUNDS = {1: 1.10, 16: 1.10, 64: 1.15}


def write_model(folder: Path, blocks: int) -> None:
    """A folder as Hugging Face lays it out, of random bf16 blocks, one shard a block."""
    config = LlamaConfig(num_hidden_layers=blocks, dtype="bfloat16", **SHAPE)
    config.save_pretrained(folder)
    with torch.device("meta"):
        layer = LlamaModel(LlamaConfig(num_hidden_layers=1, **SHAPE)).layers[0]
    generator = torch.Generator(GPU).manual_seed(0)
    table: dict[str, str] = {}
    for block in range(blocks):
        tensors = {}
        for name, weight in layer.named_parameters():
            random = torch.randn(weight.shape, generator=generator, device=GPU, dtype=torch.bfloat16)
            random = random * 0.02 if weight.dim() == 2 else 1 + 0.1 * random
            tensors[f"model.layers.{block}.{name}"] = random.cpu()
        save_file(tensors, folder / f"model-{block}.safetensors")
        table |= dict.fromkeys(tensors, f"model-{block}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def bandwidth() -> float:
    """Bytes a second that a matrix-vector product reads, median of 20."""
    matrix = torch.randn(1 << 18, 8192, device=GPU, dtype=torch.bfloat16)
    vector = torch.randn(8192, device=GPU, dtype=torch.bfloat16)
    seconds = [timed(lambda: torch.mv(matrix, vector)) for _ in range(22)][2:]
    return matrix.nbytes / statistics.median(seconds)


def timed(step: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def contexts(sessions: int) -> list[int]:
    """Tokens that each session holds: 512 .. 1,024 evenly, one session: 1,024."""
    return torch.linspace(LONGEST, 512, sessions).long().tolist() if sessions > 1 else [LONGEST]


class Ours:
    """Sessions of a span, filled by real prefill."""

    def __init__(self, folder: Path, blocks: int, weights: str, sessions: int) -> None:
        options: dict[str, Any] = {"dtype": torch.bfloat16} if weights == "bf16" else {"precision": f"{weights}/bf16"}
        self.span = Span.load(folder, BlockIndex(0), BlockIndex(blocks), device=GPU, **options)
        self.store = self.span.new_store(sum(contexts(sessions)) * 2 * self.span.new_store(1 << 22).bytes_per_token)
        self.lengths = contexts(sessions)
        self.caches = [self.store.open(2 * LONGEST) for _ in self.lengths]
        for index, cache in enumerate(self.caches):
            self.span.run([Work(cache, 0, history(index, self.lengths[index]))])
        self.tokens = [history(1000 + index, 1) for index in range(sessions)]
        self.span.prepare(self.store, sessions)

    def step(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """A token of each of these sessions; the next step crops it again."""
        return self.span.run([Work(self.caches[i], self.lengths[i], self.tokens[i]) for i in indices])

    def kv_bytes(self, indices: Sequence[int]) -> int:
        return sum(self.lengths[i] + 1 for i in indices) * self.store.bytes_per_token


def chosen(sessions: int, of: int) -> list[int]:
    """`sessions` of `of`, so that their contexts span the whole range; one: the longest."""
    return [round(i * (of - 1) / max(1, sessions - 1)) for i in range(sessions)]


def history(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator(GPU).manual_seed(seed)
    rows: torch.Tensor = torch.randn(count, SHAPE["hidden_size"], generator=generator, device=GPU, dtype=torch.bfloat16)
    return rows


class Plain:
    """Transformers' decoder over padded batches; keys and values are random, but for checks."""

    def __init__(self, folder: Path, weights: str) -> None:
        library: Any = LlamaModel
        quantised = weights in QUANTISED
        self.model = library.from_pretrained(
            folder,
            dtype=torch.float32 if weights == "fp32" else torch.bfloat16,
            attn_implementation="sdpa",
            device_map={"": GPU},
            quantization_config=Precision(weights, "bf16").bitsandbytes() if quantised else None,
        )
        self.model.norm = torch.nn.Identity()

    @torch.inference_mode()
    def stepper(self, lengths: Sequence[int]) -> Callable[[], None]:
        """A step of a token for sessions of these lengths, padded on the left."""
        sessions, longest = len(lengths), max(lengths)
        cache = DynamicCache(config=self.model.config)
        for layer in range(self.model.config.num_hidden_layers):
            kv = torch.randn(2, sessions, 8, longest, 128, device=GPU, dtype=torch.bfloat16)
            cache.update(kv[0], kv[1], layer)
        mask = torch.ones(sessions, longest + 1, device=GPU, dtype=torch.long)
        for index, length in enumerate(lengths):
            mask[index, : longest - length] = 0
        rows = torch.randn(sessions, 1, SHAPE["hidden_size"], device=GPU, dtype=torch.bfloat16)
        positions = torch.tensor(lengths, device=GPU).unsqueeze(1)

        @torch.inference_mode()
        def step() -> None:
            options = {"attention_mask": mask} if sessions > 1 else {}
            self.model(inputs_embeds=rows, position_ids=positions, past_key_values=cache, use_cache=True, **options)
            cache.crop(-1)

        return step

    @torch.inference_mode()
    def output(self, rows: torch.Tensor) -> torch.Tensor:
        """The last row's output of a whole sequence."""
        hidden: torch.Tensor = self.model(inputs_embeds=rows.unsqueeze(0), use_cache=False).last_hidden_state[0, -1]
        return hidden


def error(output: torch.Tensor, exact: torch.Tensor) -> float:
    return float((output.float() - exact).norm() / exact.norm())


def sequence(index: int, sessions: int) -> torch.Tensor:
    """A session's whole input, its measured token at the end."""
    return torch.cat([history(index, contexts(sessions)[index]), history(1000 + index, 1)])


def burst(step: Callable[[], object], steps: int = 20) -> float:
    """Seconds a step when the next one is handed over while the device works."""
    return timed(lambda: [step() for _ in range(steps)]) / steps


def measure(options: Any) -> dict[str, Any]:
    batches = [int(size) for size in options.batches.split(",")]
    figures: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "blocks": options.blocks, "pairs": options.pairs}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder, options.blocks)
        figures["read_gb_per_s"] = (speed := bandwidth()) / 1e9
        checked = sorted({0, max(batches) - 1})
        plain = Plain(folder, "fp32")
        parameters = sum(p.numel() for p in plain.model.layers.parameters())
        exact = {index: plain.output(sequence(index, max(batches))) for index in checked}
        for weights in options.weights.split(","):
            del plain
            free()
            plain, ours = Plain(folder, weights), Ours(folder, options.blocks, weights, max(batches))
            theirs = {index: plain.output(sequence(index, max(batches))) for index in checked}
            for size in batches:
                indices = chosen(size, max(batches))
                figures |= compare(f"{weights}_{size}", plain, ours, indices, options.pairs)
                floor = 1e3 * (parameters * BYTES[weights] + ours.kv_bytes(indices)) / speed
                outputs = dict(zip(indices, ours.step(indices), strict=True))
                both = [index for index in checked if index in outputs]
                figures |= {
                    f"{weights}_{size}_floor_ms": floor,
                    f"{weights}_{size}_ours_to_floor": figures[f"{weights}_{size}_ours_ms"] / floor,
                    f"{weights}_{size}_waiting_to_floor": figures[f"{weights}_{size}_waiting_ms"] / floor,
                    f"{weights}_{size}_plain_to_floor": figures[f"{weights}_{size}_plain_ms"] / floor,
                    f"{weights}_{size}_error_to_fp32": max(error(outputs[index][0], exact[index]) for index in both),
                    f"{weights}_{size}_plain_error_to_fp32": max(error(theirs[index], exact[index]) for index in both),
                }
            del ours
    return figures


def compare(name: str, plain: Plain, ours: Ours, indices: Sequence[int], pairs: int) -> dict[str, float]:
    step = plain.stepper([ours.lengths[i] for i in indices])
    measured = harness.alternate(
        lambda: burst(lambda: ours.step(indices)),
        lambda: burst(step),
        pairs,
    )
    waiting = statistics.median(timed(lambda: ours.step(indices)) for _ in range(50))
    return {
        f"{name}_ours_ms": 1e3 * statistics.median(a for a, _ in measured),
        f"{name}_plain_ms": 1e3 * statistics.median(b for _, b in measured),
        f"{name}_waiting_ms": 1e3 * waiting,
    }


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def plot(figures: dict[str, Any], names: Sequence[str]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for offset, (side, color) in enumerate((("floor", "#94a3b8"), ("ours", "#0f766e"), ("plain", "#b45309"))):
            values = [figures[f"{name}_{side}_ms"] for name in names]
            bars = axes.bar([i + 0.28 * (offset - 1) for i in range(len(names))], values, 0.28, label=side, color=color)
            axes.bar_label(bars, fmt="%.1f", fontsize=7)
        axes.set_xticks(range(len(names)), [name.replace("_", " x ") for name in names])
        axes.set_ylabel("ms a decode step")
        axes.set_title(f"{figures['blocks']} blocks of Llama-70B's shape, context 512-1,024, {figures['gpu']}")
        axes.legend()

    return draw


def main() -> None:
    options = harness.options(__doc__ or "", weights="bf16,nf4,int8", batches="1,16,64", blocks=8)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu_span.py needs a GPU: torch sees none on this machine")
    figures = measure(options)
    names = [f"{w}_{b}" for w in options.weights.split(",") for b in options.batches.split(",")]
    bounds = {f"bf16_{size}_ours_to_floor": harness.Bound(most=most) for size, most in BOUNDS.items()}
    harness.finish("decode step on a GPU", figures, bounds, options.json, plot(figures, names))


if __name__ == "__main__":
    main()
