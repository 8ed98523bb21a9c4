"""Each kind of fault once over random traffic of both lanes, in a minute; the whole is `make chaos`. Slow as well.

Each node is a machine of its own (a network namespace) where this user may make them (`test_machines.py` says why not),
else all are on loopback.
"""

import os
from pathlib import Path

import pytest

from chaos.launch import conduct
from chaos.machines import why_not

SEED = 13
"""Unless `HIVEMINT_CHAOS_SEED` says another."""
WITHIN = 420.0


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_short_time_of_trouble(tmp_path: Path) -> None:
    seed = os.environ.get("HIVEMINT_CHAOS_SEED") or str(SEED)
    words = ["--seed", seed, "--profile", "short"]
    status, told = conduct("chaos.conduct", words, tmp_path / "run", apart=not why_not(), within=WITHIN)
    assert status == 0, f"seed {seed}\n{told}"
