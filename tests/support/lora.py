"""LoRA adapters for tests, written by PEFT itself, and PEFT's own answers."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def whole_model(folder: Path) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def write_lora(model_folder: Path, target: Path, modules: list[str], seed: int = 1, **settings: Any) -> Path:
    """A random adapter for the model in `model_folder`, saved by PEFT; both of its sides are far from zero."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D sets fan_in_fan_out by itself
        options = {"r": 4, "lora_alpha": 12, **settings}
        config: Any = LoraConfig(target_modules=modules, init_lora_weights=False, **options)
        model = get_peft_model(whole_model(model_folder), config)
        model.save_pretrained(str(target))
    return target


def with_lora(model_folder: Path, adapter: Path) -> Any:
    """The whole model as PEFT runs it."""
    return PeftModel.from_pretrained(whole_model(model_folder), str(adapter)).eval()


def last_states(model: Any, blocks: int, rows: torch.Tensor) -> torch.Tensor:
    """What the last block gives for embeddings `[B, T, hidden]`, before the norm; differentiable."""
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == blocks)
    seen: list[Any] = []
    hook = layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    model(inputs_embeds=rows, use_cache=False)
    hook.remove()
    states: torch.Tensor = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return states
