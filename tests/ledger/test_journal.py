"""The journal keeps its word: sums owed and the proofs that carry them; over restarts, kill -9 and hostile files."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.ledger.books.entries import Book, Entry
from hivemint.ledger.books.journal import MOST_PROMISED, Journal
from hivemint.ledger.books.writer import JournalError, WriteFailed
from hivemint.ledger.store.database import StoreError, database_url
from hivemint.ledger.store.prepared import Prepared
from hivemint.protocol.eip712 import Delegation
from hivemint.protocol.errors import ConfigError, ProofError
from hivemint.protocol.ids import Address, Credits, SessionId, Step, Tokens
from hivemint.protocol.receipt import Countersigned
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
    receipt = work.receipt.body
    newest = None if total is None else work.countersign(total)
    return Entry(work.client.address, work.id, Credits(owed), newest, receipt.step, receipt.tokens)


async def begin(journal: Journal, work: Work) -> Work:
    assert await journal.open_session(work.session, work.signature) == work.id
    return work


def stored(journal: Journal) -> dict[Address, Book]:
    """What a restart must find: all but the vouchers that no receipt carries yet."""
    return {client: replace(book, promised=()) for client, book in journal.books().items()}


async def test_a_restart_finds_what_was_recorded(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    work = await begin(journal, Work(ALICE, NODE, price=10))
    work.step(64)
    await journal.record(entry(work, owed=640, total=640))
    proof = journal.book(ALICE.address).best
    assert proof is not None
    await journal.close()

    journal = opened(tmp_path)
    assert journal.book(ALICE.address) == Book(owed=Credits(640), proofs={ALICE.address: proof})
    assert journal.book(BOB.address) == Book()
    assert journal.collectable() == [proof]
    totals = journal.totals
    assert (totals.paid.sessions, totals.paid.tokens_signed, totals.paid.countersigned) == (1, 64, 640)
    assert (totals.promised, totals.settled, totals.donated.sessions) == (640, 0, 0)
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
    await journal.record(entry(one, owed=50, total=50))
    await journal.record(entry(two, owed=50, total=40))
    book = journal.book(ALICE.address)
    assert (book.earned, book.owed) == (50, 50)
    assert book.best is not None
    assert book.best.receipt.session_id == one.id
    assert [proof.voucher.total for proof in journal.collectable()] == [50]


async def test_the_highest_voucher_of_a_session_stays_stored(tmp_path: Path) -> None:
    """Its next step is paid by a surplus: a voucher with a lower total, over a newer receipt."""
    journal = opened(tmp_path)
    work = await begin(journal, Work(ALICE, NODE))
    work.step()
    await journal.record(entry(work, owed=50, total=50))
    work.step()
    await journal.record(entry(work, owed=50, total=40))
    await journal.close()
    journal = opened(tmp_path)
    (proof,) = journal.collectable()
    assert (proof.voucher.total, proof.receipt.step) == (50, 1)
    await journal.close()


async def test_two_sessions_may_store_their_steps_in_either_order(tmp_path: Path) -> None:
    """The voucher of one builds on the other's step, which is still under way: it waits until that much is owed."""
    journal = opened(tmp_path)
    one, two = await begin(journal, Work(ALICE, NODE)), await begin(journal, Work(ALICE, NODE))
    first, second = one.countersign(10), two.countersign(30)  # 10 for a step of one, then 20 for one of two
    journal.promise(first)
    journal.promise(second)
    await journal.record(Entry(ALICE.address, two.id, Credits(20), second))
    assert [pair.voucher.total for pair in journal.collectable()] == [10], "30 are not owed yet"
    journal.close_session(two.id)
    await journal.record(Entry(ALICE.address, one.id, Credits(30), first))
    assert journal.collectable() == [second], "an ended session's voucher too"
    journal.close_session(one.id)
    before = journal.books()
    assert not journal._open
    await journal.close()
    journal = opened(tmp_path)
    assert journal.books() == before
    await journal.close()


async def test_what_is_claimed_is_never_above_what_is_owed(journal: Journal) -> None:
    work = await begin(journal, Work(ALICE, NODE))
    await journal.record(entry(work, owed=10, total=2**96 - 1))
    assert journal.collectable() == []
    for number in range(2 * MOST_PROMISED):
        journal.promise(work.countersign(1000 + number))
    assert len(journal.book(ALICE.address).promised) == MOST_PROMISED
    assert journal.book(ALICE.address).promised[-1].voucher.total == 2**96 - 1, "the highest covers, and stays"
    journal.close_session(work.id)
    assert journal.books() == {ALICE.address: Book(owed=Credits(10))}
    assert not journal._open


async def test_a_session_without_a_step_leaves_no_book(journal: Journal) -> None:
    work = await begin(journal, Work(ALICE, NODE))
    journal.promise(work.countersign(10))
    journal.close_session(work.id)
    assert (journal.books(), len(journal._open)) == ({}, 0)


async def test_entries_that_do_not_hold_are_refused_and_change_nothing(journal: Journal) -> None:
    work = await begin(journal, Work(ALICE, NODE))
    with pytest.raises(JournalError, match="owe more"):
        await journal.record(entry(work, owed=11, total=10))
    assert journal.book(ALICE.address) == Book()
    assert journal.totals.paid.tokens_countersigned == 0
    await journal.record(entry(work, owed=10, total=10))
    with pytest.raises(JournalError, match="does not fall") as caught:
        await journal.record(entry(work, owed=9, total=10))
    assert not isinstance(caught.value, WriteFailed), "its session ends, not the node"
    assert journal.book(ALICE.address).owed == 10


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


async def test_the_chain_having_paid_more_than_known_is_spent(journal: Journal) -> None:
    """A restored disk: vouchers up to what the chain has paid are spent, and cannot pay for work again."""
    work = await begin(journal, Work(ALICE, NODE))
    await journal.record(entry(work, owed=80, total=80))
    journal.observe(ALICE.address, Credits(150))
    book = journal.book(ALICE.address)
    assert (book.owed, book.debt, book.open) == (80, 150, 0)
    assert journal.collectable() == []
    await journal.record(entry(work, owed=160, total=160))
    assert journal.book(ALICE.address).open == 10
    journal.observe(BOB.address, Credits(70), "no room")
    assert journal.book(BOB.address) == Book(collected=Credits(70), reason="no room")
    journal.observe(BOB.address, Credits(70))
    assert journal.book(BOB.address).reason == "no room"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(st.integers(0, 2**96 - 1), max_size=8), restart=st.booleans())
async def test_wrong_answers_of_the_chain_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory, answers: list[int], restart: bool
) -> None:
    """`collected` 901 once, then 0: every voucher that was not collected is still there, after a restart too."""
    path = tmp_path_factory.mktemp("journal")
    journal = opened(path)
    work = await begin(journal, Work(ALICE, NODE))
    work.step(90)
    await journal.record(entry(work, owed=900, total=900))
    before = journal.books()
    for answer in [*answers, 0]:
        journal.observe(ALICE.address, Credits(answer))
    if restart:
        await journal.close()
        journal = opened(path)
    assert journal.books() == before
    assert [pair.voucher.total for pair in journal.collectable()] == [900]
    with pytest.raises(JournalError, match="cannot have paid"):
        journal.observe(ALICE.address, Credits(2**96))
    await journal.close()


async def test_each_key_has_its_own_proof(tmp_path: Path) -> None:
    """A key that the chain does not pay any more takes nothing along of what another key has promised."""
    journal = opened(tmp_path)
    mine, other = Work(ALICE, NODE), Work(ALICE, NODE, key=signer(77))
    for work, sum_owed in ((mine, 10), (other, 30)):
        await begin(journal, work)
        await journal.record(entry(work, owed=sum_owed, total=sum_owed))
    assert [(pair.voucher.key, pair.voucher.total) for pair in journal.collectable()] == [
        (signer(77).address, 30),
        (ALICE.address, 10),
    ]
    before = journal.books()
    await journal.close()
    journal = opened(tmp_path)
    assert journal.books() == before
    await journal.close()


async def test_donated_sessions_wait_for_their_epoch(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    works = [await begin(journal, Work(ALICE, NODE, price=0, expiry=expiry)) for expiry in (99, 100, 150, 199, 200)]
    for work in works:
        work.step(5)
        await journal.record(entry(work, owed=0, total=0))
    paid = await begin(journal, Work(BOB, NODE, price=1, expiry=150))
    paid.step()
    await journal.record(entry(paid, owed=1, total=1))
    untouched = Work(ALICE, NODE, price=0, expiry=150)
    shown = Delegation(ALICE.address, ALICE.address, 10**9, paid=False)
    await journal.open_session(untouched.session, untouched.signature, (shown, bytes(64)))
    await journal.close()

    journal = opened(tmp_path)
    found = journal.donated_sessions.donated(100, 200)
    assert [bytes(one.newest.receipt.session_id) for one in found] == sorted(work.id for work in works[1:4])
    assert {one.work for one in found} == {75}
    assert {one.session.session_id(DOMAIN) for one in found} == {work.id for work in works[1:4]}
    journal.donated_sessions.note_claims([works[2].id], "claimed")
    await journal.close()
    journal = opened(tmp_path)
    assert sorted(one.claim for one in journal.donated_sessions.donated(100, 200)) == ["", "", "claimed"]
    assert (journal.totals.donated.sessions, journal.totals.donated.tokens_countersigned) == (6, 25)
    await journal.close()


moves = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "answer", "answer", "drop", "close", "reopen"]),
        st.integers(0, 2),  # session
        st.integers(1, 9),  # price
        st.integers(0, 40),  # how far the voucher runs ahead
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=moves)
async def test_sessions_of_one_wallet_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int, int, int]]
) -> None:
    """What is stored is what the receipts carry, to the wei, and a restart finds it."""
    path = tmp_path_factory.mktemp("journal")
    journal = opened(path)
    works = [await begin(journal, Work(ALICE, NODE)) for _ in range(3)]
    taken: dict[int, list[tuple[int, Countersigned]]] = {0: [], 1: [], 2: []}
    accepted = owed = best = 0
    seen: list[Countersigned] = []
    for move, which, price, ahead in script:
        work, mine = works[which], taken[which]
        if move == "take":
            accepted += price
            pair = work.countersign(accepted + ahead)
            journal.promise(pair)
            mine.append((price, pair))
            seen.append(pair)
        elif move == "answer" and mine:
            price, pair = mine.pop(0)
            owed += price
            work.step()
            receipt = work.receipt.body
            await journal.record(Entry(ALICE.address, work.id, Credits(owed), pair, receipt.step, receipt.tokens))
        elif move == "drop" and mine:
            accepted -= sum(price for price, _ in mine)
            mine.clear()
        elif move == "close" and not mine:
            journal.close_session(work.id)
            works[which] = await begin(journal, Work(ALICE, NODE))
        elif move == "reopen" and not any(taken.values()):
            await journal.close()
            journal = opened(path)
            works = [await begin(journal, Work(ALICE, NODE)) for _ in range(3)]
            seen = []
        best = max([best, *(pair.voucher.total for pair in seen if pair.voucher.total <= owed)])
        book = journal.book(ALICE.address)
        assert book.owed == owed
        assert book.earned <= owed
        waiting = [pair.voucher.total for pair in book.promised]
        assert book.earned == best or all(total > book.earned for total in waiting if total <= owed)
    for work in works:
        journal.close_session(work.id)
    before = stored(journal), journal.totals, journal.collectable()
    assert not journal._open
    await journal.close()
    journal = opened(path)
    assert (journal.books(), journal.totals, journal.collectable()) == before
    await journal.close()


async def test_one_process_at_a_time(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="in use"):
        opened(tmp_path)
    other = Journal.open(database_url(tmp_path / "journal.db"), DOMAIN, BOB.address)  # another operator may share it
    await other.close()


async def test_a_doctored_file_is_noticed(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    work = await begin(journal, Work(ALICE, NODE))
    await journal.record(entry(work, owed=10, total=10))
    await journal.close()
    for change, amount in (("sessions SET voucher_total", 1000), ("accounts SET owed", 9)):
        with sqlite3.connect(tmp_path / "journal.db") as raw:
            raw.execute(f"UPDATE {change} = ?", (f"{amount:029d}",))
        with pytest.raises(JournalError, match="damaged"):
            opened(tmp_path)
        with sqlite3.connect(tmp_path / "journal.db") as raw:
            raw.execute(f"UPDATE {change} = ?", (f"{10:029d}",))
    await opened(tmp_path).close()


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
    with pytest.raises(WriteFailed, match="cannot be written"):
        await journal.record(entry(work, owed=1, total=1))
    with pytest.raises(WriteFailed, match="cannot be written"):
        await journal.record(entry(work, owed=2, total=2))
    with pytest.raises(WriteFailed, match="cannot be written"):
        await journal.close()


async def test_an_error_that_nobody_foresaw_stops_the_writer_and_all_who_wait_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)
    works = [await begin(journal, Work(signer(number), NODE)) for number in (2, 3, 4)]

    def broken(*_: object) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr(Prepared, "run", broken)
    async with asyncio.timeout(10):
        told = await asyncio.gather(*(journal.record(entry(work, 1, 1)) for work in works), return_exceptions=True)
        assert [type(error) for error in told] == [WriteFailed] * 3
        assert "zip()" in str(told[0])
        with pytest.raises(WriteFailed):
            journal.observe(ALICE.address, Credits(1))
        with pytest.raises(WriteFailed):
            await journal.close()
    assert not journal._writer._thread.is_alive()


FIRST, SECOND = b"\x01" * 32, b"\x02" * 32


async def test_books_are_of_one_chain(tmp_path: Path) -> None:
    """A chain of the same id and contracts that began anew: told, and begun anew only by the user's word."""
    url = database_url(tmp_path / "journal.db")
    journal = Journal.open(url, DOMAIN, NODE.address, FIRST)
    work = await begin(journal, Work(ALICE, NODE))
    await journal.record(entry(work, owed=10, total=10))
    await journal.close()
    with pytest.raises(JournalError, match=r"another chain.*--new-books"):
        Journal.open(url, DOMAIN, NODE.address, SECOND)
    journal = Journal.open(url, DOMAIN, NODE.address, SECOND, begin_anew=True)
    assert (journal.books(), journal.collectable()) == ({}, [])
    await journal.close()
    for genesis, count in ((SECOND, 0), (FIRST, 1)):
        journal = Journal.open(url, DOMAIN, NODE.address, genesis)  # both are known now, and the old rows stayed
        assert len(journal.collectable()) == count
        await journal.close()


RECORDER = """
import asyncio, sys
from pathlib import Path
from hivemint.protocol.ids import Credits
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
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
    with process.stdout as told:
        seen = [told.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        seen += told.readlines()
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
        assert book.earned == book.owed
    collectable = sum(proof.voucher.total for proof in journal.collectable())
    assert collectable == journal.totals.promised  # each counted once
    await journal.close()


def test_entries_default_to_nothing_signed() -> None:
    blank = Entry(ALICE.address, SessionId(bytes(32)), Credits(0))
    assert (blank.newest, blank.signed_step, blank.signed_tokens) == (None, Step(0), Tokens(0))
