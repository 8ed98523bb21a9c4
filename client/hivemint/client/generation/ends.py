"""The client's own ends of a model: token embeddings before the first block, final norm and head after the last.

The library's causal model is built without storage, its blocks are dropped, and only what is left gets weights. Its
own forward then runs over them, so the scaled embeddings and capped logits of a family come from the library.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from hivemint.client.generation.head import Head
from hivemint.model.families import Outside, outside_of
from hivemint.model.local_models import LocalModel
from hivemint.model.manifest import Manifest
from hivemint.protocol.errors import BadInput, ModelError


class Ends:
    """Embeddings, norm and head of one model, fp32 on the CPU unless they are moved. Thread-safe: its tensors are only
    read, but by `to`."""

    def __init__(self, model: Any, outside: Outside, context: int) -> None:
        """`model`: the library's causal model without its blocks. Raises ModelError if `outside` is wrong."""
        self._model = model
        decoder: Any = model.get_decoder()
        self._words = model.get_input_embeddings()
        self._multiplier = float(getattr(model.config, "embedding_multiplier", 1.0))  # granite
        self._before = _modules(decoder, outside.before)
        self._positions: Any = getattr(decoder, outside.positions) if outside.positions else None
        self._after = _modules(decoder, outside.after)
        self.config: PretrainedConfig = model.config
        self.hidden_size: int = self.config.hidden_size
        self.context = context
        """Positions that the model was made for."""
        self._check(decoder, outside)
        decoder.forward = self._finish
        self._plain = self._is_plain()

    @classmethod
    def load(cls, model: LocalModel, manifest: Manifest | None = None) -> "Ends":
        """Read only the tensors outside of the blocks, checked against `manifest` (default: the model's own).

        Raises `ModelError`: a family without a passing test or one that fails the checks here, a damaged folder,
        another digest.
        """
        anatomy = model.anatomy
        outside = outside_of(anatomy)
        manifest = manifest or model.manifest
        entries = anatomy.outer_tensors()
        manifest.check_tensors(model.folder, [entry.name for entry in entries])
        config = AutoConfig.from_pretrained(model.folder, trust_remote_code=False, local_files_only=True)
        weights = _read({entry.name: entry.file for entry in entries})
        with _no_progress_bar():
            loaded, info = _without_blocks(config, outside).from_pretrained(
                None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
            )
        if wrong := {kind: names for kind, names in info.items() if names and kind != "error_msgs"}:
            raise ModelError(
                f"the tensors outside of {model.name}'s blocks are not those of {anatomy.family}", why=str(wrong)
            )
        loaded.eval().requires_grad_(False)
        loaded.set_output_embeddings(Head(loaded.get_output_embeddings()))
        return cls(loaded, outside, anatomy.max_positions)

    def embed(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Token ids `[count]` of the positions `start ..` to the first block's input `[count, hidden]`.

        Raises `BadInput` for positions that the model has not learned.
        """
        hidden: torch.Tensor = self._words(ids.to(self.device))
        if self._multiplier != 1.0:
            hidden = hidden * self._multiplier
        for module in self._before:
            hidden = module(hidden)
        if self._positions is None:
            return hidden
        if not 0 <= start <= self.context - len(ids):
            raise BadInput(
                f"there is no position {start + len(ids) - 1}",
                why=f"the model has learned {self.context}",
                next_step="shorten the text",
            )
        first = start + getattr(self._positions, "offset", 0)  # OPT's table starts with two unused rows
        learned: torch.Tensor = self._positions.weight[first : first + len(ids)]
        return hidden + learned

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output `[count, hidden]` to logits `[count, vocabulary]`; differentiable.

        See `head.largest_only`.
        """
        logits: torch.Tensor
        hidden = hidden.to(self.device, self.dtype)
        if self._plain:
            logits = self._model.get_output_embeddings()(self._normed(hidden))
        else:
            logits = self._model(inputs_embeds=hidden[None], use_cache=False, return_dict=True).logits[0]
        return logits

    @property
    def device(self) -> torch.device:
        device: torch.device = self._words.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._words.weight.dtype
        return dtype

    @property
    def words(self) -> nn.Module:
        """The embedding of tokens."""
        module: nn.Module = self._words
        return module

    @property
    def head(self) -> Head:
        head: Head = self._model.get_output_embeddings()
        return head

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them by the library's names, each once: a head that is the embedding is not named again."""
        found = dict(self._model.named_parameters())
        return found if self._is_tied() else {**found, "lm_head.weight": self.head.weight}

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Move them, or compute in another precision; what goes to the nodes is fp32 all the same. Not while others
        compute."""
        tied, weight = self._is_tied(), self.head.weight
        self._model.to(device=device, dtype=dtype)
        self.head.place(self._words.weight.detach() if tied else weight.to(device=device, dtype=dtype))

    def _is_tied(self) -> bool:
        return bool(self.head.weight.data_ptr() == self._words.weight.data_ptr())

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        for module in self._after:
            hidden = module(hidden)
        return hidden

    @torch.no_grad()
    def _is_plain(self) -> bool:
        """Whether the library does nothing but norm and head here, so that its forward can be left out (0.3 ms)."""
        head, x = self._model.get_output_embeddings(), torch.linspace(-2, 3, self.hidden_size)[None]
        self._model.set_output_embeddings(nn.Identity())
        try:
            theirs = self._model(inputs_embeds=x[None], use_cache=False, return_dict=True).logits[0]
        finally:
            self._model.set_output_embeddings(head)
        return torch.equal(theirs, self._normed(x))

    def _finish(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> MoeModelOutputWithPast:
        """The decoder's forward after its last block: no masks, no rotary tables (0.3 ms a token)."""
        output = MoeModelOutputWithPast(last_hidden_state=self._normed(inputs_embeds))  # experts: router logits
        output.cross_attentions = None  # and GPT-2 for these
        return output

    @torch.no_grad()
    def _check(self, decoder: Any, outside: Outside) -> None:
        """The guards: what is computed here is what the library's own decoder computes when it has no blocks."""
        count = min(3, self.context)
        ids = torch.arange(1, count + 1) % self.config.vocab_size
        start = 0 if self._positions is None else self.context - count
        places = {} if self._positions is None else {"position_ids": torch.arange(start, self.context).unsqueeze(0)}
        ours = self.embed(ids, start)
        with _no_modules(decoder, outside.after):
            before = decoder(input_ids=ids[None], use_cache=False, **places).last_hidden_state[0]
        after = decoder(input_ids=ids[None], use_cache=False, **places).last_hidden_state[0]
        for mine, theirs in ((ours, before), (self._finish(inputs_embeds=ours)[0], after)):
            if not torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5):
                raise ModelError(
                    f"{self.config.model_type} can't be run",
                    why="its decoder does something else outside its blocks than is known here",
                )

    def generation_config(self, folder: Path) -> GenerationConfig:
        """The folder's generation_config.json, or what config.json implies."""
        if (folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
        return GenerationConfig.from_model_config(self.config)


def _modules(decoder: Any, names: tuple[str, ...]) -> list[Any]:
    """Those of the named modules that this config has."""
    return [module for name in names if (module := getattr(decoder, name)) is not None]


@contextmanager
def _no_modules(decoder: Any, names: tuple[str, ...]) -> Iterator[None]:
    """The named modules pass on what they get."""
    kept = {name: getattr(decoder, name) for name in names}
    for name in names:
        setattr(decoder, name, nn.Identity())
    try:
        yield
    finally:
        for name, module in kept.items():
            setattr(decoder, name, module)


def _without_blocks(config: PretrainedConfig, outside: Outside) -> Any:
    """The family's causal model class, narrowed to one that keeps no block."""
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def __init__(self: Any, config: PretrainedConfig) -> None:
        with torch.device("meta"):
            family.__init__(self, config)
        setattr(self.get_decoder(), outside.blocks, nn.ModuleList())

    # in the name of the library: it renames the stored tensors of its own classes only
    return type(family.__name__, (family,), {"__init__": __init__, "__module__": family.__module__})


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
