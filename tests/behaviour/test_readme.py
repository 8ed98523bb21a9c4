"""README.md as it stands: whoever follows it from the top gets what it says, and all that it names is there.

The slow test runs its blocks in one shell, from a fresh folder with a home of its own; what it writes nobody else sees.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hivemint.cli.network.devchain import exports
from hivemint.cli.tree import GROUPS, build
from hivemint.client.settings import Bid, ClientSettings
from hivemint.node.settings import NodeSettings
from hivemint.protocol.home import Home
from hivemint.protocol.ids import ONE_CREDIT
from support.pages import Block, Shell, blocks

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
PROGRAMS = ("bash", "python")
EXPECTED = {
    "hivemint testnet up": "known to everybody",
    "--raw": "Paris",
    "Why is the sky blue": '"lane"',
    "account fund": "HMC",
    "account close": "account",
    "TextStreamer": "The capital of France is Paris",
    "prompt_tuning": "step 9: loss",
    "node register": "registered",
    "testnet down": "down",
}
"""What must be in the output of the block that has this text."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_whoever_follows_the_readme_gets_what_it_says(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "checkout"
    home.mkdir()
    folder.mkdir()
    (home / "models").symlink_to(Home.open().models, target_is_directory=True)
    for name in (".venv", "examples"):
        (folder / name).symlink_to(ROOT / name)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
    shell = Shell(folder, {**kept, "HIVEMINT_HOME": str(home), "OMP_NUM_THREADS": "1"})
    missing = set(EXPECTED)
    try:
        for block in blocks(README):
            if block.language not in PROGRAMS or block.not_run:
                continue
            output = shell.run(block)
            for text in [text for text in missing if text in block.text]:
                assert re.search(EXPECTED[text], output), f"line {block.line}: {EXPECTED[text]} is not in\n{output}"
                missing.discard(text)
            if block.until:
                assert "error" not in shell.interrupt()
    finally:
        _down(home, folder, shell)
    assert not missing


def _down(home: Path, folder: Path, shell: Shell) -> None:
    """Whatever the page has left running."""
    shell.close()
    if (home / "testnet" / "state.json").exists():
        last = Shell(folder / "last", {**os.environ, "HIVEMINT_HOME": str(home)})
        try:
            last.run(Block("bash", "hivemint testnet down\n", 0))
        finally:
            last.close()


def test_few_blocks_are_not_run() -> None:
    left_out = [block for block in blocks(README) if block.language in PROGRAMS and block.not_run]
    assert len(left_out) <= 1
    assert sum(block.language in PROGRAMS for block in blocks(README)) >= 8


def test_the_settings_are_those_that_the_program_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HIVEMINT_")]:
        monkeypatch.delenv(name)
    (text,) = [block.text for block in blocks(README) if block.language == "toml"]
    home = Home.open(tmp_path)
    (tmp_path / "config.toml").write_text(text)
    client, node = ClientSettings.load(home), NodeSettings.load(home)
    assert (client.bid, client.max_price) == (Bid.parse("2x"), ONE_CREDIT // 1000)
    assert (node.ask, node.listen, node.idle) == (ONE_CREDIT // 5_000_000, ("/ip4/0.0.0.0/tcp/4002",), 60)


def test_the_lines_for_a_shell_are_quoted(tmp_path: Path) -> None:
    place = tmp_path / "a b; $(false)" / "testnet"
    lines = exports(place) + '\nprintf %s "$HIVEMINT_NETWORK"'
    said = subprocess.run([shutil.which("sh") or "sh", "-c", lines], capture_output=True, text=True, check=True)
    assert said.stdout == str(place / "network.toml")


# --- every verb and option that a page names


def _verbs() -> dict[str, Any]:
    """`node start` -> its click command; groups too."""
    found: dict[str, Any] = {}
    for name in GROUPS:
        root: Any = typer.main.get_command(build(name))
        found[name] = root.commands[name]
        found |= {f"{name} {verb}": one for verb, one in getattr(root.commands[name], "commands", {}).items()}
    return found


def _named(page: Path) -> list[tuple[str, list[str]]]:
    """Each `hivemint ...` of a page, in blocks and between backticks, as words; comments and substitutions apart."""
    text = page.read_text().replace("\\\n", " ")
    spans = [
        span
        for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for span in block.splitlines()
    ]
    spans += re.findall(r"`(hivemint [^`\n]+)`", text)
    found = []
    for span in spans:
        for call in re.findall(r"(?:^|[(\s`])hivemint ([^|)`#]+)", span):
            try:
                found.append((call.strip(), shlex.split(call)))
            except ValueError:  # a quotation that goes on behind what was cut off
                found.append((call.strip(), call.split()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_options_of_the_pages_exist(page: Path) -> None:
    verbs, wrong = _verbs(), []
    for call, words in _named(page):
        if not words or words[0].startswith(("-", "VERB", "...", "{")):
            continue
        name = " ".join(words[:2]) if " ".join(words[:2]) in verbs else words[0]
        group = getattr(verbs.get(name), "commands", None)
        if name not in verbs or (group and len(words) > 1 and re.fullmatch(r"[a-z][a-z-]+", words[1])):
            wrong.append(f"no such verb: hivemint {call}")
            continue
        known = {one for param in verbs[name].params for one in (*param.opts, *param.secondary_opts)} | {"-h", "--help"}
        wrong += [f"no such option: hivemint {call}" for word in words if _option(word) and _option(word) not in known]
    assert wrong == []


def _option(word: str) -> str:
    return word.partition("=")[0] if re.match(r"--[a-z]", word) else ""


def test_the_readme_names_verbs_at_all() -> None:
    assert len(_named(README)) > 25
