"""The files beside a model's weights that a client's libraries read: tokenizer, chat template, generation settings.

They decide what a prompt becomes and what is executed as a template, so a network pins them by digest
(`network.toml`, `models.files`). The manifest, whose hash is the model's id, stays the weights' and the config's.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from hivemint.protocol.errors import ModelError

NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
TEMPLATES = "additional_chat_templates"
MAX_FILE = 64 << 20


def digests(folder: Path) -> dict[str, bytes]:
    """SHA-256 of each of these files that `folder` holds, by name. Raises `ModelError` for one beyond 64 MB."""
    found = [folder / name for name in NAMES] + sorted((folder / TEMPLATES).glob("*.jinja"))
    return {file.relative_to(folder).as_posix(): _digest(file) for file in found if file.is_file()}


def check(folder: Path, pinned: Mapping[str, bytes]) -> None:
    """Raises `ModelError` unless `folder` holds exactly the `pinned` files. Without any nothing is compared."""
    if not pinned:
        return
    found = digests(folder)
    for name in sorted(found.keys() | pinned.keys()):
        if found.get(name) == pinned.get(name):
            continue
        wrong = "is missing" if name not in found else "is another one" if name in pinned else "is not pinned"
        raise ModelError(
            f"{name} in {folder} {wrong}",
            why="the network file pins what decides how a prompt is read",
            next_step="fetch the model again, or get the network file from its operator again",
        )


def _digest(file: Path) -> bytes:
    if file.stat().st_size > MAX_FILE:
        raise ModelError(f"{file} is larger than {MAX_FILE >> 20} MB", next_step="fetch the model again")
    return hashlib.sha256(file.read_bytes()).digest()
