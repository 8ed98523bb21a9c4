"""`hivemint model`: what it prints for people and for machines, and its errors."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hivemint.cli.model import app
from hivemint.model import local_models
from hivemint.protocol.errors import ModelError
from hivemint.protocol.home import Home
from support.tiny import tiny_model

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_an_empty_store_says_how_to_fill_it() -> None:
    assert "hivemint model pull" in RUNNER.invoke(app, ["list"]).stdout
    assert json.loads(RUNNER.invoke(app, ["list", "--json"]).stdout) == []


def test_info_tells_blocks_sizes_and_id(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    told = json.loads(RUNNER.invoke(app, ["info", str(folder), "--verify", "--json"]).stdout)
    assert (told["blocks"], told["hidden_size"], told["family"], told["verified"]) == (2, 32, "llama", True)
    assert told["model_id"] == "0x" + local_models.resolve(folder).model_id.hex()
    assert "0.1 MB" in RUNNER.invoke(app, ["info", str(folder)]).stdout


def test_info_tells_what_a_block_takes_and_what_fits(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    told = json.loads(RUNNER.invoke(app, ["info", str(folder), "--json"]).stdout)
    here = told["machine"][0]
    assert here["device"] == "cpu"
    assert here["free_bytes"] > 0
    fp32, bf16 = here["precisions"]["fp32"], here["precisions"]["bf16"]
    assert fp32["bytes_per_block"] == told["bytes_per_block"] == 2 * bf16["bytes_per_block"]
    assert fp32["kv_bytes_per_1000_tokens"] == 1000 * 2 * 2 * 8 * 4
    assert fp32["fits_blocks"] == told["blocks"] == 2
    assert fp32["fits_tokens"] > 64
    nf4 = here["precisions"]["nf4"]
    assert nf4["fits_blocks"] == 0
    assert "slower" in nf4["refused"]
    shown = RUNNER.invoke(app, ["info", str(folder)]).stdout
    assert "2 of 2 blocks" in shown
    assert "refused: slower" in shown


def test_info_of_a_family_that_is_not_served_says_so(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "stablelm")
    assert not json.loads(RUNNER.invoke(app, ["info", str(folder), "--json"]).stdout)["served"]


def test_a_damaged_model_is_listed_as_damaged(home: Path) -> None:
    file = tiny_model(Home.open().models / "tiny") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (row,) = json.loads(RUNNER.invoke(app, ["list", "--json"]).stdout)
    assert row["name"] == "tiny"
    assert row["state"].startswith("damaged: ")


def test_an_unknown_model_is_an_error() -> None:
    result = RUNNER.invoke(app, ["info", "nope"])
    assert isinstance(result.exception, ModelError)
