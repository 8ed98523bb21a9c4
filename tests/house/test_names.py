"""Names and sizes: one class for one name, rooms, classes and functions that can be looked over."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from support.source import parsed

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protocol", "contracts", "model", "swarm", "ledger", "node", "client", "testnet", "cli")
MOST_FILES, MOST_CLASS, MOST_FUNCTION = 16, 250, 60
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

TWICE = {
    "Close": "the order that a wallet signs (`protocol.orders`), and the last message of a session",
    "Leave": "the struct that a wallet signs (`protocol.eip712`), and the message that carries it",
}
"""Class names that stand in two files, and why."""

BY_HAND = {"node/hivemint/node/span/kernels.py", "tests/mutants/faults.py"}
"""Files that lay lines out by hand: kernels like the memory that they read, a table of faults."""


@cache
def sources() -> dict[str, ast.Module]:
    """The code of all rooms, without what moves old databases on."""
    found = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return {
        path.relative_to(ROOT).as_posix(): parsed(path.read_text())
        for path in found
        if not {"migrations", "__pycache__"} & set(path.parts)
    }


def definitions() -> Iterator[tuple[str, Definition, int]]:
    """Place, definition, lines."""
    for place, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, Definition):
                yield f"{place}::{node.name}", node, (node.end_lineno or node.lineno) - node.lineno + 1


def limit_of(node: Definition) -> int:
    return MOST_CLASS if isinstance(node, ast.ClassDef) else MOST_FUNCTION


def test_a_class_name_stands_in_one_file() -> None:
    where = defaultdict(set)
    for place, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].add(place)
    twice = {name: sorted(places) for name, places in where.items() if len(places) > 1}
    assert set(twice) == set(TWICE), twice
    assert all(len(places) == 2 for places in twice.values()), twice


def test_the_words_of_this_code_are_its_classes() -> None:
    """The table of CONTRIBUTING.md names what is there."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## One word for one thing")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    words = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    classes = {node.name for tree in sources().values() for node in tree.body if isinstance(node, ast.ClassDef)}
    assert rows
    assert sorted(words - classes) == []


def test_a_room_can_be_looked_over() -> None:
    files: dict[str, int] = defaultdict(int)
    for place in sources():
        folder, _, name = place.rpartition("/")
        files[folder] += name != "__init__.py"
    assert {folder: count for folder, count in files.items() if count > MOST_FILES} == {}


def test_classes_and_functions_can_be_looked_over() -> None:
    long = [f"{place} has {lines} lines" for place, node, lines in definitions() if lines > limit_of(node)]
    assert not long, "\n".join(long)


def test_lines_are_laid_out_by_the_formatter() -> None:
    skip = "# fmt: " + "skip"
    places = (*ROOMS, "tests", "benchmarks", "examples")
    files = (path for place in places for path in (ROOT / place).rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix() for path in files if skip in path.read_text()}
    assert found <= BY_HAND, sorted(found - BY_HAND)


def test_tests_mirror_the_source_by_name() -> None:
    """`tests/node/test_cache.py` tests a module `cache` of the node; what spans modules is in `tests/behaviour`."""
    astray = []
    for room in ROOMS:
        modules = {
            part.removesuffix(".py")
            for place in sources()
            for part in place.split("/")[3:]
            if place.startswith(f"{room}/")
        }
        astray += [
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "tests" / room).glob("test_*.py")
            if path.stem.removeprefix("test_") not in modules
        ]
    assert sorted(astray) == [], "no module of that name in their room: tests/behaviour is for what spans modules"


ABOVE = {
    "tests/contracts/test_chain.py: testnet": "the chain that it talks to is a development chain that it may stop",
    "tests/contracts/test_deploy.py: testnet": "it deploys on the development chain, with that chain's funded keys",
    "tests/node/test_lora.py: client": "adapters come to a node as a client cuts them",
}
"""Tests of a room that use one above it, or beside it, and why."""


def test_tests_of_a_room_import_nothing_above_it() -> None:
    """As their room itself does; what needs more is in `tests/behaviour`."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    rank = {room: -level for level, rooms in enumerate(layers) for room in re.findall(r"hivemint\.(\w+)", rooms)}
    wrong = []
    for room in ROOMS:
        for path in sorted((ROOT / "tests" / room).glob("test_*.py")):
            wrong += [
                f"{path.relative_to(ROOT).as_posix()}: {used}"
                for used in re.findall(r"^\s*(?:from|import) hivemint\.(\w+)", path.read_text(), re.MULTILINE)
                if used != room and rank[used] >= rank[room]
            ]
    assert sorted(wrong) == sorted(ABOVE)
