"""Journal, settlement worker, chain view and indexer on a real chain: the whole life of credits, and its accidents."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select

from hivemint.contracts.bindings import Bindings
from hivemint.contracts.chain import Chain, Transfer
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.explorer.queries import Explorer
from hivemint.ledger.settlement.chainview import OWN_KEY, ContractView, SeenAccount
from hivemint.ledger.settlement.payments import ContractPayments
from hivemint.ledger.settlement.settler import Settler, SettlerSettings
from hivemint.ledger.store.database import database_url, reading
from hivemint.ledger.store.tables import events
from hivemint.protocol.credits import mintable
from hivemint.protocol.eip712 import Release, peer_id_hash
from hivemint.protocol.ids import ONE_CREDIT, Address, Credits, PeerId
from hivemint.protocol.keccak import keccak
from hivemint.protocol.orders import Close, Thaw, Withdraw
from hivemint.protocol.signing import Signer
from support.chain import EPOCH, TEST_MODEL, TestChain
from support.index import tables
from support.promises import Work, signer

COIN = 10**18
NOTHING_OWED = "no account owes anything yet"
PEER = PeerId(b"a peer of the ledger's tests")


@dataclass
class Stage:
    """A registered node with a journal and a worker, and a client of its own. `owner` gets what is minted."""

    testchain: TestChain
    contracts: Bindings
    owner: Signer
    node: Signer
    client: Signer
    journal: Journal
    settler: Settler
    clock: list[float]

    async def work(self, tokens: int, *, total: int = 0, expiry: int) -> Work:
        """A session with one step, journalled; free if `total` is 0."""
        domain, price = self.testchain.network.domain, 1 if total else 0
        work = Work(self.client, self.node, price=price, expiry=expiry, domain=domain, model_id=TEST_MODEL)
        await self.journal.open_session(work.session, work.signature)
        work.step(tokens)
        newest = work.countersign(total)
        await self.journal.record(Entry(self.client.address, work.id, Credits(total), newest))
        self.journal.close_session(work.id)
        return work

    async def earn(self) -> None:
        """Donate, claim and mint by the worker alone, then pass 100 credits to the client."""
        epoch = self.testchain.next_epoch()
        await self.work(10**9, expiry=epoch * EPOCH + 60)
        self.testchain.next_epoch()
        await self.settler.round()
        self.testchain.next_epoch()
        await self.settler.round()
        await self.settler.round()
        assert self.settler.reasons["claimed"] != ""  # nothing more to claim now
        assert self.settler.donated_minted > 100 * ONE_CREDIT
        await self.contracts.token.transfer(self.owner, self.client.address, 100 * ONE_CREDIT)


async def fresh(chain: Chain, rich: Signer, name: bytes, coins: int) -> Signer:
    signer = Signer(keccak(name))
    await chain.send(rich, Transfer(chain, signer.address), doing="Paying", value=coins * COIN)
    return signer


@pytest.fixture
async def stage(
    request: pytest.FixtureRequest, contracts: Bindings, testchain: TestChain, tmp_path: Path
) -> AsyncIterator[Stage]:
    rich, label = testchain.signers[18], request.node.name.encode()
    owner = await fresh(contracts.chain, rich, b"owner" + label, 60)
    node = await fresh(contracts.chain, rich, b"node" + label, 5)
    client = await fresh(contracts.chain, rich, b"client" + label, 5)
    await contracts.registry.register(owner, node, PEER, testchain.network.domain, stake=50 * COIN)
    journal = Journal.open(database_url(tmp_path / "journal.db"), testchain.network.domain, node.address)
    settings = SettlerSettings(settle_min=Credits(1))
    clock = [0.0]
    settler = Settler(journal, ContractPayments(contracts, node), settings, clock=lambda: clock[0])
    yield Stage(testchain, contracts, owner, node, client, journal, settler, clock)
    await journal.close()


async def replayed(stage: Stage, path: Path) -> dict[str, list[tuple[object, ...]]]:
    other = await Indexer.open(database_url(path), stage.contracts, stage.testchain.network)
    await other.follow()
    found = tables(other)
    await other.close()
    return found


async def test_the_worker_earns_and_the_index_tells_it(stage: Stage, tmp_path: Path) -> None:
    contracts, node, client = stage.contracts, stage.node.address, stage.client.address
    indexer = await Indexer.open(database_url(tmp_path / "index.db"), contracts, stage.testchain.network)
    await stage.earn()
    await indexer.follow()

    await contracts.settlement.fund(stage.client, {node: 10 * ONE_CREDIT})
    now = await contracts.chain.time()
    await stage.work(7, total=3 * ONE_CREDIT, expiry=now + 3600)
    before = await contracts.token.balance(stage.owner.address)
    await stage.settler.round()
    assert await contracts.token.balance(stage.owner.address) == before + mintable(3 * ONE_CREDIT)
    assert stage.settler.reasons["settled"] == ""
    sent = await contracts.chain.nonce(stage.node.address)
    await stage.settler.round()  # nothing is sent twice, though no block has confirmed it yet
    assert await contracts.chain.nonce(stage.node.address) == sent
    stage.testchain.devchain.mine()
    await stage.settler.round()
    assert (stage.journal.totals.settled, stage.settler.reasons["settled"]) == (3 * ONE_CREDIT, NOTHING_OWED)

    await stage.work(7, total=20 * ONE_CREDIT, expiry=now + 3600)  # more than the escrow holds
    await stage.settler.round()
    await stage.settler.round()
    assert "account is empty" in stage.settler.reasons["settled"]

    progress = await indexer.follow()
    assert progress.indexed == progress.head == await contracts.chain.block_number()
    found = tables(indexer)
    assert found == await replayed(stage, tmp_path / "replay.db")
    balances = {Address(str(row[1])): row[2] for row in found["balances"]}
    for holder in (stage.owner.address, client, contracts.settlement.address):
        assert balances[holder] == await contracts.token.balance(holder)
    assert sum(int(str(amount)) for amount in balances.values()) == await contracts.token.supply()
    (escrow,) = [row[3:] for row in found["escrows"] if row[1:3] == (client, node)]
    assert escrow == (0, 10 * ONE_CREDIT, 0)
    (registered,) = [row for row in found["registrations"] if row[1] == node]
    assert registered[2:6] == (stage.owner.address, stage.owner.address, peer_id_hash(PEER), 50 * COIN)
    assert registered[8:10] == (10 * ONE_CREDIT, mintable(10 * ONE_CREDIT))
    assert registered[10] == stage.settler.donated_minted
    await indexer.close()


async def test_leaving_together_and_orders_are_told_by_the_index(stage: Stage, tmp_path: Path) -> None:
    """A close by the wallet's order, another after a thaw's end by one, and an item that was skipped."""
    contracts, node, client = stage.contracts, stage.node, stage.client
    domain, settlement = stage.testchain.network.domain, contracts.settlement
    indexer = await Indexer.open(database_url(tmp_path / "index.db"), contracts, stage.testchain.network)
    await stage.earn()
    await settlement.fund(client, {node.address: 10 * ONE_CREDIT})
    now = await contracts.chain.time()
    await stage.work(7, total=3 * ONE_CREDIT, expiry=now + 3600)
    (pair,) = stage.journal.collectable()
    release = Release(node.address, client.address, Credits(3 * ONE_CREDIT), now + 1800)
    order = Close(client.address, node.address, await settlement.nonce(client.address), now + 1800)
    signatures = order.sign(domain, client), release.sign(domain, node)
    await settlement.close_by_sig(stage.owner, order, signatures[0], release, signatures[1], [pair])
    assert (await settlement.settle(stage.owner, node.address, [pair])).skipped[0].client == client.address
    await stage.settler.round()
    stage.testchain.devchain.mine()
    stage.clock[0] += 600
    await stage.settler.round()
    assert stage.journal.book(client.address).collected == 3 * ONE_CREDIT, "the worker's book follows"

    await settlement.fund(client, {node.address: 2 * ONE_CREDIT})
    for kind in (Thaw, Withdraw):
        now = await contracts.chain.time()
        done = kind(client.address, node.address, await settlement.nonce(client.address), now + 600)
        await settlement.send_order(stage.owner, done, done.sign(domain, client))
        stage.testchain.devchain.travel(4 * 86_400)
    await indexer.follow()
    assert tables(indexer) == await replayed(stage, tmp_path / "replay.db")
    (escrow,) = [row[3:] for row in tables(indexer)["escrows"] if row[1:3] == (client.address, node.address)]
    assert escrow == (0, 3 * ONE_CREDIT, 0)
    explorer = Explorer(indexer, stage.testchain.network)
    told = explorer.withdrawals(10, 0, client=client.address).items
    assert [(one.amount, one.together) for one in told] == [(2 * ONE_CREDIT, False), (7 * ONE_CREDIT, True)]
    with reading(indexer.engine) as connection:
        named = select(events.c.name).where(events.c.client == client.address, events.c.node == node.address)
        assert {"Closed", "Skipped", "Thawing", "Settled"} <= set(connection.scalars(named))
    await indexer.close()


async def test_after_a_reorganisation_the_index_equals_a_replay(stage: Stage, tmp_path: Path) -> None:
    """P12, with branches that differ in depth and content; the worker makes good what was lost."""
    contracts, node, devchain = stage.contracts, stage.node.address, stage.testchain.devchain
    indexer = await Indexer.open(database_url(tmp_path / "index.db"), contracts, stage.testchain.network)
    await stage.earn()
    await contracts.settlement.fund(stage.client, {node: 10 * ONE_CREDIT})
    now = await contracts.chain.time()
    for number, (depth, longer) in enumerate([(1, False), (3, True), (8, False)], 1):
        await indexer.follow()
        branch = devchain.snapshot()
        await stage.work(1, total=number * ONE_CREDIT, expiry=now + 9999)
        await stage.settler.round()
        devchain.mine(depth - 1)
        await indexer.follow()
        await stage.settler.round()
        assert stage.journal.totals.settled == (number if depth > 1 else number - 1) * ONE_CREDIT  # the confirmed ones
        devchain.revert(branch)
        devchain.mine(depth + 2 if longer else 1)
        await contracts.token.transfer(stage.client, stage.owner.address, number)
        await indexer.follow()
        assert tables(indexer) == await replayed(stage, tmp_path / f"replay{number}.db")
        assert (await contracts.settlement.account(stage.client.address, node)).collected < number * ONE_CREDIT
        stage.clock[0] += 600  # paid accounts are looked at now and then
        await stage.settler.round()
        assert (await contracts.settlement.account(stage.client.address, node)).collected == number * ONE_CREDIT
    await indexer.close()
    reopened = await Indexer.open(database_url(tmp_path / "index.db"), contracts, stage.testchain.network)
    await reopened.follow()
    assert tables(reopened) == await replayed(stage, tmp_path / "last.db")
    await reopened.close()


async def test_a_transaction_left_behind_too_cheap_is_replaced(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier run's transaction blocks the nonce; nothing is mined until somebody offers more."""
    contracts, devchain = stage.contracts, stage.testchain.devchain
    await stage.earn()
    await contracts.settlement.fund(stage.client, {stage.node.address: 10 * ONE_CREDIT})
    await stage.work(1, total=2 * ONE_CREDIT, expiry=await contracts.chain.time() + 9999)
    devchain.rpc("evm_setAutomine", False)
    try:
        chain = contracts.chain
        stuck = await chain.submit(stage.node, Transfer(chain, stage.owner.address), doing="Paying", value=1)
        monkeypatch.setattr("hivemint.contracts.chain.PATIENCE", 0.5)
        payments = ContractPayments(contracts, stage.node)
        settling = asyncio.create_task(payments.settle(stage.journal.collectable()))
        for _ in range(200):
            pending = devchain.rpc("eth_getBlockByNumber", "pending", True)["transactions"]
            mine = [tx for tx in pending if tx["from"] == stage.node.address.lower()]
            if mine and all(tx["hash"] != "0x" + stuck.hash.hex() for tx in mine):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("the stuck transaction was never replaced")
        devchain.mine()
        assert (await settling).burned in (0, 2 * ONE_CREDIT)
    finally:
        devchain.rpc("evm_setAutomine", True)
        devchain.mine()
    account = await contracts.settlement.account(stage.client.address, stage.node.address)
    assert account.collected == 2 * ONE_CREDIT
    assert await contracts.chain.mined(stuck) is None


NODE_PROCESS = """
import asyncio, sys
from hivemint.protocol.ids import Credits
from hivemint.protocol.signing import Signer
from hivemint.protocol.eip712 import Domain
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from support.promises import Work

async def run(url, chain_id, settlement, node, client):
    node, client = Signer(bytes.fromhex(node)), Signer(bytes.fromhex(client))
    domain = Domain(int(chain_id), settlement)
    journal = Journal.open(url, domain, node.address)
    work = Work(client, node, price=1000, domain=domain)
    await journal.open_session(work.session, work.signature)
    for step in range(1, 100_000):
        work.step()
        await journal.record(Entry(client.address, work.id, Credits(1000 * step), work.countersign(1000 * step)))
        print(1000 * step, flush=True)

asyncio.run(run(*sys.argv[1:]))
"""


async def test_what_a_killed_node_had_acknowledged_settles_once(stage: Stage, tmp_path: Path) -> None:
    """P11 to its end: kill -9 while it records, start again, settle."""
    contracts, client, node = stage.contracts, stage.client, stage.node
    await stage.earn()
    await contracts.settlement.fund(client, {node.address: ONE_CREDIT})
    domain, url = stage.testchain.network.domain, database_url(tmp_path / "killed.db")
    keys = [node.secret().hex(), client.secret().hex()]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", NODE_PROCESS, url, str(domain.chain_id), domain.settlement, *keys),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(30)]
    process.kill()
    lines += (await process.communicate())[0].splitlines(keepends=True)
    acknowledged = int([line for line in lines if line.endswith(b"\n")][-1])

    journal = Journal.open(url, domain, node.address)
    settler = Settler(journal, ContractPayments(contracts, node), SettlerSettings(settle_min=Credits(1)))
    for _ in range(3):
        await settler.round()
    await journal.close()
    collected = (await contracts.settlement.account(client.address, node.address)).collected
    assert acknowledged <= collected <= acknowledged + 1000
    events = await contracts.events(0, await contracts.chain.block_number())
    mine = [event for event in events if event.name == "Settled" and event.values["client"] == client.address]
    assert [event.values["burned"] for event in mine] == [collected]


async def test_what_admission_sees(stage: Stage) -> None:
    contracts, devchain, clock = stage.contracts, stage.testchain.devchain, [0.0]
    view = ContractView(contracts, stage.node.address, confirmations=1, clock=lambda: clock[0])

    async def seen() -> SeenAccount:
        clock[0] += 1
        return await view.account(stage.client.address)

    await stage.earn()
    assert await seen() == SeenAccount(Credits(0), False)
    await contracts.settlement.fund(stage.client, {stage.node.address: 5 * ONE_CREDIT})
    assert (await seen()).funded == 0  # not confirmed yet
    devchain.mine()
    assert await seen() == SeenAccount(Credits(5 * ONE_CREDIT), False)
    await stage.work(1, total=ONE_CREDIT, expiry=await contracts.chain.time() + 9999)
    await stage.settler.round()
    devchain.mine()
    assert await seen() == SeenAccount(Credits(5 * ONE_CREDIT), False, Credits(ONE_CREDIT))
    await contracts.settlement.thaw(stage.client, stage.node.address)
    assert await seen() == SeenAccount(Credits(0), True, Credits(ONE_CREDIT))  # at once

    key, client = stage.owner.address, stage.client.address
    assert (await view.key(client, client), await view.key(client, key)) == (OWN_KEY, 0)
    until = await contracts.chain.time() + 1000
    await contracts.settlement.authorize(stage.client, key, until)
    devchain.mine()
    clock[0] += 1
    assert await view.key(client, key) == until
    await contracts.settlement.revoke(stage.client, key)
    clock[0] += 1
    assert await view.key(client, key) < until
    never = signer(4711).address
    assert await view.key(client, never) == 0
    await contracts.settlement.revoke(stage.client, never)
    clock[0] += 100
    assert 0 < await view.key(client, never) < until, "over, though it never was"
    assert await view.time() == await contracts.chain.time()
    clock[0] += 100
    devchain.mine()
    await view.time()
    assert not view._known, "what nobody has asked for in a minute is read with no block"
    assert (await seen()).thawing
