"""How the command ends: exit codes by kind, errors as JSON, encodings, pipes. Each by the real command."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.command import HIVEMINT, environment, network_out_of_reach, run

ENCODINGS = [
    {"PYTHONIOENCODING": "latin-1"},
    {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
ODD = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        (("walet",), "usage", 2),
        (("wallet", "show"), "usage", 2),
        (("contracts", "params"), "settings", 2),
        (("wallet", "import", "eve", "--keystore", "a", "--key-file", "b"), "input", 2),
        (("wallet", "show", "eve"), "wallet", 3),
        (("model", "info", "nosuch"), "model", 4),
        (("contracts", "params", "--network", "NOWHERE"), "chain", 5),
    ],
)
def test_an_error_ends_with_the_code_of_its_kind(words: tuple[str, ...], kind: str, code: int, tmp_path: Path) -> None:
    words = tuple(network_out_of_reach(tmp_path) if word == "NOWHERE" else word for word in words)
    told = run(tmp_path / "home", *words)
    assert (told.returncode, told.stdout) == (code, "")
    assert told.stderr.startswith("error ")
    as_json = run(tmp_path / "home", *words, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert (as_json.returncode, as_json.stderr) == (code, "")
    assert (error["kind"], error["code"]) == (kind, code)
    assert set(error) == {"kind", "code", "what", "why", "next_step"}
    assert error["what"] in told.stderr


def test_what_was_probably_meant(tmp_path: Path) -> None:
    assert run(tmp_path, "wallet", "create", "bob", "--weak").returncode == 0
    for words, meant in (
        (("walet",), "did you mean wallet?"),
        (("wallet", "list", "--jsn"), "did you mean --json?"),
        (("wallet", "show", "Bbo"), "did you mean bob?"),
        (("model", "info", "smollm2-135m-instrct"), "did you mean SmolLM2-135M-Instruct?"),
    ):
        assert meant in run(tmp_path, *words).stderr, words


def test_nothing_entered_is_no_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, "wallet", "import", "bob", start_new_session=True)
    assert done.returncode == 2
    assert "Nothing was entered" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("variables", ENCODINGS, ids=lambda one: "-".join(one.values()))
def test_no_encoding_of_a_terminal_ends_in_a_traceback(variables: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "zuhause-für-ключи"
    for words, code in (
        (("config", "show"), 0),
        (("--help",), 0),
        (("wallet", "show", "ключ"), 2),
        (("wallet", "show", ODD), 2),
        (("contracts", "params", "--network", f"/{ODD}/ключ.toml"), 2),
        (("generate", ODD), 2),
    ):
        done = run(home, *words, variables=variables, encoding="latin-1")
        assert done.returncode == code, (words, done)
        assert "Traceback" not in done.stdout + done.stderr, (words, done)
    as_json = run(home, "wallet", "show", ODD, "--json", variables=variables)
    assert json.loads(as_json.stdout)["error"]["kind"] == "settings"


@pytest.mark.parametrize("name", ["network.toml", "password", "key", "order.json", "numbers.toml", "config.toml"])
def test_files_that_are_no_text_are_refused_in_words(name: str, tmp_path: Path) -> None:
    file, home = tmp_path / name, tmp_path / "home"
    file.write_bytes(b'name = "caf\xe9"\n')
    network = network_out_of_reach(tmp_path)
    words = {
        "network.toml": ("contracts", "params", "--network", str(file)),
        "password": ("wallet", "create", "bob", "--password-file", str(file)),
        "key": ("wallet", "import", "bob", "--key-file", str(file)),
        "order.json": ("account", "send-order", str(file), "--network", network, "--wallet", "bob"),
        "numbers.toml": ("contracts", "verify", "--network", network, "--numbers", str(file)),
        "config.toml": ("config", "show"),
    }[name]
    if name == "config.toml":
        home = tmp_path
    done = run(home, *words)
    assert done.returncode in (2, 3), done
    assert "Traceback" not in done.stderr
    assert str(file) in done.stderr or "no signed order" in done.stderr


def test_a_password_that_is_no_text(tmp_path: Path) -> None:
    done = run(tmp_path, "wallet", "create", "bob", variables={"HIVEMINT_PASSWORD": ODD})
    assert done.returncode == 2
    assert "HIVEMINT_PASSWORD" in done.stderr
    assert "caf" not in done.stderr


@pytest.mark.parametrize("words", [("config", "show", "--json"), ("wallet", "list")])
def test_a_reader_that_has_gone_is_no_error(words: tuple[str, ...], tmp_path: Path) -> None:
    """As `hivemint ... | head -1`: quiet, with the status that a shell has for it."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(tmp_path, *words, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_reader_that_goes_while_we_write(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [HIVEMINT, "config", "show"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        pipesize=4096,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("home")
    process.stdout.close()
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 141


@pytest.mark.parametrize("words", [("--help",), ("node", "start", "--help")])
@pytest.mark.parametrize("variables", [{"COLUMNS": "60", "NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_help_is_readable_at_sixty_columns(words: tuple[str, ...], variables: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, *words, variables=variables)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= int(variables.get("COLUMNS", "80"))
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
    assert not set("│╭╰") & set(done.stdout)
