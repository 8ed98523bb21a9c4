"""`make chaos`: every kind of fault several times over on machines apart, and what a thousand sessions leave behind.

`make chaos SEED=n` is the same schedule again.
"""

import os
import secrets
from pathlib import Path

import pytest

from chaos.launch import conduct
from chaos.machines import why_not

SEED = int(os.environ.get("HIVEMINT_CHAOS_SEED") or secrets.randbelow(2**31))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WITHIN = 560.0
MEMORY_WITHIN = 330.0


def test_a_long_time_of_trouble(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On machines apart, where there can be any."""
    reason = why_not()
    words = ["--seed", str(SEED), "--profile", "long"]
    status, told = conduct("chaos.conduct", words, tmp_path / "run", apart=not reason, within=WITHIN)
    with capfd.disabled():
        print(f"\n{reason or 'each node in a network namespace of its own'}\n{told}")  # noqa: T201
    assert status == 0, f"seed {SEED}\n{told}"
    assert "NEVER HIT ANYBODY" not in told, f"seed {SEED}\n{told}"


def test_a_thousand_sessions_leave_no_memory_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On one machine, as where there are no namespaces."""
    words = ["--seed", str(SEED)]
    status, told = conduct("chaos.memory", words, tmp_path / "run", apart=False, within=MEMORY_WITHIN)
    with capfd.disabled():
        print(f"\n{told.splitlines()[0]}")  # noqa: T201
    assert status == 0, told
