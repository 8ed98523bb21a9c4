"""The page of the command line, from its own help: `make help-page` writes docs/command-line.md.

Only what Hivemint says is taken (names, help, defaults, variables), never how a library lays it out: so the page is
the same on every machine, at any width, with any version of typer.
"""

import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import typer.main

from hivemint.cli.terminal.failures import EXIT_CODES, INTERRUPTED, OTHER, READER_GONE, TERMINATED
from hivemint.cli.tree import GROUPS, build

WIDTH = 120
HEAD = """\
# The command line

Every verb of `hivemint`, from its own help (`hivemint help VERB`); `make help-page` writes this page. Every verb takes
`-h`. All that report something take `--json`: then one JSON document is alone on stdout. What a variable of the
environment sets, the option beside it overrides. `hivemint --install-completion` teaches your shell verbs, options and
the names of wallets, models and network files.

An error is told as what, why and the next step. With `--json` it is a document on stdout,
`{"error": {"kind", "code", "what", "why", "next_step"}}`, and stderr stays empty; of a node's refusal it has `refusal`
and `retry_after` too. The exit code follows the kind:
"""
MEANINGS = {
    2: "a word, an option, a setting, a file that was given",
    3: "a keystore, a password, a key",
    4: "a model folder, a span, an architecture",
    5: "the chain: out of reach, another one, a transaction that reverted",
    6: "the swarm: peers, links, blocks that nobody serves",
    7: "refused: by a node, for its price, the account or a limit",
    8: "a signature, a digest or a hash does not hold",
    9: "journals, voucher books and other files of ours",
    10: "the operating system: disk, rights, descriptors, ports",
}


def page() -> str:
    return (
        "\n".join(
            (
                HEAD.rstrip(),
                "",
                *_exit_codes(),
                "",
                *_contents(),
                "",
                *(line for name in GROUPS for line in _group(name)),
            )
        ).rstrip()
        + "\n"
    )


def _exit_codes() -> Iterator[str]:
    yield "| exit code | kind | |"
    yield "|---|---|---|"
    yield f"| {OTHER} | `other` | what is of no other kind; a machine that `doctor` finds unfit |"
    for code in sorted(set(EXIT_CODES.values())):
        kinds = [kind for kind, one in EXIT_CODES.items() if one == code]
        yield f"| {code} | {', '.join(f'`{kind}`' for kind in kinds)} | {MEANINGS[code]} |"
    yield f"| {INTERRUPTED}, {TERMINATED}, {READER_GONE} | | Ctrl-C, SIGTERM, the reader of a pipe has gone |"


def _contents() -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name, (_, summary) in GROUPS.items():
        yield f"| [`hivemint {name}`](#hivemint-{name}) | {_cell(summary)} |"


def _group(name: str) -> Iterator[str]:
    root: Any = typer.main.get_command(build(name))
    command = root.commands[name]
    summary = GROUPS[name][1]
    verbs = getattr(command, "commands", {})
    if not verbs:
        yield from _verb(f"hivemint {name}", command, "##", summary)
        return
    yield from (f"## hivemint {name}", "", summary, "")
    if command.params:
        yield from _verb(f"hivemint {name}", command, "", "")
    for verb, one in verbs.items():
        yield from _verb(f"hivemint {name} {verb}", one, "###", one.help or "")


def _verb(path: str, command: Any, heading: str, text: str) -> Iterator[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    if heading:
        yield from (f"{heading} {path}", "", textwrap.fill(text, WIDTH, break_on_hyphens=False), "")
    words = [path, *(_usage(one) for one in arguments), *(["[OPTIONS]"] if options else [])]
    yield from ("```", " ".join(words), "```", "")
    if shown:
        yield from ("| | |", "|---|---|")
        yield from (f"| `{_argument(one)}` | {_said(one)} |" for one in arguments)
        yield from (f"| {_option(one)} | {_said(one)} |" for one in options)
        yield ""


def _argument(one: Any) -> str:
    return f"{one.metavar or one.name.upper()}{'...' if one.nargs == -1 else ''}"


def _usage(one: Any) -> str:
    return _argument(one) if one.required else f"[{_argument(one)}]"


def _option(one: Any) -> str:
    value = "" if one.is_flag else f" {one.metavar or 'VALUE'}"
    names = ", ".join(f"`{name}{value}`" for name in one.opts)
    return " / ".join([names, *(f"`{name}`" for name in one.secondary_opts)])


def _said(one: Any) -> str:
    """Its help, then what holds where it is not given."""
    more = []
    if one.required and one.param_type_name == "option":
        more.append("required")
    if getattr(one, "multiple", False):
        more.append("may be repeated")
    if isinstance(one.show_default, str):
        more.append(f"default: {one.show_default}")
    elif one.show_default and not callable(one.default) and one.default not in (None, False, (), []):
        more.append(f"default: `{_value(one.default)}`")
    if one.envvar:
        more.append(f"`{one.envvar}`")
    return _cell(" ".join((one.help or "").split()) + (f" ({'; '.join(more)})" if more else "")).strip()


def _value(default: object) -> str:
    return str(getattr(default, "value", default))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
