"""How the demo tells what happens: acts with rules, streamed text, tables; or nothing, when JSON alone is wanted."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from hivemint.protocol.text import plain


class LaneFigures(msgspec.Struct):
    """What one lane's requests saw while the nodes were busy. Wait: from the request to its first token."""

    wait_ms_p50: float = 0.0
    tokens_per_s: float = 0.0


class Attack(msgspec.Struct):
    """Something that must not work, and in whose words it was refused."""

    name: str
    refused: bool
    reason: str


class Figures(msgspec.Struct):
    """What `testnet demo --json` prints. Amounts in wei, times in seconds unless named otherwise."""

    text: str = ""
    equal_to_reference: bool = False
    tokens: int = 0
    receipts_signed: int = 0
    receipts_countersigned: int = 0
    hops_per_token: float = 0.0
    settled: int = 0
    burned_wei: int = 0
    minted_wei: int = 0
    fee_wei: int = 0
    donated_minted_wei: int = 0
    supply_ok: bool = False
    priority: dict[str, LaneFigures] = msgspec.field(
        default_factory=lambda: {"paid": LaneFigures(), "donated": LaneFigures()}
    )
    attacks: list[Attack] = []
    seconds: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether everything that the demo claims came true."""
        money = self.supply_ok and self.burned_wei == self.minted_wei + self.fee_wei > 0 and self.donated_minted_wei > 0
        faster = self.priority["paid"].wait_ms_p50 < self.priority["donated"].wait_ms_p50
        return self.equal_to_reference and money and faster and all(attack.refused for attack in self.attacks)


class Story:
    """Tells on `console`; a silent one tells nothing and only keeps the figures."""

    def __init__(self, *, silent: bool) -> None:
        self.console = Console(quiet=silent, highlight=False)
        self.figures = Figures()
        self._began = time.monotonic()

    @contextmanager
    def act(self, key: str, title: str) -> Iterator[None]:
        """One act; its seconds are kept under `key`."""
        began = time.monotonic()
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left", style="cyan")
        yield
        self.figures.seconds[key] = round(time.monotonic() - began, 2)

    def tell(self, text: str) -> None:
        self.console.print(text)

    def clock(self, text: str) -> None:
        """Every move of the development chain's clock is told."""
        self.console.print(f"[yellow]clock[/]  {text}")

    @contextmanager
    def waiting(self, what: str) -> Iterator[Any]:
        """A spinner with a text that can be updated."""
        with self.console.status(what) as status:
            yield status

    def table(self, *columns: str, rows: Sequence[tuple[str, ...]]) -> None:
        view = Table(box=None, header_style="dim", pad_edge=False)
        for column in columns:
            view.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
        for row in rows:
            view.add_row(*row)
        self.console.print(view)

    def end(self) -> Figures:
        self.figures.seconds["total"] = round(time.monotonic() - self._began, 2)
        return self.figures


class Typist:
    """A transformers streamer that writes tokens as they come and counts them; the prompt is not repeated."""

    def __init__(self, story: Story, tokenizer: Any, prefix: str) -> None:
        self._story, self._tokenizer = story, tokenizer
        self._prompt_seen, self._shown = False, ""
        self.ids: list[int] = []
        self.times: list[float] = []
        story.console.print(prefix, end="")

    def put(self, value: Any) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.times.append(time.monotonic())
        self.ids += value.flatten().tolist()
        text = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half of a character of several bytes
            self._story.console.print(plain(text[len(self._shown) :], keep="\n\t"), end="", markup=False)
            self._shown = text

    def end(self) -> None:
        self._story.console.print()
