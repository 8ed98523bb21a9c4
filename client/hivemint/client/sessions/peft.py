"""A LoRA adapter in PEFT's layout, read for sending: adapter_config.json and adapter_model.safetensors, nothing else.

What a node can't do (DoRA, biases, saved modules, embeddings ...) is refused here by its name, so that nobody pays for
an answer of another model than the one that was trained. Pickled files are never opened.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hivemint.client.sessions.errors import NodeGone, blaming
from hivemint.client.sessions.opening import Greeting, expect
from hivemint.model.anatomy import Anatomy
from hivemint.protocol.errors import ModelError, ProtocolError
from hivemint.swarm.lora import digest
from hivemint.swarm.messages import Load, Loaded

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG, MAX_WEIGHTS = 1 << 20, 1 << 31
_INNER = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "alpha_pattern",
        "use_rslora",
    }
)
"""Options that change nothing about what saved pairs compute, or that are looked at below."""
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to initialise that leave the model's own weights as they are."""


@dataclass(frozen=True)
class LoraAdapter:
    """Pairs by `block.module.A` and `.B`, in the names of `swarm.lora`; B is scaled."""

    folder: Path
    tensors: Mapping[str, torch.Tensor] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path, anatomy: Anatomy) -> "LoraAdapter":
        """Raises ModelError: no such folder, pickled weights, an option that no node can do, another model's shapes."""
        folder = Path(folder).expanduser()
        config = _config(folder)
        pairs = _pairs(folder, anatomy)
        tensors: dict[str, torch.Tensor] = {}
        for (block, module), sides in sorted(pairs.items()):
            a, b = _checked(folder, f"{block}.{module}", sides)
            _check_shape(folder, anatomy, block, module, (b.shape[0], a.shape[1]))
            tensors[f"{block}.{module}.A"] = a
            scale = _scale(config, f"{anatomy.block_prefix}{block}.{module}", a.shape[0])
            tensors[f"{block}.{module}.B"] = (b.float() * scale).to(b.dtype)
        return cls(folder, tensors)

    def blob(self, first: int, end: int) -> bytes:
        """The pairs of blocks `first .. end - 1` as they are sent; b"" if there is none."""
        own = {name: tensor for name, tensor in self.tensors.items() if first <= int(name.split(".", 1)[0]) < end}
        return save(own) if own else b""


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise _bad(folder, f"{CONFIG} is larger than {MAX_CONFIG} bytes")
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise _bad(folder, f"{CONFIG} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise _bad(folder, f"{CONFIG} is no JSON ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _bad(folder, "only adapters of peft_type LORA can be used")
    if config.get("bias") not in (None, "none"):
        raise _bad(folder, f"bias {config['bias']!r} trains weights of the model itself")
    start = config.get("init_lora_weights")
    if not (isinstance(start, bool | None) or start in _PLAIN_STARTS):
        raise _bad(folder, f"init_lora_weights {str(start)[:40]!r} changes the model's own weights")
    used = [name for name, value in config.items() if value and name not in {*_INNER, "bias", "init_lora_weights"}]
    if used := [name for name in used if not name.startswith("megatron")]:
        raise _bad(folder, f"it uses {', '.join(sorted(used))[:200]}")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _bad(folder, f"lora_alpha is {str(alpha)[:40]!r}")
    return config


def _pairs(folder: Path, anatomy: Anatomy) -> dict[tuple[int, str], dict[str, torch.Tensor]]:
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = [name.name for name in folder.glob("*.bin")]
        why = f"{pickled[0]} is a pickle, which is never opened" if pickled else f"{WEIGHTS} is not there"
        raise _bad(folder, why, "save it with safe_serialization=True")
    if file.stat().st_size > MAX_WEIGHTS:
        raise _bad(folder, f"{WEIGHTS} is larger than {MAX_WEIGHTS} bytes")
    blocks = anatomy.block_prefix.rstrip(".").rpartition(".")[2]
    name_of = re.compile(
        rf"(?:\w+\.)*{re.escape(blocks)}\.(\d{{1,4}})\.([\w.]{{1,256}})\.lora_([AB])\.weight", re.ASCII
    )
    pairs: dict[tuple[int, str], dict[str, torch.Tensor]] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if (match := name_of.fullmatch(name)) is None or int(match[1]) >= anatomy.num_blocks:
                    raise _bad(folder, f"{name[:120]} is no LoRA pair of a block", "adapt linears inside blocks only")
                sides = pairs.setdefault((int(match[1]), match[2]), {})
                if match[3] in sides:
                    raise _bad(folder, f"{name[:120]} is there twice, under two beginnings")
                sides[match[3]] = tensors.get_tensor(name)
    except SafetensorError as error:
        raise _bad(folder, f"{WEIGHTS}: {error}") from None
    if not pairs:
        raise _bad(folder, f"{WEIGHTS} holds no pair")
    return pairs


def _checked(folder: Path, name: str, sides: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = sides.get("A"), sides.get("B")
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        shapes = {side: list(tensor.shape) for side, tensor in sides.items()}
        raise _bad(folder, f"{name} needs A [rank, in] and B [out, rank], got {shapes}")
    if any(one.dtype not in (torch.float32, torch.bfloat16, torch.float16) for one in (a, b)):
        raise _bad(folder, f"{name} is {a.dtype}, {b.dtype}; fp32, bf16 and fp16 can be used")
    return a.contiguous(), b.contiguous()


def _check_shape(folder: Path, anatomy: Anatomy, block: int, module: str, shape: tuple[int, int]) -> None:
    """As far as the folder of the model knows: families rename and fuse, and the node has the last word."""
    known = anatomy.tensors.get(f"{anatomy.block_prefix}{block}.{module}.weight")
    if known is not None and shape not in (known.shape, known.shape[::-1]):
        raise _bad(folder, f"{block}.{module} is {list(known.shape)} in the model, {list(shape)} in the adapter")


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or over its root; `alpha_pattern` may name modules by the ends of their names."""
    alpha, patterns = config["lora_alpha"], config.get("alpha_pattern") or {}
    for ending, other in patterns.items() if isinstance(patterns, dict) else ():
        if module == ending or module.endswith(f".{ending}"):
            alpha = float(other)
            break
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _bad(folder: Path, why: str, next_step: str = "use a plain LoRA adapter") -> ModelError:
    return ModelError(f"The adapter {folder} can't be used", why=why, next_step=next_step)


async def load_adapter(greeting: Greeting, adapter: LoraAdapter, timeout: float) -> bytes:
    """Send a node its part of an adapter; gives the digest that stands behind every step's input from now on.

    b"" if the node has no block that the adapter changes. Raises NodeGone, NodeRefusal.
    """
    leg, terms, doing = greeting.leg, greeting.terms, "loading an adapter"
    blob = adapter.blob(leg.first, leg.end)
    if not blob:
        return b""
    if len(blob) > terms.limits.adapter_bytes:
        limit = f"it takes up to {terms.limits.adapter_bytes} bytes" if terms.limits.adapter_bytes else "it takes none"
        raise NodeGone(leg, f"takes no adapter of {len(blob)} bytes", limit)
    loaded = await expect(greeting, Load(blob), Loaded, timeout, doing)
    with blaming(leg, doing):
        if loaded.digest != digest(blob):
            raise ProtocolError("A node loaded another adapter than the one that was sent")
    return loaded.digest
