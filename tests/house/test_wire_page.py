"""The table of messages in docs/wire.md is that of the code: numbers, greatest bodies, fields, reasons."""

import re
from pathlib import Path
from typing import Any

from hivemint.swarm import messages
from hivemint.swarm.messages import KIB, MIB, Code, Message, Tensor

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "wire.md").read_text()
_ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| [^|]+ \|([^|]*)\| (.*) \|$", re.MULTILINE)
_UNITS = {"KiB": KIB, "MiB": MIB}


def _bytes(limit: str) -> int:
    """`8 KiB`; a message without a limit of its own has that of all."""
    number, _, unit = limit.strip().partition(" ")
    return int(number) * _UNITS[unit] if number else Message.LIMIT


def test_every_message_is_there_with_its_number_and_limit() -> None:
    told = {name: (int(number), _bytes(limit)) for number, name, limit, _ in _ROW.findall(PAGE)}
    kinds: list[Any] = [kind for kind in vars(messages).values() if isinstance(kind, type) and hasattr(kind, "NUMBER")]
    kinds = [kind for kind in kinds if kind.NUMBER]
    assert told == {kind.__name__: (kind.NUMBER, kind.LIMIT) for kind in kinds}


def test_every_field_is_told() -> None:
    missing = []
    for _, name, _, fields in _ROW.findall(PAGE):
        kind = getattr(messages, name)
        names = () if kind is Tensor else kind.__struct_fields__
        missing += [f"{name}.{field}" for field in names if f"`{field}`" not in fields]
        assert names or kind is Tensor or fields == "nothing", name
    assert missing == []


def test_every_reason_is_told() -> None:
    table = PAGE.partition("carry one of these codes")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert sorted(word for cell in cells for word in re.findall(r"`(\w+)`", cell)) == sorted(Code)
