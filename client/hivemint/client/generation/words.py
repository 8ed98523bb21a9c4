"""Errors in the words of who asked: arguments for a program, options for the command line.

The network's own errors name options (`--max-price`), as most are read on a terminal. What a program gets names the
arguments of `from_pretrained` and `generate` instead.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hivemint.protocol.errors import HivemintError

_OPTIONS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"change --([a-z-]+),"), lambda found: f"change the argument {found[1].replace('-', '_')},"),
    (re.compile(r"`?--bid (?!NAME)(\w+)`?"), r'bid="\1"'),
    (re.compile(r"--bid\b"), "bid="),
    (re.compile(r"--max-price\b"), "max_price="),
    (re.compile(r"--wallet\b"), "wallet="),
    (re.compile(r"--network\b"), "network="),
    (re.compile(r"use --password-file\b"), "pass password="),
)
_COMMAND = re.compile(r"(`hivemint [^`]*`)")
_program: ContextVar[bool] = ContextVar("program", default=True)


@contextmanager
def by_options() -> Iterator[None]:
    """Within it errors stay as they are: who asks is the command line."""
    token = _program.set(False)
    try:
        yield
    finally:
        _program.reset(token)


def in_python(error: HivemintError) -> None:
    """Name arguments where `error` names options; a whole command of `hivemint` stays as it is."""
    if not _program.get():
        return
    what, why, next_step = (_translated(text) for text in (error.what, error.why, error.next_step))
    if (what, why, next_step) != (error.what, error.why, error.next_step):
        HivemintError.__init__(error, what, why=why, next_step=next_step)


def _translated(text: str) -> str:
    parts = _COMMAND.split(text)
    for index in range(0, len(parts), 2):
        for pattern, words in _OPTIONS:
            parts[index] = pattern.sub(words, parts[index])
    return "".join(parts)
