"""On a GPU: captured decode steps give what the plain path gives, whatever sessions share them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from transformers import AutoConfig, AutoModel

from hivemint.node.kv.cache import KvStore
from hivemint.node.kv.pages import PAGE
from hivemint.node.span import kernels
from hivemint.node.span.backward import measure
from hivemint.node.span.graphs import FAMILIES, SIZES, DecodeGraphs
from hivemint.node.span.lean import LeanLayer
from hivemint.node.span.span import Span, Work
from hivemint.protocol.ids import BlockIndex

pytestmark = pytest.mark.skipif(
    not kernels.available(torch.device("cuda" if torch.cuda.is_available() else "cpu")), reason="no GPU with Triton"
)

HIDDEN = 128
MEASURES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Relative error of a whole output. Granite, whose tiny form has sharp attention, comes to 0.052 in bf16."""


def load(folder: Path, family: str, dtype: torch.dtype, device: str = "cuda", **changes: Any) -> Span:
    torch.manual_seed(3)
    auto: Any = AutoModel
    auto.from_config(AutoConfig.for_model(family, **{**MEASURES, **changes})).save_pretrained(folder)
    return Span.load(folder, BlockIndex(0), BlockIndex(3), dtype=dtype, device=device)


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def script(span: Span, store: KvStore) -> list[torch.Tensor]:
    """Ragged sessions: prefill together, then decode and verify steps of changing company, with a crop between."""
    lengths = [1, 5, PAGE - 1, PAGE, 3 * PAGE + 7, 200, 17]
    caches = [store.open(400) for _ in lengths]
    out = span.run([Work(c, 0, rows(n, i)) for i, (c, n) in enumerate(zip(caches, lengths, strict=True))])
    for turn in range(6):
        company = [i for i in range(len(caches)) if (i + turn) % 3 or turn < 2]
        works = []
        for i in company:
            count = 4 if (i * turn) % 5 == 3 else 1
            start = caches[i].length - (2 if turn == 4 and caches[i].length > 3 else 0)
            works.append(Work(caches[i], start, rows(count, 100 * turn + i)))
        out += span.run(works)
    return [piece.float().cpu() for piece in out]


def test_a_span_may_be_prepared_in_one_thread_and_run_in_another(tmp_path: Path) -> None:
    """As a node does: captured while it starts, replayed in its compute thread."""
    span = load(tmp_path, "llama", torch.float32)
    store = span.new_store(1 << 25)
    with ThreadPoolExecutor(1) as starting:
        starting.submit(span.prepare, store, 16).result()
    graphs: DecodeGraphs = next(iter(store.pool.forwards.values()))  # type: ignore[union-attr]
    assert sorted(graphs._captured) == [size for size in SIZES if size <= 16]
    with ThreadPoolExecutor(1) as compute:
        ours = compute.submit(script, span, store).result()
    cpu = Span.load(tmp_path, BlockIndex(0), BlockIndex(3))
    for mine, theirs in zip(ours, script(cpu, cpu.new_store(1 << 25)), strict=True):
        assert (mine - theirs).norm() <= TOLERANCE[torch.float32] * theirs.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_graphs_give_what_the_cpu_gives(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    changes: dict[str, Any] = {"sliding_window": 9} if family in ("mistral", "gemma2", "gemma3_text") else {}
    span = load(tmp_path, family, dtype, **changes)
    store = span.new_store(1 << 25)
    ours = script(span, store)
    graphs: DecodeGraphs = next(iter(store.pool.forwards.values()))  # type: ignore[union-attr]
    assert not graphs.refused
    assert graphs._captured
    cpu = Span.load(tmp_path, BlockIndex(0), BlockIndex(3))
    expected = script(cpu, cpu.new_store(1 << 25))
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()


def test_padding_touches_nobody(tmp_path: Path) -> None:
    span = load(tmp_path, "llama", torch.float32)
    store = span.new_store(1 << 24)
    bystander, caches = store.open(PAGE), [store.open(PAGE) for _ in range(5)]
    span.run([Work(bystander, 0, rows(PAGE, 1))])
    before = [kept.clone() for kept in bystander.view(PAGE - 1, PAGE).read(1)]
    for turn in range(3):
        span.run([Work(c, turn, rows(1, i)) for i, c in enumerate(caches)])
    assert all(map(torch.equal, bystander.view(PAGE - 1, PAGE).read(1), before))


def test_all_sizes_are_captured_ahead(tmp_path: Path) -> None:
    span = load(tmp_path, "llama", torch.bfloat16)
    assert all(isinstance(layer, LeanLayer) for layer in span._decoder.layers)  # type: ignore[union-attr]
    store = span.new_store(1 << 24)
    span.prepare(store)
    graphs: DecodeGraphs = next(iter(store.pool.forwards.values()))  # type: ignore[union-attr]
    assert sorted(graphs._captured) == [size for size in SIZES if size <= 64]


def test_a_captured_steps_output_stays_when_the_next_runs(tmp_path: Path) -> None:
    span = load(tmp_path, "llama", torch.float32)
    cache = span.new_store(1 << 24).open(50)
    first = span.run([Work(cache, 0, rows(1, 1))])[0]
    kept = first.clone()
    span.run([Work(cache, 1, rows(1, 2))])
    assert torch.equal(first, kept)


def test_a_gradient_flows_through_a_lean_span(tmp_path: Path) -> None:
    span = load(tmp_path, "qwen3", torch.float32)
    cpu = Span.load(tmp_path, BlockIndex(0), BlockIndex(3))
    x, g = rows(6, 1).unsqueeze(0), rows(6, 2).unsqueeze(0)
    torch.testing.assert_close(span.backward(x, g).cpu(), cpu.backward(x, g), rtol=1e-3, atol=1e-4)
    assert measure(span).bytes_for(256) > 256 * HIDDEN * 4, "its memory is measured by the device's own counter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_changes_its_own_sessions_rows_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    """Beside one without, in prefill and decode; and steps without any are captured ones again."""
    span = load(tmp_path, "llama", dtype)
    pairs = {"q_proj": (128, HIDDEN), "k_proj": (32, HIDDEN), "o_proj": (HIDDEN, 128)}
    blob = save(
        {
            f"1.self_attn.{name}.{side}": torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * 0.3
            for name, (out, wide) in pairs.items()
            for side, shape in (("A", (4, wide)), ("B", (out, 4)))
        }
    )
    cpu = Span.load(tmp_path, BlockIndex(0), BlockIndex(3))
    outputs = []
    for one in (span, cpu):
        adapter, store = one.new_adapters(1 << 20, 8).read(blob), one.new_store(1 << 24)
        mine, other = store.open(60), store.open(60)
        out = one.run([Work(mine, 0, rows(9, 1), adapter), Work(other, 0, rows(7, 2))])
        out += one.run([Work(mine, 9, rows(1, 3), adapter), Work(other, 7, rows(1, 4))])
        out += one.run([Work(other, 8, rows(1, 5))])
        outputs.append([piece.float().cpu() for piece in out])
    for ours, theirs in zip(*outputs, strict=True):
        assert (ours - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_forked_sessions_and_parts_of_the_span_give_what_the_cpu_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    """Pages shared and copied by another thread than the one that computes, then captured decode steps over them."""

    def branch(span: Span, store: KvStore) -> list[torch.Tensor]:
        parent, part = store.open(400), store.open(400, blocks=(1, 3))
        out = span.run([Work(parent, 0, rows(2 * PAGE + 9, 1)), Work(part, 0, rows(PAGE, 2))])
        children = [store.open(400) for _ in range(3)]
        for child, count in zip(children, (2 * PAGE + 9, 2 * PAGE, PAGE - 3), strict=True):
            child.fork(parent, count)()
        narrow = store.open(400, blocks=(1, 3))
        narrow.fork(part, PAGE - 1)()
        out += span.run([Work(parent, PAGE + 5, rows(3, 3))])  # goes back into what the children read
        everybody = [parent, *children, part, narrow]
        for turn in range(4):
            out += span.run([Work(c, c.length, rows(1, 10 * turn + i)) for i, c in enumerate(everybody)])
        children[0].close()
        return [piece.float().cpu() for piece in out + span.run([Work(children[1], 7, rows(4, 99))])]

    span = load(tmp_path, "llama", dtype)
    store = span.new_store(1 << 25)
    with ThreadPoolExecutor(1) as compute:
        ours = compute.submit(branch, span, store).result()
    cpu = Span.load(tmp_path, BlockIndex(0), BlockIndex(3))
    for mine, theirs in zip(ours, branch(cpu, cpu.new_store(1 << 25)), strict=True):
        assert (mine - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()
