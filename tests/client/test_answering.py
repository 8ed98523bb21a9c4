"""Who answers before a deposit: a node that is gone or goes down gets none, a busy one does."""

from pathlib import Path
from typing import Any

from hivemint.client.answering import silent_nodes
from hivemint.ledger.books.voucher_book import VoucherBook
from support.client_world import ASK, WALLET
from support.fake_swarm import DOMAIN, FakeNode, FakeSwarm
from support.promises import GENESIS


async def test_gone_and_draining_nodes_are_named_and_busy_ones_are_not(tmp_path: Path) -> None:
    well, busy, drains, gone = (FakeNode(0, 30, ask=ASK) for _ in range(4))
    busy.faults["busy"] = 0
    drains.faults["drain"] = 0
    swarm: Any = FakeSwarm(well, busy, drains, gone)
    swarm.dead.add(gone.peer)
    book = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET.address, GENESIS)
    records = [one.record().record for one in (well, busy, drains, gone)]
    silent = await silent_nodes(swarm, records, DOMAIN, book, None, timeout=5.0)
    assert book.totals() == {}, "nothing is promised"
    book.close()
    assert set(silent) == {bytes(drains.peer), bytes(gone.peer)}
    assert "going down" in silent[bytes(drains.peer)]
    assert silent[bytes(gone.peer)]
