"""`hivemint help [VERB...]` and `hivemint version`."""

import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Annotated, Any, Literal

import typer

from hivemint.cli.console import JsonFlag, emit, out

NARROW = 80
"""Columns below which help in boxes has no room for what it says."""


def help_form() -> Literal["rich", None]:
    """Help in boxes, or plain: on a narrow or dumb terminal, and in an encoding that has no boxes."""
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    wide = shutil.get_terminal_size().columns >= NARROW
    return "rich" if wide and os.environ.get("TERM") != "dumb" and encoding.startswith("utf") else None


def tell_whole(command: Any) -> None:
    """Plain help cuts what it says of each verb to one line, unless the verb has a summary of its own."""
    for verb in getattr(command, "commands", {}).values():
        verb.short_help = " ".join((verb.help or "").partition("\n\n")[0].split())
        tell_whole(verb)


def help_(
    verb: Annotated[list[str] | None, typer.Argument(help="For example: account fund.", metavar="VERB")] = None,
) -> None:
    """What a verb does and which options it has; without words: which verbs there are."""
    from hivemint.cli.tree import PROGRAM, command

    words = verb or []
    command(words[0] if words else None).main([*words, "--help"], prog_name=PROGRAM, standalone_mode=False)


def version(as_json: JsonFlag = False) -> None:
    """Which version this is, and on what it runs."""
    told = {
        "version": importlib.metadata.version("hivemint"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if as_json:
        emit(told)
    else:
        out.print(f"hivemint {told['version']} (Python {told['python']}, {told['platform']})", highlight=False)
