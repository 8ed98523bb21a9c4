"""The first credits of a development chain: what a node mints for donated work, as nothing else makes any."""

from pathlib import Path

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.settlement.payments import ContractPayments
from hivemint.ledger.settlement.settler import Settler
from hivemint.ledger.store.database import database_url
from hivemint.protocol.ids import ONE_CREDIT, Credits, PeerId
from hivemint.protocol.signing import Signer
from support.chain import EPOCH, TEST_MODEL, TestChain
from support.promises import Work

COIN = 10**18


async def earn_credits(testchain: TestChain, path: Path) -> Signer:
    """Two epochs on: the wallet that holds more than 500 credits. `path`: of a journal that nobody else uses."""
    domain, (owner, node, client) = testchain.network.domain, testchain.signers[1:4]
    async with await Bindings.connect(testchain.network) as contracts:
        await contracts.registry.register(owner, node, PeerId(b"earns"), domain, stake=50 * COIN)
        journal = Journal.open(database_url(path), domain, node.address)
        settler = Settler(journal, ContractPayments(contracts, node))
        expiry = testchain.next_epoch() * EPOCH + 60
        work = Work(client, node, price=0, expiry=expiry, domain=domain, model_id=TEST_MODEL)
        await journal.open_session(work.session, work.signature)
        work.step(10**9)
        await journal.record(Entry(client.address, work.id, Credits(0), work.countersign(0)))
        journal.close_session(work.id)
        for _ in range(2):
            testchain.next_epoch()
            await settler.round()
        await journal.close()
        assert await contracts.token.balance(owner.address) > 500 * ONE_CREDIT
    return owner
