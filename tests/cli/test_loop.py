"""A talk: what is sent and paid, what is not, and what is kept."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hivemint.cli.talk import loop
from hivemint.cli.talk.answers import Answer, Asking
from hivemint.cli.talk.joining import Joined
from hivemint.cli.talk.loop import COMMANDS, Talk
from hivemint.client.generation.bill import Bill
from hivemint.client.settings import ClientSettings
from hivemint.protocol.errors import BadInput, SwarmError


class Typed:
    """Messages that somebody has typed."""

    def __init__(self, messages: Sequence[str], *, interactive: bool) -> None:
        self._left = list(messages)
        self.interactive, self.interrupted = interactive, False

    def next(self) -> str | None:
        return self._left.pop(0) if self._left else None


class Chat:
    """A talk whose model answers "yes" for 7 wei, or fails with `error`. `asked`: the turns that were sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.error: Exception | None = None
        self.closed = 0
        self.keeps = False
        self.swarm = SimpleNamespace(settings=ClientSettings())
        monkeypatch.setattr(loop, "encode", lambda _, turns: turns)
        monkeypatch.setattr(loop, "ask", self._ask)

    def _ask(self, how: Asking, ids: Any, bill: Bill, **_: Any) -> Answer:
        self.asked.append(ids)
        bill.add(Bill(7, [], 3, 1))
        if self.error:
            raise self.error
        return Answer("yes", bill)

    def close(self) -> None:
        self.closed += 1

    def run(
        self,
        *messages: str,
        interactive: bool = True,
        quiet: bool = False,
        system: str = "",
        wallet: str | None = None,
        dry_run: Any = None,
    ) -> None:
        model: Any = SimpleNamespace(swarm=self.swarm, dry_run=dry_run)
        place = Joined(model, None, "tiny", None, wallet)  # type: ignore[arg-type]
        how = Asking(model, None, 5, {}, quiet)
        kept: Any = self
        Talk(place, how, Typed(messages, interactive=interactive), kept, system).run()


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chat:
    monkeypatch.chdir(tmp_path)
    return Chat(monkeypatch)


def said(chat: Chat) -> list[list[str]]:
    return [[one["content"] for one in turns] for turns in chat.asked]


def test_messages_build_one_conversation_and_blank_ones_are_nothing(chat: Chat) -> None:
    chat.run("one", "", "two\nlines")
    assert said(chat) == [["one"], ["one", "yes", "two\nlines"]]


@pytest.mark.parametrize("message", [*COMMANDS, "/nope", "/", "/ x", "/a\nb", "//"])
def test_nothing_that_begins_with_a_slash_is_sent(chat: Chat, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat.error = AssertionError("it was sent")
    if message == "/lane":
        chat.error = None
        message = "/lane 99x"
    chat.run(message)
    assert chat.asked == []
    known = message.split()[0] in COMMANDS
    assert ("nothing was sent, and nothing paid" in capsys.readouterr().err) is not known


def test_a_word_that_there_is_none_of_ends_what_nobody_watches(chat: Chat) -> None:
    with pytest.raises(BadInput, match="did you mean /cost"):
        chat.run("/cots", "never sent", interactive=False)
    assert chat.asked == []


def test_bye_leaves(chat: Chat) -> None:
    chat.run("one", "/bye", "never sent")
    assert said(chat) == [["one"]]


def test_an_error_is_shown_and_the_chat_goes_on_as_if_not_asked(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.error = SwarmError("No node serves blocks 0:15")
    chat.run("one", "/cost")
    assert "No node serves blocks 0:15" in capsys.readouterr().err
    chat.error = SwarmError("gone")
    with pytest.raises(SwarmError):
        chat.run("one", interactive=False)
    chat.asked.clear()
    chat.error = None
    chat.run("again")
    assert said(chat) == [["again"]]


def test_what_failed_half_way_is_in_the_cost(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.error = SwarmError("gone")
    chat.run("one", "/cost")
    assert "0 answers: 3 tokens in, 1 out, 0.000000000000000007 HMC spent" in capsys.readouterr().err


def test_the_system_prompt_goes_first_and_can_be_changed(chat: Chat) -> None:
    chat.run("one", "/system Be brief.", "two", system="Be kind.")
    assert said(chat) == [["Be kind.", "one"], ["Be brief.", "one", "yes", "two"]]


def test_clear_forgets_and_ends_the_sessions(chat: Chat) -> None:
    chat.run("one", "/clear", "two")
    assert said(chat) == [["one"], ["two"]]
    assert chat.closed == 1


def test_a_chat_is_saved_for_its_owner_alone_and_never_over_a_file(
    chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.run("one", "/save talk.json", "/save talk.md", "/save talk.md", "/save no/such/place", system="Be kind.")
    turns = json.loads((tmp_path / "talk.json").read_text())
    assert [one["role"] for one in turns] == ["system", "user", "assistant"]
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o600
    assert (tmp_path / "talk.md").read_text() == "## System\n\nBe kind.\n\n## You\n\none\n\n## tiny\n\nyes\n"
    told = capsys.readouterr().err
    assert "talk.md is there already" in told
    assert "no/such/place cannot be written" in told
    chat.run("/save empty.md")
    assert not (tmp_path / "empty.md").exists()


def test_without_a_wallet_no_bid_is_set(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run("/lane 2x")
    assert "No wallet" in capsys.readouterr().err


def test_with_json_every_word_is_answered_by_one_document(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run("/help", "one", "/cost", "/system", interactive=False, quiet=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one.get("command") for one in told] == ["/help", None, "/cost", "/system"]
    assert told[0]["commands"].keys() == COMMANDS.keys()
    assert (told[1]["text"], told[1]["spent_wei"]) == ("yes", 7)
    assert told[2] == {"command": "/cost", "answers": 1, "prompt_tokens": 3, "tokens": 1, "spent_wei": 7}


@pytest.mark.parametrize("message", ["/save talk.json", "/lane 16x"])
def test_a_line_of_a_pipe_writes_no_file_and_sets_no_price(
    chat: Chat, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = chat.swarm.settings
    with pytest.raises(BadInput, match="is for a terminal"):
        chat.run("hello", message, interactive=False, quiet=True)
    assert list(tmp_path.iterdir()) == []
    assert chat.swarm.settings is before


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a\0b", "x" * 300])
def test_a_name_that_no_file_has_keeps_the_talk(chat: Chat, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run("one", f"/save {name}", "two")
    assert "cannot be written" in capsys.readouterr().err
    assert len(chat.asked) == 2


def test_a_saved_talk_commands_no_terminal(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chat.run("\x1b]0;title\x07\u202ereversed", "/save talk.md", "/save talk.json")
    for name in ("talk.md", "talk.json"):
        text = (tmp_path / name).read_text()
        assert "reversed" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_ctrl_c_within_a_word_keeps_the_talk(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "means_of", interrupted)
    monkeypatch.setattr(Talk, "_cost", interrupted)
    chat.run("one", "/cost", "two")
    assert len(chat.asked) == 2


def test_a_bid_that_finds_no_way_is_not_kept(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    def no_way(*_: object, **__: object) -> None:
        assert str(chat.swarm.settings.bid) == "2x", "the plan is that of the new bid"
        raise SwarmError("The escrow accounts do not cover a paid route")

    chat.run("/lane 2x", "one", wallet="bob", dry_run=no_way)
    assert "do not cover" in capsys.readouterr().err
    assert str(chat.swarm.settings.bid) == "auto"
    assert len(chat.asked) == 1


def test_an_answer_that_breaks_off_tells_what_it_has_cost(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.error = SwarmError("The node went away")
    chat.run("one")
    told = capsys.readouterr().err
    assert "broke off: 1 tokens, 0.000000000000000007 HMC" in told
    assert "went away" in told
