"""What a chat keeps beside its text, and finds again."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hivemint.cli.talk.keeping import ChatMemory, Said
from hivemint.protocol.errors import BadInput


class Letters:
    """A tokenizer: a letter is a token."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[ord(one) for one in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(one) for one in ids)


class Talk:
    """A talk that is kept, or not."""

    def __init__(self, *, keeps: bool = True) -> None:
        self.keeps = keeps
        self.note: dict[str, Any] = {}
        self.ids = torch.zeros(1, 0, dtype=torch.long)

    def remember(self, note: dict[str, Any]) -> None:
        self.note = note


USER, MODEL = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize("system", ["", "be brief"])
def test_turns_are_found_again(system: str) -> None:
    talk: Any = Talk()
    first = [{"role": "system", "content": system}] if system else []
    ChatMemory(talk, Letters()).keep([*first, USER, MODEL, USER])
    assert "hello" not in str(talk.note)
    assert ChatMemory(talk, Letters()).found() == Said(system, [USER, MODEL, USER])


def test_nothing_is_kept_without_a_file() -> None:
    talk: Any = Talk(keeps=False)
    memory = ChatMemory(talk, Letters())
    memory.keep([USER])
    assert (talk.note, memory.found()) == ({}, None)
    assert ChatMemory(Talk(), Letters()).found() is None  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [[["nobody", [1]]], [["user"]], 5, [["user", [-1]]], [["user", "x"]]])
def test_a_note_that_is_no_chat_is_told(said: Any) -> None:
    talk: Any = Talk()
    talk.note = {"said": said}
    with pytest.raises(BadInput, match="can't be read"):
        ChatMemory(talk, Letters()).found()


def test_the_part_of_an_answer_that_had_come() -> None:
    talk: Any = Talk()
    memory = ChatMemory(talk, Letters())
    talk.ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert memory.already(torch.tensor([[5, 6, 7]])).tolist() == [8, 9]
    assert memory.already(torch.tensor([[5, 6, 8]])).tolist() == [], "of another prompt"
    assert memory.already(torch.tensor([[5, 6, 7, 8, 9]])).tolist() == []
