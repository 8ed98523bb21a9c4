"""A wallet's promises: they rise with the debt alone, over processes and crashes, and no node talks them up."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import column, create_engine, table

from hivemint.ledger import store
from hivemint.ledger.books.promised import KEPT, Owing, PromiseLimit, PromiseStanding, Shown, UnprovenDebt
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.ledger.store.database import StoreError
from hivemint.protocol.eip712 import MAX_UINT96, Domain
from hivemint.protocol.ids import Credits
from support.promises import DOMAIN, GENESIS, signer

WALLET, NODE, OTHER = signer(2).address, signer(1).address, signer(3).address
HERE, ELSEWHERE = b"\1" * 32, b"\2" * 32
"""Digests of receipts that vouchers bind."""
MIGRATIONS = Path(store.__file__).parent / "migrations"


@pytest.fixture
def book(tmp_path: Path) -> Iterator[VoucherBook]:
    book = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET, GENESIS)
    yield book
    book.close()


def test_totals_count_all_sessions_with_a_node(book: VoucherBook) -> None:
    assert [book.promise(NODE, Credits(10)), book.promise(NODE, Credits(5)), book.promise(OTHER, Credits(1))] == [
        10,
        15,
        1,
    ]
    assert book.totals() == {NODE: (15, 15), OTHER: (1, 1)}


def test_what_was_not_delivered_pays_the_next_step(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))
    book.released(NODE, Credits(10))
    assert book.promise(NODE, Credits(4)) == 4
    assert book.total(NODE) == 10
    assert book.promise(NODE, Credits(7)) == 11
    assert book.total(NODE) == 11


def test_a_promise_is_stored_before_its_voucher_leaves(book: VoucherBook, tmp_path: Path) -> None:
    book.promise(NODE, Credits(10))
    second = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET, GENESIS)
    assert second.total(NODE) == 10
    assert second.promise(NODE, Credits(10)) == 20  # another process goes on where this one stands
    assert book.promise(NODE, Credits(10)) == 30
    second.close()


def test_wallets_and_networks_do_not_mix(book: VoucherBook, tmp_path: Path) -> None:
    book.promise(NODE, Credits(10))
    for domain, wallet in ((Domain(1, DOMAIN.settlement), WALLET), (Domain(31337, NODE), WALLET), (DOMAIN, OTHER)):
        other = VoucherBook.open(tmp_path / "vouchers.db", domain, wallet, GENESIS)
        assert other.total(NODE) == 0
        other.close()


def test_a_lost_file_goes_on_from_the_nodes_proof(book: VoucherBook) -> None:
    with pytest.raises(UnprovenDebt, match="never promised"):
        book.learn(NODE, Credits(90))
    book.learn(NODE, Credits(90), Shown(Credits(100), ELSEWHERE))
    assert book.totals() == {NODE: (100, 90)}
    assert book.promise(NODE, Credits(15)) == 105


def test_a_node_cannot_talk_a_debt_up(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))
    with pytest.raises(UnprovenDebt, match="never promised"):
        book.learn(NODE, Credits(11))
    assert book.totals() == {NODE: (10, 10)}
    book.delivered(NODE, Credits(10))
    book.learn(NODE, Credits(0))
    assert book.promise(NODE, Credits(10)) == 10


def test_an_answer_that_missed_a_request_forgives_nothing(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))  # in flight: the node has not seen it yet
    book.learn(NODE, Credits(0))
    assert book.promise(NODE, Credits(10)) == 20


def test_a_refused_step_proves_no_debt(book: VoucherBook) -> None:
    """Its voucher is this machine's own, whatever a node says of it; so are those of other processes of the machine."""
    (made,) = book.promise_all([Owing(NODE, Credits(10), HERE)])
    book.released(NODE, Credits(10))
    for receipt in (HERE, None):
        with pytest.raises(UnprovenDebt):
            book.learn(NODE, Credits(10), Shown(made.total, receipt))
    assert book.promise(NODE, Credits(10)) == 10, "it was signed before, so it pays the next step"
    book.countersigned(NODE, Credits(10), ELSEWHERE)  # the last voucher of a session
    book.released(NODE, Credits(10))
    with pytest.raises(UnprovenDebt):
        book.learn(NODE, Credits(10), Shown(Credits(10), ELSEWHERE))


def test_a_step_whose_fate_is_unknown_may_be_owed_once(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))
    book.delivered(NODE, Credits(10))  # its link died
    book.learn(NODE, Credits(0))
    assert book.promise(NODE, Credits(4)) == 4
    book.delivered(NODE, Credits(4))
    book.learn(NODE, Credits(14))
    with pytest.raises(UnprovenDebt):
        book.learn(NODE, Credits(15))
    assert book.promise(NODE, Credits(1)) == 15


def test_another_machine_is_known_by_its_voucher_even_at_the_same_total(book: VoucherBook) -> None:
    """Both stand at 80 and sign 90 at once: the node took the other's, and shows it."""
    book.learn(NODE, Credits(80), Shown(Credits(80), ELSEWHERE))
    book.promise_all([Owing(NODE, Credits(10), HERE)])
    book.released(NODE, Credits(10))
    book.learn(NODE, Credits(90), Shown(Credits(90), b"\7" * 32))
    assert book.promise(NODE, Credits(10)) == 100


def test_a_proof_of_less_proves_no_more(book: VoucherBook) -> None:
    """Another machine's voucher of 90 shows that 90 are owed, and no wei above."""
    book.promise(NODE, Credits(80))
    with pytest.raises(UnprovenDebt):
        book.learn(NODE, Credits(91), Shown(Credits(90), ELSEWHERE))
    assert book.standing(NODE).owed == 80
    book.learn(NODE, Credits(90), Shown(Credits(90), ELSEWHERE))


def test_another_machine_is_known_below_what_was_signed_here(book: VoucherBook) -> None:
    book.promise(NODE, Credits(80))
    book.delivered(NODE, Credits(80))
    book.promise_all([Owing(NODE, Credits(20), HERE), Owing(NODE, Credits(20), HERE)])  # 100 and 120 are in flight
    for _ in range(2):
        book.released(NODE, Credits(20))
    book.learn(NODE, Credits(90), Shown(Credits(90), ELSEWHERE))
    assert book.promise(NODE, Credits(20)) == 110


def test_what_the_chain_has_paid_proves_only_what_was_never_signed_here(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))
    book.released(NODE, Credits(10))  # and then the node has collected that voucher
    with pytest.raises(UnprovenDebt):
        book.learn(NODE, Credits(10), Shown(Credits(10)))
    book.learn(NODE, Credits(11), Shown(Credits(11)))
    assert book.promise(NODE, Credits(1)) == 12


def test_old_vouchers_count_as_signed_here(book: VoucherBook) -> None:
    for number in range(KEPT + 5):
        book.promise_all([Owing(NODE, Credits(1), bytes([number]) * 32)])
        book.released(NODE, Credits(1))
        book.promise(NODE, Credits(1))
        book.delivered(NODE, Credits(1))
    standing = book.standing(NODE)
    assert len(standing.signed) == KEPT * 20
    assert 0 < standing.floor < standing.total == KEPT + 5


def test_no_promise_passes_the_account_or_the_session(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))
    before = book.standing(NODE)
    for funded, room in ((14, None), (None, 4), (0, None)):
        limits = [None if one is None else Credits(one) for one in (funded, room)]
        with pytest.raises(PromiseLimit):
            book.promise_all([Owing(OTHER, Credits(1)), Owing(NODE, Credits(5), HERE, *limits)])
    assert (book.standing(NODE), book.total(OTHER)) == (before, 0), "all or none"
    (made,) = book.promise_all([Owing(NODE, Credits(5), funded=Credits(15), room=Credits(5))])
    assert (made.total, made.rise) == (15, 5)
    book.released(NODE, Credits(5))
    (made,) = book.promise_all([Owing(NODE, Credits(5), room=Credits(0))])
    assert (made.total, made.rise) == (15, 0), "what was signed before raises nothing"


def test_what_was_taken_back_was_never_signed(book: VoucherBook, tmp_path: Path) -> None:
    """And what another process has signed meanwhile stays."""
    second = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET, GENESIS)
    ours = book.promise_all([Owing(NODE, Credits(10), HERE)])
    second.promise(NODE, Credits(5))
    book.take_back(ours)
    assert book.totals() == {NODE: (15, 5)}
    second.released(NODE, Credits(5))
    again = book.promise_all([Owing(NODE, Credits(20), HERE)])
    book.take_back(again)
    assert second.totals() == {NODE: (15, 0)}
    second.close()


def test_books_are_of_one_chain(book: VoucherBook, tmp_path: Path) -> None:
    path, other = tmp_path / "vouchers.db", b"\7" * 32
    book.promise(NODE, Credits(10))
    with pytest.raises(StoreError, match="another chain") as caught:
        VoucherBook.open(path, DOMAIN, WALLET, other)
    assert "hivemint account new-books" in caught.value.next_step
    VoucherBook.open(path, DOMAIN, WALLET, other, begin_anew=True).close()
    anew = VoucherBook.open(path, DOMAIN, WALLET, other)  # said once, it holds
    assert anew.totals() == {NODE: (0, 0)}
    assert anew.promise(NODE, Credits(3)) == 3
    anew.close()
    assert book.totals() == {NODE: (10, 10)}
    VoucherBook.open(path, DOMAIN, OTHER, other).close()  # a wallet that was never here may come from anywhere


def test_rows_from_before_books_knew_their_chain_go_to_the_first(tmp_path: Path) -> None:
    path = tmp_path / "vouchers.db"
    old = VoucherBook.open(path, DOMAIN, WALLET, b"")
    old.promise(NODE, Credits(10))
    old.close()
    first = VoucherBook.open(path, DOMAIN, WALLET, GENESIS)
    assert first.totals() == {NODE: (10, 10)}
    first.close()
    with pytest.raises(StoreError, match="another chain"):
        VoucherBook.open(path, DOMAIN, WALLET, b"\7" * 32)


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    """All that it has signed counts as signed here, and as owed at most."""
    path = tmp_path / "vouchers.db"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        names = ("chain_id", "settlement", "client", "node", "total", "owed")
        old = table("promises", *(column(name) for name in names))
        values = (DOMAIN.chain_id, DOMAIN.settlement, WALLET, NODE, f"{100:029d}", f"{70:029d}")
        connection.execute(old.insert().values(dict(zip(names, values, strict=True))))
    engine.dispose()
    book = VoucherBook.open(path, DOMAIN, WALLET, GENESIS)
    assert book.standing(NODE) == PromiseStanding(owed=70, incurred=100, floor=100, total=100)
    with pytest.raises(UnprovenDebt):
        book.learn(NODE, Credits(101), Shown(Credits(100), ELSEWHERE))
    book.close()


def test_a_total_ends_at_96_bits(book: VoucherBook) -> None:
    assert book.promise(NODE, Credits(MAX_UINT96)) == MAX_UINT96
    with pytest.raises(PromiseLimit, match="cannot carry"):
        book.promise(NODE, Credits(1))
    assert book.total(NODE) == MAX_UINT96


def test_a_closed_book_says_so(tmp_path: Path) -> None:
    book = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET, GENESIS)
    book.close()
    with pytest.raises(StoreError, match="closed"):
        book.promise(NODE, Credits(1))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["promise", "released", "delivered"]), st.integers(0, 50)), max_size=20)
)
def test_the_total_is_the_highest_debt_ever(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    book = VoucherBook.open(tmp_path_factory.mktemp("vouchers") / "vouchers.db", DOMAIN, WALLET, GENESIS)
    owed = total = 0
    for name, amount in steps:
        getattr(book, name)(NODE, Credits(amount))
        owed = owed + amount if name == "promise" else max(0, owed - amount) if name == "released" else owed
        total = max(total, owed)
        assert book.totals().get(NODE, (0, 0)) == (total, owed)
    book.close()


SPENDER = """
import sys
from pathlib import Path
from hivemint.ledger.books.voucher_book import VoucherBook
from support.promises import DOMAIN, GENESIS, signer
book = VoucherBook.open(Path(sys.argv[1]), DOMAIN, signer(2).address, GENESIS)
for _ in range(200):
    print(book.promise(signer(1).address, 3))
"""


def test_processes_of_one_wallet_never_sign_one_total_twice(tmp_path: Path) -> None:
    path, environment = tmp_path / "vouchers.db", os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    spenders = [
        subprocess.Popen([sys.executable, "-c", SPENDER, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    totals = [int(line) for spender in spenders for line in spender.communicate()[0].split()]
    assert sorted(totals) == list(range(3, 1201, 3))
