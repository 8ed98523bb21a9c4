"""`network.toml`: what is written is read back, and each bad field is named with its cure."""

from dataclasses import replace
from pathlib import Path

import pytest

from hivemint.protocol.errors import ConfigError
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Contracts, Model, Network
from hivemint.protocol.signing import Signer

MANIFEST = b"model.embed_tokens.weight\tF32\t4x4\t00\n"
CONTRACTS = Contracts(*(Address(Signer(bytes([index]) * 32).address) for index in range(1, 7)))
NETWORK = Network(
    name="dev",
    chain_id=31337,
    rpc_url="http://127.0.0.1:8545",
    contracts=CONTRACTS,
    deployed_block=12,
    confirmations=1,
    other_rpc_urls=("https://example.org/rpc",),
    bootstrap=("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",),
    models=(Model("SmolLM2", ModelId(keccak(MANIFEST)), "smollm2.manifest"),),
)


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    saved = NETWORK.save(path)
    assert saved == Network.load(path) == replace(NETWORK, path=path)
    assert saved.domain.chain_id == 31337
    assert saved.domain.settlement == CONTRACTS.settlement
    bare = replace(NETWORK, other_rpc_urls=(), bootstrap=(), models=())
    assert replace(bare.save(path), path=None) == bare
    assert replace(Network.load(path), path=None) == bare


def test_without_a_file_it_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIVEMINT_NETWORK", raising=False)
    with pytest.raises(ConfigError, match="No network file"):
        Network.of(None)
    saved = NETWORK.save(tmp_path / "network.toml")
    assert Network.of(saved) is saved
    assert Network.of(str(saved.path)) == saved
    monkeypatch.setenv("HIVEMINT_NETWORK", str(saved.path))
    assert Network.of(None) == saved


def test_endpoints_as_one_a_list_or_as_they_were_written_before(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    replace(NETWORK, other_rpc_urls=()).save(path)
    one = path.read_text()
    assert Network.load(path).rpc_urls == ("http://127.0.0.1:8545",)
    old = one.replace("deployed_block", 'second_rpc_url = "https://example.org/rpc"\ndeployed_block')
    path.write_text(old)
    assert Network.load(path).rpc_urls == ("http://127.0.0.1:8545", "https://example.org/rpc")
    Network.load(path).save(path)
    assert "second_rpc_url" not in path.read_text()
    assert Network.load(path).rpc_urls == ("http://127.0.0.1:8545", "https://example.org/rpc")
    path.write_text(one.replace('"http://127.0.0.1:8545"', "[]"))
    with pytest.raises(ConfigError, match="names 0 addresses"):
        Network.load(path)
    path.write_text(one.replace("http://127.0.0.1:8545", "ftp://name:password@host/secret"))
    with pytest.raises(ConfigError) as caught:
        Network.load(path)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_models_and_manifests(tmp_path: Path) -> None:
    network = NETWORK.save(tmp_path / "network.toml")
    (tmp_path / "smollm2.manifest").write_bytes(MANIFEST)
    model = network.model("SmolLM2")
    assert network.model("0x" + model.model_id.hex()) == model
    assert network.manifest(model) == MANIFEST
    (tmp_path / "smollm2.manifest").write_bytes(MANIFEST + b"x")
    with pytest.raises(ConfigError, match="not the manifest of SmolLM2"):
        network.manifest(model)
    with pytest.raises(ConfigError, match=r"serves no model 'gpt2'. it names SmolLM2"):
        network.model("gpt2")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "dev"', "", ("name", "short name")),
        ('name = "dev"', 'name = "../dev"', ("'../dev'", "another name")),
        ("chain_id = 31337", 'chain_id = "31337"', ("chain_id", "chain_id = 31337")),
        ("chain_id = 31337", "chain_id = 0", ("chain_id", "chain's operator")),
        ("chain_id = 31337", "chain_id = true", ("chain_id", "chain's operator")),
        ("127.0.0.1:8545", "127.0.0.1:99999", ("rpc_url", "JSON-RPC address")),
        ('"http://127', '"ws://127', ("rpc_url", "JSON-RPC address")),
        ("https://example.org", "example.org", ("rpc_url", "a list of such")),
        ("confirmations = 1", "confirmations = -1", ("confirmations", "how many blocks")),
        ("confirmations = 1", "confirmation = 1", ("confirmation", "network file")),
        ("deployed_block = 12", "deployed_block = 1.5", ("deployed_block", "contracts deploy")),
        ("/p2p/", "/", ("bootstrap", "libp2p addresses")),
        (CONTRACTS.token, CONTRACTS.token[:-1], ("token", "contracts deploy")),
        (CONTRACTS.token, "0x" + "00" * 20, ("zero address", "contracts deploy")),
        (CONTRACTS.token, "0x" + CONTRACTS.token[2:].swapcase(), ("checksum", "contracts deploy")),
        ("emission = ", "emision = ", ("contracts", "contracts deploy")),
        ('model_id = "0x', 'model_id = "', ("model_id", "32 bytes")),
        ('"smollm2.manifest"', '"../../etc/passwd"', ("manifest", "another name")),
        ('name = "SmolLM2"', 'title = "SmolLM2"', ("models", "[[models]]")),
        ("[contracts]", "[contracts", ("not TOML", "mend")),
    ],
)
def test_a_bad_field_is_named_with_its_cure(tmp_path: Path, old: str, new: str, told: tuple[str, str]) -> None:
    path = tmp_path / "network.toml"
    NETWORK.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        Network.load(path)
    for part in told:
        assert part in str(caught.value)


def test_two_models_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    replace(NETWORK, models=NETWORK.models * 2).save(path)
    with pytest.raises(ConfigError, match="same name"):
        Network.load(path)


def test_no_file_a_folder_and_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read.*--network.*testnet up"):
        Network.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Network.load(tmp_path)
    (tmp_path / "huge.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="too large"):
        Network.load(tmp_path / "huge.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        Network.load(tmp_path / "binary.toml")
