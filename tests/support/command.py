"""The real command in a process of its own, with nothing of the user's environment."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HIVEMINT = str(Path(sys.executable).with_name("hivemint"))
UNREACHABLE = """\
name = "nowhere"
chain_id = 31337
rpc_url = "http://127.0.0.1:9"
[contracts]
"""
NAMES = ("token", "registry", "settlement", "emission", "parameters", "disputes")


def environment(home: Path, **more: str) -> dict[str, str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("HIVEMINT_", "COLUMNS", "LC_"))}
    return base | {"HIVEMINT_HOME": str(home), "HIVEMINT_PASSWORD": "correct horse"} | more


def run(home: Path, *words: str, **how: Any) -> "subprocess.CompletedProcess[str]":
    """`how`: of `subprocess.run`; `variables`: more of the environment."""
    variables = how.pop("variables", {})
    usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run(
        [HIVEMINT, *words], env=environment(home, **variables), timeout=120, check=False, **(usual | how)
    )


def network_out_of_reach(folder: Path) -> str:
    """A network file that is right, of a chain that nobody runs."""
    lines = [f'{name} = "0x{number:040x}"' for number, name in enumerate(NAMES, 1)]
    path = folder / "nowhere.toml"
    path.write_text(UNREACHABLE + "\n".join(lines) + "\n")
    return str(path)
