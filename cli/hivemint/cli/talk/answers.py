"""One answer: asked, streamed as it comes, stopped by Ctrl-C, with its bill."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hivemint.protocol.errors import HivemintError
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.client import SwarmModelForCausalLM
    from hivemint.client.generation.bill import Bill


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask: the model and its tokenizer, the length of an answer at most, arguments of `generate`."""

    model: "SwarmModelForCausalLM"
    tokenizer: Any
    max_tokens: int
    sampling: dict[str, Any]
    quiet: bool = False
    """Nothing is printed while it comes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`stopped`: by Ctrl-C. Seconds to the first token, and the rate of those after it; None where there are none."""

    text: str
    bill: "Bill"
    stopped: bool = False
    first_token_s: float | None = None
    tokens_per_s: float | None = None

    def document(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "stopped": self.stopped,
            "first_token_s": self.first_token_s,
            "tokens_per_s": self.tokens_per_s,
            **self.bill.document(),
        }

    def __str__(self) -> str:
        """One line: how much, how fast, by whom, for what, on which lane and why on that one."""
        rate = f", {self.tokens_per_s:.1f} tokens/s" if self.tokens_per_s else ""
        tokens, _, rest = str(self.bill).partition(" tokens")
        return f"{tokens} tokens{rate}{' (stopped)' if self.stopped else ''}{rest}"


def ask(how: Asking, ids: Any, bill: "Bill", already: Any = None, **more: Any) -> Answer:
    """Generate and stream. Ctrl-C ends the answer where it is: what was computed is paid, nothing more.

    `bill` gets what it has cost, also if it fails. `already`: token ids of an answer that broke off, `[length]`; it is
    gone on with. `more`: arguments of `generate`.
    """
    clock = _Clock(how.tokenizer, how.quiet)
    started = time.monotonic()
    stopped, left = False, how.max_tokens
    if already is not None and len(already):
        clock.begin(ids, already)
        ids, left = _longer(ids, already), left - len(already)
    try:
        if left > 0 and not _ended(how, clock.ids):
            how.model.generate(ids, max_new_tokens=left, streamer=clock, bill=bill, **how.sampling, **more)
        else:
            clock.end()
    except KeyboardInterrupt:
        stopped = True
        clock.end()
    except HivemintError:
        if clock.ids:
            clock.end()  # what had come stays on the terminal, the error on lines of its own
        raise
    first = (clock.times[0] - started) if clock.times else None
    several = len(clock.times) > 1
    return Answer(
        text=how.tokenizer.decode(clock.ids, skip_special_tokens=True),
        bill=bill,
        stopped=stopped,
        first_token_s=None if first is None else round(first, 3),
        tokens_per_s=round((len(clock.times) - 1) / (clock.times[-1] - clock.times[0]), 2) if several else None,
    )


def encode(tokenizer: Any, turns: list[dict[str, str]], raw: str | None = None) -> Any:
    """Token ids `[1, length]` of a talk, or of `raw` as it is."""
    if raw is not None or not tokenizer.chat_template:
        text = raw if raw is not None else turns[-1]["content"]
        return tokenizer(text, return_tensors="pt").input_ids
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def _longer(ids: Any, already: Any) -> Any:
    import torch

    return torch.cat([ids, already[None]], dim=1)


def _ended(how: Asking, answer: list[int]) -> bool:
    """Whether an answer has come to its own end."""
    if not answer:
        return False
    ends = how.model.generation_config.eos_token_id
    return answer[-1] in (ends if isinstance(ends, list) else [ends])


class _Clock:
    """A transformers streamer: prints words as they are complete, notes when tokens came."""

    def __init__(self, tokenizer: Any, quiet: bool) -> None:
        from transformers import TextStreamer

        class Printed(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if not quiet:
                    sys.stdout.write(plain(text, keep="\n\t") + ("\n" if stream_end else ""))
                    sys.stdout.flush()

        self.streamer: Any = Printed(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.times: list[float] = []
        self._prompt_came = self._begun = False

    def begin(self, prompt: Any, already: Any) -> None:
        """What had come of an answer before; the prompt that `generate` begins with is known then."""
        self.streamer.put(prompt)
        self.streamer.put(already)
        self.ids.extend(already.tolist())
        self._begun = True

    def put(self, value: Any) -> None:
        if not self._prompt_came and self._begun:
            self._prompt_came = True
            return
        if self._prompt_came:
            self.times.append(time.monotonic())
            self.ids.extend(value.reshape(-1).tolist())
        self._prompt_came = True
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()
