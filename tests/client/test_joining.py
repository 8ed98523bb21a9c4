"""What is said while a model joins, and where nothing is."""

import io

import pytest

from hivemint.client.generation.joining import progress_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(stream: io.StringIO, wanted: bool | None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with progress_line(wanted) as tell:
        tell("joining the network dev")
        tell("done " * 40)
    return stream.getvalue()


def test_a_terminal_sees_one_line_that_is_wiped_out(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(Terminal(), None, monkeypatch)
    assert "joining the network dev" in text
    assert "\n" not in text
    assert all(len(part) <= 79 for part in text.split("\r")), "it never wraps"
    assert not text.split("\r")[-2].strip(), "nothing of it stays"


def test_a_file_or_a_service_hears_nothing_unless_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(io.StringIO(), None, monkeypatch) == ""
    assert said(Terminal(), False, monkeypatch) == ""
    assert said(io.StringIO(), True, monkeypatch).splitlines()[0] == "joining the network dev"


def test_a_notebook_sees_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipykernel", object())
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert "joining" in said(io.StringIO(), None, monkeypatch)


def test_a_process_without_stderr_joins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with progress_line(True) as tell:
        tell("joining")
