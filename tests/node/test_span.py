"""A span's own manners: what it refuses and how, what it leaves untouched, which files it opens."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hivemint.model.manifest import build
from hivemint.node.kv.cache import OutOfRoom
from hivemint.node.kv.pages import PAGE
from hivemint.node.span.packing import BadWork
from hivemint.node.span.span import Span, Work
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex

HIDDEN, BLOCKS = 32, 4


def save(folder: Path, shard: str = "1GB", **changes: object) -> Path:
    torch.manual_seed(5)
    measures: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
        "max_position_embeddings": 100,
        **changes,
    }
    LlamaForCausalLM(LlamaConfig(**measures)).save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def span(folder: Path) -> Span:
    return load(folder)


def load(folder: Path, first: int = 1, end: int = 3, **options: Any) -> Span:
    return Span.load(folder, BlockIndex(first), BlockIndex(end), **options)


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count))


def test_says_what_it_is(span: Span) -> None:
    assert (span.first, span.end, span.hidden_size, span.num_blocks_of_model) == (1, 3, HIDDEN, BLOCKS)
    assert (span.dtype, span.max_positions) == (torch.float32, 100)
    assert span.new_store(1 << 20).bytes_per_token == 2 * 2 * 16 * 4


def test_progress_ends_at_the_spans_bytes(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(folder, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == seen[0][1] > 0


def test_the_bytes_that_run_are_the_bytes_that_were_checked(folder: Path) -> None:
    manifest = build(folder)
    load(folder, check=manifest.check_tensor)
    name = "model.layers.2.mlp.up_proj.weight"
    doctored = dataclasses.replace(manifest.tensors[name], sha256=bytes(32))
    other = dataclasses.replace(manifest, tensors={**manifest.tensors, name: doctored})
    load(folder, 0, 2, check=other.check_tensor)
    with pytest.raises(ModelError, match="up_proj"):
        load(folder, check=other.check_tensor)


def test_opens_only_the_shards_it_needs(tmp_path: Path, folder: Path) -> None:
    shards = save(tmp_path, shard="20KB")
    table = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in table.items() if ".layers.1." in name or ".layers.2." in name}
    for file in set(table.values()) - needed:
        (shards / file).unlink()
    assert len(needed) < len(set(table.values()))
    ours, whole = load(shards), load(folder)
    x = rows(5)
    assert torch.equal(*(s.run([Work(s.new_store(1 << 20).open(8), 0, x)])[0] for s in (ours, whole)))
    with pytest.raises(ModelError, match=r"which holds model\.layers\.0"):
        load(shards, 0, 1)


@pytest.mark.parametrize(("first", "end"), [(-1, 2), (2, 2), (3, 2), (2, 5), (4, 5)])
def test_refuses_a_span_outside_the_model(folder: Path, first: int, end: int) -> None:
    with pytest.raises(ModelError, match="the model has blocks 0:4"):
        load(folder, first, end)


def test_refuses_a_family_without_a_test_by_name(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "xglm"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'xglm' can't be run yet.*llama"):
        load(tmp_path)


def test_refuses_rope_that_depends_on_the_batch(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ModelError, match="dynamic rope"):
        load(save(tmp_path, rope_parameters=rope))


def _cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-64])


def _huge_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + data[8:])


def _other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(config))


def _more_blocks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 6}
    (folder / "config.json").write_text(json.dumps(config))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _nonsense(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": "wide"}
    (folder / "config.json").write_text(json.dumps(config))


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _way_out(folder: Path) -> None:
    index = {"weight_map": {"model.layers.0.mlp.up_proj.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "damage",
    [_cut_short, _huge_header, _other_width, _more_blocks, _no_config, _no_json, _nonsense, _no_weights, _way_out],
    ids=lambda f: f.__name__[1:],
)
def test_a_damaged_folder_is_a_clear_error(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(save(tmp_path))
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value) or "config.json" in str(caught.value)


def test_bad_work_changes_nothing(span: Span) -> None:
    store = span.new_store(1 << 20)
    good, other = store.open(90), store.open(120)
    span.run([Work(good, 0, rows(6))])
    used = store.bytes_used
    for work in (
        Work(good, 7, rows(1)),
        Work(good, -1, rows(1)),
        Work(good, 2, rows(3)[:, :-1]),
        Work(good, 2, rows(1)[:0]),
        Work(good, 2, torch.ones(2, HIDDEN, dtype=torch.int64)),
        Work(good, 6, rows(95)),
    ):
        with pytest.raises(BadWork):
            span.run([Work(other, 0, rows(2)), work])
    with pytest.raises(BadWork, match="twice"):
        span.run([Work(good, 6, rows(1)), Work(good, 6, rows(1))])
    assert (good.length, other.length, store.bytes_used) == (6, 0, used)


def test_out_of_room_leaves_every_length_as_it_was(span: Span) -> None:
    store = span.new_store(2 * PAGE * 2 * 2 * 16 * 4)
    first, second = store.open(100), store.open(100)
    span.run([Work(first, 0, rows(PAGE))])
    with pytest.raises(OutOfRoom):
        span.run([Work(first, 3, rows(5)), Work(second, 0, rows(PAGE + 1))])
    assert (first.length, second.length) == (PAGE, 0)
    span.run([Work(second, 0, rows(PAGE))])
    second.evict()
    assert store.tokens_free == PAGE
    assert second.length == 0
    replayed = span.run([Work(second, 0, rows(9))])[0]
    assert replayed.shape == (9, HIDDEN)


def test_an_empty_batch_is_no_work(span: Span) -> None:
    assert span.run([]) == []


def test_bf16_is_near_fp32(folder: Path, span: Span) -> None:
    half = load(folder, dtype=torch.bfloat16)
    x = rows(9)
    out, ref = (s.run([Work(s.new_store(1 << 20).open(20), 0, x)])[0] for s in (half, span))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ref, rtol=0.05, atol=0.05)
