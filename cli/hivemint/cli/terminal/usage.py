"""What typer says of a command line that it cannot read, in our own words: what, why, and what was probably meant."""

import re
from typing import Any

import typer

from hivemint.cli.terminal.failures import WrongUse

USAGE_ERRORS: type[Exception] = typer.BadParameter.__mro__[2]
"""The root of typer's errors of usage, which it exports by no name of its own; some versions bring a copy of click."""
_MEANT = re.compile(r"\.? Did you mean (?P<verbs>[^?]+)\?|\s*\(Possible options: (?P<options>[^)]+)\)")


def of_usage(error: Any) -> WrongUse:
    """The error that stands for one of typer's."""
    message = " ".join(error.format_message().split())
    found = _MEANT.search(message)
    where = getattr(error, "ctx", None)
    path = where.command_path if where else "hivemint"
    more = f"`{path} --help` tells what there is"
    meant = " or ".join((found["verbs"] or found["options"]).replace("'", "").split(", ")) if found else ""
    usage = " ".join(where.get_usage().split()) if where else ""
    return WrongUse(
        _MEANT.sub("", message).rstrip("."),
        why=usage,
        next_step=f"did you mean {meant}? {more}" if meant else more,
    )


def help_asked(error: Any) -> str | None:
    """The help that a command without words stands for; None for any other error."""
    return str(error.format_message()) if type(error).__name__ == "NoArgsIsHelpError" else None
