"""Manifests: one form, one id, and every byte of a model bound by it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from eth_utils.crypto import keccak as reference_keccak
from hypothesis import given
from hypothesis import strategies as st

from hivemint.model.manifest import Manifest, TensorDigest, build, parse
from hivemint.protocol.errors import ModelError

NAMES = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
DIGESTS = st.binary(min_size=32, max_size=32)
TENSORS = st.builds(
    TensorDigest,
    st.sampled_from(["F32", "BF16", "I8"]),
    st.lists(st.integers(0, 10**9), max_size=4).map(tuple),
    DIGESTS,
)
MANIFESTS = st.builds(Manifest, st.dictionaries(NAMES, TENSORS, max_size=6), DIGESTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of three tensors in two shards."""
    tensors: dict[str, Any] = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(2.5, np.float16),
        "B": np.zeros((0, 4), np.int8),
    }
    shards = {"one.safetensors": ["a.weight"], "two.safetensors": ["b", "B"]}
    for file, names in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def flip(file: Path, offset: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)


def test_the_form_is_the_documented_one(folder: Path) -> None:
    a = hashlib.sha256(np.arange(6, dtype="<f4").tobytes()).hexdigest()
    b = hashlib.sha256(np.array(2.5, "<f2").tobytes()).hexdigest()
    empty, config = hashlib.sha256().hexdigest(), hashlib.sha256(b'{"model_type": "llama"}').hexdigest()
    expected = f"B\tI8\t0x4\t{empty}\na.weight\tF32\t2x3\t{a}\nb\tF16\t\t{b}\nconfig.json\t\t\t{config}\n".encode()
    manifest = build(folder)
    assert manifest.to_bytes() == expected
    assert manifest.model_id == reference_keccak(expected)
    assert manifest.nbytes == 26


@given(MANIFESTS)
def test_parse_returns_what_was_written(manifest: Manifest) -> None:
    again = parse(manifest.to_bytes())
    assert dict(again.tensors) == dict(manifest.tensors)
    assert again.config_sha256 == manifest.config_sha256
    assert again.model_id == manifest.model_id


@given(MANIFESTS, st.data())
def test_no_second_form_parses(manifest: Manifest, data: st.DataObject) -> None:
    raw = bytearray(manifest.to_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        accepted = parse(bytes(raw))
    except ModelError:
        return
    assert accepted.to_bytes() == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "config.json\t\t\t" + "0" * 64,
        "config.json\t\t\t" + "A" * 64 + "\n",
        "x\tF32\t1\t" + "0" * 64 + "\n",
        "x\tF33\t1\t" + "0" * 64 + "\nconfig.json\t\t\t" + "0" * 64 + "\n",
        "x\tF32\t01\t" + "0" * 64 + "\nconfig.json\t\t\t" + "0" * 64 + "\n",
        "x\tF32\t١\t" + "0" * 64 + "\nconfig.json\t\t\t" + "0" * 64 + "\n",  # noqa: RUF001 - a digit that is none here
        "y\tF32\t1\t" + "0" * 64 + "\nx\tF32\t1\t" + "0" * 64 + "\nconfig.json\t\t\t" + "0" * 64 + "\n",
        "x\tF32\t1\t" + "0" * 64 + "\nx\tF32\t1\t" + "0" * 64 + "\nconfig.json\t\t\t" + "0" * 64 + "\n",
        "config.json\t\t\t" + "0" * 64 + "\r\n",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ModelError):
        parse(text.encode())


def test_not_utf8_is_refused() -> None:
    with pytest.raises(ModelError, match="UTF-8"):
        parse(b"\xff\tF32\t1\t" + b"0" * 64 + b"\nconfig.json\t\t\t" + b"0" * 64 + b"\n")


def test_every_byte_is_bound_and_only_the_named_tensors_are_read(folder: Path) -> None:
    manifest = build(folder)
    flip(folder / "two.safetensors", -1)
    manifest.check_tensors(folder, ["a.weight"])
    with pytest.raises(ModelError, match="b has another digest"):
        manifest.check_tensors(folder, ["a.weight", "b"])
    assert build(folder).model_id != manifest.model_id


def test_a_loader_can_check_bytes_that_it_holds(folder: Path) -> None:
    manifest = build(folder)
    data = np.arange(6, dtype=np.float32)
    manifest.check_tensor("a.weight", data.tobytes())
    data[3] = 7
    with pytest.raises(ModelError, match=r"a\.weight has another digest"):
        manifest.check_tensor("a.weight", data.tobytes())
    with pytest.raises(ModelError, match="no tensor"):
        manifest.check_tensor("c", b"")


def test_type_shape_and_presence_count(folder: Path) -> None:
    manifest = build(folder)
    flat = {"a.weight": np.arange(6, dtype=np.float32)}
    safetensors.numpy.save_file(flat, folder / "one.safetensors")
    with pytest.raises(ModelError, match=r"a\.weight in .* is F32 \(6,\)"):
        manifest.check_tensors(folder, ["a.weight"])
    safetensors.numpy.save_file({"other": flat["a.weight"]}, folder / "one.safetensors")
    with pytest.raises(ModelError):
        manifest.check_tensors(folder, ["a.weight"])


def test_the_config_is_bound(folder: Path) -> None:
    manifest = build(folder)
    manifest.check_config((folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"config\.json has another digest"):
        manifest.check_config(b"{}")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        build(folder)
