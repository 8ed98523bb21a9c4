"""The page of the Python interface, from its own docstrings: `make help-page` writes docs/python.md.

Only what the code says is taken: signatures, docstrings, settings and errors. So the page is the same on every machine.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from hivemint.client import pipeline
from hivemint.client.generation import bill, causal_lm, sequences, tuning
from hivemint.client.settings import ClientSettings
from hivemint.protocol import errors

HEAD = """\
# The Python interface

Every public name of the client, from its own docstrings; `make help-page` writes this page. What the command line
offers beside it is in [command-line.md](command-line.md).

```python
from transformers import AutoTokenizer

from hivemint.client import SwarmModelForCausalLM

model = SwarmModelForCausalLM.from_pretrained()  # the network of $HIVEMINT_NETWORK, its first model, donated work
tokenizer = AutoTokenizer.from_pretrained(model.folder)
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))
print(model.last_call)
```

Shapes stand in brackets. Token ids are `torch.long`, hidden states fp32. Amounts are integers in wei, 10**-18 credits,
where they come out; what goes in may be text in credits (`"0.001"`, `"5 wei"`). Times are in seconds, but for what
ends in `_ms`. Calls block until they have ended; any thread may call, also while an event loop runs (a notebook).
"""
GROUPS: tuple[tuple[str, type, str], ...] = (
    ("SwarmModelForCausalLM", causal_lm.SwarmModelForCausalLM, "`from hivemint.client import SwarmModelForCausalLM`"),
    ("Plan", pipeline.Plan, "`model.dry_run(...)`"),
    ("Hop", pipeline.Hop, "`Plan.hops`, `Bill.nodes`"),
    ("Conversation", sequences.Turns, "`model.conversation()`"),
    (
        "Bill",
        bill.Bill,
        "`model.last_call`; `model.generate(..., bill=Bill())`, from `hivemint.client.generation.bill`",
    ),
    ("Blocks", tuning.RemoteBlocks, "`model.blocks(tokens=...)`, a `torch.nn.Module`"),
)
_INNER = {
    "keep",
    "keeps",
    "take",
    "write",
    "recall",
    "run_forward",
    "run_backward",
    "of",
    "take_next",
    "owner",
    "ceiling",
}
"""Public for other modules of the client alone."""


def page() -> str:
    parts = [HEAD]
    for title, kind, whence in GROUPS:
        parts.append("\n".join(_class(title, kind, whence)))
    parts += ["\n".join(_settings()), "\n".join(_errors())]
    return "\n".join(parts).rstrip() + "\n"


def _class(title: str, kind: type, whence: str) -> Iterator[str]:
    yield from (f"## {title}", "", f"{whence}", "", _text(kind.__doc__), "")
    if is_dataclass(kind):
        yield from ("| field | type |", "|---|---|")
        yield from (f"| `{name}` | {_cell(_type(written))} |" for name, written in _fields(kind))
        yield ""
    for name, member in public(kind):
        yield from _member(name, member)


def _fields(kind: type) -> Iterator[tuple[str, str]]:
    """Their types as they are written: how Python shows them changes with its version."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for one in ast.walk(tree):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            yield one.target.id, ast.unparse(one.annotation).strip("'")


def public(kind: type) -> list[tuple[str, Any]]:
    """Methods and properties that are ours and meant for people, those of the class itself first."""
    found: dict[str, Any] = {}
    for one in kind.__mro__:
        if not one.__module__.startswith("hivemint.") or one.__name__ == "SessionDecoding":
            continue
        for name, member in vars(one).items():
            ours = isinstance(member, property | classmethod) or inspect.isfunction(member)
            if ours and not name.startswith("_") and name not in _INNER:
                found.setdefault(name, member)
    return list(found.items())


def _member(name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property):
        yield from (f"### {name}", "", f"`{name}: {_type(_hints(member.fget).get('return', ''))}`", "")
        yield from (_text(member.fget.__doc__), "")
        return
    function = inspect.unwrap(member.__func__ if isinstance(member, classmethod) else member)
    yield from (f"### {name}", "", "```python", *_signature(name, function), "```", "", _text(function.__doc__), "")


def _signature(name: str, function: Any) -> list[str]:
    """As it is written, but for `self`; over several lines where it is long."""
    signature = inspect.signature(function)
    parts, after_star = [], False
    for one in list(signature.parameters.values())[1:]:
        if one.name == "sequences" and name == "forward":
            continue  # what `generate` passes to itself
        if one.kind is one.KEYWORD_ONLY and not after_star:
            parts.append("*")
        after_star |= one.kind in (one.VAR_POSITIONAL, one.KEYWORD_ONLY)
        star = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        told = "" if one.annotation in (one.empty, Any) else f": {_type(one.annotation)}"
        default = "" if one.default is one.empty else f"{' = ' if told else '='}{one.default!r}"
        parts.append(f"{star}{one.name}{told}{default}")
    back = _type(signature.return_annotation)
    line = f"{name}({', '.join(parts)}) -> {back}"
    return [line] if len(line) <= 100 else [f"{name}(", *(f"    {part}," for part in parts), f") -> {back}"]


def _hints(function: Any) -> dict[str, Any]:
    return dict(getattr(function, "__annotations__", {}))


_SHORT = {
    "hivemint.client.generation.causal_lm.": "",
    "typing.": "",
    "collections.abc.": "",
    "pathlib.": "",
    "nn.modules.module.": "nn.",
    "~": "",
}
_PUBLIC = {"Self": "SwarmModelForCausalLM", "Turns": "Conversation", "RemoteBlocks": "Blocks"}


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for long, short in _SHORT.items():
        text = text.replace(long, short)
    words = [word.rpartition(".")[2] if word.startswith("hivemint.") else word for word in _split(text)]
    return "".join(_PUBLIC.get(word, word) for word in words)


def _split(text: str) -> list[str]:
    words, word = [], ""
    for letter in text:
        if letter.isalnum() or letter in "._":
            word += letter
        else:
            words += [word, letter]
            word = ""
    return [*words, word]


def _settings() -> Iterator[str]:
    yield textwrap.dedent(
        """\
        ## Settings

        What `from_pretrained` takes beside its own arguments, by name; where nothing is passed, `HIVEMINT_NAME` of the
        environment holds, then `[client]` of `config.toml`. `bid` and `max_price` may be those of one call.

        | | default | |
        |---|---|---|"""
    )
    for name, field in ClientSettings.model_fields.items():
        yield f"| `{name}` | `{field.default}` | {_cell(' '.join((field.description or '').split()))} |"
    yield ""


def _errors() -> Iterator[str]:
    tree = (errors.__doc__ or "").partition("\n")[2].strip("\n")
    yield textwrap.dedent(
        """\
        ## Errors

        All are in `hivemint.protocol.errors`. `error.what`, `error.why` and `error.next_step` are the parts of each, a
        line or nothing; `str(error)` is all of them.

        ```text"""
    )
    yield from (tree, "```", "")


def _text(doc: str | None) -> str:
    return inspect.cleandoc(doc or "").strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
