"""A chat that outlives its process: what was said stands beside the text of its talk, and is found again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemint.cli.talk.views import say
from hivemint.protocol.errors import BadInput
from hivemint.protocol.home import Home

if TYPE_CHECKING:
    from hivemint.client import SwarmModelForCausalLM
    from hivemint.client.generation.sequences import Turns

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Said:
    """What an earlier chat was told first, and its turns; the last one may wait for its answer."""

    system: str
    turns: list[dict[str, str]]


class ChatMemory:
    """Writes turns, as token ids like the text itself, into the file of a talk that is kept; else nothing."""

    def __init__(self, kept: "Turns", tokenizer: Any) -> None:
        self._kept, self._tokenizer = kept, tokenizer

    def keep(self, turns: list[dict[str, str]]) -> None:
        """All turns so far. Raises BadInput where they can't be written."""
        if not self._kept.keeps:
            return
        said = [[one["role"], self._tokenizer(one["content"], add_special_tokens=False).input_ids] for one in turns]
        self._kept.remember({"said": said})

    def found(self) -> Said | None:
        """What the file had when it was opened; None where that is nothing. Raises BadInput for what is no chat."""
        said = self._kept.note.get("said") if self._kept.keeps else None
        if not said:
            return None
        try:
            turns = [{"role": role, "content": self._tokenizer.decode(ids)} for role, ids in said]
            if any(one["role"] not in ROLES for one in turns):
                raise ValueError("an unknown speaker")
        except (TypeError, ValueError, OverflowError, IndexError) as error:
            raise BadInput("The chat that is kept can't be read", why=str(error)[:100]) from None
        first = turns[0]["content"] if turns[0]["role"] == "system" else ""
        return Said(first, turns[1:] if first else turns)

    def already(self, ids: Any) -> Any:
        """Of the answer to a prompt `[1, length]`: the token ids that had come before the process ended."""
        text, length = self._kept.ids[0], ids.shape[1]
        same = len(text) > length and bool((text[:length] == ids[0]).all())
        return text[length:] if same else text[:0]


def opened(model: "SwarmModelForCausalLM", keep: bool, resume: bool) -> "Turns":
    """The talk of a chat; in its own file where it is kept. Raises BadInput where one that is to go on can't."""
    if not keep:
        return model.conversation()
    try:
        return model.conversation(keep=place(Home.open()))
    except BadInput as error:
        if resume:
            raise
        say(f"this chat is not kept: {error.what}" + (f" ({error.why})" if error.why else ""))
        return model.conversation()


def place(home: Home) -> Path:
    """The file of the chat that runs, or broke off last."""
    return home.client / "chat-talk"
