"""What a journal keeps of what is over: what can be claimed, and a bounded past. Sums stay, over restarts too."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select

from hivemint.ledger.books import keeping
from hivemint.ledger.books.entries import Book, Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.books.keeping import WORTHLESS_FOR
from hivemint.ledger.settlement.settler import Settler, SettlerSettings
from hivemint.ledger.store.database import database_url, reading
from hivemint.ledger.store.tables import accounts, sessions
from hivemint.protocol.ids import Credits
from support.payments import EPOCH, ReferencePayments
from support.promises import DOMAIN, Work, signer

NODE, ALICE, BOB = signer(1), signer(2), signer(3)
LOOK = 600.0


class Bench:
    """A journal, the reference chain, a worker; both clocks are the test's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chain = ReferencePayments()
        self.clock = 0.0
        self.wall = float(10**9)
        self.open()

    def open(self) -> None:
        self.journal = Journal.open(database_url(self.path / "journal.db"), DOMAIN, NODE.address)
        settings = SettlerSettings(settle_min=Credits(100), settle_every=60, dust=Credits(10))
        self.settler = Settler(
            self.journal, self.chain, settings, clock=lambda: self.clock, wall_clock=lambda: self.wall
        )

    async def restart(self) -> None:
        await self.journal.close()
        self.open()

    async def wait(self, seconds: int) -> None:
        """So much time goes by, with a look at all accounts every half a day and at its end."""
        end = self.chain.now + seconds
        while self.chain.now < end:
            passed = min(43_200, end - self.chain.now)
            self.chain.now += passed
            self.clock += max(LOOK, passed)
            await self.settler.round()

    async def session(self, client: int, owed: int, *, price: int = 10, close: bool = True) -> Work:
        work = Work(signer(client), NODE, price=price)
        await self.journal.open_session(work.session, work.signature)
        work.step()
        entry = Entry(work.client.address, work.id, Credits(owed), work.countersign(owed if price else 0))
        await self.journal.record(entry)
        if close:
            self.journal.close_session(work.id)
        return work

    def withdraw(self, client: int) -> None:
        address = signer(client).address
        self.chain.escrow[address] = replace(self.chain.escrow[address], balance=Credits(0))

    async def rows(self) -> tuple[int, int]:
        """Accounts and sessions that are stored, once all that is pending has been."""
        work = Work(signer(999), NODE)
        await self.journal.open_session(work.session, work.signature)  # durable when it returns, and all before it
        with reading(self.journal._engine) as connection:
            found = [connection.scalar(select(func.count()).select_from(table)) for table in (accounts, sessions)]
        self.journal.close_session(work.id)
        return int(found[0] or 0), int(found[1] or 0) - 1


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.journal.close()


async def test_a_free_wallet_leaves_nothing_but_work_that_can_be_claimed(bench: Bench) -> None:
    for client in range(10, 20):
        work = Work(signer(client), NODE, price=0)
        await bench.journal.open_session(work.session, work.signature)
        await bench.journal.record(Entry(work.client.address, work.id, Credits(0), work.countersign(0)))
        bench.journal.close_session(work.id)
    assert await bench.rows() == (0, 0)
    assert (bench.journal.books(), bench.journal.clients) == ({}, set())
    assert bench.journal.totals.donated.sessions == 10
    await bench.session(20, 0, price=0)
    assert await bench.rows() == (0, 1)
    await bench.restart()
    assert bench.journal.totals.donated.sessions == 11


async def test_opened_and_never_used_leaves_nothing(bench: Bench) -> None:
    for client in range(10, 20):
        work = Work(signer(client), NODE)
        await bench.journal.open_session(work.session, work.signature)
        bench.journal.close_session(work.id)
    assert await bench.rows() == (0, 0)


async def test_of_paid_sessions_the_best_and_a_bounded_past_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "HISTORY", 3)
    for number in range(1, 9):
        await bench.session(2, 10 * number)
        await bench.session(3, 20 * number)
    proofs, totals, books = bench.journal.collectable(), bench.journal.totals, bench.journal.books()
    assert [proof.voucher.total for proof in proofs] == [160, 80]
    assert await bench.rows() == (2, 5)
    before = bench.journal.totals
    await bench.restart()
    assert (bench.journal.collectable(), bench.journal.totals, bench.journal.books()) == (proofs, before, books)
    assert before.paid.sessions == totals.paid.sessions + 1  # the one that `rows` opens


async def test_what_a_killed_run_left_is_tidied_at_the_next_start(bench: Bench) -> None:
    """Its sessions were not closed; what can be claimed stays."""
    await bench.session(2, 10, close=False)
    unused, free = Work(BOB, NODE), Work(BOB, NODE, price=0)
    for work in (unused, free):
        await bench.journal.open_session(work.session, work.signature)
    await bench.restart()
    assert await bench.rows() == (1, 1)
    assert [proof.voucher.total for proof in bench.journal.collectable()] == [10]


async def test_of_donated_work_the_largest_is_kept_until_its_claim_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MOST_DONATED", 4)
    epoch = bench.chain.now // EPOCH - 1
    for tokens in (5, 1, 9, 3, 7, 2, 8):
        work = Work(BOB, NODE, price=0, expiry=epoch * EPOCH + 5)
        await bench.journal.open_session(work.session, work.signature)
        work.step(tokens)
        await bench.journal.record(Entry(BOB.address, work.id, Credits(0), work.countersign(0)))
        bench.journal.close_session(work.id)
    assert await bench.rows() == (0, 4)
    kept = bench.journal.donated_sessions.donated(epoch * EPOCH, (epoch + 1) * EPOCH)
    assert sorted(one.newest.receipt.tokens for one in kept) == [5, 7, 8, 9]
    bench.chain.rate_of = 0  # none is paid for, so none is claimed
    await bench.settler.round()
    assert await bench.rows() == (0, 4)
    bench.chain.now += EPOCH
    await bench.settler.round()
    assert await bench.rows() == (0, 0)


async def test_claimed_work_stays_known_for_its_share(bench: Bench) -> None:
    epoch = bench.chain.now // EPOCH - 1
    work = Work(BOB, NODE, price=0, expiry=epoch * EPOCH + 5)
    await bench.journal.open_session(work.session, work.signature)
    work.step(5)
    await bench.journal.record(Entry(BOB.address, work.id, Credits(0), work.countersign(0)))
    bench.journal.close_session(work.id)
    await bench.settler.round()
    for _ in range(keeping.KNOWN_EPOCHS - 1):
        bench.chain.now += EPOCH
        await bench.settler.round()
    assert await bench.rows() == (0, 1)
    for _ in range(2):
        bench.chain.now += EPOCH
        await bench.settler.round()
    assert await bench.rows() == (0, 0)


async def test_a_settled_account_leaves_books_and_rows_after_a_thaws_time(bench: Bench) -> None:
    bench.chain.fund(ALICE.address, 1000)
    await bench.session(2, 300)
    await bench.settler.round()
    totals = bench.journal.totals
    await bench.wait(WORTHLESS_FOR)
    assert bench.journal.books(), "not before a whole thaw has gone by since it was first seen"
    await bench.wait(86_400)
    assert bench.journal.books() == {}
    assert await bench.rows() == (0, 0)
    assert replace(bench.journal.totals, paid=totals.paid) == totals, "what was earned stays told"
    await bench.restart()
    assert bench.journal.totals.settled == totals.settled
    # It comes back: what it owed is what the chain says was collected.
    bench.journal.observe(ALICE.address, Credits(300))
    assert bench.journal.book(ALICE.address).debt == 300
    await bench.session(2, 420)
    assert [proof.voucher.total for proof in bench.journal.collectable()] == [420]
    assert (bench.journal.totals.settled, bench.journal.totals.promised) == (300, 420)


async def test_what_can_be_claimed_is_never_forgotten(bench: Bench) -> None:
    """Empty now, but worth a settlement after a top-up; or worth little, but funded; or a session is open."""
    bench.chain.fund(signer(3).address, 1000)
    await bench.session(2, 50)
    await bench.session(3, 5)
    await bench.session(4, 5, close=False)
    await bench.wait(2 * WORTHLESS_FOR)
    assert sorted(proof.voucher.total for proof in bench.journal.collectable()) == [5, 5, 50]


async def test_one_look_that_finds_something_begins_the_time_anew(bench: Bench) -> None:
    """An endpoint that says `paid` for two days, then the truth, then again."""
    bench.chain.fund(ALICE.address, 1000)
    await bench.session(2, 300)
    truth = bench.chain.escrow[ALICE.address]
    lie = replace(truth, collected=Credits(300), confirmed=Credits(300))
    for told in (lie, truth, lie):
        bench.chain.escrow[ALICE.address] = told
        if told is truth:
            bench.chain.fail_before = 10**6  # it is not even settled
        await bench.wait(2 * 86_400) if told is lie else await _failing(bench)
        bench.chain.fail_before = 0
    assert bench.journal.book(ALICE.address).earned == 300
    await bench.restart()
    bench.chain.escrow[ALICE.address] = truth
    await bench.wait(1)
    assert bench.chain.escrow[ALICE.address].collected == 300


async def test_a_time_that_jumps_hastens_nothing(bench: Bench) -> None:
    """An endpoint that names a later time, a machine's clock that jumps ahead: each alone forgets nothing."""
    bench.chain.fund(ALICE.address, 1000)
    await bench.session(2, 300)
    bench.wall = float(bench.chain.now)
    await bench.wait(5 * WORTHLESS_FOR)
    assert bench.journal.books(), "by the clock no time has passed"
    bench.wall = float(10**9)
    await bench.wait(1)
    assert bench.journal.books() == {}, "both have"


async def _failing(bench: Bench) -> None:
    bench.clock += LOOK
    bench.chain.now += 1
    with pytest.raises(Exception, match="cannot be reached"):
        await bench.settler.round()


async def test_dust_costs_few_questions_and_leaves(bench: Bench) -> None:
    """162 accounts with a signed 1 wei: asked for at the looks at all alone, gone after a thaw's time."""
    dust = range(1000, 1162)
    for client in dust:
        bench.chain.fund(signer(client).address, 10)
        await bench.session(client, 1)
    asked: list[int] = []
    escrows = bench.chain.escrows

    async def counted(pairs: object) -> object:
        asked.append(len(pairs))  # type: ignore[arg-type]
        return await escrows(pairs)  # type: ignore[arg-type]

    bench.chain.escrows = counted  # type: ignore[method-assign, assignment]
    for _ in range(20):
        bench.clock += 2
        await bench.settler.round()
    assert sum(asked) == len(dust)
    for client in dust:
        bench.withdraw(client)
    await bench.wait(WORTHLESS_FOR + 86_400)
    assert bench.journal.books() == {}
    assert await bench.rows() == (0, 0)
    assert bench.journal.book(signer(1000).address) == Book()


async def test_who_comes_back_between_two_commits_keeps_its_new_row(bench: Bench) -> None:
    bench.journal.observe(ALICE.address, Credits(7))
    bench.journal.judge({ALICE.address: True}, 1)
    bench.journal.judge({ALICE.address: True}, 1 + WORTHLESS_FOR)
    bench.journal.observe(ALICE.address, Credits(8))
    await bench.restart()
    assert bench.journal.book(ALICE.address) == Book(collected=Credits(8))
