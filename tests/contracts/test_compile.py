"""The committed artifacts are what the sources compile to."""

from pathlib import Path

import pytest

from hivemint.contracts import compile as compiling
from hivemint.contracts.artifacts import NAMES
from hivemint.contracts.compile import compile_contracts, qualified, stale, standard_json
from hivemint.protocol.errors import ChainError, ConfigError


def test_the_artifacts_are_those_of_the_sources_byte_for_byte() -> None:
    compiled = compile_contracts()
    assert tuple(compiled) == NAMES
    assert stale(compiled) == []
    assert stale({**compiled, "Emission": compiled["Emission"] + " "}) == ["Emission"]


def test_explorers_get_what_the_compiler_got() -> None:
    """Alone, with no other file: each import is among the sources, and the settings are the deployment's."""
    document = standard_json()
    assert all(qualified(name).partition(":")[0] in document["sources"] for name in NAMES)
    assert document["settings"]["evmVersion"] == "prague"
    assert document["settings"]["optimizer"] == {"enabled": True, "runs": 10_000}
    assert all(list(source) == ["content"] for source in document["sources"].values())


def test_a_fault_in_the_sources_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compiling, "_sources", lambda _: {"project/src/X.sol": {"content": "pragma solidity 0.8.37; contract X { y }"}}
    )
    with pytest.raises(ChainError, match="do not compile"):
        compile_contracts()


def test_a_compiler_of_another_version_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "solc"
    old.write_text('#!/bin/sh\necho "Version: 0.8.1+commit.x"\n')
    old.chmod(0o700)
    with pytest.raises(ConfigError, match=r"it is 0\.8\.1, the contracts need 0\.8\.37"):
        compile_contracts(old)
    with pytest.raises(ConfigError, match="does not run"):
        compile_contracts(tmp_path / "none")
