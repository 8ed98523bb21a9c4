"""What a client installs is enough for a client; where a library is missing, a verb says which extra brings it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hivemint.cli.extras import EXTRA_OF

ROOT = Path(__file__).parents[2]
ABSENT = sorted({*EXTRA_OF, "bitsandbytes", "starlette", "psycopg"})
WITHOUT = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.path[:] = {sys.path!r}
"""
"""A Python in which no extra is installed."""


def run(code: str, home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"HIVEMINT_HOME": str(home), "HIVEMINT_PASSWORD": "correct horse"}
    command = [sys.executable, "-c", WITHOUT + code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_a_client_needs_no_extra(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from hivemint.client import SwarmModelForCausalLM
from hivemint.client.sessions.swarm_client import connect
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.ledger.store.database import database_url, open_store
open_store(database_url(Path(sys.argv[1]) / "vouchers.db")).dispose()
open_store(database_url(Path(sys.argv[1]) / "vouchers.db")).dispose()
print("fine")
"""
    done = run(code, tmp_path, str(tmp_path))
    assert done.stdout == "fine\n", done.stderr


VERBS = "from hivemint.cli.main import run; run()"


@pytest.mark.parametrize("words", [("wallet", "create", "ann", "--weak"), ("chat", "--help"), ("account", "--help")])
def test_its_verbs_need_none(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(VERBS, tmp_path, *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [(("ledger", "serve"), "ledger"), (("contracts", "compile", "--check"), "deploy")],
)
def test_a_verb_says_what_to_install(words: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    done = run(VERBS, tmp_path, *words)
    assert done.returncode == 2
    assert f"pip install 'hivemint[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRA_OF.values()) <= extras.keys()
