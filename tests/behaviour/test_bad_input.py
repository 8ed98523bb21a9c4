"""Bad input to the real command: an exit code by kind, one to three plain lines (what, why, next), no traceback.

place   a home with the demo model and Bob's wallet, and a network file of a real chain with a bootstrap peer; one
        registered node serves blocks 0:2 of the model's 30
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from hivemint.cli.tree import GROUPS, build
from hivemint.model.local_models import LocalModel
from hivemint.protocol.home import Home
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.network import Model, Network
from hivemint.testnet.processes import hivemint, launch, wait_ready
from support.chain import TestChain

pytest_plugins = ["support.models"]

PASSWORD = "correct horse"
BLOCKS = "0:2"
HIVEMINT = str(Path(sys.executable).with_name("hivemint"))


@dataclass
class Place:
    """Where the commands run. `network`, `model`, `node`: words to put on a command line."""

    home: Home
    network: Path
    model: str
    node: str

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """`hivemint WORDS`, in a process of its own."""
        return subprocess.run(
            [HIVEMINT, *map(str, words)],
            env=self.environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def environment(self) -> dict[str, str]:
        """Of the commands: nothing of ours but this home and its password."""
        base = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
        return base | {"HIVEMINT_HOME": str(self.home.root), "HIVEMINT_PASSWORD": PASSWORD, "HIVEMINT_THREADS": "1"}

    def refusal(self, *words: object, code: int = 2, **environment: str) -> str:
        """What a refused command tells; its form is checked here, and the exit code of its kind."""
        done = self.run(*words, **environment)
        lines = done.stderr.splitlines()
        assert done.returncode == code, done
        assert 1 <= len(lines) <= 3, done
        assert lines[0].startswith("error "), done
        assert [line.split()[0] for line in lines[1:]] in ([], ["why"], ["next"], ["why", "next"]), done
        assert "Traceback" not in done.stderr + done.stdout
        assert PASSWORD not in done.stderr
        assert not done.stdout, done
        return done.stderr

    def told(self, *words: object) -> object:
        """The JSON document of a command; nothing else may be on stdout."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(testchain: TestChain, smollm2: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    home = Home.open(folder / "home")
    (home.root / "models").symlink_to(smollm2.home.models, target_is_directory=True)
    keystores = Keystores(home.keystores)
    keystores.create("bob", PASSWORD, n=CHEAP_SCRYPT_N)
    keystores.add("dave", testchain.signers[10], PASSWORD, n=CHEAP_SCRYPT_N)
    environment = {"HIVEMINT_HOME": str(home.root), "HIVEMINT_PASSWORD": PASSWORD, "HIVEMINT_THREADS": "1"}
    children = [launch("bootstrap", hivemint("swarm", "bootstrap", "--name", "test"), folder / "boot.log", environment)]
    try:
        children[0] = wait_ready(children[0], 60)
        (folder / "model.manifest").write_bytes(smollm2.manifest.to_bytes())
        network = replace(
            testchain.network,
            bootstrap=tuple(children[0].ready["addresses"]),
            models=(Model(smollm2.name, smollm2.model_id, "model.manifest"),),
        ).save(folder / "network.toml")
        found = Place(home, network.path or folder, smollm2.name, testchain.signers[10].address)
        found.told("node", "register", "--wallet", "dave", "--network", found.network)
        words = ("node", "start", found.model, "--blocks", BLOCKS, "--wallet", "dave", "--network", str(found.network))
        children.append(launch("node", hivemint(*words), folder / "node.log", environment))
        children[1] = wait_ready(children[1], 90)
        yield found
    finally:
        for child in reversed(children):
            child.stop()


@pytest.fixture
def edited(place: Place, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the network file with something changed."""

    def edit(**changes: object) -> Path:
        assert place.network
        shutil.copy(place.network.parent / "model.manifest", tmp_path / "model.manifest")
        changed = replace(Network.load(place.network), **changes)  # type: ignore[arg-type]
        return changed.save(tmp_path / "network.toml").path or tmp_path

    return edit


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server.getsockname()[1]


# --- the list


def test_an_unknown_model(place: Place) -> None:
    start = ("--blocks", "0:1", "--wallet", "bob", "--network", place.network)
    for words in (("model", "info", "nosuch"), ("model", "pull", "nosuch"), ("node", "start", "nosuch", *start)):
        told = place.refusal(*words, code=4)
        assert "'nosuch'" in told
        assert "model pull" in told
    told = place.refusal("generate", "hi", "--model", "nosuch", "--wallet", "bob", "--network", place.network)
    assert "nosuch" in told
    assert place.model in told  # what the network has instead


@pytest.mark.parametrize("span", ["0:31", "30:31", "5:5", "9:3", "x:3", "7"])
def test_a_span_outside_the_model(place: Place, span: str) -> None:
    words = ("node", "start", place.model, "--blocks", span, "--wallet", "bob", "--network", place.network)
    assert span.partition(":")[0] in place.refusal(*words, code=2 if span in ("x:3", "7") else 4)


def test_a_taken_port(place: Place, taken: int) -> None:
    assert str(taken) in place.refusal("ledger", "serve", "--network", place.network, "--port", taken, "--no-swarm")
    node = ("node", "start", place.model, "--blocks", "0:1", "--wallet", "bob", "--network", place.network)
    assert str(taken) in place.refusal(*node, "--listen", f"/ip4/127.0.0.1/tcp/{taken}")
    assert str(taken) in place.refusal(*node, "--metrics-port", taken)


def test_a_taken_metrics_port_is_found_before_the_chain_and_the_weights(
    place: Place, edited: Callable[..., Path], taken: int
) -> None:
    network = edited(rpc_url="http://127.0.0.1:9")
    node = ("node", "start", place.model, "--blocks", "0:1", "--wallet", "bob", "--network", network)
    assert str(taken) in place.refusal(*node, "--metrics-port", taken)


@pytest.mark.parametrize(
    "verb",
    [
        ("generate", "hi"),
        ("chat",),
        ("node", "start", "x", "--blocks", "0:1"),
        ("account", "list"),
        ("swarm", "status"),
        ("ledger", "serve"),
        ("key", "revoke", "0x" + "11" * 20),
    ],
)
def test_no_network_file(place: Place, tmp_path: Path, verb: tuple[str, ...]) -> None:
    assert "--network" in place.refusal(*verb, HIVEMINT_WALLET="bob")
    assert str(tmp_path / "none.toml") in place.refusal(
        *verb, "--network", tmp_path / "none.toml", HIVEMINT_WALLET="bob"
    )
    (tmp_path / "bad.toml").write_text("name = [")
    assert str(tmp_path / "bad.toml") in place.refusal(*verb, "--network", tmp_path / "bad.toml", HIVEMINT_WALLET="bob")


def test_a_wrong_password(place: Place) -> None:
    common = ("--wallet", "bob", "--network", place.network)
    for words in (
        ("account", "thaw", place.node),
        ("generate", "hi"),
        ("node", "start", place.model, "--blocks", "0:1"),
    ):
        told = place.refusal(*words, *common, HIVEMINT_PASSWORD="battery staple", code=3)
        assert "password" in told
        assert "bob" in told
        assert "battery" not in told


def test_a_chain_out_of_reach(place: Place, edited: Callable[..., Path]) -> None:
    network = edited(rpc_url="http://127.0.0.1:9")
    common = ("--wallet", "bob", "--network", network)
    for words in (("account", "list"), ("generate", "hi"), ("node", "start", place.model, "--blocks", "0:1")):
        assert "127.0.0.1:9" in place.refusal(*words, *common, code=5)


def test_another_chain(place: Place, edited: Callable[..., Path]) -> None:
    common = ("--wallet", "bob", "--network", edited(chain_id=99))
    for words in (("account", "list"), ("generate", "hi"), ("node", "start", place.model, "--blocks", "0:1")):
        told = place.refusal(*words, *common, code=5)
        assert "99" in told
        assert "31337" in told


def test_missing_blocks_are_named(place: Place) -> None:
    told = place.refusal("generate", "hi", "--bid", "free", "--wallet", "bob", "--network", place.network, code=6)
    assert "blocks 2:30" in told


def test_a_prompt_beyond_the_context(place: Place) -> None:
    common = ("--raw", "--bid", "free", "--wallet", "bob", "--network", place.network)
    told = place.refusal("generate", "word " * 9000, *common)
    assert "8192" in told
    assert "shorten" in told
    assert "empty" in place.refusal("generate", " ", *common)


@pytest.mark.parametrize("harm", ["cut", "no config", "no weights", "config"])
def test_a_damaged_model_folder(place: Place, smollm2: LocalModel, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in smollm2.folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    weights = smollm2.folder / "model.safetensors"
    if harm == "cut":
        with weights.open("rb") as source:
            (folder / weights.name).write_bytes(source.read(1 << 20))
    elif harm != "no weights":
        (folder / weights.name).symlink_to(weights)
    if harm == "no config":
        (folder / "config.json").unlink()
    elif harm == "config":
        (folder / "config.json").write_text("{")
    start = ("node", "start", folder, "--blocks", "0:1", "--wallet", "bob", "--network", place.network)
    for words in (("model", "info", folder), start):
        assert str(folder) in place.refusal(*words, code=4)


def test_a_damaged_manifest_is_named(place: Place, smollm2: LocalModel, tmp_path: Path) -> None:
    folder = Home.open(tmp_path / "home").models / smollm2.name
    folder.mkdir()
    for file in smollm2.folder.iterdir():
        (folder / file.name).symlink_to(file)
    manifest = folder / "hivemint.manifest"
    manifest.unlink()
    manifest.write_text("x")
    told = place.refusal("model", "info", smollm2.name, HIVEMINT_HOME=str(tmp_path / "home"), code=4)
    assert str(manifest) in told
    assert "model pull" in told
    done = place.run("model", "list", HIVEMINT_HOME=str(tmp_path / "home"))
    assert (done.returncode, "damaged" in done.stdout) == (0, True)


# --- and a few more


@pytest.mark.parametrize("stake", ["nan", "inf", "-3", "ten", "1e400", "0.0000000000000000001"])
def test_a_bad_stake(place: Place, stake: str) -> None:
    told = place.refusal("node", "register", f"--stake={stake}", "--wallet", "bob", "--network", place.network)
    assert f"'{stake}' is not an amount of coins" in told


@pytest.mark.parametrize("wrong", ["checksum", "bare", "long", "nobody"])
def test_a_mistyped_node_gets_no_credits(place: Place, wrong: str, tmp_path: Path) -> None:
    """Credits at a wrong address come back after a thaw of days, so none go there."""
    digits = place.node[2:]
    last = next(one for one in reversed(digits) if one.isalpha())
    at = digits.rindex(last)
    node = {
        "checksum": "0x" + digits[:at] + last.swapcase() + digits[at + 1 :],
        "bare": digits,
        "long": place.node + "0",
        "nobody": "0x" + "00" * 19 + "de",
    }[wrong]
    fund = ("account", "fund", "1", "--node", node, "--wallet", "dave", "--network", place.network, "--yes")
    what = "is no registered node" if wrong == "nobody" else "is not an address"
    assert what in place.refusal(*fund)
    assert what in place.refusal(*fund, "--sign-only", tmp_path / "order.json")
    assert not (tmp_path / "order.json").exists()


def test_an_order_s_number_beyond_the_contract_s(place: Place, tmp_path: Path) -> None:
    words = ("account", "thaw", place.node, "--wallet", "dave", "--network", place.network)
    done = place.run(*words, "--sign-only", tmp_path / "order.json", "--nonce", 2**96)
    assert done.returncode == 2
    assert "--nonce" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_is_told_as_it_is(place: Place, tmp_path: Path) -> None:
    """Brackets are markup to the printer, and a shell would take a blank for an end."""
    file = tmp_path / "an order[b] of [red]mine.json"
    words = ("account", "thaw", place.node, "--wallet", "dave", "--network", place.network)
    done = place.run(*words, "--sign-only", file)
    assert done.returncode == 0, done
    assert f"signed {file}: " in done.stdout
    assert f"send-order '{file}'" in done.stdout


def test_a_payout_that_is_no_address(place: Place) -> None:
    common = ("--wallet", "bob", "--network", place.network)
    assert "'0x12' is not an address" in place.refusal("node", "register", "--payout", "0x12", *common)
    assert "too" in place.refusal("account", "fund", "1", "--node", place.node, "--yes", *common)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_status_of_a_node(place: Place, content: str) -> None:
    path = place.home.node("bob") / "status.json"
    path.write_text(content)
    try:
        assert str(path) in place.refusal("node", "status", "--wallet", "bob", "--network", place.network)
    finally:
        path.unlink()


def test_no_wallet(place: Place) -> None:
    common = ("--network", place.network)
    paid = ("generate", "hi", "--bid", "ask")  # without a bid it would ask for donated work
    for verb in (paid, ("account", "list"), ("node", "start", place.model, "--blocks", "0:1")):
        assert "--wallet" in place.refusal(*verb, *common)
        assert "wallet create" in place.refusal(*verb, *common, "--wallet", "eve", code=3)


@pytest.mark.parametrize("bid", ["lots", "-1", "17x"])
def test_a_bad_bid(place: Place, bid: str) -> None:
    assert bid in place.refusal("generate", "hi", f"--bid={bid}", "--wallet", "bob", "--network", place.network)


def test_a_prompt_that_is_no_text(place: Place, tmp_path: Path) -> None:
    common = ("--wallet", "bob", "--network", place.network)
    odd = os.fsdecode(b"caf\xe9")
    for verb in (("generate", odd), ("generate", odd, "--raw"), ("chat", "--system", odd)):
        assert "not UTF-8" in place.refusal(*verb, *common)
    (tmp_path / "prompt").write_bytes(b"caf\xe9")
    with (tmp_path / "prompt").open() as prompt:
        done = subprocess.run(
            [HIVEMINT, "generate", "-", *map(str, common)],
            env=place.environment(),
            stdin=prompt,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error The prompt is no text")


@pytest.mark.parametrize("sampling", [("inf",), ("1e-300",), ("0.7", "--top-p", "0")], ids=lambda one: "-".join(one))
def test_sampling_by_a_number_out_of_range(place: Place, sampling: tuple[str, ...]) -> None:
    words = ("generate", "hi", "--wallet", "bob", "--network", place.network, "--temperature", *sampling)
    assert "is no " in place.refusal(*words)


def test_a_bad_setting_is_named(place: Place) -> None:
    start = ("node", "start", place.model, "--blocks", "0:1", "--wallet", "bob", "--network", place.network)
    assert "HIVEMINT_AHEAD" in place.refusal(*start, HIVEMINT_AHEAD="none")
    asked = ("generate", "hi", "--wallet", "bob", "--network", place.network)
    assert "HIVEMINT_MARGIN" in place.refusal(*asked, HIVEMINT_MARGIN="0")
    assert "--precision" in place.refusal(*start, "--precision", "int4")
    assert "no precision" in place.refusal(*start, "--precision", "fp32/bf16", code=4)
    assert "3.4 times" in place.refusal(*start, HIVEMINT_PRECISION="nf4", code=4)


@pytest.mark.parametrize("words", [("frobnicate",), ("node", "frobnicate"), ("generate",), ("model", "--frobnicate")])
def test_words_that_are_no_command(place: Place, words: tuple[str, ...]) -> None:
    """Typer's own words in our form: the reason, a usage line and the way to help."""
    done = place.run(*words)
    assert done.returncode == 2
    assert "Usage: hivemint" in done.stderr
    assert words[-1] in done.stderr or "prompt" in done.stderr.lower()
    assert "--help` tells what there is" in done.stderr
    assert "Traceback" not in done.stderr


# --- the other side: help and JSON


def test_every_verb_helps_and_lists_its_words(place: Place) -> None:
    assert all(name in place.run("--help").stdout for name in GROUPS)
    assert "--max-tokens" in place.run("generate", "--help").stdout
    paths = [(group, *path) for group in GROUPS for path in below(get_command(build(group)).commands[group])]  # type: ignore[attr-defined]
    assert len(paths) > 30
    for path in paths:
        result = CliRunner().invoke(build(path[0]), [*path, "--help"])
        assert result.exit_code == 0, path
        assert f"{' '.join(path)} [OPTIONS]" in result.stdout, path
        assert "--help" in result.stdout, path


def below(command: Any) -> list[tuple[str, ...]]:
    """Paths of all verbs under a command; of one without verbs the empty path."""
    verbs = getattr(command, "commands", None)
    return [(name, *path) for name, verb in verbs.items() for path in below(verb)] if verbs else [()]


def test_a_node_says_nothing_on_stdout_before_it_is_ready(place: Place) -> None:
    """Bob's node is not registered: that warning goes to stderr; stdout is JSON lines, the first one `ready`."""
    words = ("node", "start", place.model, "--blocks", "0:1", "--wallet", "bob", "--network", place.network)
    process = subprocess.Popen(
        [HIVEMINT, *map(str, words)],
        env=place.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
    finally:
        process.terminate()
        rest, told = process.communicate(timeout=60)
    assert json.loads(first or "{}").get("event") == "ready", told
    assert [json.loads(line)["event"] for line in rest.splitlines()] == ["draining"]
    assert [json.loads(line)["event"] for line in told.splitlines()] == ["the operator is not registered"]


def test_json_is_alone_on_stdout(place: Place) -> None:
    network = ("--network", place.network)
    for words in (
        ("model", "list"),
        ("model", "info"),
        ("wallet", "list"),
        ("wallet", "show", "bob", *network),
        ("account", "list", "--wallet", "bob", *network),
        ("node", "status", "--wallet", "dave", *network),
        ("swarm", "status", *network),
        ("config", "show"),
        ("contracts", "params", *network),
        ("wallet", "create", "fresh", "--weak"),
    ):
        assert isinstance(place.told(*words), list | dict), words
    models = place.told("swarm", "status", *network)
    assert isinstance(models, list)
    (model,) = models
    # Bob's node, which is not registered, has left; its record stays until it expires, and serves nothing.
    assert [node["operator"] for node in model["nodes"] if node["registered"]] == [place.node]
    assert model["missing"] == ["2:30"]
    sick = place.run("doctor", *network, "--json")  # the swarm lacks blocks, so this says that something is wrong
    assert sick.returncode == 1
    assert "2:30" in json.dumps(json.loads(sick.stdout))
    assert not sick.stderr
