"""Tiny random models, written in Hugging Face's layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM


def tiny_model(folder: Path, family: str = "llama", *, shard_size: str = "1GB", **changes: Any) -> Path:
    """Write a random two-block model of `family` to `folder`; norms are random too, so that none is neutral."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(family, **settings | changes))
    for weight in model.parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 1.0, 0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")
