"""Shell completion: what a shell is told, by the shells' own way of asking."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hivemint.protocol.home import Home
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from support.command import HIVEMINT, environment, network_out_of_reach, run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two wallets, a pulled model, and a network file in the folder of the shell."""
    place = Home.open(tmp_path / "home")
    for name in ("bob", "barbara"):
        Keystores(place.keystores).create(name, "correct horse", n=CHEAP_SCRYPT_N)
    (place.models / "SmolLM2").mkdir()
    Path(network_out_of_reach(tmp_path)).write_text('[[models]]\nname = "Tiny"\n')
    return place.root


def offered(home: Path, line: str) -> list[str]:
    """What bash is told for a line that ends where the cursor is."""
    words = line.split(" ")
    asked = {"_HIVEMINT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = run(home, variables=asked, cwd=home.parent)
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs_and_options(home: Path) -> None:
    assert offered(home, "hivemint wal") == ["wallet"]
    assert sorted(offered(home, "hivemint wallet ")) == ["create", "import", "list", "send", "show"]
    assert "--sign-only" in offered(home, "hivemint account fund --s")


@pytest.mark.parametrize(
    "line",
    [
        "hivemint account list --wallet b",
        "hivemint wallet show b",
        "hivemint node register --owner b",
        "hivemint account close --by b",
        "hivemint chat --session-key b",
        "hivemint key authorize b",
    ],
)
def test_wallets(home: Path, line: str) -> None:
    assert offered(home, line) == ["barbara", "bob"]


def test_models_of_this_machine_and_of_the_network(home: Path) -> None:
    assert offered(home, "hivemint model info Smol") == ["SmolLM2"]
    assert offered(home, "hivemint chat --network nowhere.toml --model ") == ["SmolLM2", "Tiny"]
    assert offered(home, "hivemint node start sm") == ["SmolLM2"]


def test_networks(home: Path) -> None:
    assert offered(home, "hivemint swarm status --network no") == ["nowhere.toml"]
    (home / "testnet").mkdir()
    (home / "testnet" / "network.toml").write_text("")
    assert str(home / "testnet" / "network.toml") in offered(home, "hivemint swarm status --network ")


HOSTILE = (
    "\\$(touch P)",
    "$(touch P)",
    "`touch P`",
    "smol;touch P;#",
    "a b",
    "a'b",
    'a"b',
    "a|b",
    "--yes",
    "a\\b",
    "x\ny",
)
"""Names that a shell reads as more than a word."""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_a_shell_would_run_is_not_offered(shell: str, home: Path) -> None:
    listed = "".join(f"[[models]]\nname = {json.dumps(name)}\n" for name in (*HOSTILE, "Fine-1.5B"))
    (home.parent / "nowhere.toml").write_text(listed)
    inside = home.parent / "inside"
    for name in (*HOSTILE, "fine"):
        (inside / name).mkdir(parents=True)
        (home / "models" / name).mkdir()
        (home / "keystores" / f"{name}.json").write_text("{}")
    lines = {
        "hivemint chat --network nowhere.toml --model ": {"Fine-1.5B", "SmolLM2", "fine"},
        "hivemint swarm status --network inside/": {"inside/fine/", "inside/--yes/"},
        "hivemint model info inside/": {"inside/fine/", "inside/--yes/"},
        "hivemint account list --wallet ": {"bob", "barbara", "fine"},
    }
    for line, expected in lines.items():
        bash = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        others = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        asked = {"_HIVEMINT_COMPLETE": f"complete_{shell}"} | (bash if shell == "bash" else others)
        told = run(home, variables=asked, cwd=home.parent).stdout.rstrip("\n")
        told = told.removeprefix("_arguments '*: :((").removesuffix("))'").replace('"', "") if shell == "zsh" else told
        assert set(told.split("\n")) == expected


def test_a_pipe_for_a_network_file_holds_no_shell(home: Path) -> None:
    os.mkfifo(home.parent / "pipe.toml")
    assert offered(home, "hivemint chat --network pipe.toml --model ") == ["SmolLM2"]


def test_an_unusable_home_is_no_noise(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert offered(tmp_path / "file", "hivemint wallet show b") == []


def test_zsh_and_fish_ask_in_another_way(home: Path) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "hivemint wallet show b"}
    zsh = run(home, variables=asked | {"_HIVEMINT_COMPLETE": "complete_zsh"}).stdout
    assert '"bob"' in zsh
    action = {"_HIVEMINT_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert run(home, variables=asked | action).stdout.split() == ["barbara", "bob"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash_completes(home: Path) -> None:
    """The script that --show-completion prints, read by the shell that it is for."""
    script = f"""
        PATH={Path(HIVEMINT).parent}:$PATH
        hivemint --show-completion > completion.sh; source ./completion.sh
        COMP_WORDS=(hivemint wallet show bo); COMP_CWORD=3; _hivemint_completion hivemint; echo "${{COMPREPLY[@]}}"
        hivemint --install-completion > /dev/null; grep -l hivemint "$HOME/.bashrc"
    """
    done = subprocess.run(
        ["bash", "-c", script],  # noqa: S607 - whichever the user has
        env=environment(home, HOME=str(home.parent)),
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["bob", str(home.parent / ".bashrc")], done
