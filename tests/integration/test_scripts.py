"""Programs as people write them, each in a process of its own on a real network: they end with nothing left over.

Every warning is an error, and what the interpreter itself would complain of is on stderr: that stays empty.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from support.localnet import RealNet

pytest_plugins = ["support.localnet"]

LIBRARIES = (
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # torch's own import of its quantized modules
)
LIMIT = 120.0
START = """
import sys, torch
from hivemint.client import SwarmModelForCausalLM
ids = torch.arange(5, 13)[None]
given = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3}
model = SwarmModelForCausalLM.from_pretrained()
"""
"""All that follows happens in the network of `$HIVEMINT_NETWORK`, with its first model, without a wallet."""


def environment(net: RealNet, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir(exist_ok=True)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HIVEMINT_NETWORK": str(net.net.network_file),
        "HIVEMINT_HOME": str(net.net.home.root),
        "TMPDIR": str(tmp_path / "tmp"),
    }


def program(text: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    warnings = [word for one in ("error", *LIBRARIES) for word in ("-W", one)]
    return subprocess.Popen(
        [sys.executable, *warnings, "-c", START + text],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran(text: str, net: RealNet, tmp_path: Path) -> tuple[str, str, int]:
    """Output, complaints and exit status; no process and no folder of it is left."""
    process = program(text, environment(net, tmp_path))
    out, complaints = process.communicate(timeout=LIMIT)
    deadline = time.monotonic() + 5
    while left := remains(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    return out, complaints, process.returncode


def remains(tmp_path: Path) -> list[str]:
    """Daemons whose sockets lie in this test's folder, and what else is there."""
    daemons = [
        " ".join(one.info["cmdline"])
        for one in psutil.process_iter(["cmdline"])
        if any(str(tmp_path) in word for word in one.info["cmdline"] or ())
    ]
    return daemons + [str(path) for path in (tmp_path / "tmp").iterdir()]


QUIET_ENDS = {
    "closed, dropped, in a cycle, in a thread, in an event loop": """
import asyncio, gc, threading, time
with model:
    model.generate(ids, **given)
another = SwarmModelForCausalLM.from_pretrained
model = another()
thread = threading.Thread(target=model.generate, args=(ids,), kwargs=given)
thread.start(); thread.join()
model = another()  # the one before is dropped
async def cell():
    return model.generate(ids, **given)
asyncio.run(cell())
class Keeper: pass
keeper = Keeper()
keeper.model, keeper.itself = another(), keeper
del keeper, model
gc.collect()
time.sleep(0.5)
""",
    "never closed, with sessions that are open": """
talk = model.conversation()
model.generate(ids, conversation=talk, **given)
blocks = model.blocks(tokens=8)
blocks(model.embed(ids))
""",
    "exit in the middle": """
class Stop:
    def put(self, ids):
        if len(ids) == 1: sys.exit(0)
    def end(self): pass
print("done")
model.generate(ids, streamer=Stop(), **given)
""",
    "the main thread ends before another": """
import threading
def work():
    threading.main_thread().join()
    assert model.generate(ids, **given).shape == (1, 11)
    print("done")
threading.Thread(target=work).start()
""",
    "a daemon thread still at work": """
import threading, time
given.update(max_new_tokens=400, min_new_tokens=400)
threading.Thread(target=model.generate, args=(ids,), kwargs=given, daemon=True).start()
time.sleep(1.0)
""",
}


@pytest.mark.parametrize("text", QUIET_ENDS.values(), ids=QUIET_ENDS)
def test_a_program_ends_with_nothing_left_over(text: str, localnet: RealNet, tmp_path: Path) -> None:
    out, complaints, status = ran(text if "done" in text else f"{text}\nprint('done')\n", localnet, tmp_path)
    assert complaints == ""
    assert (out, status) == ("done\n", 0)


def test_an_error_is_all_that_is_said(localnet: RealNet, tmp_path: Path) -> None:
    _, complaints, status = ran("model.generate(ids, bid='2x', **given)", localnet, tmp_path)
    assert status == 1
    assert complaints.startswith("Traceback")
    last = complaints.splitlines()[-1]
    assert last.startswith("hivemint.protocol.errors.WalletError: No wallet. the bid is 2x")
    assert 'bid="free"' in last
    assert "wallet=" in last
    assert complaints.count("Traceback") == 1


def test_ctrl_c_in_mid_answer_is_all_that_is_said(localnet: RealNet, tmp_path: Path) -> None:
    text = """
class Told:
    def put(self, ids):
        print(len(ids.flatten()), flush=True)
    def end(self): pass
model.generate(ids, streamer=Told(), do_sample=False, max_new_tokens=1000, min_new_tokens=1000)
"""
    process = program(text, environment(localnet, tmp_path))
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(4)] == ["8\n", "1\n", "1\n", "1\n"]
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGINT
    assert complaints.splitlines()[-1] == "KeyboardInterrupt"
    assert complaints.count("Traceback") == 1
    for word in ("Warning", "ignored", "Unclosed", "destroyed"):
        assert word not in complaints
    assert remains(tmp_path) == []


def test_a_fork_leaves_its_parent_alone(localnet: RealNet, tmp_path: Path) -> None:
    """The child drops what it has inherited and ends as multiprocessing's do; the parent goes on over its own links."""
    text = """
import gc, os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads
with model.conversation() as talk:
    answer = model.generate(ids, conversation=talk, **given)
    child = os.fork()
    if child == 0:
        try:
            model.generate(ids, **given)
        except Exception as error:
            print(type(error).__name__, error.why, flush=True)
        del model, talk
        gc.collect()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    print(model.generate(answer, conversation=talk, **given).shape[1])
"""
    out, complaints, status = ran(text, localnet, tmp_path)
    assert (complaints, status) == ("", 0)
    assert out == "SwarmError a fork has no part in its connections\n0\n14\n"
