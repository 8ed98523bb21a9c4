"""docs/command-line.md is what the command line says of itself, and nothing of the machine that wrote it."""

from pathlib import Path

import pytest
from house.command_line import page

from hivemint.cli.tree import GROUPS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"


def test_the_page_is_the_command_lines_own_help() -> None:
    assert PAGE.read_text() == page(), "the command line has changed: `make help-page` writes its page anew"


def test_every_group_has_its_place() -> None:
    text = PAGE.read_text()
    assert [name for name in GROUPS if f"\n## hivemint {name}\n" not in text] == []


def test_terminal_and_home_leave_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path))
    text = page()
    assert text == PAGE.read_text()
    assert "\x1b" not in text
    assert str(Path.home()) not in text
