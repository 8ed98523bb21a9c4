"""The benchmarks of attackers and of long runs, shortened: they run, nothing fails, nothing stays behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hivemint.model.local_models import LocalModel
from support.attackers import ATTACKS

pytest_plugins = ["support.models"]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def figures(name: str, folder: Path) -> dict[str, Any]:
    """What the benchmark NAME writes with `--quick 1`."""
    to = folder / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "1", "--json", str(to)]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *filter(None, sys.path)])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(to.read_text())
    assert to.with_suffix(".png").stat().st_size
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_hostile(smollm2: LocalModel, tmp_path: Path) -> None:
    """No figure of speed is looked at here: another process may be busy."""
    found = figures("hostile", tmp_path)
    assert {"slowdown_max", "failed", "growth_mb_max"} <= found.keys()
    assert found["attacks"].keys() == ATTACKS.keys()
    for name, one in found["attacks"].items():
        assert one["tokens_per_s_attacked"] > 0, name
        assert sum(one["attacker"].values()) > 0, name
    assert found["failed"] == 0, found["failures"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak(smollm2: LocalModel, tmp_path: Path) -> None:
    found = figures("soak", tmp_path)
    assert found["left_behind"] == 0, found["left"]
    assert found["failed"] == 0, found["failures"]
    assert found["sessions_open"] == found["sessions"]
    assert found["kills"] > 0
    assert min(found["steps"], found["opened"]) > 0
