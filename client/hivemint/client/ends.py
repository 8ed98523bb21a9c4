"""The client's own ends of a model: token embeddings before the first block, final norm and head after the last.

The library's causal model is built without storage, its blocks are dropped, and only what is left gets weights. Its
own forward then runs over them, so the scaled embeddings and capped logits of a family come from the library.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from hivemint.client.head import Head
from hivemint.contracts.errors import ModelError
from hivemint.swarm.manifest import Manifest
from hivemint.swarm.models import LocalModel

FAMILIES = frozenset({
    "cohere", "gemma", "gemma2", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "smollm3",
})  # fmt: skip
"""Families with a passing test. Others keep more outside of their blocks (learned positions, other norms)."""


class Ends:
    """Embeddings, norm and head of one model, fp32 on the CPU. Thread-safe: its tensors are only read."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._embed = model.get_input_embeddings()
        self._multiplier = float(getattr(model.config, "embedding_multiplier", 1.0))  # granite
        self.config: PretrainedConfig = model.config
        self.hidden_size: int = self.config.hidden_size
        self.context: int = self.config.max_position_embeddings
        """Positions that the model was made for."""

    @classmethod
    def load(cls, model: LocalModel, manifest: Manifest | None = None) -> "Ends":
        """Read only the tensors outside of the blocks, checked against `manifest` (default: the model's own).

        Raises `ModelError`: a family without a passing test, a damaged folder, another digest.
        """
        anatomy = model.anatomy
        if anatomy.family not in FAMILIES:
            raise ModelError(
                f"models of the family {anatomy.family!r} cannot be run yet",
                why="only families with a passing test against the library are",
                next_step=f"choose one of {', '.join(sorted(FAMILIES))}",
            )
        manifest = manifest or model.manifest
        entries = anatomy.outer_tensors()
        manifest.check_tensors(model.folder, [entry.name for entry in entries])
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=False, local_files_only=True)
        weights = _read({entry.name: entry.file for entry in entries})
        with _no_progress_bar():
            loaded, info = _without_blocks(config).from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
            )
        if wrong := {kind: names for kind, names in info.items() if names and kind != "error_msgs"}:
            raise ModelError(
                f"the tensors outside of {model.name}'s blocks are not those of {anatomy.family}", why=str(wrong)
            )
        loaded.eval().requires_grad_(False)
        loaded.set_output_embeddings(Head(loaded.get_output_embeddings()))
        return cls(loaded)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids `[count]` to the first block's input `[count, hidden]`, fp32."""
        hidden: torch.Tensor = self._embed(ids)
        return hidden * self._multiplier if self._multiplier != 1.0 else hidden

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output `[count, hidden]` to logits `[count, vocabulary]`, fp32; see `head.largest_only`."""
        out = self._model(inputs_embeds=hidden[None], use_cache=False, return_dict=True)
        logits: torch.Tensor = out.logits[0]
        return logits

    def generation_config(self, folder: Path) -> GenerationConfig:
        """The folder's generation_config.json, or what config.json implies."""
        if (folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
        return GenerationConfig.from_model_config(self.config)


def _without_blocks(config: PretrainedConfig) -> Any:
    """The family's causal model class, narrowed to one that keeps no block."""
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def __init__(self: Any, config: PretrainedConfig) -> None:
        with torch.device("meta"):
            family.__init__(self, config)
        decoder = self.get_decoder()
        decoder.layers = nn.ModuleList()
        decoder.forward = partial(_norm_only, decoder)

    return type(family.__name__, (family,), {"__init__": __init__, "__module__": __name__})


def _norm_only(decoder: Any, inputs_embeds: torch.Tensor, **_: Any) -> MoeModelOutputWithPast:
    """A decoder's forward after its last block: no masks, no rotary tables (0.3 ms a token)."""
    # the richer output: mixtures of experts ask it for router logits
    return MoeModelOutputWithPast(last_hidden_state=decoder.norm(inputs_embeds))


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """The library draws a bar even for two tensors."""
    switch: Any = logging
    shown = switch.is_progress_bar_enabled()
    switch.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            switch.enable_progress_bar()


def _read(files: dict[str, Path]) -> dict[str, torch.Tensor]:
    """The named tensors, mapped from their files: no copy where they are fp32 already."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name, source in files.items() if source == file})
    return tensors
