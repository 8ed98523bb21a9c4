"""The client's ends of a model: with the blocks in between they are the whole model, family by family."""

from pathlib import Path

import pytest
import torch

from hivemint.client.generation.ends import Ends
from hivemint.model import families
from hivemint.model.families import Outside
from hivemint.model.local_models import LocalModel, resolve
from hivemint.protocol.errors import BadInput, ModelError
from hivemint.protocol.home import Home
from support.families import HIDDEN, TINY, VOCABULARY, Whole, ids
from support.tiny import tiny_model

pytest_plugins = ["support.models"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.mark.parametrize("name", TINY)
def test_ends_and_blocks_are_the_whole_model(name: str, tmp_path: Path, home: Home) -> None:
    whole = Whole(*TINY[name], tmp_path / "model")
    text = ids(5, 11)
    states = whole.states(text)
    ends = Ends.load(resolve(whole.folder, home=home))
    torch.testing.assert_close(ends.embed(text), states[0], rtol=0, atol=0)
    torch.testing.assert_close(ends.embed(text[4:], 4), states[0][4:], rtol=0, atol=0)
    torch.testing.assert_close(ends.logits(states[-1]), whole.logits(text))
    assert ends.logits(states[-1][-1:]).shape == (1, VOCABULARY)


def test_learned_positions_end_where_the_model_does(tmp_path: Path, home: Home) -> None:
    ends = Ends.load(resolve(Whole(*TINY["opt"], tmp_path / "model").folder, home=home))
    assert ends.embed(ids(1, 2), ends.context - 2).shape == (2, HIDDEN)
    for start in (ends.context - 1, -1):
        with pytest.raises(BadInput, match="has learned 256"):
            ends.embed(ids(1, 2), start)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("bloom", Outside(blocks="h", after=("ln_f",))),
        ("gpt2", Outside(blocks="h", after=("ln_f",))),
        ("opt", Outside(before=("project_in",), after=("final_layer_norm", "project_out"))),
        ("opt", Outside(before=("project_in",), positions="embed_positions", after=("project_out",))),
        ("mixtral", Outside(after=())),
    ],
)
def test_a_family_that_fails_its_guards_is_refused_by_name(
    name: str, table: Outside, tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is wrong, as it would be if the library changed."""
    monkeypatch.setattr(families, "FAMILIES", {name: table})
    model = resolve(Whole(*TINY[name], tmp_path / "model").folder, home=home)
    with pytest.raises(ModelError, match=f"{name} can't be run.*does something else outside its blocks"):
        Ends.load(model)


def test_only_the_ends_are_loaded(smollm2: LocalModel) -> None:
    ends = Ends.load(smollm2)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in ends._model.parameters()}
    assert sum(held.values()) == 4 * 576 * (49152 + 1)  # tied embeddings once, and the norm


def test_only_the_ends_are_checked(tmp_path: Path, home: Home) -> None:
    folder = tiny_model(tmp_path / "model")
    model = resolve(folder, home=home)
    manifest = model.manifest
    entries = model.anatomy.tensors
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    block = entries["model.layers.0.mlp.up_proj.weight"]
    weights.write_bytes(_flipped(whole, block.offset))
    Ends.load(model, manifest)
    weights.write_bytes(_flipped(whole, entries["lm_head.weight"].offset))
    with pytest.raises(ModelError, match=r"lm_head\.weight has another digest"):
        Ends.load(model, manifest)


def test_an_untested_family_is_refused_by_name(tmp_path: Path, home: Home) -> None:
    folder = tiny_model(tmp_path / "model", "stablelm")
    with pytest.raises(ModelError, match=r"'stablelm' can't be run yet"):
        Ends.load(resolve(folder, home=home))


def test_tensors_that_do_not_belong_are_refused(tmp_path: Path, home: Home) -> None:
    from safetensors.torch import load_file, save_file

    file = tiny_model(tmp_path / "model") / "model.safetensors"
    tensors = load_file(file)
    tensors["model.stranger.weight"] = tensors.pop("model.norm.weight").clone()
    save_file(tensors, file)
    with pytest.raises(ModelError, match="not those of llama"):
        Ends.load(resolve(file.parent, home=home))


def _flipped(raw: bytes, offset: int) -> bytes:
    return raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]
