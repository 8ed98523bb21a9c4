"""A model's manifest: the digest of every tensor and of the config. Its keccak256 is the model's id.

    name<TAB>dtype<TAB>1x2x3<TAB>sha256 hex<LF>      one line per tensor, sorted bytewise by name
    config.json<TAB><TAB><TAB>sha256 hex<LF>         last

One form only: `parse` refuses whatever `to_bytes` would not have written, so that a model has one id.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from hivemint.model.anatomy import DTYPE_BYTES, TensorEntry, read_tensors
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import ModelId
from hivemint.protocol.keccak import keccak

CONFIG = "config.json"
MAX_CONFIG = 1 << 20
MAX_MANIFEST = 64 << 20
CHUNK = 4 << 20
DAMAGED = "the folder is damaged: fetch the model again"
_LINE = re.compile(r"([^\t\n\r\0]{1,512})\t([A-Z0-9_]{2,8})\t((?:[0-9]{1,12}(?:x[0-9]{1,12}){0,7})?)\t([0-9a-f]{64})")
_CONFIG_LINE = re.compile(r"config\.json\t\t\t([0-9a-f]{64})")

Progress = Callable[[str, int, int], None]
"""`(stage, done, total)`; total 0 = unknown."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """What the manifest says of one tensor. `sha256` of its bytes as stored (row-major, little endian)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: bytes

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Manifest:
    """Digests of one model: its tensors by name and its config.json."""

    tensors: Mapping[str, TensorDigest]
    config_sha256: bytes

    def to_bytes(self) -> bytes:
        lines = [
            f"{name}\t{entry.dtype}\t{'x'.join(map(str, entry.shape))}\t{entry.sha256.hex()}\n"
            for name, entry in sorted(self.tensors.items(), key=lambda item: item[0].encode())
        ]
        return "".join([*lines, f"{CONFIG}\t\t\t{self.config_sha256.hex()}\n"]).encode()

    @cached_property
    def model_id(self) -> ModelId:
        """keccak256 of the manifest's bytes."""
        return ModelId(keccak(self.to_bytes()))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.nbytes for entry in self.tensors.values())

    def check_tensor(self, name: str, data: bytes | memoryview) -> None:
        """Raise `ModelError` unless `data` (the tensor's bytes as stored) is what the manifest names."""
        _compare(name, hashlib.sha256(data).digest(), self._entry(name).sha256)

    def check_tensors(self, folder: Path, names: Iterable[str], progress: Progress | None = None) -> None:
        """Check the named tensors of the model in `folder`, only those, straight from the files.

        Raises `ModelError` at the first that is missing, of another type or shape, or of another digest.
        """
        refs, absent = read_tensors(folder)
        wanted = {name: self._entry(name) for name in names}
        done, total = 0, sum(entry.nbytes for entry in wanted.values())
        for name, entry in wanted.items():
            ref = refs.get(name)
            if ref is None:
                raise _lacking(name, folder, absent)
            if (ref.dtype, ref.shape) != (entry.dtype, entry.shape):
                raise ModelError(
                    f"{name} in {folder} is {ref.dtype} {ref.shape}",
                    why=f"the manifest says {entry.dtype} {entry.shape}",
                    next_step="use the model that the network names",
                )
            _compare(name, _digest(ref), entry.sha256)
            done += ref.nbytes
            if progress:
                progress("check", done, total)

    def check_config(self, raw: bytes) -> None:
        """Raise `ModelError` unless `raw` is the config.json that the manifest names."""
        _compare(CONFIG, hashlib.sha256(raw).digest(), self.config_sha256)

    def _entry(self, name: str) -> TensorDigest:
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelError(f"the model's manifest has no tensor {name}") from None


def parse(raw: bytes) -> Manifest:
    """The manifest that `raw` holds. Raises `ModelError` for anything but the one canonical form."""
    if len(raw) > MAX_MANIFEST:
        raise ModelError(f"a manifest of {len(raw)} bytes", why=f"at most {MAX_MANIFEST} are read")
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ModelError("the manifest is not UTF-8", why=str(error)) from error
    last = _CONFIG_LINE.fullmatch(lines[-2]) if len(lines) >= 2 else None
    if last is None or lines[-1]:
        raise ModelError("the manifest does not end with the line of config.json")
    tensors: dict[str, TensorDigest] = {}
    for number, line in enumerate(lines[:-2], 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] not in DTYPE_BYTES:
            raise ModelError(f"line {number} of the manifest is not name, dtype, shape, sha256", why=repr(line[:80]))
        shape = tuple(int(size) for size in match[3].split("x")) if match[3] else ()
        tensors[match[1]] = TensorDigest(match[2], shape, bytes.fromhex(match[4]))
    manifest = Manifest(MappingProxyType(tensors), bytes.fromhex(last[1]))
    if manifest.to_bytes() != raw:
        raise ModelError("the manifest is not in its one form", why="names are sorted and unique, sizes without zeros")
    return manifest


def build(folder: Path, progress: Progress | None = None) -> Manifest:
    """The manifest of the model in `folder`: reads every tensor once (about 1 s a GB)."""
    refs = all_tensors(folder)
    tensors: dict[str, TensorDigest] = {}
    done, total = 0, sum(ref.nbytes for ref in refs.values())
    for name, ref in refs.items():
        tensors[name] = TensorDigest(ref.dtype, ref.shape, _digest(ref))
        done += ref.nbytes
        if progress:
            progress("digest", done, total)
    raw = Manifest(MappingProxyType(tensors), hashlib.sha256(read_config(folder)).digest()).to_bytes()
    return parse(raw)  # a name that the form cannot carry is an error here, not at the peer's


def all_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the model in `folder`. Raises `ModelError` when a shard is not there."""
    refs, absent = read_tensors(folder)
    if absent:
        raise _lacking(min(absent), folder, absent)
    return refs


def read_config(folder: Path) -> bytes:
    """The bytes of `folder`/config.json. Raises `ModelError` when missing or beyond 1 MB."""
    file = folder / CONFIG
    if not file.is_file():
        raise ModelError(f"{folder} holds no {CONFIG}", next_step="give the folder of a Hugging Face model")
    if file.stat().st_size > MAX_CONFIG:
        raise ModelError(f"{file} is larger than {MAX_CONFIG >> 20} MB", next_step=DAMAGED)
    return file.read_bytes()


def _lacking(name: str, folder: Path, absent: Mapping[str, Path]) -> ModelError:
    why = f"its shard {absent[name].name} is not there" if name in absent else ""
    return ModelError(f"{folder} lacks the tensor {name}", why=why, next_step=DAMAGED)


def _digest(ref: TensorEntry) -> bytes:
    state, left = hashlib.sha256(), ref.nbytes
    with ref.file.open("rb") as stream:
        stream.seek(ref.offset)
        while left:
            chunk = stream.read(min(left, CHUNK))
            if not chunk:
                raise ModelError(f"{ref.file} ends in the middle of {ref.name}", next_step=DAMAGED)
            state.update(chunk)
            left -= len(chunk)
    return state.digest()


def _compare(name: str, got: bytes, expected: bytes) -> None:
    if got != expected:
        raise ModelError(
            f"{name} has another digest than the manifest says",
            why=f"expected sha256 {expected.hex()[:16]}..., got {got.hex()[:16]}...",
            next_step=DAMAGED,
        )
