"""What a model's folder holds: blocks, tensors, sizes. Read from config.json and the safetensors headers only.

Nothing here loads weights or imports torch: a client and `hivemint model info` ask the same questions as a node.
A folder is hostile input; every length is checked before it is used.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one element, by safetensors' words."""

MAX_HEADER = 100_000_000  # safetensors' own limit for its JSON header
MAX_CONFIG = 16_000_000
MAX_BLOCKS, MAX_WIDTH = 4096, 1 << 20
UNBOUNDED_POSITIONS = 1 << 20  # families without learned or declared positions (ALiBi)

_NO_GROUPS = {"bloom", "gpt2", "gpt_neox", "opt"}
_BLOCK_NAME = re.compile(r"^(?P<prefix>(?:[A-Za-z_]+\.)*)(?P<index>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor in one file: `nbytes` bytes from `offset`, little endian, row-major, dtype in safetensors' words."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Anatomy:
    """The measures of one model. `block_prefix` comes before a block's number in tensor names (`model.layers.`).

    `absent` names the tensors of shards that are not in the folder: a node needs its own span's shards only.
    """

    folder: Path
    family: str
    num_blocks: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    vocab_size: int
    max_positions: int
    block_prefix: str
    tensors: Mapping[str, TensorEntry]
    absent: Mapping[str, Path]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Anatomy":
        """Raises ModelError for a folder that is missing, incomplete or inconsistent."""
        folder = Path(folder)
        config = _read_json(folder / "config.json", MAX_CONFIG)
        tensors, absent = read_tensors(folder)
        num_blocks = _measure(config, MAX_BLOCKS, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
        hidden = _measure(config, MAX_WIDTH, "hidden_size", "n_embd", "d_model")
        heads = _measure(config, MAX_WIDTH, "num_attention_heads", "n_head", "n_heads")
        kv_heads = _kv_heads(config, heads)
        key_dim = value_dim = _measure(config, MAX_WIDTH, "head_dim", default=hidden // heads)
        if "kv_lora_rank" in config:  # latent attention: every head keeps its own keys and values once expanded
            kv_heads = heads
            key_dim = sum(_measure(config, MAX_WIDTH, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
            value_dim = _measure(config, MAX_WIDTH, "v_head_dim")
        family = config.get("model_type")
        if not isinstance(family, str) or not re.fullmatch(r"[A-Za-z0-9_\-.]{1,64}", family):
            raise ModelError(f"{folder / 'config.json'} names no model_type", next_step="use a Hugging Face folder")
        return cls(
            folder=folder,
            family=family,
            num_blocks=num_blocks,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            vocab_size=_measure(config, 1 << 31, "vocab_size"),
            max_positions=_measure(
                config,
                1 << 31,
                "max_position_embeddings",
                "n_positions",
                "max_sequence_length",
                default=UNBOUNDED_POSITIONS,
            ),
            block_prefix=_block_prefix({*tensors, *absent}, num_blocks, folder),
            tensors=tensors,
            absent=absent,
            config=config,
        )

    def block_tensors(self, block: BlockIndex) -> list[TensorEntry]:
        """All tensors of one block, in the order of their names. Raises ModelError if a shard of it is not here."""
        prefix = f"{self.block_prefix}{block}."
        self._check_here(name for name in self.absent if name.startswith(prefix))
        return [self.tensors[name] for name in sorted(self.tensors) if name.startswith(prefix)]

    def outer_tensors(self) -> list[TensorEntry]:
        """What belongs to no block: embeddings, last norm, head. Raises ModelError if a shard of it is not here."""
        self._check_here(name for name in self.absent if not self._in_block(name))
        return [t for name, t in sorted(self.tensors.items()) if not self._in_block(name)]

    def block_bytes(self, block: BlockIndex, itemsize: int | None = None) -> int:
        """Weight bytes of a block as stored, or with `itemsize` bytes an element."""
        return sum(t.nbytes if itemsize is None else t.elements * itemsize for t in self.block_tensors(block))

    def span_bytes(self, first: BlockIndex, end: BlockIndex, itemsize: int | None = None) -> int:
        return sum(self.block_bytes(BlockIndex(block), itemsize) for block in range(first, end))

    def kv_bytes_per_token(self, blocks: int = 1, itemsize: int = 4) -> int:
        """K and V bytes that one cached token takes in `blocks` blocks, whole history kept (no window)."""
        return blocks * self.num_kv_heads * (self.key_dim + self.value_dim) * itemsize

    def check_span(self, first: BlockIndex, end: BlockIndex) -> None:
        """Raises ModelError unless 0 <= first < end <= num_blocks."""
        if not 0 <= first < end <= self.num_blocks:
            raise ModelError(
                f"blocks {first}:{end} are no span of {self.folder.name}",
                why=f"the model has blocks 0:{self.num_blocks}",
                next_step=f"choose a span inside 0:{self.num_blocks}, first before end",
            )

    def _check_here(self, absent: Iterable[str]) -> None:
        if (name := next(iter(absent), None)) is not None:
            raise ModelError(
                f"{self.folder} is incomplete",
                why=f"{self.absent[name].name}, which holds {name}, is not there",
                next_step="fetch the model again",
            )

    def _in_block(self, name: str) -> bool:
        return name.startswith(self.block_prefix) and name[len(self.block_prefix) :].split(".", 1)[0].isdigit()


def read_tensors(folder: Path) -> tuple[dict[str, TensorEntry], dict[str, Path]]:
    """The tensors of a folder's safetensors shards by name, and those whose shard is not there."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return {entry.name: entry for entry in _header(folder / "model.safetensors")}, {}
    weight_map = _read_json(index, MAX_HEADER).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise _damaged(index, "its weight_map is no table of file names")
    for file in weight_map.values():
        if not re.fullmatch(r"[A-Za-z0-9_\-][A-Za-z0-9_\-.]*\.safetensors", file):
            raise _damaged(index, f"{file!r} is no plain file name")
    here = {file for file in set(weight_map.values()) if (folder / file).exists()}
    tensors = {entry.name: entry for file in sorted(here) for entry in _header(folder / file)}
    absent = {name: folder / file for name, file in weight_map.items() if file not in here}
    if lost := sorted(set(weight_map) - set(tensors) - set(absent)):
        raise _damaged(index, f"{len(lost)} tensors are in no shard, {lost[0]} first")
    return tensors, absent


def _header(file: Path) -> Iterator[TensorEntry]:
    """The entries of one safetensors file; sizes are checked against the file's own length."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise _damaged(file, f"its header claims {length} bytes, the file has {size}")
            header = json.loads(stream.read(length))
    except OSError as problem:
        raise ModelError(
            f"cannot read {file}",
            why=problem.strerror or str(problem),
            next_step="weights must be safetensors; `hivemint model pull` fetches the demo model",
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise _damaged(file, f"its header is no JSON ({problem})") from problem
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _entry(file, name, entry, 8 + length, size)


def _entry(file: Path, name: str, entry: Any, base: int, size: int) -> TensorEntry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            dtype in DTYPE_BYTES and all(type(n) is int and n >= 0 for n in shape)
        ):
            if end - begin != math.prod(shape) * DTYPE_BYTES[dtype] or not 0 <= begin <= end <= size - base:
                raise _damaged(file, f"{name} should have {shape} x {dtype}, its bytes {begin}:{end} don't fit")
            return TensorEntry(name, dtype, tuple(shape), file, base + begin, end - begin)
    raise _damaged(file, f"the entry of {name} is malformed or of an unknown dtype")


def _block_prefix(names: Iterable[str], num_blocks: int, folder: Path) -> str:
    """The one prefix under which the blocks 0 .. num_blocks - 1 all have tensors."""
    found: dict[str, set[int]] = {}
    for name in names:
        if match := _BLOCK_NAME.match(name):
            found.setdefault(match["prefix"], set()).add(int(match["index"]))
    if not found:
        raise _damaged(folder, "no tensor is named like a block's")
    prefix = max(found, key=lambda p: len(found[p]))
    if lost := sorted(set(range(num_blocks)) - found[prefix]):
        raise _damaged(folder, f"config.json tells of {num_blocks} blocks, block {lost[0]} has no tensors")
    return prefix


def _read_json(file: Path, limit: int) -> dict[str, Any]:
    try:
        if file.stat().st_size > limit:
            raise _damaged(file, f"it is larger than {limit} bytes")
        value = json.loads(file.read_bytes())
    except OSError as problem:
        raise ModelError(
            f"cannot read {file}",
            why=problem.strerror or str(problem),
            next_step="name a Hugging Face model folder, or run `hivemint model pull`",
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise _damaged(file, f"it is no JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise _damaged(file, "it is no JSON object")
    return value


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    """Heads of keys and values that are kept. Some families have no groups, whatever their config says besides."""
    if config.get("model_type") == "falcon":  # its largest models share heads, but keep a copy for each
        return 1 if config.get("multi_query", True) and not config.get("new_decoder_architecture") else heads
    if config.get("model_type") in _NO_GROUPS:
        return heads
    return _measure(config, MAX_WIDTH, "num_key_value_heads", "num_kv_heads", default=heads)


def _measure(config: Mapping[str, Any], most: int, *names: str, default: int | None = None) -> int:
    """The first of `names` that the config has, as an integer from 1 to `most`."""
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if type(value) is not int or not 1 <= value <= most:
        raise ModelError(
            f"config.json gives {names[0]} = {value!r}",
            why=f"expected an integer from 1 to {most}",
            next_step="use the model's own config.json",
        )
    return value


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged", why=why, next_step="fetch the model again")
