"""One session's rules, without any network: random clients, honest and not, against a model of what must hold."""

import secrets
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.contracts.ids import (
    BACKWARD,
    FORK,
    FORWARD,
    Address,
    BlockIndex,
    Credits,
    Digest,
    Head,
    ModelId,
    Step,
    TensorHash,
)
from hivemint.contracts.receipt import (
    CheckedReceipt,
    CheckedVoucher,
    Leaf,
    following,
    opening,
    sign_receipt,
    sign_voucher,
)
from hivemint.contracts.signed import Session
from hivemint.ledger.entries import Book
from hivemint.node.account import Account
from hivemint.node.scheduler import Job
from hivemint.node.session import Again, ServedSession, TakenStep
from hivemint.swarm.messages import Code, Refused, StepReceipt, StepRequest
from support.promises import DOMAIN, signer

NODE, CLIENT = signer(71), signer(72)
PRICE = 10


class Books:
    """The journal's mirror: what was entered counts at once."""

    def __init__(self) -> None:
        self.books: dict[Address, Book] = {}

    def __call__(self, client: Address) -> Book:
        return self.books.get(client, Book())

    def enter(self, account: Account, step: TakenStep, price: int) -> None:
        total = max(self(account.client).highest, step.pair.voucher.total)
        self.books[account.client] = Book(Credits(total), account.entered(price), step.pair)


def make(
    price: int = PRICE, ahead: int = 2, books: Books | None = None, account: Account | None = None, **changes: Any
) -> Any:
    books = books or Books()
    fields: dict[str, Any] = {
        "client": CLIENT.address, "session_key": CLIENT.address, "node": NODE.address, "peer_id_hash": b"\x01" * 32,
        "model_id": ModelId(b"\x02" * 32), "numerics": b"\x03" * 32, "first_block": BlockIndex(0),
        "end_block": BlockIndex(2), "price": Credits(price), "max_amount": Credits(10**6), "max_tokens": 64,
        "expiry": 2**40, "nonce": secrets.token_bytes(32),
    }  # fmt: skip
    terms = Session(**fields | changes)
    session_id = terms.session_id(DOMAIN)
    receipt = sign_receipt(DOMAIN, opening(NODE.address, CLIENT.address, session_id), NODE)
    account = account or Account(CLIENT.address, books)
    return ServedSession(terms, session_id, account, ahead, 16, 8, receipt), books


def voucher(receipt: CheckedReceipt, total: int) -> CheckedVoucher:
    return sign_voucher(DOMAIN, receipt, Credits(total), CLIENT)


def request(
    session: ServedSession, number: int, start: int, count: int, bound: CheckedReceipt, total: int,
    kind: int = FORWARD,
) -> StepRequest:  # fmt: skip
    return StepRequest(Step(number), kind, start, count, voucher(bound, total).signed)


def answer(session: ServedSession, step: TakenStep) -> CheckedReceipt:
    """What steps.py does once the device is done."""
    session.seal(step)
    hashes = TensorHash(secrets.token_bytes(32)), TensorHash(secrets.token_bytes(32))
    made = step.request
    leaf = Leaf(session.receipt.receipt.head, made.step, made.kind, made.start, made.count, *hashes)
    receipt = sign_receipt(DOMAIN, following(session.receipt.receipt, leaf), NODE)
    session.answer(step, receipt, StepReceipt(receipt.signed, b"", session.account.highest, session.account.owed))
    return receipt


def take(session: ServedSession, books: Books, made: StepRequest) -> TakenStep | Refused | Again:
    verdict = session.judge(made)
    if verdict is not None:
        return verdict
    bound = session.bound_step(made.voucher.voucher.receipt)
    assert bound is not None
    step = session.take(made, voucher(session.receipts[bound], made.voucher.voucher.total))
    books.enter(session.account, step, step.price)
    return step


moves = st.lists(
    st.tuples(
        st.sampled_from(["step", "back", "once", "answer", "cancel", "fail", "repeat", "skip", "cheap", "old"]),
        st.integers(1, 6),
        st.integers(0, 3),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(moves, st.integers(1, 4))
def test_no_number_is_signed_twice_and_owed_is_never_above_the_promise(
    script: list[tuple[str, int, int]], ahead: int
) -> None:
    """P14, P16: whatever comes in whatever order."""
    session, books = make(ahead=ahead)
    signed: dict[Step, Head] = {}
    total = 0

    def covering(count: int) -> int:
        return int(session.account.owed) + count * PRICE

    for move, count, back in script:
        start = max(0, session.length - back)
        if move in ("back", "once"):  # a whole sequence backward, each position paid twice or only once
            total = covering(count * (2 if move == "back" else 1))
            before, length = session.account.owed, session.length
            surplus = session.account.highest - before
            got = take(session, books, request(session, session.last + 1, 0, count, session.receipt, total, BACKWARD))
            assert session.length == length, "keys and values are not touched"
            if isinstance(got, Refused):
                assert session.account.owed == before
            else:
                assert move == "back" or surplus >= 2 * count * PRICE
                assert session.account.owed == before + 2 * count * PRICE
        elif move in ("step", "skip", "cheap", "old"):
            number = session.last + (2 if move == "skip" else 1)
            bound = session.receipt if move != "old" else session.receipts[min(session.receipts)]
            total = covering(count) - (1 if move == "cheap" else 0)
            before, length = session.account.owed, session.length
            got = take(session, books, request(session, number, start, count, bound, total))
            if isinstance(got, Refused):
                assert (session.account.owed, session.length) == (before, length), "a refusal changes nothing"
            else:
                assert isinstance(got, TakenStep)
                assert move not in ("skip",)
                assert session.account.owed == before + count * PRICE
        elif move == "answer" and session.pending:
            step = session.pending[0]
            receipt = answer(session, step)
            assert step.number not in signed
            signed[step.number] = receipt.receipt.head
        elif move == "cancel":
            for step in session.drop(Step(max(1, session.last - back))):
                books.enter(session.account, step, -step.price)
        elif move == "fail" and session.pending:
            for step in session.drop(session.pending[0].number, begun=True):
                books.enter(session.account, step, -step.price)
        elif move == "repeat" and session.steps:
            kept = session.steps[max(session.steps)]
            assert isinstance(session.judge(kept.request), Again)
        assert session.account.owed <= session.account.highest or session.account.owed == 0
        assert len(session.pending) <= ahead
        assert session.spent == sum(s.price for s in session.pending) + PRICE * session.receipt.receipt.tokens
    assert sorted(signed) == list(range(1, len(signed) + 1))


def test_a_number_that_was_sealed_cannot_be_sealed_or_dropped_again() -> None:
    session, books = make()
    step = take(session, books, request(session, 1, 0, 4, session.receipt, 40))
    assert isinstance(step, TakenStep)
    session.seal(step)
    assert session.drop(Step(1), begun=True) == []
    with pytest.raises(RuntimeError, match="twice"):
        session.seal(step)


def test_two_sessions_share_one_account_and_the_highest_voucher_counts() -> None:
    one, books = make()
    two, _ = make(books=books, account=one.account)
    assert isinstance(take(one, books, request(one, 1, 0, 4, one.receipt, 40)), TakenStep)
    refused = take(two, books, request(two, 1, 0, 4, two.receipt, 40))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.owed, refused.highest) == (Code.VOUCHER, 40, 40)
    assert isinstance(take(two, books, request(two, 1, 0, 4, two.receipt, 80)), TakenStep)
    lower = take(one, books, request(one, 2, 4, 1, one.receipt, 50))
    assert isinstance(lower, Refused), "80 are owed already"
    assert one.account.needed(0) == 80 + 2 * (10**6 - 40)
    one.close(Code.EXPIRY, "over")
    assert one.account.needed(0) == 80 + 10**6 - 40


def test_a_voucher_must_bind_a_receipt_not_older_than_ahead() -> None:
    session, books = make(ahead=2)
    first = session.receipt
    for number in range(1, 4):
        step = take(session, books, request(session, number, number - 1, 1, session.receipt, number * PRICE))
        assert isinstance(step, TakenStep)
        answer(session, step)
    stale = take(session, books, request(session, 4, 3, 1, first, 40))
    assert isinstance(stale, Refused)
    assert stale.code is Code.VOUCHER
    foreign, _ = make()
    other = take(session, books, request(session, 4, 3, 1, foreign.receipt, 40))
    assert isinstance(other, Refused)
    assert other.code is Code.VOUCHER


def test_a_crop_goes_back_and_tokens_still_grow() -> None:
    session, books = make()
    step = take(session, books, request(session, 1, 0, 8, session.receipt, 80))
    assert isinstance(step, TakenStep)
    answer(session, step)
    step = take(session, books, request(session, 2, 3, 2, session.receipt, 100))
    assert isinstance(step, TakenStep)
    assert answer(session, step).receipt.tokens == 10
    assert session.length == 5
    gap = take(session, books, request(session, 3, 6, 1, session.receipt, 110))
    assert isinstance(gap, Refused)
    assert (gap.code, gap.cached) == (Code.GAP, 5)
    session.evicted()
    gap = take(session, books, request(session, 3, 5, 1, session.receipt, 110))
    assert isinstance(gap, Refused)
    assert gap.cached == 0


def test_a_crop_that_never_began_leaves_the_cache_as_it_was() -> None:
    session, books = make()
    for number, start, count in ((1, 0, 8), (2, 3, 2)):
        step = take(session, books, request(session, number, start, count, session.receipt, 100))
        assert isinstance(step, TakenStep)
        if number == 1:
            answer(session, step)
    assert session.length == 5
    session.drop(Step(2))
    assert session.length == 8
    step = take(session, books, request(session, 2, 3, 2, session.receipt, 100))
    assert isinstance(step, TakenStep)
    step.job = Job(session.lane, "flow", "session", 2, started_at=1.0)
    session.drop(Step(2), begun=True)
    assert session.length == 3, "the device may have written from there on"


def test_a_fork_costs_nothing_and_is_never_taken_back_while_its_rows_are_copied() -> None:
    parent, books = make()
    step = take(parent, books, request(parent, 1, 0, 8, parent.receipt, 80))
    assert isinstance(step, TakenStep)
    answer(parent, step)
    child, _ = make(books=books, account=parent.account)
    asked = StepRequest(
        Step(1), FORK, 0, 8, voucher(child.receipt, 80).signed, parent=Digest(parent.receipt.receipt.head)
    )
    assert child.parent(asked) is parent
    fork = take(child, books, asked)
    assert isinstance(fork, TakenStep)
    assert (fork.price, child.spent, child.length, parent.account.owed) == (0, 0, 8, 80)
    assert child.drop(Step(1)) == []
    assert child.drop(Step(1), begun=True) == [fork]
    assert (child.length, child.last, parent.account.owed) == (0, 0, 80)
    for end in (parent.evicted, lambda: parent.close(Code.EXPIRY, "over")):
        end()
        gap = take(child, books, asked)
        assert isinstance(gap, Refused)
        assert (gap.code, gap.cached) == (Code.GAP, 0)


@pytest.mark.parametrize("start", [6, 64, 2**31, 2**63 - 1])
def test_a_start_beyond_the_cache_is_a_gap_with_the_cached_length(start: int) -> None:
    session, books = make()
    step = take(session, books, request(session, 1, 0, 5, session.receipt, 50))
    assert isinstance(step, TakenStep)
    for number in (2, 3):
        gap = take(session, books, request(session, number, start, 1, session.receipt, 10**5))
        assert isinstance(gap, Refused)
        assert gap.code is (Code.GAP if number == 2 else Code.STEP)
        assert (gap.cached, gap.owed) == (5, 50)


@pytest.mark.parametrize(
    ("changes", "made", "code"),
    [
        ({}, {"count": 17}, Code.LIMIT),
        ({}, {"start": 0, "count": 16, "max": True}, Code.LIMIT),
        ({"max_amount": Credits(30)}, {"count": 4}, Code.LIMIT),
        ({"price": 0}, {"count": 4, "total": 5}, Code.VOUCHER),
    ],
)
def test_limits(changes: dict[str, Any], made: dict[str, Any], code: Code) -> None:
    if "max" in made:
        changes = {"max_tokens": 8}
    session, books = make(**{"price": PRICE, **changes})
    got = take(session, books, request(session, 1, 0, made["count"], session.receipt, made.get("total", 1000)))
    assert isinstance(got, Refused)
    assert got.code is code
    session.close(Code.THAWING, "the account is thawing")
    closed = take(session, books, request(session, 1, 0, 1, session.receipt, 10))
    assert isinstance(closed, Refused)
    assert closed.code is Code.THAWING
