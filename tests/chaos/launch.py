"""Starts a run for a test: in namespaces where there can be any, else on loopback, and never leaves anything behind."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from chaos.invariants import ours
from chaos.machines import machines
from chaos.network import PLACES

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("protocol", "contracts", "model", "swarm", "ledger", "node", "client", "testnet", "cli", "tests")


def conduct(module: str, words: list[str], folder: Path, *, apart: bool, within: float) -> tuple[int, str]:
    """Exit status and output of `python -m module ... --folder DIR [--tag TAG]`, in the hub if `apart`."""
    with machines(PLACES, apart=apart) as made:
        command = [*(made.enter("hub") or _own_mounts()), sys.executable, "-m", module, *words, "--folder", str(folder)]
        command += ["--tag", made.tag] if apart else []
        try:
            done = subprocess.run(
                command, env=environment(), capture_output=True, text=True, timeout=within, check=False
            )
            return done.returncode, f"{done.stdout}\n{done.stderr[-6000:]}"
        except subprocess.TimeoutExpired as late:
            told = (late.stdout or b"") + (late.stderr or b"")[-6000:]
            return 1, f"not over within {within:.0f} s\n{told.decode(errors='replace')}"
        finally:
            for process in ours(folder):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _own_mounts() -> list[str]:
    """What it mounts goes with it, however it ends; without the right to that it mounts nothing either."""
    unshare = shutil.which("unshare")
    return [unshare, "--mount"] if unshare and not os.geteuid() else []


def environment() -> dict[str, str]:
    """Nothing of the user's settings; the rooms and the tests as they lie here."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
    path = os.pathsep.join(str(ROOT / room) for room in ROOMS)
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
