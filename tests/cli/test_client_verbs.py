"""`hivemint wallet | account | key | generate`: results for people and machines, errors without a traceback."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hivemint.cli import account, chat, key, wallet
from hivemint.client.swarm_client import connect
from hivemint.client.wallet import ContractPort, Identity
from hivemint.contracts.bindings import Bindings, Donation
from hivemint.contracts.chain import Transfer
from hivemint.contracts.errors import BadInput, ChainError, ConfigError, HivemintError, ModelError, WalletError
from hivemint.contracts.ids import ONE_CREDIT, PeerId
from hivemint.contracts.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import peer_id_hash
from hivemint.swarm import models
from support.chain import EPOCH, TEST_MODEL, TestChain
from support.sessions import countersign, make_session
from support.tiny import tiny_model

RUNNER = CliRunner()
SECRET = "11" * 32
COIN = 10**18
talk = typer.Typer()
talk.command("generate")(chat.generate)
talk.command("chat")(chat.chat)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIVEMINT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HIVEMINT_PASSWORD", "correct horse")
    for name in ("HIVEMINT_NETWORK", "HIVEMINT_WALLET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def told(app: typer.Typer, *words: str) -> Any:
    """The JSON document of a verb."""
    result = RUNNER.invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(app: typer.Typer, *words: str) -> HivemintError:
    """What `hivemint` would show as a few plain lines."""
    result = RUNNER.invoke(app, list(words))
    assert isinstance(result.exception, HivemintError), result.output
    return result.exception


def test_wallets_are_made_listed_and_private(home: Path) -> None:
    assert "wallet create" in RUNNER.invoke(wallet.app, ["list"]).stdout
    made = told(wallet.app, "create", "bob", "--weak")
    assert stat.S_IMODE(Path(made["file"]).stat().st_mode) == 0o600
    assert told(wallet.app, "list") == [made]
    assert told(wallet.app, "show", "bob")["address"] == made["address"]
    assert made["address"] in RUNNER.invoke(wallet.app, ["list"]).stdout
    assert isinstance(error_of(wallet.app, "create", "bob", "--weak"), WalletError)
    assert isinstance(error_of(wallet.app, "create", "../bob", "--weak"), ConfigError)
    assert "bob" in error_of(wallet.app, "show", "eve").why


def test_keys_are_imported_from_files_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"0x{SECRET}\n")
    result = RUNNER.invoke(wallet.app, ["import", "ann", "--key-file", str(tmp_path / "key"), "--weak"])
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert Keystores().unlock("ann", "correct horse").address == Signer(bytes.fromhex(SECRET)).address
    other = str(Keystores().find("ann").path)
    assert (
        told(wallet.app, "import", "ann2", "--keystore", other, "--weak")["address"] == Keystores().find("ann").address
    )
    (tmp_path / "key").write_text(SECRET[:-1] + "x")
    error = error_of(wallet.app, "import", "eve", "--key-file", str(tmp_path / "key"))
    assert SECRET[:20] not in str(error)


def test_bad_input_is_told_before_anything_is_done(tmp_path: Path, testchain: TestChain) -> None:
    Keystores().create("bob", "another password", n=CHEAP_SCRYPT_N)
    network = ["--network", str(testchain.network.path)]
    node = testchain.signers[5].address
    assert "network" in error_of(account.app, "list", "--wallet", "bob").what
    assert "wallet" in error_of(account.app, "list", *network).what
    assert isinstance(error_of(account.app, "fund", "lots", *network, "--wallet", "bob"), BadInput)
    assert isinstance(error_of(account.app, "fund", "0", *network, "--wallet", "bob"), BadInput)
    assert "not an address" in error_of(account.app, "thaw", "0x12", *network, "--wallet", "bob").what
    assert "password" in error_of(account.app, "thaw", node, *network, "--wallet", "bob").what.lower()
    for days in ("91", "nan", "inf", "0"):
        assert "90 days" in error_of(key.app, "authorize", node, "--days", days, *network, "--wallet", "bob").why
    assert isinstance(error_of(talk, "generate", " ", *network, "--wallet", "bob"), BadInput)
    assert isinstance(error_of(talk, "generate", "hi", *network, "--wallet", "bob", "--top-k", "3"), BadInput)
    assert "model" in error_of(talk, "generate", "hi", *network, "--wallet", "bob").what.lower()
    assert "no wallet" in error_of(talk, "generate", "hi", *network, "--wallet", "eve", "--model", "x").what.lower()


@pytest.mark.parametrize("content", [None, "{", "{}", "[1]"])
def test_a_folder_without_a_usable_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        chat._tokenizer(tmp_path)


def test_an_unreachable_chain_is_told(tmp_path: Path, testchain: TestChain) -> None:
    Keystores().create("bob", "correct horse", n=CHEAP_SCRYPT_N)
    text = testchain.network.path.read_text() if testchain.network.path else ""
    file = tmp_path / "network.toml"
    file.write_text(text.replace(testchain.network.rpc_url, "http://127.0.0.1:9"))
    error = error_of(account.app, "list", "--network", str(file), "--wallet", "bob")
    assert isinstance(error, ChainError)
    assert "127.0.0.1:9" in error.what
    file.write_text(text.replace("chain_id = 31337", "chain_id = 31338"))
    assert "wrong chain" in error_of(account.app, "list", "--network", str(file), "--wallet", "bob").what


async def credits_for(testchain: TestChain, client: Signer) -> Signer:
    """Credits come from donated work alone: register, serve for free, claim, mint. Gives the node."""
    owner, node = Signer(b"\x77" * 32), Signer(b"\x78" * 32)
    domain = testchain.network.domain
    async with await Bindings.connect(testchain.network) as contracts:
        for one in (owner, client):
            payment = Transfer(contracts.chain, one.address)
            await contracts.chain.send(testchain.signers[1], payment, doing="Paying", value=60 * COIN)
        await contracts.registry.register(owner, node, PeerId(b"a peer"), domain, stake=50 * COIN)
        epoch = testchain.next_epoch()
        session = make_session(client, node, model=TEST_MODEL, expiry=epoch * EPOCH + 60)
        donation = Donation(session, countersign(domain, session, node, client, tokens=10**9))
        testchain.next_epoch()
        await contracts.emission.claim(owner, node.address, epoch, [donation])
        testchain.next_epoch()
        await contracts.emission.mint(owner, node.address, epoch)
        await contracts.token.transfer(owner, client.address, 100 * ONE_CREDIT)
    return node


def test_an_accounts_life(testchain: TestChain) -> None:
    Keystores().import_key("ann", "22" * 32, "correct horse", n=CHEAP_SCRYPT_N)
    client = Signer(bytes.fromhex("22" * 32))
    node = asyncio.run(credits_for(testchain, client)).address
    common = ["--network", str(testchain.network.path), "--wallet", "ann"]
    assert told(account.app, "list", *common) == []
    assert told(wallet.app, "show", "ann", *common[:2])["credits"] == 100 * ONE_CREDIT

    assert told(account.app, "fund", "2.5", "--node", node, *common)["block"] > 0
    (row,) = told(account.app, "list", *common)
    assert (row["node"], row["balance"], row["collected"], row["state"]) == (node, 25 * 10**17, 0, "open")
    listed = RUNNER.invoke(account.app, ["list", *common]).stdout
    assert f"{node}      2.5" in listed  # on one line, to be copied
    assert "in HMC" in listed
    too_much = error_of(account.app, "fund", "1000", "--node", node, *common)
    assert isinstance(too_much, BadInput)
    assert "1,000 HMC in all" in too_much.why
    assert "97.5 HMC" in too_much.why

    told(account.app, "thaw", node, *common)
    assert "thaws until" in told(account.app, "list", *common)[0]["state"]
    assert "StillThawing" in getattr(error_of(account.app, "withdraw", node, *common), "error", "")
    told(account.app, "cancel", node, *common)
    assert told(account.app, "list", *common)[0]["state"] == "open"
    told(account.app, "thaw", node, *common)
    testchain.devchain.travel(4 * 86_400)
    assert "thawed" in told(account.app, "list", *common)[0]["state"]
    told(account.app, "withdraw", node, *common)
    assert told(wallet.app, "show", "ann", *common[:2])["credits"] == 100 * ONE_CREDIT

    asyncio.run(check_port(testchain, client, node))


async def joined_as(testchain: TestChain, folder: Path, **how: Any) -> Identity:
    """Who signs for a client that has joined the network."""
    client = await connect(models.resolve(folder), network=testchain.network, **how)
    await client.close()
    return client.payer.who


def test_a_session_key_signs_while_its_wallet_stays_locked(tmp_path: Path, testchain: TestChain) -> None:
    folder = tiny_model(tmp_path / "tiny")
    wallet_key = testchain.signers[6]
    Keystores().add("ann", wallet_key, "correct horse", n=CHEAP_SCRYPT_N)
    hot = Keystores().create("hot", "correct horse", n=CHEAP_SCRYPT_N).address
    common = ["--network", str(testchain.network.path), "--wallet", "ann"]
    with pytest.raises(WalletError, match="may not sign"):
        asyncio.run(joined_as(testchain, folder, wallet="ann", session_key="hot"))
    told(key.app, "authorize", "hot", "--days", "3", *common)
    assert "KeyKnown" in getattr(error_of(key.app, "authorize", "hot", *common), "error", "")
    Keystores().find("ann").path.write_text(json.dumps({"version": 3, "address": wallet_key.address}))  # no key in it
    who = asyncio.run(joined_as(testchain, folder, wallet="ann", session_key="hot"))
    assert (who.client, who.key.address) == (wallet_key.address, hot)
    assert who.valid_until
    with pytest.raises(WalletError, match="damaged"):
        asyncio.run(joined_as(testchain, folder, wallet="ann"))
    Keystores().find("ann").path.unlink()
    Keystores().add("ann", wallet_key, "correct horse", n=CHEAP_SCRYPT_N)
    told(key.app, "revoke", "hot", *common)
    with pytest.raises(WalletError, match="revoked"):
        asyncio.run(joined_as(testchain, folder, wallet="ann", session_key="hot"))


def test_without_a_wallet_there_is_the_free_lane(tmp_path: Path, testchain: TestChain) -> None:
    who = asyncio.run(joined_as(testchain, tiny_model(tmp_path / "tiny")))
    assert who.client == who.key.address


async def check_port(testchain: TestChain, client: Signer, node: Any) -> None:
    """What the client asks of the chain, against the chain itself."""
    stranger = testchain.signers[8].address
    port = await ContractPort.connect(testchain.network)
    try:
        assert await port.peer_hashes([node, stranger]) == {node: peer_id_hash(b"a peer")}
        accounts = await port.accounts(client.address, [node, stranger])
        assert [accounts[one].funded for one in (node, stranger)] == [0, 0]
        assert abs(await port.time() - testchain.devchain.time()) <= 2
    finally:
        await port.close()
