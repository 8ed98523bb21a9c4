"""The measures of a model's folder, against the model itself."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hivemint.model.anatomy import Anatomy, read_tensors
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=50,
        max_position_embeddings=77,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder, model


def test_measures(llama: tuple[Path, LlamaForCausalLM]) -> None:
    anatomy = Anatomy.read(llama[0])
    assert (anatomy.family, anatomy.num_blocks, anatomy.hidden_size, anatomy.vocab_size) == ("llama", 12, 32, 50)
    assert (anatomy.max_positions, anatomy.block_prefix) == (77, "model.layers.")
    assert anatomy.kv_bytes_per_token(blocks=3, itemsize=2) == 3 * 2 * 2 * 16 * 2


def test_blocks_and_the_rest_make_up_the_model(llama: tuple[Path, LlamaForCausalLM]) -> None:
    folder, model = llama
    anatomy = Anatomy.read(folder)
    for block in (1, 11):  # block 1's prefix must not take in blocks 10 and 11
        bytes_ = sum(p.nbytes for p in model.model.layers[block].parameters())
        assert anatomy.block_bytes(BlockIndex(block)) == bytes_
        assert anatomy.block_bytes(BlockIndex(block), itemsize=2) == bytes_ // 2
    outer = {entry.name for entry in anatomy.outer_tensors()}
    assert outer == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    everything = anatomy.span_bytes(BlockIndex(0), BlockIndex(12)) + sum(e.nbytes for e in anatomy.outer_tensors())
    assert everything == sum(p.nbytes for p in model.parameters())


def test_entries_point_at_the_bytes(llama: tuple[Path, LlamaForCausalLM]) -> None:
    folder, model = llama
    entry = Anatomy.read(folder).tensors["model.layers.3.self_attn.k_proj.weight"]
    raw = entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes]
    stored = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(entry.shape)
    assert torch.equal(stored, model.model.layers[3].self_attn.k_proj.weight)


def test_other_names_of_the_same_measures(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=40, vocab_size=60)).save_pretrained(tmp_path)
    anatomy = Anatomy.read(tmp_path)
    assert (anatomy.num_blocks, anatomy.hidden_size, anatomy.num_heads, anatomy.max_positions) == (3, 32, 4, 40)
    assert anatomy.block_prefix == "transformer.h."


HEADERS = st.sampled_from([b"{}", b"[]", b"{", b'{"x": 1}', b'{"x": {"dtype": "F32"}}', b"\xff\xfe", b"[" * 100_000])


@given(data=st.binary(max_size=200) | HEADERS, length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int | None
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    size = len(data) if length is None else length
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + data)
    try:
        tensors, _ = read_tensors(folder)
    except ModelError:
        return
    assert all(0 <= entry.offset <= entry.offset + entry.nbytes <= 8 + len(data) for entry in tensors.values())


@given(
    shape=st.lists(st.integers(-2, 5) | st.booleans() | st.just(1 << 62), max_size=3),
    offsets=st.lists(st.integers(-8, 64) | st.floats(), max_size=3),
    dtype=st.sampled_from(["F32", "BF16", "Q4", 7]),
)
@settings(max_examples=150, deadline=None)
def test_an_entry_that_lies_is_refused(
    tmp_path_factory: pytest.TempPathFactory, shape: list[object], offsets: list[object], dtype: object
) -> None:
    """Whatever a header claims, a returned entry has just the bytes that its shape needs, inside the file."""
    folder = tmp_path_factory.mktemp("fuzz")
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    try:
        entry = read_tensors(folder)[0]["x"]
    except ModelError:
        return
    assert entry.elements * {"F32": 4, "BF16": 2}[entry.dtype] == entry.nbytes
    assert 8 + len(header) <= entry.offset <= entry.offset + entry.nbytes <= 8 + len(header) + 64


def test_shards_that_are_not_here_are_named(tmp_path: Path, llama: tuple[Path, LlamaForCausalLM]) -> None:
    names = [f"model.layers.{block}.x.weight" for block in range(2)]
    save_file({names[0]: torch.zeros(2)}, tmp_path / "a.safetensors")
    table = {names[0]: "a.safetensors", names[1]: "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    config = json.loads((llama[0] / "config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    anatomy = Anatomy.read(tmp_path)
    assert anatomy.block_bytes(BlockIndex(0)) == 8
    with pytest.raises(ModelError, match=r"b\.safetensors, which holds model\.layers\.1"):
        anatomy.block_tensors(BlockIndex(1))
