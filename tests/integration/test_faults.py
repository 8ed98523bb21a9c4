"""Processes that are killed, stopped, or wake up with an old disk: nothing acknowledged is lost, nothing counts twice.

All on real processes (`support.localnet`): kill -9 is a kill -9, and what was paid is read from the chain.
"""

import os
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from sqlalchemy import select

from hivemint.client.sessions.errors import NodeGone, NodeLied, NodeRefusal
from hivemint.client.sessions.opening import SignedSession, greet, shake_hands
from hivemint.client.sessions.session import RemoteSession
from hivemint.contracts.bindings import Bindings
from hivemint.ledger.explorer.fold import DERIVED
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.store.database import database_url, open_store, reading
from hivemint.ledger.store.tables import events
from hivemint.protocol.home import Home
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import Code, StepReceipt
from hivemint.testnet.localnet import CHEAP_SCRYPT, PASSWORD, NodePlan
from hivemint.testnet.processes import hivemint, launch, wait_ready
from support.localnet import At, RealNet, exactly, height, prompt

pytest_plugins = ["support.localnet"]

PROMPT, TOKENS = 8, 6
"""Tokens of a prompt (one step), and of an answer before something happens."""


@pytest.fixture(params=["first", "last"])
def node(request: pytest.FixtureRequest, localnet: RealNet) -> NodePlan:
    plan: NodePlan = getattr(localnet, request.param)
    return plan


def standing(net: RealNet, wallet: Signer, plan: NodePlan, home: Path) -> tuple[int, int]:
    """(highest total, sum owed) by the node's own word and the wallet's own signature: the client's book is empty."""
    with net.client(wallet, home=Home.open(home)) as stranger:
        stranger.run(stranger.run(stranger.swarm.open(1)).close())
        total, owed = stranger.swarm.payer.book.totals()[net.operator(plan).address]
        return int(total), int(owed)


# --- nodes


def test_what_a_killed_node_had_acknowledged_settles_once(localnet: RealNet, tmp_path: Path) -> None:
    """P11. Kill -9 in mid-answer, before anything was settled; start again on the same home."""
    node, wallet = localnet.first, localnet.payer()
    operator, price = localnet.operator(node).address, localnet.price(localnet.first)
    localnet.restart(node, HIVEMINT_SETTLE_MIN="1000")
    with localnet.client(wallet) as model:
        with pytest.raises(NodeGone, match=operator):
            model.generate(prompt(PROMPT), **exactly(60), streamer=At(TOKENS, lambda: localnet.kill(node)))
        promised, _ = model.swarm.payer.book.totals()[operator]
    assert localnet.account(wallet, node).collected == 0
    (session,) = localnet.sessions(node, wallet)
    acknowledged = session["countersigned_tokens"] * price
    assert acknowledged >= (PROMPT + TOKENS - 3) * price  # every receipt but those of the last steps

    localnet.start(node)
    collected = localnet.collected(wallet, node, acknowledged)
    total, owed = standing(localnet, wallet, node, tmp_path)
    assert acknowledged <= total == collected <= promised
    assert total - price <= owed <= total

    with localnet.client(wallet) as model:  # the same wallet goes on, and only what is new is collected then
        model.generate(prompt(PROMPT), **exactly(2))
        promised, _ = model.swarm.payer.book.totals()[operator]
    assert localnet.collected(wallet, node, promised) == promised
    burned = [one["burned"] for one in localnet.settlements(wallet, node)]
    assert collected in accumulate(burned), "in one settlement or more"
    assert sum(burned) == promised


def test_a_stopped_node_is_named_by_the_heartbeat(localnet: RealNet, node: NodePlan) -> None:
    """Its stream stays open and its process exists; the step's own limit of ten minutes never comes into it."""
    stopped: list[psutil.Process] = []
    with localnet.client(step_timeout=600) as model:
        with pytest.raises(NodeGone, match=localnet.operator(node).address) as caught:
            model.generate(
                prompt(PROMPT), **exactly(60), streamer=At(TOKENS, lambda: stopped.append(localnet.stop(node)))
            )
        assert caught.value.why == "the peer was silent for 2 s"
        stopped[0].resume()
        answer = model.generate(prompt(PROMPT), **exactly(TOKENS))  # the next question finds the same nodes again
    assert answer.shape == (1, PROMPT + TOKENS)


def test_a_killed_node_is_named_and_comes_back(localnet: RealNet) -> None:
    node = localnet.last
    with localnet.client(step_timeout=600) as model:
        with pytest.raises(NodeGone, match=localnet.operator(node).address) as caught:
            model.generate(prompt(PROMPT), **exactly(60), streamer=At(TOKENS, lambda: localnet.kill(node)))
        assert "new route" in caught.value.next_step
        localnet.start(node)
        model.swarm.nodes.forget()
        assert model.generate(prompt(PROMPT), **exactly(TOKENS)).shape == (1, PROMPT + TOKENS)


@dataclass
class Seen:
    """Every receipt that a client was sent: what the node has signed for each step of each session."""

    signed: dict[tuple[bytes, int], set[bytes]] = field(default_factory=dict)
    sessions: dict[bytes, RemoteSession] = field(default_factory=dict)

    def watch(self, monkeypatch: pytest.MonkeyPatch, plan_operator: str) -> "Seen":
        take = RemoteSession.take

        def watched(session: RemoteSession, message: StepReceipt, source: bytes) -> bytes:
            if session.leg.operator == plan_operator:
                receipt = message.receipt.body
                key = (bytes(receipt.session_id), int(receipt.step))
                self.signed.setdefault(key, set()).add(msgspec.msgpack.encode(receipt))
                self.sessions[session.session_id] = session
            return take(session, message, source)

        monkeypatch.setattr(RemoteSession, "take", watched)
        return self


def test_a_restored_disk_signs_no_step_twice_and_is_not_paid_twice(
    localnet: RealNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P16, P11. The journal is put back to an earlier day, on which the node had collected less."""
    node, wallet = localnet.last, localnet.payer()
    operator, price = localnet.operator(node).address, localnet.price(localnet.last)
    journal = localnet.net.home.node(node.operator) / "journal.db"
    seen = Seen().watch(monkeypatch, operator)
    cost = (PROMPT + TOKENS - 1) * price
    with localnet.client(wallet) as model:
        model.generate(prompt(PROMPT), **exactly(TOKENS))
        assert localnet.collected(wallet, node, cost) == cost
        with closing(sqlite3.connect(journal)) as source, closing(sqlite3.connect(tmp_path / "old.db")) as copy:
            source.backup(copy)
        model.generate(prompt(PROMPT), **exactly(TOKENS))
        assert localnet.collected(wallet, node, 2 * cost) == 2 * cost

        localnet.net.child(node.operator).stop()
        with closing(sqlite3.connect(tmp_path / "old.db")) as copy, closing(sqlite3.connect(journal)) as target:
            copy.backup(target)  # in place, as the ledger has the file open
        localnet.start(node)

        model.swarm.nodes.forget()
        for old in list(seen.sessions.values()):
            with pytest.raises(NodeRefusal) as refused:
                model.run(open_again(model.swarm, old))
            assert refused.value.code == Code.NONCE
        model.generate(prompt(PROMPT), **exactly(TOKENS))
        assert model.swarm.payer.book.totals()[operator] == (3 * cost, 3 * cost)
    assert localnet.collected(wallet, node, 3 * cost) == 3 * cost
    assert sum(one["burned"] for one in localnet.settlements(wallet, node)) == 3 * cost
    assert len(seen.sessions) == 3
    assert len(seen.signed) == 3 * TOKENS
    assert all(len(receipts) == 1 for receipts in seen.signed.values())


async def open_again(swarm: Any, old: RemoteSession) -> None:
    """Show a session of an earlier run once more, with its client's real signature."""
    leg = next(leg for leg in (await swarm.route(1)).legs if leg.operator == old.leg.operator)
    greeting = await greet(swarm.host, leg, 30)
    signature = old.session.sign(swarm.payer.domain, swarm.payer.who.key)
    signed = SignedSession(old.session, old.session_id, signature)
    try:
        await shake_hands(greeting, signed, swarm.payer, previous=None, next_hop=None, timeout=30)
    finally:
        await greeting.link.close()


# --- clients


def test_a_lie_about_the_last_step_reaches_the_caller(localnet: RealNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is whole when that receipt comes, nobody asks for a next step, and yet `generate` tells."""
    take = RemoteSession.take

    def doctored(session: RemoteSession, message: StepReceipt, source: bytes) -> bytes:
        if message.receipt.step == TOKENS:
            message = msgspec.structs.replace(message, rows=bytes(len(message.rows)))
        return take(session, message, source)

    with localnet.client() as model:
        monkeypatch.setattr(RemoteSession, "take", doctored)
        with pytest.raises(NodeLied, match="cannot be trusted"):
            model.generate(prompt(PROMPT), **exactly(TOKENS))


def test_a_killed_client_goes_on_paying(localnet: RealNet, tmp_path: Path) -> None:
    """P11. `hivemint generate`, kill -9, again with the same wallet; then again without its voucher book."""
    wallet, home = localnet.payer(), Home.open(tmp_path / "home")
    Keystores(home.keystores).add("eve", wallet, PASSWORD, n=CHEAP_SCRYPT)
    environment = {"HIVEMINT_HOME": str(home.root), "HIVEMINT_PASSWORD": PASSWORD, "HIVEMINT_WALLET": "eve"}
    command = hivemint(
        "generate",
        "Once upon a time",
        "--raw",
        "--bid",
        "ask",
        "--json",
        "--network",
        str(localnet.net.network_file),
        "--model",
        str(localnet.net.model.folder),
    )

    def ask(tokens: int) -> dict[str, Any]:
        done = subprocess.run(
            [*command, "--max-tokens", str(tokens)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = msgspec.json.decode(done.stdout)
        return answer

    killed = launch("client", [*command, "--max-tokens", "1000"], tmp_path / "client.log", environment)
    localnet.until(lambda: any(one["signed_step"] > TOKENS for one in localnet.sessions(localnet.last, wallet)), "step")
    killed.kill()
    assert ask(TOKENS)["spent_wei"] > 0
    for file in home.client.glob("vouchers.db*"):
        file.unlink()
    assert ask(TOKENS)["tokens"] == TOKENS
    for plan in localnet.nodes:
        bound = sum(one["countersigned_tokens"] for one in localnet.sessions(plan, wallet)) * localnet.price(plan)
        signed = sum(one["signed_tokens"] for one in localnet.sessions(plan, wallet)) * localnet.price(plan)
        collected = localnet.collected(wallet, plan, bound)
        assert bound <= collected <= signed + localnet.price(plan)  # one step was in flight when it was killed


# --- the ledger


def test_a_killed_ledger_equals_a_fresh_replay(localnet: RealNet, tmp_path: Path) -> None:
    database, log = database_url(tmp_path / "index.db"), tmp_path / "ledger.log"
    command = hivemint(
        "ledger",
        "serve",
        "--network",
        str(localnet.net.network_file),
        "--port",
        "0",
        "--no-swarm",
        "--database",
        database,
    )
    home = {"HIVEMINT_HOME": str(tmp_path / "home")}
    localnet.payer()
    killed = wait_ready(launch("ledger", command, log, home), 60)
    localnet.payer()
    killed.kill()
    localnet.payer()
    localnet.devchain.mine_every(0)  # and no node's transaction is mined while two indexes are compared
    localnet.devchain.rpc("evm_setAutomine", False)
    try:
        log.unlink()
        ledger = wait_ready(launch("ledger", command, log, home), 60)
        localnet.until(lambda: indexed(str(ledger.ready["url"])) == localnet.chain(height), "index")
        ledger.stop()
        found = tables(database)
        assert found["escrows"]
        assert found == tables(localnet.chain(lambda bindings: replay(localnet, bindings, tmp_path / "fresh.db")))
    finally:
        localnet.devchain.rpc("evm_setAutomine", True)
        localnet.devchain.mine_every(1)


def indexed(url: str) -> int:
    """The last block that a ledger has indexed."""
    answer = httpx.get(f"{url}api/status", trust_env=False).raise_for_status().json()
    return int(answer["indexed"])


def tables(database: str) -> dict[str, list[tuple[object, ...]]]:
    """All that an index says of the chain, row by row."""
    engine = open_store(database, read_only=True)
    try:
        with reading(engine) as connection:
            return {
                table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
                for table in (*DERIVED, events)
            }
    finally:
        engine.dispose()


async def replay(net: RealNet, bindings: Bindings, path: Path) -> str:
    """A new index of the whole chain; its URL."""
    indexer = await Indexer.open(database_url(path), bindings, net.net.network)
    await indexer.follow()
    await indexer.close()
    return database_url(path)
