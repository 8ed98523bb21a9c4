"""`hivemint ledger serve` as a process: it is ready, answers, ends cleanly; bad input gives plain errors."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support.chain import TestChain


def command(home: Path, *words: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"HIVEMINT_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "hivemint.cli.main", "ledger", "serve", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_told_to_end(testchain: TestChain, tmp_path: Path, ending: signal.Signals) -> None:
    process = command(tmp_path, "--network", str(testchain.network.path), "--port", "0", "--no-swarm")
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        status = httpx.get(ready["url"] + "api/status", timeout=30).json()
        assert (status["network"], status["chain_id"]) == ("test", 31337)
        assert "Credit flow" in httpx.get(ready["url"], timeout=30).text
    finally:
        process.send_signal(ending)
        errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (0, "")
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "ledger").iterdir()} == {0}


def refused(home: Path, *words: str, code: int = 2) -> str:
    process = command(home, *words)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in errors
    return " ".join(errors.split())


def test_bad_input_is_told_plainly(testchain: TestChain, tmp_path: Path) -> None:
    network = str(testchain.network.path)
    assert "No network file" in refused(tmp_path)
    assert "cannot be read" in refused(tmp_path, "--network", str(tmp_path / "none.toml"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen" in refused(tmp_path, "--network", network, "--port", port)
    missing = refused(
        tmp_path, "--network", network, "--port", "0", "--no-swarm", "--journal", str(tmp_path / "no.db"), code=9
    )
    assert "There is no database" in missing
    assert "no database that can be used" in refused(
        tmp_path, "--network", network, "--port", "0", "--no-swarm", "--database", "x://y"
    )
