"""docs/friends.md as it stands, on three machines: network namespaces that share one bridge and nothing else.

And what it rests on: an invitation, the swarm key in a network file, a development chain that others can reach.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from hivemint.cli.network.invitation import Invitation, accept
from hivemint.cli.swarm import app as swarm
from hivemint.protocol.errors import BadInput, ConfigError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Contracts, Model, Network
from support.command import HIVEMINT, environment
from support.pages import Block, Shell, blocks
from support.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "friends.md"
MACHINES = {"host": "10.77.0.1", "node": "10.77.0.2", "client": "10.77.0.3"}
MANIFEST = b"model.embed_tokens.weight\tF32\t4x4\t00\n"
ID = ModelId(keccak(MANIFEST))
SECRET = bytes(range(32))


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


ENCODED = _encoded(MANIFEST)


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
        models=(Model("tiny", ID, "tiny.manifest"),),
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


def test_an_invitation_replaces_no_file(network: Network, tmp_path: Path) -> None:
    """`invite network.toml` is easily typed."""
    assert network.path is not None
    before = network.path.read_bytes()
    refused = CliRunner().invoke(swarm, ["invite", str(network.path), "--network", str(network.path)])
    assert isinstance(refused.exception, BadInput)
    assert "exists already" in refused.exception.what
    assert network.path.read_bytes() == before
    assert Network.load(network.path) == network


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("https://user:secret@rpc.example", True),
        ("https://rpc.example/v2/secret", True),
        ("https://rpc.example?apikey=secret", True),
        ("https://rpc.example", False),
        ("https://rpc.example:8545/", False),
    ],
)
def test_a_key_in_an_rpc_address_is_not_handed_on_without_a_word(
    url: str, warns: bool, network: Network, tmp_path: Path
) -> None:
    assert network.path is not None
    replace(network, other_rpc_urls=(url,)).save(network.path)
    words = ["invite", str(tmp_path / "friends.invite"), "--network", str(network.path), "--json"]
    done = CliRunner().invoke(swarm, words, catch_exceptions=False)
    assert ("rpc.example may hold a key" in done.stderr) is warns
    assert "secret" not in done.output
    assert "10.77.0.1" not in done.stderr
    json.loads(done.stdout)


def refuse(name: str, lines: Sequence[str]) -> None:
    raise BadInput(f"{name} changes", why="; ".join(lines))


def _invitation(network: Network, **manifests: str) -> Invitation:
    assert network.path is not None
    return Invitation(1, network.path.read_text(), manifests)


def test_an_invitation_is_checked_before_it_lies_anywhere(network: Network, tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    with pytest.raises(ConfigError, match="cannot be the name"):
        accept(Invitation(1, "", {"../keystores/x": ""}), home, refuse)
    with pytest.raises(BadInput, match="damaged"):
        accept(Invitation(1, "", {"tiny.manifest": "?"}), home, refuse)
    with pytest.raises(ConfigError, match="is not the manifest"):
        accept(Invitation(1, _invitation(network).network, {"tiny.manifest": "AAAA"}), home, refuse)
    with pytest.raises(ConfigError, match="not TOML"):
        accept(Invitation(1, "= = =", {}), home, refuse)
    assert list((home.root / "networks").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"hivemint_invitation": 1}', b'{"network": 3}'])
def test_what_is_no_invitation_is_told_as_that(content: bytes, tmp_path: Path) -> None:
    from hivemint.cli.network.invitation import _read

    (tmp_path / "x.invite").write_bytes(content)
    with pytest.raises(BadInput, match="no invitation"):
        _read(tmp_path / "x.invite")
    with pytest.raises(BadInput, match="cannot be read"):
        _read(tmp_path / "none.invite")


@pytest.mark.parametrize("name", ["network.toml", "Network.TOML"])
def test_a_manifest_does_not_stand_for_the_network_file(name: str, network: Network, tmp_path: Path) -> None:
    """What is checked is what is written: the harmless file may not be checked in the other one's place."""
    home, harmless = Home.open(tmp_path / "home"), _invitation(network).network
    hostile = harmless.replace("10.77.0.1:8545", "192.0.2.9:8545")
    with pytest.raises(BadInput, match="cannot be called"):
        accept(Invitation(1, hostile, {"tiny.manifest": ENCODED, name: _encoded(harmless.encode())}), home, refuse)
    assert not (home.root / "networks").exists()


def test_an_invitation_brings_nothing_that_no_model_names(network: Network, tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    with pytest.raises(BadInput, match=r"no manifest: more\.bin"):
        accept(_invitation(network, **{"tiny.manifest": ENCODED, "more.bin": ENCODED}), home, refuse)
    assert list((home.root / "networks").iterdir()) == []


def test_what_lies_there_is_to_the_byte_what_was_checked(network: Network, tmp_path: Path) -> None:
    text = _invitation(network).network.replace("\n", "\r\n") + "# gr\u00fcezi\r\n"
    place = accept(Invitation(1, text, {"tiny.manifest": ENCODED}), Home.open(tmp_path / "home"), refuse)
    assert place.path is not None
    assert place.path.read_bytes() == text.encode()


OTHER = Address(f"0x{99:040x}")


@pytest.mark.parametrize("field", ["chain_id", *(one.name for one in fields(Contracts))])
def test_another_network_of_that_name_is_not_replaced(field: str, network: Network, tmp_path: Path) -> None:
    home, file = Home.open(tmp_path / "home"), tmp_path / "network.toml"
    kept = accept(_invitation(network, **{"tiny.manifest": ENCODED}), home, refuse)
    contracts = network.contracts
    if field == "chain_id":
        other = replace(network, chain_id=5)
    else:
        other = replace(network, contracts=replace(contracts, **{field: OTHER}))
    with pytest.raises(ConfigError, match="another network of the name") as refused:
        accept(_invitation(other.save(file), **{"tiny.manifest": ENCODED}), home, lambda name, lines: None)
    assert field in refused.value.why
    assert kept.path is not None
    assert Network.load(kept.path) == kept


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "rpc": ({"rpc_url": "https://192.0.2.9/v2/secret"}, "http://10.77.0.1:8545 -> https://192.0.2.9"),
    "rpc path": ({"rpc_url": "http://10.77.0.1:8545/secret"}, "another path or key"),
    "second rpc": ({"other_rpc_urls": ("http://192.0.2.9",)}, "http://10.77.0.1:8545, http://192.0.2.9"),
    "no key": ({"swarm_key": None}, "swarm key: removed"),
    "key": ({"swarm_key": bytes(32)}, "swarm key: another one"),
    "bootstrap": ({"bootstrap": ("/ip4/192.0.2.9/tcp/1/p2p/12D3KooX",)}, "-> /ip4/192.0.2.9"),
    "no model": ({"models": ()}, "model tiny: removed"),
    "files": ({"models": (Model("tiny", ID, "tiny.manifest", {"tokenizer.json": bytes(32)}),)}, "pinned files"),
    "confirmations": ({"confirmations": 0}, "confirmations: 1 -> 0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_network_that_is_here_changes_only_when_somebody_agrees(
    what: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    kept = accept(_invitation(network, **{"tiny.manifest": ENCODED}), Home.open(), refuse)
    changed, told = CHANGES[what]
    new = replace(network, **changed).save(tmp_path / "network.toml")
    file = tmp_path / "again.invite"
    file.write_bytes(msgspec.json.encode(_invitation(new, **({"tiny.manifest": ENCODED} if new.models else {}))))
    assert kept.path is not None
    for words in ([], ["--json"]):
        refused = CliRunner().invoke(swarm, ["join", str(file), *words])
        assert isinstance(refused.exception, BadInput)
        assert told in refused.exception.why
        assert "secret" not in refused.exception.why
        assert SECRET.hex() not in refused.exception.why
        assert "--yes" in refused.exception.next_step
        assert Network.load(kept.path) == kept
    agreed = CliRunner().invoke(swarm, ["join", str(file), "--yes"], catch_exceptions=False)
    assert told in agreed.output
    assert replace(Network.load(kept.path), path=new.path) == new


@pytest.mark.parametrize(("answer", "changes"), [("n", False), ("", False), ("y", True)])
def test_at_a_terminal_it_is_asked(
    answer: str, changes: bool, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    kept = accept(_invitation(network, **{"tiny.manifest": ENCODED}), Home.open(home), refuse)
    new = replace(network, rpc_url="http://192.0.2.9:8545").save(tmp_path / "network.toml")
    (tmp_path / "again.invite").write_bytes(msgspec.json.encode(_invitation(new, **{"tiny.manifest": ENCODED})))
    with Terminal([HIVEMINT, "swarm", "join", str(tmp_path / "again.invite")], environment(home)) as terminal:
        assert "http://10.77.0.1:8545 -> http://192.0.2.9:8545" in terminal.wait(r"Change it\?")
        terminal.press(f"{answer}\n")
        assert (terminal.ended() == 0) is changes
    assert kept.path is not None
    assert (Network.load(kept.path).rpc_url == new.rpc_url) is changes


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "0" * 33, "ab" * 65])
def test_a_bad_swarm_key_is_named(key: str, network: Network) -> None:
    assert network.path is not None
    text = network.path.read_text()
    network.path.write_text(text.replace(SECRET.hex(), key))
    with pytest.raises(ConfigError, match="swarm_key"):
        Network.load(network.path)
