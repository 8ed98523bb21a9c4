"""`hivemint wallet | account | key | generate`: results for people and machines, errors without a traceback."""

import asyncio
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from hivemint.cli import chat
from hivemint.cli.talk.answers import Answer
from hivemint.cli.talk.joining import check_unpaid, tokenizer_of
from hivemint.cli.talk.views import show
from hivemint.cli.wallet import account, keys, wallets
from hivemint.client.generation.bill import Bill
from hivemint.client.pipeline import Hop, Plan
from hivemint.client.sessions.swarm_client import connect
from hivemint.client.sessions.wallet import ContractPort, Identity
from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.ledger.store.database import StoreError
from hivemint.model import local_models
from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import BadInput, ChainError, ConfigError, ModelError, WalletError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import ONE_CREDIT, Address, BlockIndex, Credits, PeerId
from hivemint.protocol.keystore import CHEAP_SCRYPT_N, Keystores
from hivemint.protocol.node_name import named, node_name
from hivemint.protocol.signing import Signer
from support.chain import TestChain
from support.credits import credits_for
from support.tiny import tiny_model
from support.verbs import RUNNER, error_of, told

pytest_plugins = ["support.verbs"]
pytestmark = pytest.mark.usefixtures("home")
SECRET = "11" * 32
COIN = 10**18
talk = typer.Typer()
talk.command("generate")(chat.generate)
talk.command("chat")(chat.chat)


def test_wallets_are_made_listed_and_private(home: Path) -> None:
    assert "wallet create" in RUNNER.invoke(wallets.app, ["list"]).stdout
    made = told(wallets.app, "create", "bob", "--weak")
    assert stat.S_IMODE(Path(made["file"]).stat().st_mode) == 0o600
    assert told(wallets.app, "list") == [made]
    assert told(wallets.app, "show", "bob")["address"] == made["address"]
    assert made["address"] in RUNNER.invoke(wallets.app, ["list"]).stdout
    assert isinstance(error_of(wallets.app, "create", "bob", "--weak"), WalletError)
    assert isinstance(error_of(wallets.app, "create", "../bob", "--weak"), ConfigError)
    assert "bob" in error_of(wallets.app, "show", "eve").why


def test_keys_are_imported_from_files_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"0x{SECRET}\n")
    result = RUNNER.invoke(wallets.app, ["import", "ann", "--key-file", str(tmp_path / "key"), "--weak"])
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert Keystores().unlock("ann", "correct horse").address == Signer(bytes.fromhex(SECRET)).address
    other = str(Keystores().find("ann").path)
    assert (
        told(wallets.app, "import", "ann2", "--keystore", other, "--weak")["address"] == Keystores().find("ann").address
    )
    (tmp_path / "key").write_text(SECRET[:-1] + "x")
    error = error_of(wallets.app, "import", "eve", "--key-file", str(tmp_path / "key"))
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
        assert "90 days" in error_of(keys.app, "authorize", node, "--days", days, *network, "--wallet", "bob").why
    assert isinstance(error_of(talk, "generate", " ", *network, "--wallet", "bob"), BadInput)
    assert isinstance(error_of(talk, "generate", "hi", *network, "--wallet", "bob", "--top-k", "3"), BadInput)
    assert "model" in error_of(talk, "generate", "hi", *network, "--wallet", "bob").what.lower()
    assert "no wallet" in error_of(talk, "generate", "hi", *network, "--wallet", "eve", "--model", "x").what.lower()


@pytest.mark.parametrize("asked", [("--bid", "ask"), ("--bid", "0.5"), ("--session-key", "bob")])
def test_nobody_pays_without_a_wallet(testchain: TestChain, asked: tuple[str, str]) -> None:
    Keystores().create("bob", "another password", n=CHEAP_SCRYPT_N)
    error = error_of(talk, "generate", "hi", "--network", str(testchain.network.path), "--model", "x", *asked)
    assert isinstance(error, BadInput)
    assert error.what == "No wallet"
    assert error.why in ("the bid is ask", "the bid is 0.5 HMC", "a session key signs for one")


@pytest.mark.parametrize("asked", [(), ("--bid", "free"), ("--bid", "auto")])
def test_without_a_wallet_work_is_asked_for_as_donated_and_that_is_said(
    testchain: TestChain, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]
) -> None:
    """No keystore, no password: the first thing that is missing is the model."""
    error = error_of(talk, "generate", "hi", "--network", str(testchain.network.path), "--model", "x", *asked)
    assert isinstance(error, ModelError)
    check_unpaid("auto", None, quiet=False)
    assert "no wallet: asking for donated work" in capsys.readouterr().err


def test_the_last_line_says_which_lane_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    why = "the escrow at [b]candid-quail-52d6 covers 0.1 HMC of 0.2 HMC"
    hop = Hop(PeerId(b"p"), "calm-fern-11ab", BlockIndex(0), BlockIndex(30), Credits(0), 0.0, Address("0x" + "11" * 20))
    donated = Plan((hop,), 3, Credits(0), Credits(0), "donated", unpaid=why)
    show(Answer("yes", Bill(0, [donated], 5, 3), tokens_per_s=2.0), as_json=False)
    assert capsys.readouterr().err == f"3 tokens, 2.0 tokens/s, by calm-fern-11ab 0:30, donated lane: {why}\n"
    paid = replace(donated, lane="paid", unpaid="")
    show(Answer("yes", Bill(10**18, [paid], 5, 3), stopped=True), as_json=False)
    assert capsys.readouterr().err == "3 tokens (stopped), by calm-fern-11ab 0:30, 1 HMC\n"
    show(Answer("yes", Bill(10**18, [paid], 5, 3)), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["lane"], told["tokens"], told["spent_wei"]) == ("paid", 3, 10**18)
    assert told["nodes"][0]["name"] == "calm-fern-11ab"


@pytest.mark.parametrize("content", [None, "{", "{}", "[1]"])
def test_a_folder_without_a_usable_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        tokenizer_of(tmp_path)


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


def test_an_accounts_life(testchain: TestChain) -> None:
    Keystores().import_key("ann", "22" * 32, "correct horse", n=CHEAP_SCRYPT_N)
    client = Signer(bytes.fromhex("22" * 32))
    node = asyncio.run(credits_for(testchain, client)).address
    common = ["--network", str(testchain.network.path), "--wallet", "ann"]
    assert told(account.app, "list", *common) == []
    assert told(wallets.app, "show", "ann", *common[:2])["credits"] == 100 * ONE_CREDIT

    assert told(account.app, "fund", "2.5", "--node", node_name(node), "--yes", *common)["block"] > 0
    testchain.devchain.mine()
    (row,) = told(account.app, "list", *common)
    assert (row["left"], row["waiting"]) == (25 * 10**17, 0)
    assert (row["node"], row["balance"], row["collected"], row["state"]) == (node, 25 * 10**17, 0, "open")
    listed = RUNNER.invoke(account.app, ["list", *common]).stdout
    assert f"the account at {named(node)}\n  left 2.5 HMC; balance 2.5 HMC" in listed  # on one line, to be copied
    too_much = error_of(account.app, "fund", "1000", "--node", node, "--yes", *common)
    assert isinstance(too_much, BadInput)
    assert "1,000 HMC in all" in too_much.why
    assert "97.5 HMC" in too_much.why

    books_of_another_chain(testchain, client, common)

    told(account.app, "thaw", node_name(node), *common)
    assert "none of the accounts of ann" in error_of(account.app, "thaw", another(node), *common).what
    assert "thaws until" in told(account.app, "list", *common)[0]["state"]
    assert "StillThawing" in getattr(error_of(account.app, "withdraw", node, *common), "error", "")
    told(account.app, "cancel", node, *common)
    assert told(account.app, "list", *common)[0]["state"] == "open"
    told(account.app, "thaw", node, *common)
    testchain.devchain.travel(4 * 86_400)
    assert "thawed" in told(account.app, "list", *common)[0]["state"]
    shown = RUNNER.invoke(account.app, ["withdraw", node_name(node)[:-1], *common])
    assert f"{node_name(node)} is {node}" in shown.output, "a name is no proof: the address is told"
    assert told(wallets.app, "show", "ann", *common[:2])["credits"] == 100 * ONE_CREDIT

    asyncio.run(check_port(testchain, client, node))


def another(node: str) -> str:
    """A name that is not this node's."""
    return "candid-quail-52d6" if node_name(node) != "candid-quail-52d6" else "calm-fern-11ab"


def books_of_another_chain(testchain: TestChain, client: Signer, common: list[str]) -> None:
    """A development chain began anew under the same files: told, and begun anew only by consent."""
    path = Home.open().client / "vouchers.db"
    path.unlink()
    old = VoucherBook.open(path, testchain.network.domain, client.address, b"\7" * 32)
    old.promise(client.address, Credits(10))
    old.close()
    error = error_of(account.app, "list", *common)
    assert isinstance(error, StoreError)
    assert "another chain" in error.what
    assert "hivemint account new-books" in error.next_step
    assert len(told(account.app, "new-books", *common)["genesis"]) == 2 + 64
    (row,) = told(account.app, "list", *common)
    assert row["promised"] == 0


async def joined_as(testchain: TestChain, folder: Path, **how: Any) -> Identity:
    """Who signs for a client that has joined the network."""
    client = await connect(local_models.resolve(folder), network=testchain.network, **how)
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
    told(keys.app, "authorize", "hot", "--days", "3", *common)
    assert "KeyKnown" in getattr(error_of(keys.app, "authorize", "hot", *common), "error", "")
    Keystores().find("ann").path.write_text(json.dumps({"version": 3, "address": wallet_key.address}))  # no key in it
    who = asyncio.run(joined_as(testchain, folder, wallet="ann", session_key="hot"))
    assert (who.client, who.key.address) == (wallet_key.address, hot)
    assert who.valid_until
    with pytest.raises(WalletError, match="damaged"):
        asyncio.run(joined_as(testchain, folder, wallet="ann"))
    Keystores().find("ann").path.unlink()
    Keystores().add("ann", wallet_key, "correct horse", n=CHEAP_SCRYPT_N)
    told(keys.app, "revoke", "hot", *common)
    with pytest.raises(WalletError, match="revoked"):
        asyncio.run(joined_as(testchain, folder, wallet="ann", session_key="hot"))


def test_without_a_wallet_there_is_the_donated_lane(tmp_path: Path, testchain: TestChain) -> None:
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
        assert len(await port.genesis()) == 32
        assert not await port.on_record(client.address, stranger)
        async with await Bindings.connect(testchain.network) as contracts:
            await contracts.settlement.authorize(client, stranger, await contracts.chain.time() + 3600)
            assert await port.on_record(client.address, stranger)
            await contracts.settlement.revoke(client, stranger)
        assert await port.on_record(client.address, stranger), "it has signed while it lived"
    finally:
        await port.close()
