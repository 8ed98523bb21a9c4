"""One session's rules, without any network: random clients, honest and not, against a model of what must hold."""

from collections.abc import AsyncIterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.node.engine.scheduler import Job
from hivemint.node.sessions.session import TakenStep
from hivemint.node.sessions.steps.checks import Again, judge
from hivemint.protocol.ids import BACKWARD, FORK, Credits, Digest, Head, Step
from hivemint.swarm.messages import Code, Refused
from support.promises import signer
from support.served import PRICE, Desk


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    yield made
    await made.journal.close()


moves = st.lists(
    st.tuples(
        st.sampled_from(["step", "back", "once", "answer", "cancel", "fail", "repeat", "skip", "cheap", "old"]),
        st.integers(1, 6),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves, st.integers(1, 4))
async def test_no_number_is_signed_twice_and_owed_is_never_above_the_promise(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int, int]], ahead: int
) -> None:
    """P14, P16: whatever comes in whatever order."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    session = await desk.session(ahead=ahead)
    account = session.account
    signed: dict[Step, Head] = {}

    for move, count, back in script:
        start, before = max(0, session.length - back), account.owed
        if move in ("back", "once"):  # a whole sequence backward, each position paid twice or only once
            total = int(before) + count * PRICE * (2 if move == "back" else 1)
            length, surplus = session.length, account.cover - before
            got = desk.asked(session, count, total, start=0, kind=BACKWARD)
            assert session.length == length, "keys and values are not touched"
            if isinstance(got, Refused):
                assert account.owed == before
            else:
                assert move == "back" or surplus >= 2 * count * PRICE
                assert account.owed == before + 2 * count * PRICE
        elif move in ("step", "skip", "cheap", "old"):
            number = session.last + (2 if move == "skip" else 1)
            bound = session.receipt if move != "old" else session.receipts[min(session.receipts)]
            total, length = int(before) + count * PRICE - (1 if move == "cheap" else 0), session.length
            got = desk.asked(session, count, total, start=start, step=number, bound=bound)
            if isinstance(got, Refused):
                assert (account.owed, session.length) == (before, length), "a refusal changes nothing"
            else:
                assert isinstance(got, TakenStep)
                assert move not in ("skip",)
                assert account.owed == before + count * PRICE
        elif move == "answer" and session.pending:
            step = session.pending[0]
            receipt = await desk.answer(session, step)
            assert step.number not in signed
            signed[step.number] = receipt.head
        elif move == "cancel":
            await desk.drop(session, Step(max(1, session.last - back)))
        elif move == "fail" and session.pending:
            await desk.drop(session, session.pending[0].number, begun=True)
        elif move == "repeat" and session.steps:
            kept = session.steps[max(session.steps)]
            assert isinstance(judge(session, kept.request), Again)
        assert account.owed <= account.cover or account.owed == 0
        assert len(session.pending) <= ahead
        assert session.spent == sum(s.price for s in session.pending) + PRICE * session.receipt.tokens
        assert desk.journal.book(account.client).owed == PRICE * session.receipt.tokens
    assert sorted(signed) == list(range(1, len(signed) + 1))
    await desk.journal.close()


async def test_a_number_that_was_sealed_cannot_be_sealed_or_dropped_again(desk: Desk) -> None:
    session = await desk.session()
    step = desk.asked(session, 4, 40)
    assert isinstance(step, TakenStep)
    session.seal(step)
    assert session.drop(Step(1), begun=True) == []
    with pytest.raises(RuntimeError, match="twice"):
        session.seal(step)


async def test_two_sessions_share_one_account_and_the_highest_voucher_counts(desk: Desk) -> None:
    one, two = await desk.session(), await desk.session()
    assert isinstance(desk.asked(one, 4, 40), TakenStep)
    refused = desk.asked(two, 4, 40)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.owed) == (Code.VOUCHER, 40)
    assert isinstance(desk.asked(two, 4, 80), TakenStep)
    lower = desk.asked(one, 1, 50, start=4)
    assert isinstance(lower, Refused), "80 are owed already"
    assert one.account.needed(0) == 80 + 2 * (10**6 - 40)
    one.close(Code.EXPIRY, "over")
    assert one.account.needed(0) == 80 + 10**6 - 40
    free = await desk.session(price=0)
    assert free.account.needed(0) == 80 + 10**6 - 40, "a donated session spends nothing"


async def test_another_request_for_a_step_that_was_taken_is_a_conflict(desk: Desk) -> None:
    session = await desk.session()
    step = desk.asked(session, 2, 20)
    assert isinstance(step, TakenStep)
    await desk.answer(session, step)
    assert isinstance(judge(session, step.request), Again)
    for changes in ({"count": 3}, {"rows": "all"}):
        refused = judge(session, msgspec.structs.replace(step.request, **changes))
        assert isinstance(refused, Refused)
        assert refused.code is Code.CONFLICT


async def test_no_more_steps_are_in_flight_than_the_node_takes(desk: Desk) -> None:
    session = await desk.session(ahead=2)
    for number in (1, 2):
        assert isinstance(desk.asked(session, 1, number * PRICE), TakenStep)
    refused = desk.asked(session, 1, 3 * PRICE)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.owed) == (Code.STEP, 2 * PRICE)


async def test_a_voucher_must_bind_a_receipt_not_older_than_ahead(desk: Desk) -> None:
    session = await desk.session(ahead=2)
    first = session.receipt
    for number in range(1, 4):
        step = desk.asked(session, 1, number * PRICE)
        assert isinstance(step, TakenStep)
        await desk.answer(session, step)
    stale = desk.asked(session, 1, 40, bound=first)
    assert isinstance(stale, Refused)
    assert stale.code is Code.VOUCHER
    foreign = await desk.session()
    other = desk.asked(session, 1, 40, bound=foreign.receipt)
    assert isinstance(other, Refused)
    assert other.code is Code.VOUCHER


async def test_a_crop_goes_back_and_tokens_still_grow(desk: Desk) -> None:
    session = await desk.session()
    step = desk.asked(session, 8, 80)
    assert isinstance(step, TakenStep)
    await desk.answer(session, step)
    step = desk.asked(session, 2, 100, start=3)
    assert isinstance(step, TakenStep)
    assert (await desk.answer(session, step)).tokens == 10
    assert session.length == 5
    gap = desk.asked(session, 1, 110, start=6)
    assert isinstance(gap, Refused)
    assert (gap.code, gap.cached) == (Code.GAP, 5)
    session.evicted()
    gap = desk.asked(session, 1, 110, start=5)
    assert isinstance(gap, Refused)
    assert gap.cached == 0


async def test_an_answered_step_keeps_no_rows(desk: Desk) -> None:
    """It stays until its client has countersigned; a prompt's rows would be megabytes."""
    session = await desk.session()
    step = desk.asked(session, 4, 40)
    assert isinstance(step, TakenStep)
    step.job = Job(session.lane, "flow", "session", 4)
    await desk.answer(session, step)
    assert step.job is None
    assert step.fed, "its seat counts it as busy to its end"


async def test_a_crop_that_never_began_leaves_the_cache_as_it_was(desk: Desk) -> None:
    session = await desk.session()
    for start, count, total in ((0, 8, 80), (3, 2, 100)):
        step = desk.asked(session, count, total, start=start)
        assert isinstance(step, TakenStep)
        if not start:
            await desk.answer(session, step)
    assert session.length == 5
    session.drop(Step(2))
    assert session.length == 8
    step = desk.asked(session, 2, 100, start=3)
    assert isinstance(step, TakenStep)
    step.job = Job(session.lane, "flow", "session", 2, started_at=1.0)
    session.drop(Step(2), begun=True)
    assert session.length == 3, "the device may have written from there on"


async def test_a_fork_costs_nothing_and_is_never_taken_back_while_its_rows_are_copied(desk: Desk) -> None:
    parent = await desk.session()
    step = desk.asked(parent, 8, 80)
    assert isinstance(step, TakenStep)
    await desk.answer(parent, step)
    child = await desk.session()
    asked = desk.request(child, 8, 80, kind=FORK, parent=Digest(parent.receipt.head))
    found = child.parent(asked)
    assert found is not None
    assert (found.session, found.receipt, found.length) == (parent, parent.receipt, 8)
    fork = desk.take(child, asked)
    assert isinstance(fork, TakenStep)
    assert (fork.price, child.spent, child.length, parent.account.owed) == (0, 0, 8, 80)
    assert child.drop(Step(1)) == []
    assert child.drop(Step(1), begun=True) == [fork]
    assert (child.length, child.last, parent.account.owed) == (0, 0, 80)
    for end in (parent.evicted, lambda: parent.close(Code.EXPIRY, "over")):
        end()
        gap = desk.take(child, asked)
        assert isinstance(gap, Refused)
        assert (gap.code, gap.cached) == (Code.GAP, 0)


async def test_a_parked_session_reserves_nothing_and_serves_its_own_key_alone(desk: Desk) -> None:
    """N13: what it may still spend is free again, nothing runs ahead for its sake, and no step is taken of it."""
    parent, account = await desk.session(), desk.account()
    step = desk.asked(parent, 8, 80)
    assert isinstance(step, TakenStep)
    await desk.answer(parent, step)
    assert account.needed(0) > 80
    parent.park()
    assert (account.needed(0), account.reach(Credits(500)), account.owed) == (80, 500, 80)
    late = desk.asked(parent, 1, 90)
    assert isinstance(late, Refused)
    assert late.code is Code.MISSING
    stranger = await desk.session(key=signer(73))
    gap = desk.take(stranger, desk.request(stranger, 8, 80, kind=FORK, parent=Digest(parent.receipt.head)))
    assert isinstance(gap, Refused)
    assert (gap.code, gap.cached) == (Code.GAP, 0)
    child, late_child = await desk.session(), await desk.session()
    fork = desk.take(child, desk.request(child, 8, 80, kind=FORK, parent=Digest(parent.receipt.head)))
    assert isinstance(fork, TakenStep)
    assert (fork.price, account.owed) == (0, 80)
    parent.forget()
    gap = desk.take(late_child, desk.request(late_child, 8, 80, kind=FORK, parent=Digest(parent.receipt.head)))
    assert isinstance(gap, Refused)
    assert gap.code is Code.GAP


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(["step", "fail", "answer"]), st.integers(1, 5), st.integers(0, 4)), max_size=25)
)
async def test_what_the_cache_still_has_of_an_older_receipt(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int, int]]
) -> None:
    """Beside a model of the cache: crops, and failed steps that had begun, write over what earlier receipts tell of."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    session, rows, fresh = await desk.session(ahead=4), list[int](), iter(range(10_000))
    about: dict[Step, list[int]] = {Step(0): []}
    for move, count, back in script:
        if session.pending and (move != "step" or len(session.pending) > 2):
            step = session.pending[0]
            start = step.request.start
            if move == "fail":
                step.job = Job(session.lane, "flow", "session", 2, started_at=1.0)
                await desk.drop(session, step.number, begun=True)
                rows = rows[:start]  # what it wrote from there on is of no receipt
            else:
                rows = rows[:start] + [next(fresh) for _ in range(step.request.count)]
                about[(await desk.answer(session, step)).step] = list(rows)
        elif move == "step":
            start = max(0, session.length - back)
            desk.asked(session, count, int(session.account.owed) + count * PRICE, start=start)
    for number, length in session.lengths.items():
        kept = about[number]
        same = sum(accumulate((a == b for a, b in zip(kept, rows, strict=False)), min))
        assert length <= same
        if not session.pending:
            assert length == same
    await desk.journal.close()


@pytest.mark.parametrize("start", [6, 64, 2**31, 2**63 - 1])
async def test_a_start_beyond_the_cache_is_a_gap_with_the_cached_length(desk: Desk, start: int) -> None:
    session = await desk.session()
    step = desk.asked(session, 5, 50)
    assert isinstance(step, TakenStep)
    for number in (2, 3):
        gap = desk.asked(session, 1, 60, start=start, step=number)
        assert isinstance(gap, Refused)
        assert gap.code is (Code.GAP if number == 2 else Code.STEP)
        assert (gap.cached, gap.owed) == (5, 50)


@pytest.mark.parametrize(
    ("changes", "made", "code"),
    [
        ({}, {"count": 17}, Code.LIMIT),
        ({"max_tokens": 8}, {"count": 16}, Code.LIMIT),
        ({"max_amount": Credits(30)}, {"count": 4}, Code.LIMIT),
        ({"price": 0}, {"count": 4, "total": 5}, Code.VOUCHER),
    ],
)
async def test_limits(desk: Desk, changes: dict[str, Any], made: dict[str, Any], code: Code) -> None:
    session = await desk.session(**changes)
    got = desk.asked(session, made["count"], made.get("total", 10 * made["count"]))
    assert isinstance(got, Refused)
    assert got.code is code
    session.close(Code.THAWING, "the account is thawing")
    closed = desk.asked(session, 1, 10)
    assert isinstance(closed, Refused)
    assert closed.code is Code.THAWING
