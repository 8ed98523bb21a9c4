"""How wide the terminal is, and what becomes of a table that does not fit it."""

import os
import shutil
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

GAP = 2
"""Columns between two columns of a table."""
WIDEST = 400
"""Columns of a table in a file or a pipe: nothing there has an edge at which lines would have to break."""


class Terminal(Console):
    """A terminal. A dumb one has a width too, and a reader that has gone is an error for the command to end with."""

    def __init__(self, *, stderr: bool = False, **settings: Any) -> None:
        """`settings` are rich's."""
        dumb = os.environ.get("TERM") == "dumb"  # rich would take 80 columns for it, whatever it has
        size = shutil.get_terminal_size() if dumb else None
        place: dict[str, Any] = {"width": size and size.columns, "height": size and size.lines}
        super().__init__(stderr=stderr, **place | settings)

    @property
    def has_edge(self) -> bool:
        """Whether lines break at a width that somebody sees."""
        return self.is_terminal or "COLUMNS" in os.environ

    def print_whole(self, view: RenderableType) -> None:
        """Without folding anything where there is no edge."""
        before = self._width
        if not self.has_edge:
            self._width = WIDEST
        try:
            self.print(view)
        finally:
            self._width = before

    def on_broken_pipe(self) -> None:
        """rich would end the process by itself."""
        raise BrokenPipeError


def fits(screen: Terminal, names: Sequence[str], rows: Sequence[Sequence[Text]]) -> bool:
    """Whether a table has room for each cell on a line of its own; the names above it may break between words."""
    if not screen.has_edge:
        return True
    needed = []
    for at, name in enumerate(names):
        widest = max((line.cell_len for row in rows for line in row[at].split()), default=0)
        needed.append(max(widest, *(len(word) for word in name.split() or [""])))
    return sum(needed) + GAP * (len(names) - 1) <= screen.width


def records(title: str, names: Sequence[str], rows: Sequence[Sequence[Text]]) -> Text:
    """Each row as lines of name and value; of two columns the first one is the name."""
    lines = [Text(title, style="bold")]
    label = max((len(name) for name in names[1:]), default=0)
    for row in rows:
        if len(names) == 2:
            lines.append(Text.assemble(("  ", ""), (row[0].plain, "dim"), "  ", row[1]))
            continue
        lines.append(row[0])
        lines += [
            Text.assemble("  ", (f"{name:<{label}}  ", "dim"), cell)
            for name, cell in zip(names[1:], row[1:], strict=True)
            if cell.plain
        ]
    return Text("\n").join(lines)
