"""What is in examples/ runs as it is written, on a local network like the one that `hivemint testnet up` makes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hivemint.testnet.localnet import PASSWORD
from support.localnet import RealNet

pytest_plugins = ["support.localnet"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CELLS = """
import ast, json, sys
names = {}
for number, text in enumerate(json.loads(sys.stdin.read())):
    tree = ast.parse(text)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), names)
    if last is not None:  # a notebook shows it
        shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        if shown is not None:
            print(repr(shown))
"""
"""What a notebook's kernel does with its cells."""


def ran(words: list[str], net: RealNet, text: str = "") -> str:
    """What a program of its own says; it ends well and complains of nothing."""
    settings = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HIVEMINT_NETWORK": str(net.net.network_file),
        "HIVEMINT_HOME": str(net.net.home.root),
        "HIVEMINT_PASSWORD": PASSWORD,
    }
    command = [sys.executable, "-W", "error::ResourceWarning", *words]
    done = subprocess.run(
        command, input=text, env={**os.environ, **settings}, capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), net.complaints()
    return done.stdout


def notebook() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    return document


def test_text_through_the_swarm(localnet: RealNet) -> None:
    said = ran([str(EXAMPLES / "generate.py")], localnet)
    assert "lane" in said.splitlines()[0]
    assert "The capital of France is Paris" in said


@pytest.mark.slow
def test_a_prompt_is_tuned(localnet: RealNet) -> None:
    losses = [float(line.split()[-1]) for line in ran([str(EXAMPLES / "prompt_tuning.py")], localnet).splitlines()]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_the_notebook_cell_by_cell(localnet: RealNet) -> None:
    cells = ["".join(one["source"]) for one in notebook()["cells"] if one["cell_type"] == "code"]
    said = ran(["-c", CELLS], localnet, json.dumps(cells))
    assert "SwarmModelForCausalLM(SmolLM2-135M-Instruct" in said
    assert "without a wallet, donated work only" in said
    assert "The capital of France is Paris" in said
    assert "20 tokens, by " in said
    assert "donated lane" in said
    assert "spent: 0 wei" in said


def test_the_notebook_holds_no_answers_of_the_machine_that_wrote_it() -> None:
    document = notebook()
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert len({one["id"] for one in document["cells"]}) == len(document["cells"])
    for one in document["cells"]:
        assert one["cell_type"] in ("markdown", "code")
        if one["cell_type"] == "code":
            assert (one["outputs"], one["execution_count"]) == ([], None)
            assert all(len(line) <= 121 for line in one["source"])
