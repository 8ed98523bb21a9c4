"""What every benchmark shares: alternated pairs, medians of ratios, a table, JSON, a plot, a swarm to measure.

Both sides of a comparison run in one process group and one run, ABBA BAAB ..., so that a busy machine slows both. The
figure is the median of the pairs' ratios, never a ratio of bests.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import structlog
from rich.console import Console
from rich.table import Table

from hivemint.testnet.demo.race import Watch

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for answers and figures
RESULTS = Path(__file__).parent / "results"
PAIRS = 5


@dataclass(frozen=True)
class Bound:
    """What a figure has to reach: `least` or `most`."""

    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}" if self.most is not None else ""


def options(description: str, **extra: Any) -> argparse.Namespace:
    """`--json FILE`, `--pairs N`, and what a benchmark adds: name=default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="alternated pairs (default %(default)s)")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help="%(default)s")
    return parser.parse_args()


def alternate(
    ours: Callable[[], float], reference: Callable[[], float], pairs: int, tell: Callable[[str], None] | None = None
) -> list[tuple[float, float]]:
    """(ours, reference) per pair, the order swapped in every second one. Each side is warmed up once before."""
    say = tell or Console(stderr=True).print
    ours(), reference()
    measured = []
    for index in range(pairs):
        if index % 2 == 0:
            a = ours()
            b = reference()
        else:
            b = reference()
            a = ours()
        measured.append((a, b))
        say(f"  pair {index + 1}/{pairs}: {a:.4g} against {b:.4g}, ratio {a / b:.3f}")
    return measured


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(ours / reference for ours, reference in pairs)


def finish(
    name: str,
    figures: Mapping[str, Any],
    bounds: Mapping[str, Bound],
    to: Path | None,
    plot: Callable[[Any], None] | None = None,
) -> None:
    """Table on the terminal; JSON (and the plot beside it) where `--json` says."""
    table = Table(title=name, title_justify="left", box=None, header_style="dim")
    for column, justify in (("figure", "left"), ("value", "right"), ("asked", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for key, value in figures.items():
        if isinstance(value, int | float):
            bound = bounds.get(key)
            mark = "" if bound is None else "[green]met[/]" if bound.met(value) else "[red]missed[/]"
            table.add_row(key, f"{value:.4g}", str(bound or ""), mark)
    Console().print(table)
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        document = {"benchmark": name, "machine": machine(), **figures}
        to.write_text(json.dumps(document, indent=2) + "\n")
        if plot is not None:
            draw(to.with_suffix(".png"), plot)


def draw(path: Path, plot: Callable[[Any], None]) -> None:
    """`plot` gets matplotlib's Axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    plot(axes)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import transformers

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def bars(labels: Sequence[str], values: Sequence[float], title: str, unit: str) -> Callable[[Any], None]:
    """A plain bar chart for `finish`."""

    def plot(axes: Any) -> None:
        axes.bar(labels, values, color=["#0f766e", "#94a3b8", "#b45309", "#1d4ed8"][: len(values)])
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.bar_label(axes.containers[0], fmt="%.3g")

    return plot


# --- a swarm to measure


@contextmanager
def swarm(settings: Mapping[str, str] | None = None, *, nodes: int = 2, copies: int = 1) -> Iterator[Any]:
    """A `LocalNet` on loopback with the demo model: real chain, real nodes, started here and ended here.

    `nodes` share the blocks out, `copies` of each.
    """
    from hivemint.model import local_models
    from hivemint.testnet.localnet import Layout, LocalNet

    signal.signal(signal.SIGTERM, _terminated)  # else all that was started here would go on serving
    with tempfile.TemporaryDirectory(prefix="hivemint-bench-") as folder:
        net = LocalNet(Path(folder) / "net", local_models.pull())
        layout = Layout(nodes, copies, ledger=False, settings=tuple((settings or {}).items()))
        try:
            asyncio.run(net.up(layout, lambda what: Console(stderr=True).print(f"[dim]{what} ...[/]")))
            yield net
        finally:
            net.down()


def _terminated(*_: Any) -> None:
    sys.exit("terminated")


def plain_model() -> Any:
    """Plain transformers: the whole model in this process, fp32, sdpa, its own cache, one thread."""
    import torch
    from transformers import AutoModelForCausalLM

    from hivemint.model import local_models

    torch.set_num_threads(1)
    folder = local_models.pull().folder
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def prompt(tokens: int, seed: int = 0) -> Any:
    """`[1, tokens]` of ordinary token ids, the same for the same seed."""
    import torch

    return torch.randint(1000, 40_000, (1, tokens), generator=torch.Generator().manual_seed(seed))


def generate(model: Any, ids: Any, new_tokens: int, **more: Any) -> tuple[Any, Watch]:
    """Greedy, end token off, exactly `new_tokens`."""
    clock = Watch()
    out = model.generate(
        ids,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        streamer=clock,
        **more,
    )
    return out, clock
