"""The journal keeps its word: highest vouchers, sums owed, proofs; over restarts, kill -9 and hostile files."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.contracts.errors import ConfigError, ProofError
from hivemint.contracts.ids import Address, Credits, SessionId, Step, Tokens
from hivemint.contracts.signed import Delegation
from hivemint.ledger.entries import Book, Entry
from hivemint.ledger.journal import Journal
from hivemint.ledger.store import StoreError, database_url
from hivemint.ledger.writer import JournalError
from support.promises import DOMAIN, Work, signer

NODE, ALICE, BOB = signer(1), signer(2), signer(3)


def opened(path: Path) -> Journal:
    return Journal.open(database_url(path / "journal.db"), DOMAIN, NODE.address)


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = opened(tmp_path)
    yield journal
    await journal.close()


def entry(work: Work, owed: int, total: int | None = None) -> Entry:
    receipt = work.receipt.receipt
    newest = None if total is None else work.countersign(total)
    return Entry(work.client.address, work.id, Credits(owed), newest, receipt.step, receipt.tokens)


async def begin(journal: Journal, work: Work) -> Work:
    assert await journal.open_session(work.session, work.signature) == work.id
    return work


async def test_a_restart_finds_what_was_recorded(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    work = await begin(journal, Work(ALICE, NODE, price=10))
    work.step(64)
    await journal.record(entry(work, owed=640, total=700))
    proof = journal.book(ALICE.address).newest
    await journal.close()

    journal = opened(tmp_path)
    assert journal.book(ALICE.address) == Book(Credits(700), Credits(640), proof)
    assert journal.book(BOB.address) == Book()
    assert journal.collectable() == [proof]
    totals = journal.totals
    assert (totals.paid.sessions, totals.paid.tokens_signed, totals.paid.countersigned) == (1, 64, 640)
    assert (totals.promised, totals.settled, totals.free.sessions) == (700, 0, 0)
    await journal.close()


async def test_books_change_before_the_commit(journal: Journal) -> None:
    """Two requests of one client in the same turn of the loop: the second one sees the first one's debt."""
    work = await begin(journal, Work(ALICE, NODE))
    first = asyncio.create_task(journal.record(entry(work, owed=10, total=10)))
    await asyncio.sleep(0)
    assert journal.book(ALICE.address).owed == 10
    await first


async def test_an_older_voucher_changes_no_total(journal: Journal) -> None:
    one, two = await begin(journal, Work(ALICE, NODE)), await begin(journal, Work(ALICE, NODE))
    one.step()
    two.step()
    await journal.record(entry(one, owed=20, total=50))
    await journal.record(entry(two, owed=30, total=40))
    book = journal.book(ALICE.address)
    assert (book.highest, book.owed) == (50, 30)
    assert book.newest is not None
    assert book.newest.receipt.receipt.session_id == one.id
    assert [proof.voucher.total for proof in journal.collectable()] == [50]


async def test_owing_more_than_promised_is_refused_and_changes_nothing(journal: Journal) -> None:
    work = await begin(journal, Work(ALICE, NODE))
    with pytest.raises(JournalError, match="owe more"):
        await journal.record(entry(work, owed=11, total=10))
    assert journal.book(ALICE.address) == Book()
    assert journal.totals.paid.tokens_countersigned == 0


async def test_foreign_entries_are_refused(journal: Journal) -> None:
    work = await begin(journal, Work(ALICE, NODE))
    with pytest.raises(JournalError, match="unknown session"):
        await journal.record(Entry(BOB.address, work.id, Credits(0)))
    with pytest.raises(JournalError, match="unknown session"):
        await journal.record(Entry(ALICE.address, SessionId(bytes(32)), Credits(0)))
    with pytest.raises(JournalError, match="another node"):
        await journal.open_session(Work(ALICE, BOB).session, work.signature)
    with pytest.raises(JournalError, match="open already"):
        await journal.open_session(work.session, work.signature)
    other = Work(ALICE, NODE)
    with pytest.raises(ProofError, match="disagree"):
        await journal.record(Entry(ALICE.address, work.id, Credits(0), other.countersign(10)))
    journal.close_session(work.id)
    with pytest.raises(JournalError, match="unknown session"):
        await journal.record(entry(work, owed=0))


async def test_the_chain_having_paid_more_than_known_raises_the_books(journal: Journal) -> None:
    """A restored disk: vouchers up to what the chain has paid are spent, and cannot pay for work again."""
    work = await begin(journal, Work(ALICE, NODE))
    await journal.record(entry(work, owed=80, total=100))
    journal.observe(ALICE.address, Credits(100))
    assert journal.book(ALICE.address).owed == 80  # the surplus of 20 still pays the next steps
    assert journal.collectable() == []
    journal.observe(ALICE.address, Credits(150))
    book = journal.book(ALICE.address)
    assert (book.highest, book.owed, book.newest) == (150, 130, None)
    journal.observe(BOB.address, Credits(70), "no room")
    assert journal.book(BOB.address) == Book(Credits(70), Credits(70), None, Credits(70), "no room")
    journal.observe(BOB.address, Credits(70))
    assert journal.book(BOB.address).reason == "no room"


async def test_free_sessions_wait_for_their_epoch(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    works = [await begin(journal, Work(ALICE, NODE, price=0, expiry=expiry)) for expiry in (99, 100, 150, 199, 200)]
    for work in works:
        work.step(5)
        await journal.record(entry(work, owed=0, total=0))
    paid = await begin(journal, Work(BOB, NODE, price=1, expiry=150))
    paid.step()
    await journal.record(entry(paid, owed=1, total=1))
    untouched = Work(ALICE, NODE, price=0, expiry=150)
    shown = Delegation(ALICE.address, ALICE.address, 10**9)
    await journal.open_session(untouched.session, untouched.signature, (shown, bytes(64)))
    await journal.close()

    journal = opened(tmp_path)
    found = journal.donated(100, 200)
    assert [bytes(one.newest.receipt.receipt.session_id) for one in found] == sorted(work.id for work in works[1:4])
    assert {one.work for one in found} == {75}
    assert {one.session.session_id(DOMAIN) for one in found} == {work.id for work in works[1:4]}
    journal.note_claims([works[2].id], "claimed")
    await journal.close()
    journal = opened(tmp_path)
    assert sorted(one.claim for one in journal.donated(100, 200)) == ["", "", "claimed"]
    assert (journal.totals.free.sessions, journal.totals.free.tokens_countersigned) == (6, 25)
    await journal.close()


class Model:
    """What the journal must agree with."""

    def __init__(self) -> None:
        self.highest, self.owed = 0, 0


actions = st.lists(
    st.tuples(
        st.integers(0, 2),  # session
        st.integers(0, 120),  # owed
        st.one_of(st.none(), st.integers(0, 120)),  # voucher's total
        st.booleans(),  # a step in between
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=actions)
async def test_highest_never_falls_and_owed_never_passes_it(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[int, int, int | None, bool]]
) -> None:
    path = tmp_path_factory.mktemp("journal")
    journal, model = opened(path), Model()
    works = [await begin(journal, Work(ALICE, NODE)) for _ in range(3)]
    for which, owed, total, stepping in actions:
        if stepping:
            works[which].step()
        highest = max(model.highest, total or 0)
        if owed > highest:
            with pytest.raises(JournalError):
                await journal.record(entry(works[which], owed, total))
        else:
            await journal.record(entry(works[which], owed, total))
            model.highest, model.owed = highest, owed
        book = journal.book(ALICE.address)
        assert (book.highest, book.owed) == (model.highest, model.owed)
        assert (book.newest.voucher.total if book.newest else 0) == model.highest
    before = journal.books(), journal.totals
    await journal.close()
    journal = opened(path)
    assert (journal.books(), journal.totals) == before
    await journal.close()


async def test_one_process_at_a_time(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="in use"):
        opened(tmp_path)
    other = Journal.open(database_url(tmp_path / "journal.db"), DOMAIN, BOB.address)  # another operator may share it
    await other.close()


async def test_a_doctored_file_is_noticed(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    work = await begin(journal, Work(ALICE, NODE))
    await journal.record(entry(work, owed=5, total=10))
    await journal.close()
    with sqlite3.connect(tmp_path / "journal.db") as raw:
        raw.execute("UPDATE accounts SET highest = ?", (f"{1000:029d}",))
    with pytest.raises(JournalError, match="damaged"):
        opened(tmp_path)


async def test_unusable_databases(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        opened(tmp_path)
    for url in ("nonsense", "oracle9://x", "postgresql+nodriver://x"):
        with pytest.raises(ConfigError, match="no database"):
            Journal.open(url, DOMAIN, NODE.address)
    with pytest.raises(StoreError, match="cannot be opened"):
        Journal.open("sqlite:////proc/nowhere/journal.db", DOMAIN, NODE.address)


async def test_the_file_is_for_its_owner_alone(journal: Journal, tmp_path: Path) -> None:
    await begin(journal, Work(ALICE, NODE))
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}  # noqa: ASYNC240


async def test_after_a_failed_write_nothing_is_acknowledged(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    work = await begin(journal, Work(ALICE, NODE))
    with sqlite3.connect(tmp_path / "journal.db") as raw:
        raw.execute("DROP TABLE accounts")
    with pytest.raises(JournalError, match="cannot be written"):
        await journal.record(entry(work, owed=1, total=1))
    with pytest.raises(JournalError, match="cannot be written"):
        await journal.record(entry(work, owed=2, total=2))
    with pytest.raises(JournalError, match="cannot be written"):
        await journal.close()


RECORDER = """
import asyncio, sys
from pathlib import Path
from hivemint.contracts.ids import Credits
from hivemint.ledger.entries import Entry
from hivemint.ledger.journal import Journal
from support.promises import DOMAIN, Work, signer

async def run(url):
    journal = Journal.open(url, DOMAIN, signer(1).address)
    async def client(number):
        work = Work(signer(number), signer(1), price=10)
        await journal.open_session(work.session, work.signature)
        for n in range(1, 10_000):
            entry = Entry(work.client.address, work.id, Credits(10 * n), work.countersign(10 * n))
            await journal.record(entry)
            print(number, 10 * n, flush=True)
            work.step()
    await asyncio.gather(*(client(number) for number in (2, 3, 4)))

asyncio.run(run(sys.argv[1]))
"""


@pytest.mark.parametrize("lines", [1, 40, 200])
async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, lines: int) -> None:
    """P11, with a real process: it prints each sum after `record` has returned, and is killed in the middle."""
    url = database_url(tmp_path / "journal.db")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(  # noqa: ASYNC220 - the test has nothing else to do
        [sys.executable, "-c", RECORDER, url], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    acknowledged: dict[Address, int] = {}
    for line in seen:
        if line.endswith("\n"):
            number, sum_owed = line.split()
            acknowledged[signer(int(number)).address] = int(sum_owed)
    assert acknowledged

    journal = opened(tmp_path)
    for client, owed in acknowledged.items():
        book = journal.book(client)
        assert owed <= book.owed <= owed + 10  # at most the one step that was being recorded
        assert book.highest == book.owed
    collectable = sum(proof.voucher.total for proof in journal.collectable())
    assert collectable == journal.totals.promised  # each counted once
    await journal.close()


def test_entries_default_to_nothing_signed() -> None:
    blank = Entry(ALICE.address, SessionId(bytes(32)), Credits(0))
    assert (blank.newest, blank.signed_step, blank.signed_tokens) == (None, Step(0), Tokens(0))
