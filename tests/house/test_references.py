"""What code, tests and documents cite is there: promises and rules by number, documents, files, names in files.

A comment that names what was moved or renamed misleads; so nothing is cited that this test can't find.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support.source import parsed

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protocol", "contracts", "model", "swarm", "ledger", "node", "client", "testnet", "cli")
CODE = (*ROOMS, "tests", "benchmarks", "examples", "hardhat/test", "hardhat/proofs", "hardhat/mutants")
DOCUMENTS = ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs")
KINDS = {".py", ".sol", ".mjs", ".toml", ".md"}
MADE_ELSEWHERE = {"artifacts", "node_modules", "corpus", "__pycache__", ".hypothesis"}

NUMBERS = {"P": range(1, 19), "C": range(1, 15), "N": range(1, 14)}
_NUMBER = re.compile(r"(?<![A-Za-z0-9.])(?:test_|testFuzz_|invariant_|check_)?([PCN])(\d{1,2})(?![A-Za-z0-9])")
_DECISION = re.compile(r"\b[Dd]ecisions? (\d{4})\b|\((00\d\d)\)|decisions/(\d{4})")
_DOCUMENT = re.compile(r"(?<![\w/*<{.-])((?:\.\./)*[A-Za-z0-9][\w/.-]*\.md)\b")
_SECTION = re.compile(r"protocol\.md`?\)?, (?:section|sections) ([\d, and]+\d|\d)")
_FILE = re.compile(r"(?<![\w/*<{$.-])((?:\.\./)*[\w-]+(?:/[\w.-]+)*\.(?:py|sol|mjs))(?:::([A-Za-z_][\w:]*))?(?![\w/])")
_TEST = re.compile(r"`((?:test|testFuzz|invariant)_\w+)`(?!\.)")
_PACKAGES = "protocol|contracts|swarm|ledger|node|client|testnet|cli|support"
_MODULE = re.compile(rf"`(?:hivemint\.)?((?:{_PACKAGES})(?:\.(?!md`)\w+)+)`")
"""`model` is also what a program calls its model."""


@cache
def texts() -> dict[Path, str]:
    """Every source and document of ours."""
    found = []
    for place in (*CODE, *DOCUMENTS):
        path = ROOT / place
        found += [path] if path.is_file() else [one for one in path.rglob("*") if one.suffix in KINDS and one.is_file()]
    return {path: path.read_text() for path in sorted(set(found)) if not MADE_ELSEWHERE & set(path.parts)}


@cache
def prose(path: Path) -> str:
    """What of a file is said to people: all of a document, the comments and docstrings of code."""
    text = texts()[path]
    if path.suffix == ".py":
        return "\n".join((*_docstrings(text), *_comments(text)))
    if path.suffix in (".sol", ".mjs"):
        return "\n".join(re.findall(r"(?:^|\s)//.*|^\s*/?\*.*", text, re.MULTILINE))
    if path.suffix == ".toml":
        return "\n".join(re.findall(r"#.*", text))
    return text


def _docstrings(text: str) -> Iterator[str]:
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def _comments(text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a file defines: functions, classes, their members (`Class::member`), constants; in Solidity likewise."""
    text = path.read_text()
    if path.suffix == ".py":
        return frozenset(_defined(parsed(text).body, ""))
    kinds = "function|contract|library|interface|struct|enum|event|error|modifier|const"
    return frozenset(re.findall(rf"\b(?:{kinds})\s+(\w+)", text))


def _defined(body: list[ast.stmt], within: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield within + node.name
            if isinstance(node, ast.ClassDef):
                yield from _defined(node.body, f"{within}{node.name}::")
        elif isinstance(node, ast.ImportFrom):
            yield from (one.asname or one.name for one in node.names)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield within + node.target.id
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (within + one.id for one in ast.walk(target) if isinstance(one, ast.Name))


def candidates(name: str, cited_in: Path) -> list[Path]:
    """Where a file of that name may lie: as it is written, or anywhere below, if it is written short."""
    for base in (ROOT, ROOT / "docs", cited_in.parent):
        if (exact := base / name).is_file():
            return [exact.resolve()]
    if name.startswith(".."):
        return []
    return [path for path in texts() if str(path).endswith(f"/{name}")]


def module_is_there(dotted: str) -> bool:
    """`swarm.messages.Code`: a module of ours, or a name in one."""
    words = dotted.split(".")
    top = ROOT / "tests" / "support" if words[0] == "support" else ROOT / words[0] / "hivemint" / words[0]
    place = top
    for number, word in enumerate(words[1:], 1):
        if (module := place / f"{word}.py").is_file():
            rest = "::".join(words[number + 1 :])
            return not rest or rest in names_in(module)
        if not (place / word).is_dir():
            initial = place / "__init__.py"
            return initial.is_file() and word in names_in(initial)
        place = place / word
    return True


def cited(pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """All that is said to people in the shape of `pattern`, and where. This file's examples are not."""
    for path in texts():
        if path != Path(__file__).resolve():
            for match in pattern.finditer(prose(path)):
                yield path, match


def shown(path: Path, what: str) -> str:
    return f"{path.relative_to(ROOT)}: {what}"


def test_promises_and_rules_are_stated_where_they_belong() -> None:
    promises = (ROOT / "docs" / "promises.md").read_text()
    protocol = (ROOT / "docs" / "protocol.md").read_text()
    assert re.findall(r"^## P(\d+)$", promises, re.MULTILINE) == [str(number) for number in NUMBERS["P"]]
    for letter in "CN":
        stated = re.findall(rf"^- {letter}(\d+) ", protocol, re.MULTILINE)
        assert stated == [str(number) for number in NUMBERS[letter]], f"rules {letter} of docs/protocol.md"


def test_numbers_that_are_cited_exist() -> None:
    wrong = []
    for path, text in texts().items():
        if path == Path(__file__).resolve():
            continue
        for letter, number in _NUMBER.findall(text):
            if int(number) not in NUMBERS[letter]:
                wrong.append(shown(path, letter + number))
    assert not wrong, wrong


def test_decisions_that_are_cited_exist() -> None:
    known = {path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")}
    found = [(path, next(filter(None, match.groups()))) for path, match in cited(_DECISION)]
    assert found
    wrong = [shown(path, number) for path, number in found if number not in known]
    assert not wrong, wrong


def test_documents_that_are_cited_exist() -> None:
    """From code by their path from the root; among documents also as a neighbour."""
    wrong = []
    for path, match in cited(_DOCUMENT):
        bases = [ROOT, ROOT / "docs", path.parent] if path.suffix == ".md" else [ROOT]
        if not any((base / match[1]).is_file() for base in bases):
            wrong.append(shown(path, match[1]))
    assert not wrong, wrong


def test_sections_that_are_cited_exist() -> None:
    stated = set(re.findall(r"^## (\d+)\.", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE))
    found = [(path, set(re.findall(r"\d+", match[1]))) for path, match in cited(_SECTION)]
    assert found
    wrong = [shown(path, f"section {number}") for path, numbers in found for number in numbers - stated]
    assert not wrong, wrong


def test_files_and_names_that_are_cited_exist() -> None:
    wrong = []
    for path, match in cited(_FILE):
        name, defined = match[1], match[2]
        found = candidates(name, path)
        if not found:
            wrong.append(shown(path, name))
        elif defined and not any(defined in names_in(one) for one in found):
            wrong.append(shown(path, f"{name}::{defined}"))
    assert not wrong, "\n".join(wrong)


def test_tests_that_are_cited_by_name_alone_exist() -> None:
    tests = {one.rpartition("::")[2] for path in texts() if path.suffix in (".py", ".sol") for one in names_in(path)}
    found = [(path, match[1]) for path, match in cited(_TEST)]
    assert found
    wrong = [shown(path, name) for path, name in found if name not in tests]
    assert not wrong, "\n".join(wrong)


def test_modules_that_are_cited_exist() -> None:
    wrong = [shown(path, match[1]) for path, match in cited(_MODULE) if not module_is_there(match[1])]
    assert not wrong, "\n".join(wrong)


def test_links_between_documents_lead_somewhere() -> None:
    wrong = []
    for path, text in texts().items():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (path.parent / target).exists():
                wrong.append(shown(path, target))
    assert not wrong, wrong


def test_a_link_that_names_something_leads_to_the_file_that_defines_it() -> None:
    wrong, found = [], 0
    for path, text in texts().items():
        for said, defined, target in re.findall(r"\[`([^`:]+)::([\w:]+)`\]\(([^)#\s]+)\)", text):
            found += 1
            file = (path.parent / target).resolve()
            if not str(file).endswith(f"/{said}") or defined not in names_in(file):
                wrong.append(shown(path, f"{said}::{defined}"))
    assert found
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["kv_cache.py", "no/such.py"])
def test_what_is_not_there_is_not_found(name: str) -> None:
    assert not candidates(name, ROOT / "README.md")
