"""Tables at any width: folded into lines of name and value where they do not fit, whole where there is no edge."""

import io

import pytest
from rich.text import Text

from hivemint.cli import console
from hivemint.cli.terminal.screen import Terminal

ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
COLUMNS = ("node", "blocks", ">ask a token and block", ">free tokens", "state")
ROW = (ADDRESS, "0:15", "0.000000100", "12,345", "thaws until 2026-11-29 06:00:00 UTC")


def printed(
    monkeypatch: pytest.MonkeyPatch, width: int | None, *columns: str, rows: list[tuple[str | Text, ...]]
) -> str:
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    screen = Terminal()
    screen.file = io.StringIO()
    monkeypatch.setattr(console, "out", screen)
    console.table("Accounts", *columns, rows=rows)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_wide_table_becomes_lines_of_name_and_value(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    text = printed(monkeypatch, width, *COLUMNS, rows=[ROW, ROW])
    lines = text.splitlines()
    assert lines[:3] == ["Accounts", ADDRESS, "  blocks                 0:15"]
    assert "  ask a token and block  0.000000100" in lines
    assert "  state                  thaws until 2026-11-29 06:00:00 UTC" in lines
    assert len(lines) == 1 + 2 * len(COLUMNS)


@pytest.mark.parametrize("width", [130, None])
def test_a_table_that_fits_keeps_each_row_on_a_line(monkeypatch: pytest.MonkeyPatch, width: int | None) -> None:
    text = printed(monkeypatch, width, *COLUMNS, rows=[ROW, ROW])
    assert [line.split() for line in text.splitlines() if ADDRESS in line] == [" ".join(ROW).split()] * 2


def test_a_narrow_table_stays_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, 60, "name", ">blocks", rows=[("SmolLM2", "30")]).splitlines()
    assert [line.split() for line in lines] == [["Accounts"], ["name", "blocks"], ["SmolLM2", "30"]]


def test_of_two_columns_the_first_one_is_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/a/very/long/path/that/someone/wants/to/copy/in/one/piece/network.toml"
    text = printed(monkeypatch, 60, "what", "where", rows=[("network file", path)])
    assert f"  network file  {path}" in text.splitlines()


def test_a_dumb_terminal_has_the_width_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "60")
    assert Terminal().width == 60


def test_a_stranger_s_text_brings_no_markup_into_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(monkeypatch, 20, "node", "name", "more", rows=[("[red]x[/]", "\x1b[31my" * 9, "z")])
    assert "[red]x[/]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", range(20, 140, 7))
def test_no_cell_is_broken_at_any_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    row = ("mellow-juniper-aaaa", ADDRESS[:12], "fp32/fp32/fp32", "112.6", "0.000000020 HMC")
    names = ("node", "operator", "weights/computation/wire", ">tokens a second", ">ask a token and block")
    text = printed(monkeypatch, width, *names, rows=[row, row])
    assert all(text.count(cell) == 2 for cell in row)
