"""Reading a PEFT folder: what is sent is what PEFT would compute, and what no node can do is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load, load_file, save_file

from hivemint.client.sessions.peft import WEIGHTS, LoraAdapter
from hivemint.model.anatomy import Anatomy
from hivemint.protocol.errors import ModelError
from hivemint.swarm.lora import read_pairs
from support.lora import whole_model, write_lora

pytest_plugins = ["support.tiny"]

MODULES = ["q_proj", "down_proj"]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return write_lora(tiny_folder, tmp_path / "lora", MODULES)


def read(tiny_folder: Path, folder: Path) -> LoraAdapter:
    return LoraAdapter.load(folder, Anatomy.read(tiny_folder))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 5, "layers.1.mlp.down_proj": 7}},
        {"rank_pattern": {"down_proj": 3}, "lora_alpha": 1},
        {"layers_to_transform": [1]},
    ],
)
def test_what_is_sent_is_what_peft_adds(settings: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    """B A of each module, scaled, equals PEFT's own delta weight."""
    torch.manual_seed(4)
    config: Any = LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": MODULES, "init_lora_weights": False, **settings}
    )
    model = get_peft_model(whole_model(tiny_folder), config)
    model.save_pretrained(str(tmp_path / "lora"))
    tensors = read(tiny_folder, tmp_path / "lora").tensors
    deltas: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            deltas[name.rpartition("layers.")[2]] = module.get_delta_weight("default").detach()
    assert {name[:-2] for name in tensors} == set(deltas)
    for name, delta in deltas.items():
        torch.testing.assert_close(tensors[f"{name}.B"] @ tensors[f"{name}.A"], delta)


def test_a_node_gets_the_pairs_of_its_own_blocks(tiny_folder: Path, folder: Path) -> None:
    adapter = read(tiny_folder, folder)
    blobs = [adapter.blob(0, 1), adapter.blob(1, 2), adapter.blob(0, 2)]
    assert [len(load(blob)) for blob in blobs] == [4, 4, 8]
    assert {pair.block for pair in read_pairs(blobs[1])} == {1}
    assert adapter.blob(2, 9) == b""
    assert adapter.blob(0, 1) == blobs[0], "the same bytes each time: they are hashed"


def _option(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text()) | {name: value}
        (folder / "adapter_config.json").write_text(json.dumps(config))

    change.__name__ = name
    return change


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{" * 100)


def _huge_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(" " * ((1 << 20) + 1))


def _cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def _nothing(folder: Path) -> None:
    save_file({}, str(folder / WEIGHTS))


def _with(**tensors: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        prefix = "base_model.model.model.layers."
        extra = {prefix + name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file(load_file(folder / WEIGHTS) | extra, str(folder / WEIGHTS))

    return change


Q = "__self_attn__q_proj__lora_"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_option("peft_type", "IA3"), "peft_type LORA"),
        (_option("use_dora", True), "use_dora"),
        (_option("bias", "all"), "bias 'all'"),
        (_option("modules_to_save", ["lm_head"]), "modules_to_save"),
        (_option("target_parameters", ["experts.gate_up_proj"]), "target_parameters"),
        (_option("layer_replication", [[0, 2]]), "layer_replication"),
        (_option("lora_bias", True), "lora_bias"),
        (_option("something_of_next_year", 1), "something_of_next_year"),
        (_option("init_lora_weights", "pissa"), "pissa"),
        (_option("lora_alpha", "many"), "lora_alpha"),
        (_pickled, "is a pickle, which is never opened"),
        (_no_config, "cannot be read"),
        (_no_json, "no JSON"),
        (_huge_config, "larger than"),
        (_cut_short, WEIGHTS),
        (_nothing, "holds no pair"),
        (_with(**{f"7{Q}A__weight": torch.ones(4, 32)}), "no LoRA pair of a block"),
        (_with(embed_tokens__lora_embedding_A=torch.ones(4, 64)), "no LoRA pair of a block"),
        (_with(**{"0__self_attn__v_proj__lora_A__weight": torch.ones(4, 32)}), r"needs A \[rank, in\] and B"),
        (_with(**{f"0{Q}A__weight": torch.ones(5, 32)}), r"needs A \[rank, in\] and B"),
        (_with(**{f"0{Q}A__weight": torch.ones(4, 31)}), r"\[32, 32\] in the model, \[32, 31\] in the adapter"),
        (_with(**{f"0{Q}A__weight": torch.ones(4, 32).to(torch.int32)}), "fp32, bf16 and fp16"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    damage: Callable[[Path], None], why: str, tiny_folder: Path, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=why) as caught:
        read(tiny_folder, folder)
    assert str(folder) in str(caught.value)


def test_a_pair_under_two_beginnings_is_refused(tiny_folder: Path, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    save_file(tensors | {name.replace("base_model.model.", "other."): tensors[name].clone()}, str(folder / WEIGHTS))
    with pytest.raises(ModelError, match="twice"):
        read(tiny_folder, folder)
