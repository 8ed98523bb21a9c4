"""How a verb that fails ends: its exit code by the error's kind, and the error as a JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from hivemint.cli.console import emit, show_error
from hivemint.protocol.errors import BadInput, HivemintError, Refusal

INTERRUPTED, TERMINATED, READER_GONE = 130, 143, 141
"""128 and the number of the signal, as shells have it: SIGINT, SIGTERM, SIGPIPE."""
OTHER = 1
EXIT_CODES = {
    "input": 2,
    "settings": 2,
    "usage": 2,
    "wallet": 3,
    "model": 4,
    "chain": 5,
    "swarm": 6,
    "refused": 7,
    "proof": 8,
    "books": 9,
    "system": 10,
}
"""By `HivemintError.kind`; what is not here is OTHER."""


class WrongUse(BadInput):
    """Words that are no command, or options that a verb does not have."""

    kind = "usage"


def exit_code(error: HivemintError) -> int:
    return EXIT_CODES.get(error.kind, OTHER)


def described(error: HivemintError) -> dict[str, Any]:
    """For --json: the same keys for every error; of a node's refusal also its own code."""
    told = {
        "kind": error.kind,
        "code": exit_code(error),
        "what": error.what,
        "why": error.why,
        "next_step": error.next_step,
    }
    if isinstance(error, Refusal):
        told |= {"refusal": str(error.code), "retry_after": error.retry_after}
    return {"error": told}


def wants_json(words: Sequence[str]) -> bool:
    """Whether `--json` is among the options of a command line, also of one that could not be read."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def tell(error: HivemintError, as_json: bool) -> int:
    """On stdout as JSON, or on stderr for people. Returns the exit code."""
    if as_json:
        emit(described(error))
    else:
        show_error(error)
    return exit_code(error)


def fail_with(document: Mapping[str, Any], error: HivemintError, as_json: bool) -> None:
    """End a verb that has both something to report and an error: one document has both. Never returns."""
    if not as_json:
        raise error
    emit({**document, **described(error)})
    raise typer.Exit(exit_code(error))
