"""Where messages come from: pipes, and the history that a terminal keeps."""

import io
import stat
from pathlib import Path

import pytest

from hivemint.cli.talk.lines import PipedLines, history_file, message_of, unseen
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.home import Home


def test_a_pipe_is_a_message_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one \n\n /bye\nlast"))
    lines = PipedLines()
    assert [lines.next() for _ in range(5)] == ["one", "", "/bye", "last", None]
    with unseen(lines.interactive):
        pass
    assert capsys.readouterr() == ("", "")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(BadInput, match="UTF-8"):
        message_of(lambda: "caf\udce9")


def test_the_history_is_its_owners_alone(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    path = history_file(home)
    path.write_text("what was typed\n")
    path.chmod(0o644)
    assert history_file(home) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "what was typed\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="--no-history"):
        history_file(home)
