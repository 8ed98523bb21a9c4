"""A wallet's promises: they rise with the debt alone, over processes and crashes, and no node talks them up."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.contracts.errors import ProofError
from hivemint.contracts.ids import Credits
from hivemint.contracts.signed import MAX_UINT96, Domain
from hivemint.ledger.store import StoreError
from hivemint.ledger.vouchers import VoucherBook
from support.promises import DOMAIN, signer

WALLET, NODE, OTHER = signer(2).address, signer(1).address, signer(3).address


@pytest.fixture
def book(tmp_path: Path) -> Iterator[VoucherBook]:
    book = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET)
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
    assert book.promise(NODE, Credits(4)) == 10
    assert book.promise(NODE, Credits(7)) == 11
    assert book.total(NODE) == 11


def test_a_promise_is_stored_before_its_voucher_leaves(book: VoucherBook, tmp_path: Path) -> None:
    book.promise(NODE, Credits(10))
    second = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET)
    assert second.total(NODE) == 10
    assert second.promise(NODE, Credits(10)) == 20  # another process goes on where this one stands
    assert book.promise(NODE, Credits(10)) == 30
    second.close()


def test_wallets_and_networks_do_not_mix(book: VoucherBook, tmp_path: Path) -> None:
    book.promise(NODE, Credits(10))
    for domain, wallet in ((Domain(1, DOMAIN.settlement), WALLET), (Domain(31337, NODE), WALLET), (DOMAIN, OTHER)):
        other = VoucherBook.open(tmp_path / "vouchers.db", domain, wallet)
        assert other.total(NODE) == 0
        other.close()


def test_a_lost_file_goes_on_from_the_nodes_proof(book: VoucherBook) -> None:
    with pytest.raises(ProofError, match="never promised"):
        book.standing(NODE, owed=Credits(90))
    book.standing(NODE, owed=Credits(90), proven=Credits(100))
    assert book.promise(NODE, Credits(15)) == 105


def test_a_node_cannot_talk_a_debt_up(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))
    with pytest.raises(ProofError, match="never promised"):
        book.standing(NODE, owed=Credits(11))
    assert book.totals() == {NODE: (10, 10)}
    book.delivered(NODE, Credits(10))
    book.standing(NODE, owed=Credits(0))
    assert book.promise(NODE, Credits(10)) == 10


def test_an_answer_that_missed_a_request_forgives_nothing(book: VoucherBook) -> None:
    book.promise(NODE, Credits(10))  # in flight: the node has not seen it yet
    book.standing(NODE, owed=Credits(0))
    assert book.promise(NODE, Credits(10)) == 20


def test_a_total_ends_at_96_bits(book: VoucherBook) -> None:
    assert book.promise(NODE, Credits(MAX_UINT96)) == MAX_UINT96
    with pytest.raises(ProofError, match="cannot carry"):
        book.promise(NODE, Credits(1))
    assert book.total(NODE) == MAX_UINT96


def test_a_closed_book_says_so(tmp_path: Path) -> None:
    book = VoucherBook.open(tmp_path / "vouchers.db", DOMAIN, WALLET)
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
    book = VoucherBook.open(tmp_path_factory.mktemp("vouchers") / "vouchers.db", DOMAIN, WALLET)
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
from hivemint.ledger.vouchers import VoucherBook
from support.promises import DOMAIN, signer
book = VoucherBook.open(Path(sys.argv[1]), DOMAIN, signer(2).address)
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
