"""Loads a span of any supported architecture as transformers' own decoder with only these layers left in it.

The whole decoder is built on the meta device (some families decide a layer's structure by its absolute index),
everything but the span is cut away, and the span's weights are read tensor by tensor from the shards that hold
them. Rope, norms, experts and every other detail of a family stay the library's own code.
"""

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging as transformers_logging

from hivemint.model.anatomy import Anatomy
from hivemint.model.families import outside_of
from hivemint.node.kv.shape import KvShape
from hivemint.node.span import attention, int8, kernels
from hivemint.node.span.lean import lean_layers
from hivemint.node.span.linear import PackedLinear, PlainLinear, can_pack, is_plain, pack_linears
from hivemint.node.span.precision import Precision
from hivemint.node.span.unpacked import ShapeCache
from hivemint.node.span.weights import Check, LazyTensor, Progress, Reader
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex

_PLAIN_SHARE = 0.05
_NO_READ_AHEAD = "HF_DEACTIVATE_ASYNC_LOAD"
_STATEFUL_ROPE = {"dynamic", "longrope"}
_ATTENTION_OPTIONS = {"dropout", "scaling", "sliding_window", "softcap", "s_aux", "position_ids", "use_cache", "shapes"}


def load_decoder(
    anatomy: Anatomy,
    span: tuple[BlockIndex, BlockIndex],
    precision: Precision,
    device: str,
    on_progress: Progress | None,
    check: Check | None,
) -> PreTrainedModel:
    """The decoder with blocks `first .. end - 1`, renumbered from 0; embeddings and last norm are identities.

    Raises ModelError for an unsupported family, a span outside the model and a damaged folder.
    """
    first, end = span
    anatomy.check_span(first, end)
    precision.check_device(torch.device(device))
    config = read_config(anatomy)
    attention.register()
    families: Any = MODEL_MAPPING
    kind = span_class(families[type(config)], anatomy.num_blocks, first, end)
    with torch.device("meta"):
        layers_name, _ = find_layers(kind(config_copy(config)), end - first)
    alone = "sdpa" if kind._supports_sdpa else "eager"
    implementation = attention.NAME if kind._supports_attention_backend else alone
    reader = Reader(anatomy.span_bytes(first, end), on_progress, check)
    weights = {
        f"{layers_name}.{block - first}.{entry.name[len(f'{anatomy.block_prefix}{block}.') :]}": LazyTensor(
            entry, reader
        )
        for block in range(first, end)
        for entry in anatomy.block_tensors(BlockIndex(block))
    }
    options: dict[str, Any] = {
        "config": config_copy(config),
        "state_dict": weights,
        "dtype": precision.dtype,
        "attn_implementation": implementation,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # the report below refuses them
        "device_map": None if device == "cpu" else {"": device},
    }
    if precision.quantised and device != "cpu":
        options["quantization_config"] = precision.bitsandbytes()
    try:
        with _quiet(), _one_at_a_time():
            loaded: Any = kind.from_pretrained(None, **options)
    except ImportError as problem:
        why, next_step = str(problem)[:300], "pip install 'hivemint[node]', or choose bf16"
        raise ModelError(f"{precision.weights} weights need bitsandbytes", why=why, next_step=next_step) from problem
    except RuntimeError as problem:  # the library's word for weights that it can't convert
        raise ModelError(f"{anatomy.folder} doesn't fit its config.json", why=str(problem)[:500]) from problem
    decoder: PreTrainedModel = loaded[0]
    _check_report(loaded[1], anatomy)
    if precision.quantised:
        _check_linear_share(decoder, precision)
    decoder.requires_grad_(False)
    decoder.train(False)
    return decoder


def read_config(anatomy: Anatomy) -> PreTrainedConfig:
    """The folder's config, if its family can be served. Raises ModelError with the reason if not."""
    outside_of(anatomy)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            anatomy.folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise ModelError(f"{anatomy.folder / 'config.json'} can't be used", why=str(problem)) from problem
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{anatomy.folder.name} holds quantised weights",
            why="a node quantises by itself",
            next_step="use the folder with the original weights",
        )
    rope = json.dumps(getattr(config, "rope_parameters", None) or {})
    if stateful := sorted(kind for kind in _STATEFUL_ROPE if f'"{kind}"' in rope):
        raise ModelError(
            f"{anatomy.folder.name} uses {stateful[0]} rope, which can't be served",
            why="its angles depend on the longest session in the batch",
        )
    return config


def span_class(base: type[PreTrainedModel], num_blocks: int, first: int, end: int) -> type[PreTrainedModel]:
    """A subclass of a family's decoder that keeps blocks `first .. end - 1` only."""

    def init(self: PreTrainedModel, config: PreTrainedConfig) -> None:
        base.__init__(self, config)
        cut(self, num_blocks, first, end)

    return type(base.__name__, (base,), {"__init__": init, "__module__": base.__module__})


def cut(decoder: PreTrainedModel, num_blocks: int, first: int, end: int) -> None:
    """Reduce a whole decoder to a span, in place."""
    words = decoder.get_input_embeddings()
    name, layers = find_layers(decoder, num_blocks)
    for index, layer in enumerate(layers[first:end]):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.__dict__["layer_idx"] = index
    parent_name, _, own_name = name.rpartition(".")
    parent = decoder.get_submodule(parent_name)
    setattr(parent, own_name, nn.ModuleList(layers[first:end]))
    for child_name, child in list(parent.named_children()):
        if child_name != own_name and next(child.parameters(), None) is not None:
            positions = isinstance(child, nn.Embedding) and child is not words
            setattr(parent, child_name, Nothing() if positions else nn.Identity())
    if hasattr(decoder, "embedding_multiplier"):  # Granite scales embeddings in its decoder: the client's part
        decoder.__dict__["embedding_multiplier"] = 1.0
    config = decoder.config
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == num_blocks:
            setattr(config, key, value[first:end])
    config.num_hidden_layers = end - first


def part(decoder: PreTrainedModel, first: int, end: int) -> PreTrainedModel:
    """A span's decoder narrowed to its blocks `first .. end - 1`: the same modules and weights, nothing is copied."""
    count = decoder.config.num_hidden_layers
    name, layers = find_layers(decoder, count)
    config = copy.copy(decoder.config)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, key, value[first:end])
    config.num_hidden_layers = end - first
    *parents, own_name = name.split(".")
    narrowed: PreTrainedModel = _twin(decoder, config)
    module: nn.Module = narrowed
    for parent in parents:
        setattr(module, parent, _twin(module.get_submodule(parent), config))
        module = module.get_submodule(parent)
    setattr(module, own_name, nn.ModuleList(layers[first:end]))
    return narrowed


def _twin(module: Any, config: PreTrainedConfig) -> Any:
    """The same module with places of its own for its children."""
    twin: Any = object.__new__(type(module))
    twin.__dict__ = {key: value for key, value in vars(module).items() if key != "forward"}  # a hook's, of the original
    twin._modules = dict(module._modules)
    twin.config = config
    return twin


class Nothing(nn.Module):
    """Stands for learned positions, which the client has already added: contributes zero."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros(())


def find_layers(decoder: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's blocks: the outermost list with one module a block."""
    lists = [(n, m) for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ModelError(f"{type(decoder).__name__} has no list of {count} blocks")
    return min(lists, key=lambda item: item[0].count("."))


def config_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    return type(config).from_dict(config.to_dict())


def check_decoder(decoder: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> list[KvShape]:
    """The guards: no layers must mean no change, and attention must be what the node's own function computes.

    Returns what each block keeps in the K/V cache. Raises ModelError with what differs.
    """
    count = decoder.config.num_hidden_layers
    name, layers = find_layers(decoder, count)
    parent = decoder.get_submodule(name.rpartition(".")[0])
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 2, decoder.config.hidden_size, generator=generator).to(device, dtype)
    positions = torch.arange(2, device=device).unsqueeze(0)
    family = decoder.config.model_type
    with torch.inference_mode():
        setattr(parent, name.rpartition(".")[2], nn.ModuleList())
        decoder.config.num_hidden_layers = 0
        try:
            untouched = decoder(inputs_embeds=rows, position_ids=positions, use_cache=False).last_hidden_state
        finally:
            setattr(parent, name.rpartition(".")[2], layers)
            decoder.config.num_hidden_layers = count
        if not torch.equal(untouched, rows):
            raise ModelError(f"{family} can't be served in spans", why="its decoder changes states outside its blocks")
        shapes: dict[int, KvShape] = {}
        strange: set[str] = set()
        if packs(decoder):
            with attention.probing(decoder.config, shapes, _ATTENTION_OPTIONS) as strange:
                decoder(inputs_embeds=rows, position_ids=positions, use_cache=False, shapes=shapes)
        else:
            decoder(inputs_embeds=rows, position_ids=positions, use_cache=True, past_key_values=ShapeCache(shapes))
    if sorted(shapes) != list(range(count)) or strange:
        why = f"its attention asks for {', '.join(sorted(strange))}" if strange else "blocks bypass the attention hook"
        raise ModelError(f"{family} can't be served in batches", why=why)
    return [shapes[index] for index in range(count)]


def packs(decoder: PreTrainedModel) -> bool:
    """Whether this family's attention is ours, so that many sessions share a forward; else they run one by one."""
    return bool(decoder.config._attn_implementation == attention.NAME)


def quicken(decoder: PreTrainedModel, precision: Precision, device: torch.device) -> None:
    """Swap modules of a checked decoder for ones that compute the same faster, in place.

    On a CPU this is where int8 weights are made; raises ModelError if they are wrong or not faster there.
    """
    layers = find_layers(decoder, decoder.config.num_hidden_layers)[1]
    if kernels.available(device) and not precision.quantised:
        lean_layers(layers, PlainLinear)
    elif device.type == "cpu" and precision.weights == "int8":
        int8.prove([cast(nn.Linear, module) for module in layers[0].modules() if is_plain(module)])
        lean_layers(layers, int8.Int8Linear)
        pack_linears(decoder, int8.Int8Linear)
    elif device.type == "cpu" and can_pack(precision.dtype):
        lean_layers(layers, PackedLinear)
        pack_linears(decoder)


def _check_linear_share(decoder: PreTrainedModel, precision: Precision) -> None:
    """Refuse to call a span quantised if much of it stays as it is (experts that are no linears, Conv1D on a CPU)."""
    plain = quantised = 0
    for module in decoder.modules():
        elements = sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)
        if is_plain(module) or type(module).__module__.startswith("bitsandbytes."):
            linear = cast(nn.Linear, module)  # bitsandbytes' are linears too
            quantised += linear.in_features * linear.out_features
        else:
            plain += elements
    if plain > _PLAIN_SHARE * quantised:
        raise ModelError(
            f"{decoder.config.model_type} can't be served with {precision.weights} weights",
            why=f"{plain / (plain + quantised):.0%} of its weights are in no linear layer and would stay as they are",
            next_step="choose bf16",
        )


def _check_report(report: dict[str, Any], anatomy: Anatomy) -> None:
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(fault):
            named = sorted(str(item) for item in report[fault])
            raise ModelError(
                f"{anatomy.folder} doesn't fit its config.json",
                why=f"{fault.replace('_', ' ')}: {', '.join(named[:3])}{' ...' if len(named) > 3 else ''}",
                next_step="fetch the model again",
            )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """The library reads ahead in threads, without a limit: whole models wait in memory to be converted."""
    before = os.environ.get(_NO_READ_AHEAD)
    os.environ[_NO_READ_AHEAD] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_READ_AHEAD]
        else:
            os.environ[_NO_READ_AHEAD] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and reports of the library's own while it loads; ours say the same."""
    logs: Any = transformers_logging
    bars, level = logs.is_progress_bar_enabled(), logs.get_verbosity()
    logs.disable_progress_bar()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
