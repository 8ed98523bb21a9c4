"""The model store: from a MODEL argument to a local folder with a known id.

A MODEL is the name of a pulled model, a folder in Hugging Face's layout, or the id of a model on a hub (`owner/name`;
`HF_HOME` and `HF_HUB_OFFLINE` are respected). Only safetensors are read, and no code that comes with a model is run.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hivemint.model import smollm2
from hivemint.model.anatomy import Anatomy
from hivemint.model.manifest import CONFIG, Manifest, Progress, all_tensors, build, parse, read_config
from hivemint.protocol.errors import ModelError
from hivemint.protocol.home import Home, check_name, private_folder
from hivemint.protocol.ids import ModelId
from hivemint.protocol.text import did_you_mean

DEMO = smollm2.NAME
DEMO_MODEL_ID = smollm2.MODEL_ID
MANIFEST = "hivemint.manifest"
SPACE = 1 << 30  # the demo model and its scratch files
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


@dataclass(frozen=True)
class LocalModel:
    """A model in a local folder. `home` keeps the manifests of folders that are not ours."""

    name: str
    folder: Path
    home: Home

    @cached_property
    def anatomy(self) -> Anatomy:
        """Blocks, tensors, sizes. Raises `ModelError` for a damaged folder."""
        return Anatomy.read(self.folder)

    @property
    def model_id(self) -> ModelId:
        return self.manifest.model_id

    @cached_property
    def manifest(self) -> Manifest:
        """Read where it was written before; else built once (1 s a GB) and kept until a file of the model changes."""
        return self.read_manifest()

    def read_manifest(self, progress: Progress | None = None) -> Manifest:
        """As `manifest`, telling its progress. Raises `ModelError` for a damaged folder."""
        own = self.folder / MANIFEST
        if self.folder.parent == self.home.models and own.is_file():
            manifest = _parsed(own, "`hivemint model pull` writes it anew")
            manifest.check_config(read_config(self.folder))
            return manifest
        kept = private_folder(self.home.models / ".manifests") / self._fingerprint()
        if kept.is_file():
            return _parsed(kept, "remove it: it is built again")
        manifest = build(self.folder, progress)
        _write_whole(kept, manifest.to_bytes())
        return manifest

    def check(self, progress: Progress | None = None) -> None:
        """Compare every byte of the model with its manifest. Raises `ModelError` at the first difference."""
        manifest = self.read_manifest(progress)
        manifest.check_config(read_config(self.folder))
        manifest.check_tensors(self.folder, manifest.tensors, progress)

    def _fingerprint(self) -> str:
        """Names a state of the folder by its files' sizes and times, which is cheap, and not by their content."""
        files = {self.folder / CONFIG, *(entry.file for entry in all_tensors(self.folder).values())}
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
        return hashlib.sha256(repr(stats).encode()).hexdigest()


def resolve(
    model: str | Path, *, home: Home | None = None, expected: ModelId | None = None, progress: Progress | None = None
) -> LocalModel:
    """The model that `model` names; with `expected`, only if it has this id (that of the network).

    Raises `ModelError`: unknown name, no model in the folder, hub out of reach, another model id.
    """
    home = home or Home.open()
    found = _resolve(str(model), home)
    read_config(found.folder)
    if expected is not None and (got := found.read_manifest(progress).model_id) != expected:
        raise ModelError(
            f"{model} is not the model of this network",
            why=f"its model id is {got.hex()[:16]}..., the network's {expected.hex()[:16]}...",
            next_step="same weights in another format are another model: use the one that the network names",
        )
    return found


def pull(model: str = DEMO, *, home: Home | None = None, progress: Progress | None = None) -> LocalModel:
    """Fetch `model` (the demo model's name, or a hub id) unless it is there, and return it.

    A killed pull leaves no half model: the folder appears under its name whole, by one rename.
    """
    home, tell = home or Home.open(), progress or (lambda stage, done, total: None)
    if model.lower() != DEMO.lower():
        if Path(model).expanduser().is_dir() or not _HUB_ID.fullmatch(model):
            return resolve(model, home=home)
        return LocalModel(model, _from_hub(model), home)
    target = home.models / DEMO
    found = LocalModel(DEMO, target, home)
    with _locked(home):
        if not _whole(found, tell):
            _pull_demo(home, target, tell)
    return found


def installed(home: Home | None = None) -> list[LocalModel]:
    """The pulled models, by name."""
    home = home or Home.open()
    folders = sorted(path for path in home.models.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [LocalModel(folder.name, folder, home) for folder in folders]


def remove(name: str, *, home: Home | None = None) -> None:
    """Delete a pulled model. Raises `ModelError` if there is none of that name, `ConfigError` for no plain name."""
    home = home or Home.open()
    folder = home.models / check_name(name, "model")
    with _locked(home):
        if not folder.is_dir():
            raise ModelError(f"no pulled model {name!r}", next_step="see `hivemint model list`")
        gone = Path(tempfile.mkdtemp(prefix=".pull-", dir=home.models))
        folder.rename(gone / name)
        shutil.rmtree(gone)


def _resolve(model: str, home: Home) -> LocalModel:
    for known in installed(home):
        if known.name.lower() == model.lower():
            return known
    folder = Path(model).expanduser()
    if folder.is_dir():
        return LocalModel(folder.resolve().name, folder.resolve(), home)
    if _HUB_ID.fullmatch(model):
        return LocalModel(model, _from_hub(model), home)
    names = [known.name for known in installed(home)]
    raise ModelError(
        f"unknown model {model!r}",
        why=f"it is no pulled model ({', '.join(names) or 'none yet'}), no folder and no hub id (owner/name)",
        next_step=did_you_mean(model, {*names, DEMO}, f"`hivemint model pull` fetches {DEMO}"),
    )


def _parsed(path: Path, mend: str) -> Manifest:
    try:
        return parse(path.read_bytes())
    except ModelError as error:
        raise ModelError(f"{path} is damaged", why=error.what, next_step=mend) from None


def _whole(model: LocalModel, progress: Progress) -> bool:
    """Whether a pulled model is there and undamaged."""
    if not (model.folder / MANIFEST).is_file():
        return False
    try:
        LocalModel(model.name, model.folder, model.home).check(progress)
    except ModelError:
        return False
    return True


def _from_hub(model: str) -> Path:
    """The folder of a hub's model in Hugging Face's own cache, downloaded where it is missing."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        try:
            folder = Path(snapshot_download(model, allow_patterns=_HUB_FILES, local_files_only=True))
            all_tensors(folder)  # an interrupted download is found here and taken up again below
        except (LocalEntryNotFoundError, ModelError):
            folder = Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub knows no model {model!r}", next_step="check the spelling, or log in to it"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"{model} is not in the local cache and its hub cannot be reached",
            why=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
            next_step=f"copy its folder here and name that, set HF_ENDPOINT, or use {DEMO} (`hivemint model pull`)",
        ) from error
    return folder


def _pull_demo(home: Home, target: Path, progress: Progress) -> None:
    free = shutil.disk_usage(home.models).free
    if free < SPACE:
        raise ModelError(
            f"{home.models} has {free >> 20} MB left",
            why=f"the demo model needs {SPACE >> 20} MB while it is converted",
            next_step="make room, or set HIVEMINT_HOME to another disk",
        )
    for stale in home.models.glob(".pull-*"):  # of a killed pull: the lock is ours, so nobody uses it
        shutil.rmtree(stale)
    fresh = Path(tempfile.mkdtemp(prefix=".pull-", dir=home.models))
    try:
        manifest = smollm2.install(fresh, progress)
        (fresh / MANIFEST).write_bytes(manifest.to_bytes())
        for file in fresh.iterdir():
            _sync(file)
        if target.exists():  # damaged: the lock's next holder deletes it if we are killed here
            target.rename(fresh.with_name(fresh.name + "-damaged"))
        fresh.rename(target)
        _sync(home.models)
    finally:
        for left in home.models.glob(f"{fresh.name}*"):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    """One pull or removal at a time, over processes; the lock ends with its process."""
    with (home.models / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_whole(file: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
        stream.write(data)
    os.replace(stream.name, file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
