"""`hivemint node start` without a terminal: everything that is missing is named at once, before anything is done."""

from pathlib import Path

import pytest

from hivemint.cli.node import verbs
from hivemint.protocol.errors import ConfigError
from support.verbs import error_of

pytest_plugins = ["support.verbs"]


def test_all_that_is_missing_is_named_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIVEMINT_PASSWORD")
    refused = error_of(verbs.app, "start", "a-model")
    assert isinstance(refused, ConfigError)
    for flag in ("--network FILE", "--wallet NAME", "--blocks FIRST:END", "--password-file FILE", "HIVEMINT_PASSWORD"):
        assert flag in refused.what
    assert "no terminal" in refused.why
    assert not list(home.glob("keystores/*")), "nothing was made"


def test_only_what_is_missing_is_named(home: Path) -> None:
    refused = error_of(verbs.app, "start", "a-model", "--wallet", "op", "--blocks", "0:1")
    assert refused.what == "`node start` lacks --network FILE (or HIVEMINT_NETWORK)"
