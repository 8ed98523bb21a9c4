"""Texts of strangers on a terminal, and the files that decide how a prompt is read."""

import io
from pathlib import Path

import pytest

from hivemint.cli import console
from hivemint.cli.terminal.screen import Terminal
from hivemint.model import companions
from hivemint.protocol.errors import HivemintError, ModelError
from hivemint.protocol.text import plain

EVIL = "[/x][bold]\x1b[2J\x1b]0;title\x07\u202ereversed\r\n\\[red]"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    seen = io.StringIO()
    for name in ("out", "err"):
        shown = Terminal(file=seen, force_terminal=True, width=200, color_system="standard")
        monkeypatch.setattr(console, name, shown)
    return seen


def test_a_record_cannot_end_a_table_nor_command_the_terminal(terminal: io.StringIO) -> None:
    console.table(EVIL, "numerics", rows=[(EVIL,), ("fp32/fp32/fp32",)])
    text = terminal.getvalue()
    assert "[/x][bold]" in text
    assert "fp32/fp32/fp32" in text
    for forbidden in ("\x1b[2J", "\x1b]", "\x07", "\u202e"):
        assert forbidden not in text


def test_a_refusals_words_are_words(terminal: io.StringIO) -> None:
    console.show_error(HivemintError(EVIL, why=EVIL, next_step=EVIL))
    text = terminal.getvalue()
    assert text.count("[/x][bold]") == 3
    assert "\\[red]" in text
    assert "\x1b[2J" not in text
    assert len(text.splitlines()) == 3


def test_ordinary_texts_stay() -> None:
    for text in ("a b", "Grüße, 世界 👩‍👩‍👧 ‏", "нет", "[1, 2]"):
        assert plain(text.replace("\u200f", "")) == text.replace("\u200f", "")
    assert plain("a\tb\nc", keep="\t\n") == "a\tb\nc"
    assert plain("a\x00b\x9bc") == "a\ufffdb\ufffdc"


def test_a_folder_with_another_tokenizer_or_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("anything")
    pinned = companions.digests(tmp_path)
    assert set(pinned) == {"tokenizer.json"}
    companions.check(tmp_path, pinned)
    companions.check(tmp_path, {})
    (tmp_path / companions.TEMPLATES).mkdir()
    extra = tmp_path / companions.TEMPLATES / "tool.jinja"
    for file in (extra, tmp_path / "chat_template.jinja"):
        file.write_text("{{ messages }}")
        with pytest.raises(ModelError, match="is not pinned"):
            companions.check(tmp_path, pinned)
        file.unlink()
    (tmp_path / "tokenizer.json").write_text("{ }")
    with pytest.raises(ModelError, match="is another one"):
        companions.check(tmp_path, pinned)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="is missing"):
        companions.check(tmp_path, pinned)


def test_chat_templates_run_in_the_librarys_sandbox() -> None:
    """The library's own promise, held here so that an upgrade which drops it is seen."""
    from jinja2.exceptions import SecurityError
    from transformers.utils.chat_template_utils import render_jinja_template

    for template in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"):
        with pytest.raises(SecurityError):
            render_jinja_template([[{"role": "user", "content": "x"}]], chat_template=template)
