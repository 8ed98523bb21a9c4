"""What a client process is told: who it is, where the network is, and what it asks for."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos.schedule import Ask, Item


@dataclass(frozen=True)
class Job:
    """`wallet`: the key in hex, "" for donated work. `threads`: what each asks for."""

    name: str
    network: str
    model: str
    home: str
    wallet: str
    settings: dict[str, Any]
    threads: list[list[Item]]
    results: str

    @classmethod
    def read(cls, path: Path) -> "Job":
        found = json.loads(path.read_text())
        found["threads"] = [[Item(**one) for one in items] for items in found["threads"]]
        for items in found["threads"]:
            items[:] = [Item(one.number, Ask(one.ask), one.seed, one.prompt, one.tokens) for one in items]
        return cls(**found)

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path
