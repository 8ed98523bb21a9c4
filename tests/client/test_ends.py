"""The client's ends of a model: with the blocks in between they are the whole model, family by family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hivemint.client.ends import FAMILIES, Ends
from hivemint.contracts.errors import ModelError
from hivemint.contracts.home import Home
from hivemint.swarm.models import LocalModel, resolve
from support.tiny import tiny_model

pytest_plugins = ["support.models"]

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 3.0}),
    "granite": ("granite", {"embedding_multiplier": 7.0, "logits_scaling": 3.0}),
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "mixtral": ("mixtral", EXPERTS),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3_moe": ("qwen3_moe", EXPERTS),
    "smollm3": ("smollm3", {}),
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def test_every_accepted_family_is_tested() -> None:
    assert {family for family, _ in TINY.values()} == FAMILIES


@pytest.mark.parametrize("name", TINY)
def test_ends_and_blocks_are_the_whole_model(name: str, tmp_path: Path, home: Home) -> None:
    family, changes = TINY[name]
    folder = tiny_model(tmp_path / "model", family, **changes)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    blocks = whole.get_decoder().layers
    into: list[torch.Tensor] = []
    out: list[torch.Tensor] = []
    blocks[0].register_forward_pre_hook(lambda _, args: into.append(args[0]))
    blocks[-1].register_forward_hook(
        lambda _, args, result: out.append(result[0] if isinstance(result, tuple) else result)
    )
    ids = torch.tensor([3, 60, 7, 9, 2])
    with torch.no_grad():
        expected = whole(ids[None]).logits[0]
    ends = Ends.load(resolve(folder, home=home))
    torch.testing.assert_close(ends.embed(ids), into[0][0], rtol=0, atol=0)
    torch.testing.assert_close(ends.logits(out[0].reshape(5, -1)), expected)
    assert ends.logits(out[0].reshape(5, -1)[-1:]).shape == (1, 64)


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
    with pytest.raises(ModelError, match="'stablelm' cannot be run yet"):
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
