"""The tree of verbs: which speak JSON, and what `help` and `version` say."""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from hivemint.cli.tree import GROUPS, build
from support.command import run

WITHOUT_JSON = {
    "node start": "it runs until it is ended: where stdout is no terminal, its lines are JSON, `ready` first",
    "ledger serve": "it runs until it is ended: where stdout is no terminal, it prints one JSON line, `ready`",
    "swarm bootstrap": "it runs until it is ended, and prints one JSON line, `ready`",
    "testnet chain": "it runs until it is ended, and prints one JSON line, `ready`",
    "testnet env": "its lines are for a shell's eval; `testnet status --json` has what stands in them",
    "help": "it is for people; docs/command-line.md has it as a page",
}
"""Verbs that take no --json, and why."""


def verbs() -> Iterator[tuple[str, Any]]:
    for group in GROUPS:
        yield from below(group, get_command(build(group)).commands[group])  # type: ignore[attr-defined]


def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        yield path, command
        return
    for name, verb in commands.items():
        yield from below(f"{path} {name}", verb)


def test_every_verb_that_reports_something_speaks_json() -> None:
    found = dict(verbs())
    assert len(found) > 40
    without = {path for path, verb in found.items() if not any("--json" in param.opts for param in verb.params)}
    assert without == set(WITHOUT_JSON), "a verb takes as_json: JsonFlag, or stands in WITHOUT_JSON with its reason"


def test_every_option_says_what_it_is() -> None:
    """A completion shows it, and so does the page."""
    for path, verb in verbs():
        assert verb.help or " " not in path, path
        assert [param.name for param in verb.params if param.param_type_name == "option" and not param.help] == [], path


@pytest.mark.parametrize("words", [("account", "fund"), ("wallet",), ("chat",), ()])
def test_help_as_a_verb(words: tuple[str, ...], tmp_path: Path) -> None:
    asked, option = run(tmp_path, "help", *words), run(tmp_path, *words, "--help")
    assert asked.returncode == 0
    assert asked.stdout == option.stdout
    assert f"Usage: hivemint {' '.join(words)}".rstrip() in asked.stdout


def test_help_for_what_is_no_verb(tmp_path: Path) -> None:
    done = run(tmp_path, "help", "acount")
    assert done.returncode == 2
    assert "did you mean account?" in done.stderr


def test_the_version(tmp_path: Path) -> None:
    version = importlib.metadata.version("hivemint")
    assert run(tmp_path, "version").stdout.startswith(f"hivemint {version} (Python ")
    assert run(tmp_path, "--version").stdout == f"hivemint {version}\n"
    assert json.loads(run(tmp_path, "version", "--json").stdout)["version"] == version
