"""Verbs of the command line, run in this process: what they tell a program, and the error that they end with."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hivemint.protocol.errors import HivemintError

RUNNER = CliRunner()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for every verb, and the password of its wallets; nothing of the user's own environment."""
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HIVEMINT_PASSWORD", "correct horse")
    for name in ("HIVEMINT_NETWORK", "HIVEMINT_WALLET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def told(app: typer.Typer, *words: str) -> Any:
    """The JSON document of a verb."""
    result = RUNNER.invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(app: typer.Typer, *words: str) -> HivemintError:
    """What `hivemint` would show as a few plain lines."""
    result = RUNNER.invoke(app, list(words))
    assert isinstance(result.exception, HivemintError), result.output
    return result.exception
