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
from hivemint.contracts.credits import mintable
from hivemint.contracts.ids import ONE_CREDIT, Address, Credits, PeerId
from hivemint.contracts.keccak import keccak
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import peer_id_hash
from hivemint.ledger.chainview import OWN_KEY, AccountView, ContractView
from hivemint.ledger.entries import Entry
from hivemint.ledger.fold import DERIVED
from hivemint.ledger.indexer import Indexer
from hivemint.ledger.journal import Journal
from hivemint.ledger.payments import ContractPayments
from hivemint.ledger.settlement import Settler, SettlerSettings
from hivemint.ledger.store import database_url, reading
from hivemint.ledger.tables import events
from support.chain import EPOCH, TEST_MODEL, TestChain
from support.promises import Work

COIN = 10**18
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
    settler = Settler(journal, ContractPayments(contracts, node), settings)
    yield Stage(testchain, contracts, owner, node, client, journal, settler)
    await journal.close()


def tables(indexer: Indexer) -> dict[str, list[tuple[object, ...]]]:
    with reading(indexer.engine) as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in (*DERIVED, events)
        }


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
    assert (stage.journal.totals.settled, stage.settler.reasons["settled"]) == (3 * ONE_CREDIT, "")
    await stage.settler.round()  # nothing is sent twice

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
        assert stage.journal.totals.settled == number * ONE_CREDIT
        devchain.revert(branch)
        devchain.mine(depth + 2 if longer else 1)
        await contracts.token.transfer(stage.client, stage.owner.address, number)
        await indexer.follow()
        assert tables(indexer) == await replayed(stage, tmp_path / f"replay{number}.db")
        assert (await contracts.settlement.account(stage.client.address, node)).collected < number * ONE_CREDIT
        await stage.settler.round()
        assert (await contracts.settlement.account(stage.client.address, node)).collected == number * ONE_CREDIT
    await indexer.close()
    reopened = await Indexer.open(database_url(tmp_path / "index.db"), contracts, stage.testchain.network)
    await reopened.follow()
    assert tables(reopened) == await replayed(stage, tmp_path / "last.db")
    await reopened.close()


async def test_a_transaction_left_behind_too_cheap_is_replaced(stage: Stage) -> None:
    """An earlier run's transaction blocks the nonce; nothing is mined until somebody offers more."""
    contracts, devchain = stage.contracts, stage.testchain.devchain
    await stage.earn()
    await contracts.settlement.fund(stage.client, {stage.node.address: 10 * ONE_CREDIT})
    await stage.work(1, total=2 * ONE_CREDIT, expiry=await contracts.chain.time() + 9999)
    devchain.rpc("evm_setAutomine", False)
    try:
        chain = contracts.chain
        stuck = await chain.submit(stage.node, Transfer(chain, stage.owner.address), doing="Paying", value=1)
        payments = ContractPayments(contracts, stage.node, patience=0.5)
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
from hivemint.contracts.ids import Credits
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import Domain
from hivemint.ledger.entries import Entry
from hivemint.ledger.journal import Journal
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

    async def seen() -> AccountView:
        clock[0] += 1
        return await view.account(stage.client.address)

    await stage.earn()
    assert await seen() == AccountView(Credits(0), False)
    await contracts.settlement.fund(stage.client, {stage.node.address: 5 * ONE_CREDIT})
    assert (await seen()).funded == 0  # not confirmed yet
    devchain.mine()
    assert await seen() == AccountView(Credits(5 * ONE_CREDIT), False)
    await stage.work(1, total=ONE_CREDIT, expiry=await contracts.chain.time() + 9999)
    await stage.settler.round()
    devchain.mine()
    assert await seen() == AccountView(Credits(5 * ONE_CREDIT), False, Credits(ONE_CREDIT))
    await contracts.settlement.thaw(stage.client, stage.node.address)
    assert await seen() == AccountView(Credits(0), True, Credits(ONE_CREDIT))  # at once

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
    assert await view.time() == await contracts.chain.time()
    assert await view.registered(stage.node.address) == peer_id_hash(PEER)
    assert await view.registered(client) is None
    clock[0] += 100
    devchain.mine()
    await view.time()
    assert not view._known, "what nobody has asked for in a minute is read with no block"
    assert (await seen()).thawing
