"""docs/friends.md as it stands, on three machines: network namespaces that share one bridge and nothing else.

And what it rests on: an invitation, the swarm key in a network file, a development chain that others can reach.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hivemint.cli.network.invitation import Invitation, accept
from hivemint.cli.swarm import app as swarm
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Contracts, Model, Network
from support.pages import Block, Shell, blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "friends.md"
MACHINES = {"host": "10.77.0.1", "node": "10.77.0.2", "client": "10.77.0.3"}
MANIFEST = b"model.embed_tokens.weight\tF32\t4x4\t00\n"
SECRET = bytes(range(32))


def _ip(*words: str) -> None:
    subprocess.run([shutil.which("ip") or "ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[dict[str, list[str]]]:
    """What starts a program on each; skipped where a user may not make namespaces."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program ip")
    tag, started = f"hm{os.getpid() % 100000}", ExitStack()
    bridge = f"{tag}b"
    with started:
        try:
            _ip("netns", "add", f"{tag}-net")
            started.callback(_ip, "netns", "del", f"{tag}-net")
            _ip("-n", f"{tag}-net", "link", "add", bridge, "type", "bridge")
            _ip("-n", f"{tag}-net", "link", "set", bridge, "up")
            for name, address in MACHINES.items():
                place, plug = f"{tag}-{name}", f"{tag}{name[0]}"
                _ip("netns", "add", place)
                started.callback(_ip, "netns", "del", place)
                _ip("-n", place, "link", "add", "eth0", "type", "veth", "peer", "name", plug, "netns", f"{tag}-net")
                _ip("-n", f"{tag}-net", "link", "set", plug, "master", bridge, "up")
                _ip("-n", place, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", place, "link", "set", "lo", "up")
                _ip("-n", place, "link", "set", "eth0", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.decode().strip()}")
        yield {name: ["ip", "netns", "exec", f"{tag}-{name}"] for name in MACHINES}


def _environment(home: Path) -> dict[str, str]:
    """Of a machine whose user has set nothing but the passwords' variable; the model is there already."""
    store = Home.open().models
    home.mkdir(parents=True)
    (home / "models").symlink_to(store, target_is_directory=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
    return {**kept, "HIVEMINT_HOME": str(home), "HIVEMINT_PASSWORD": "of a friend", "OMP_NUM_THREADS": "1"}


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_page_makes_a_network_of_three_machines(tmp_path: Path, machines: dict[str, list[str]]) -> None:
    told: list[tuple[Block, str]] = []
    with ExitStack() as stack:
        shells = {}
        for name, before in machines.items():
            shells[name] = Shell(tmp_path / name, _environment(tmp_path / f"{name}-home"), before)
            stack.callback(shells[name].close)
        for block in blocks(PAGE):
            told.append((block, shells[block.machine].run(block)))
            if "swarm invite" in block.text:
                for other in ("node", "client"):
                    shutil.copy(tmp_path / "host" / "friends.invite", tmp_path / other)
        answer = told[-1][1]
        assert "Paris" in answer
        assert "nobody serves" not in answer
        _strangers_are_refused(tmp_path, machines, stack)
        page = _over_http(machines["client"], "http://10.77.0.1:8800/api/nodes")
        assert [node["bonded"] for node in page["items"]] == ["5000000000000000000"]
        assert "error" not in shells["node"].interrupt()


def _strangers_are_refused(tmp_path: Path, machines: dict[str, list[str]], stack: ExitStack) -> None:
    """The same network file without its key finds nobody."""
    lost = tmp_path / "stranger"
    shell = Shell(lost, _environment(tmp_path / "stranger-home"), machines["client"])
    stack.callback(shell.close)
    home = tmp_path / "client-home" / "networks" / "friends"
    shutil.copytree(home, lost / "friends")
    place = Network.load(lost / "friends" / "network.toml")
    assert place.swarm_key is not None
    replace(place, swarm_key=None).save(lost / "friends" / "network.toml")
    block = Block("bash", "hivemint swarm status --network friends/network.toml || true\n", 0)
    assert re.search(r"nobody serves blocks 0:30|swarm's key|No peer|not reach", shell.run(block))


def _over_http(before: list[str], url: str) -> dict[str, list[dict[str, str]]]:
    found = subprocess.run([*before, "curl", "-s", url], check=True, capture_output=True, timeout=30)
    document: dict[str, list[dict[str, str]]] = json.loads(found.stdout)
    return document


# --- what the page rests on


@pytest.fixture
def network(tmp_path: Path) -> Network:
    contracts = Contracts(*(Address(f"0x{index:040x}") for index in range(1, 7)))
    (tmp_path / "tiny.manifest").write_bytes(MANIFEST)
    return Network(
        "friends",
        31337,
        "http://10.77.0.1:8545",
        contracts,
        bootstrap=("/ip4/10.77.0.1/tcp/4001/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",),
        models=(Model("tiny", ModelId(keccak(MANIFEST)), "tiny.manifest"),),
        swarm_key=SECRET,
    ).save(tmp_path / "network.toml")


def test_every_block_of_the_page_is_somebodys() -> None:
    found = blocks(PAGE)
    assert {block.machine for block in found} == set(MACHINES)
    assert not [block.line for block in found if block.not_run]


def test_an_invitation_brings_the_whole_network(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    file = tmp_path / "friends.invite"
    runner = CliRunner()
    written = runner.invoke(swarm, ["invite", str(file), "--network", str(network.path)], catch_exceptions=False)
    assert "whoever has it is a member" in written.output
    assert file.stat().st_mode & 0o777 == 0o600
    joined = runner.invoke(swarm, ["join", str(file)], catch_exceptions=False)
    assert f"export HIVEMINT_NETWORK={tmp_path}/home/networks/friends/network.toml" in joined.output
    path = tmp_path / "home" / "networks" / "friends" / "network.toml"
    there = Network.load(path)
    assert replace(there, path=network.path) == network
    assert there.swarm_key == SECRET
    assert there.manifest(there.models[0]) == MANIFEST
    assert path.stat().st_mode & 0o777 == 0o600
    assert SECRET.hex() not in repr(there)
    runner.invoke(swarm, ["join", str(file)], catch_exceptions=False)  # once more is no harm


def _invitation(network: Network, **manifests: str) -> Invitation:
    assert network.path is not None
    return Invitation(1, network.path.read_text(), manifests)


def test_an_invitation_is_checked_before_it_lies_anywhere(network: Network, tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    with pytest.raises(ConfigError, match="cannot be the name"):
        accept(Invitation(1, "", {"../keystores/x": ""}), home)
    with pytest.raises(BadInput, match="damaged"):
        accept(Invitation(1, "", {"tiny.manifest": "?"}), home)
    with pytest.raises(ConfigError, match="is not the manifest"):
        accept(Invitation(1, _invitation(network).network, {"tiny.manifest": "AAAA"}), home)
    with pytest.raises(ConfigError, match="not TOML"):
        accept(Invitation(1, "= = =", {}), home)
    assert list((home.root / "networks").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"hivemint_invitation": 1}', b'{"network": 3}'])
def test_what_is_no_invitation_is_told_as_that(content: bytes, tmp_path: Path) -> None:
    from hivemint.cli.network.invitation import _read

    (tmp_path / "x.invite").write_bytes(content)
    with pytest.raises(BadInput, match="no invitation"):
        _read(tmp_path / "x.invite")
    with pytest.raises(BadInput, match="cannot be read"):
        _read(tmp_path / "none.invite")


def test_another_network_of_that_name_is_not_replaced(network: Network, tmp_path: Path) -> None:
    import base64

    home, manifest = Home.open(tmp_path / "home"), base64.b64encode(MANIFEST).decode()
    accept(_invitation(network, **{"tiny.manifest": manifest}), home)
    assert network.path is not None
    other = replace(network, chain_id=5).save(network.path)
    with pytest.raises(ConfigError, match="another network of the name"):
        accept(_invitation(other, **{"tiny.manifest": manifest}), home)


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "0" * 33, "ab" * 65])
def test_a_bad_swarm_key_is_named(key: str, network: Network) -> None:
    assert network.path is not None
    text = network.path.read_text()
    network.path.write_text(text.replace(SECRET.hex(), key))
    with pytest.raises(ConfigError, match="swarm_key"):
        Network.load(network.path)
