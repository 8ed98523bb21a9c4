"""What a model says while it joins: one line on stderr, where somebody looks at it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WIDTH = 79


@contextmanager
def progress_line(wanted: bool | None) -> Iterator[Callable[[str], None]]:
    """Gives what tells the present stage. `wanted` None: on a terminal or in a notebook, else nothing is said.

    There a stage takes the place of the one before it, and the last one is wiped out; in a file each is a line.
    """
    stream = sys.stderr
    redraws = stream is not None and (stream.isatty() or _in_notebook())
    if stream is None or not (redraws if wanted is None else wanted):
        yield lambda stage: None
        return

    def tell(stage: str) -> None:
        stream.write(f"\r{stage[:_WIDTH]:{_WIDTH}}" if redraws else f"{stage}\n")
        stream.flush()

    try:
        yield tell
    finally:
        if redraws:
            stream.write("\r" + " " * _WIDTH + "\r")
            stream.flush()


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this: its stream is no terminal, but it understands a carriage return."""
    return "ipykernel" in sys.modules and "JPY_PARENT_PID" in os.environ
