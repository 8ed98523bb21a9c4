"""What pays for a step: vouchers that the chain would still pay, and no work that none of them is for (N1 to N6)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.node.sessions.session import TakenStep
from hivemint.protocol.eip712 import MAX_UINT96
from hivemint.protocol.ids import Credits, Step
from hivemint.swarm.messages import Code, Refused
from support.node_client import View
from support.promises import signer
from support.served import CLIENT, PRICE, Desk

KEY, OTHER = signer(73), signer(74)
FUNDED = 10_000


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    made.account().see(View(Credits(FUNDED)), now=100)
    yield made
    await made.journal.close()


def code(got: object) -> Code:
    assert isinstance(got, Refused), got
    return got.code


async def test_a_voucher_above_what_the_account_holds_is_refused(desk: Desk) -> None:
    session = await desk.session(key=KEY, until=200)
    for total in (FUNDED + 1, MAX_UINT96):
        assert code(desk.asked(session, 1, total)) is Code.VOUCHER
    assert session.account.cover == 0, "a refused voucher covers nothing"
    desk.account().see(View(Credits(PRICE - 1)), now=100)
    assert code(desk.asked(session, 1, PRICE)) is Code.FUNDS
    desk.account().see(View(Credits(0), thawing=True), now=100)
    assert code(desk.asked(session, 1, PRICE)) is Code.THAWING


async def test_a_voucher_above_the_account_is_refused_however_much_is_under_way(desk: Desk) -> None:
    session = await desk.session(ahead=2, max_rows=16)
    desk.account().see(View(Credits(100)), now=100)
    assert session.account.reach(PRICE) > 100
    assert code(desk.asked(session, 1, 101)) is Code.VOUCHER
    assert isinstance(desk.asked(session, 1, 100), TakenStep)


async def test_a_voucher_may_run_ahead_by_what_is_under_way_and_no_more(desk: Desk) -> None:
    session = await desk.session(ahead=2, max_rows=16, max_amount=Credits(10**4))
    most = PRICE + 2 * 16 * PRICE
    refused = desk.asked(session, 1, most + 1)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.owed, refused.proof) == (Code.VOUCHER, 0, None)
    assert "more than is owed and under way" in refused.what
    assert isinstance(desk.asked(session, 1, most), TakenStep)
    small = await desk.session(max_amount=Credits(50))
    other = await desk.session(max_amount=Credits(160))
    assert code(desk.asked(small, 1, 2 * PRICE + (2 * 16 * PRICE) + 50 + 160 + 1)) is Code.VOUCHER
    assert isinstance(desk.asked(other, 1, 2 * PRICE + (2 * 16 * PRICE) + 50 + 160), TakenStep)


async def test_what_was_promised_may_be_promised_again(desk: Desk) -> None:
    """The surplus of steps that failed: the session's rest is smaller than it by now."""
    session = await desk.session(max_amount=Credits(330))
    step = desk.asked(session, 16, 160)
    assert isinstance(step, TakenStep)
    more = desk.asked(session, 16, 320)
    assert isinstance(more, TakenStep)
    await desk.drop(session, Step(1), begun=True)
    assert isinstance(desk.asked(session, 1, 320), TakenStep)


async def test_a_dead_keys_voucher_covers_nothing(desk: Desk) -> None:
    """It promises all that the account holds, and ends: nothing more is done on that promise."""
    first = await desk.session(key=KEY, until=200, ahead=64, max_rows=16)
    assert isinstance(desk.asked(first, 1, 1000), TakenStep)
    second = await desk.session(key=OTHER, until=10**6)
    assert isinstance(desk.asked(second, 1, 20), TakenStep), "while the key lives its voucher covers the others' steps"
    assert second.account.cover == 1000
    desk.account().see(View(Credits(FUNDED)), now=200)
    assert second.account.cover == 20
    assert code(desk.asked(first, 1, 1000)) is Code.REVOKED
    refused = desk.asked(second, 1, 0)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.owed) == (Code.VOUCHER, 20)
    assert refused.proof is not None
    assert refused.proof.body.total == 20
    assert isinstance(desk.asked(second, 1, 30), TakenStep)


async def test_a_revocation_takes_a_voucher_out_of_the_cover(desk: Desk) -> None:
    first, second = await desk.session(key=KEY, until=10**6), await desk.session(key=OTHER, until=10**6)
    assert isinstance(desk.asked(first, 1, 100), TakenStep)
    assert isinstance(desk.asked(second, 1, 20), TakenStep)
    assert desk.account().keys == {KEY.address, OTHER.address}
    desk.account().see_key(KEY.address, 50)
    assert code(desk.asked(second, 1, 20)) is Code.VOUCHER
    assert isinstance(desk.asked(second, 1, 30), TakenStep)


async def test_what_stops_being_funded_covers_nothing(desk: Desk) -> None:
    session = await desk.session()
    assert isinstance(desk.asked(session, 1, 300), TakenStep)
    desk.account().see(View(Credits(40)), now=101)
    assert session.account.cover == 0
    assert code(desk.asked(session, 1, 300)) is Code.VOUCHER
    assert isinstance(desk.asked(session, 1, 20), TakenStep)


async def test_a_wrong_answer_about_what_was_collected_leaves_no_trace(desk: Desk) -> None:
    session = await desk.session()
    step = desk.asked(session, 4, 40)
    assert isinstance(step, TakenStep)
    await desk.answer(session, step)
    desk.account().see(View(Credits(FUNDED), collected=Credits(901)), now=101)
    assert desk.account().owed == 901
    assert code(desk.asked(session, 1, 50)) is Code.VOUCHER
    desk.account().see(View(Credits(FUNDED), collected=Credits(0)), now=102)
    assert desk.account().owed == 40
    assert isinstance(desk.asked(session, 1, 50), TakenStep)


async def test_work_that_no_voucher_is_for_stays_one_step(desk: Desk) -> None:
    """A client that always signs ahead is covered, but nothing that it signed could ever be claimed."""
    session = await desk.session()
    for number in range(1, 100):
        ahead = desk.asked(session, 1, number * PRICE + 300)
        if isinstance(ahead, Refused):
            assert ahead.code is Code.VOUCHER
            break
        assert isinstance(ahead, TakenStep)
        await desk.answer(session, ahead)
    assert session.account.owed == PRICE
    assert desk.journal.collectable() == []
    exact = desk.asked(session, 1, 2 * PRICE)
    assert isinstance(exact, TakenStep)
    await desk.answer(session, exact)
    assert [pair.voucher.total for pair in desk.journal.collectable()] == [2 * PRICE]


async def test_the_proof_of_what_is_owed_outlives_the_key_that_signed_it(desk: Desk) -> None:
    """Another machine of the wallet has worked here: its voucher shows this one why so much is owed."""
    first = await desk.session(key=KEY, until=200)
    step = desk.asked(first, 4, 40)
    assert isinstance(step, TakenStep)
    await desk.answer(first, step)
    desk.leave(first, Code.EXPIRY)
    await desk.restart()
    desk.account().see(View(Credits(FUNDED)), now=300)
    second = await desk.session(key=OTHER, until=10**6)
    refused = desk.asked(second, 1, 10)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.owed) == (Code.VOUCHER, 40)
    assert refused.proof is not None
    assert refused.proof.body.total == 40
    assert isinstance(desk.asked(second, 1, 50), TakenStep)


moves = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "answer", "answer", "drop", "end", "funds", "kill", "leave"]),
        st.integers(0, 2),  # session
        st.integers(1, 4),  # rows
        st.one_of(st.just(0), st.integers(-20, 700)),  # how far the voucher is from the sum owed
    ),
    max_size=50,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=moves)
async def test_whatever_a_wallet_signs_the_node_loses_steps_in_flight_at_most(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int, int, int]]
) -> None:
    """Three sessions of three keys. Work that no stored voucher is for is bounded, and not by how often one tries."""
    desk = Desk(tmp_path_factory.mktemp("cover"))
    keys, time, funded = [CLIENT, KEY, OTHER], 100, FUNDED
    desk.account().see(View(Credits(funded)), now=time)
    until = [2**63, 2**40, 2**40]
    sessions = [await desk.session(key=key, until=end) for key, end in zip(keys, until, strict=True)]
    step = sessions[0].one_step
    assert step == 16 * PRICE
    most = step + 2 * (step + 2 * step)  # this session's step; of each other one's, one on its way and two taken back

    for move, which, rows, off in script:
        session, account = sessions[which], desk.account()
        before, mine = account.owed, session.pending
        if move == "ask":
            got = desk.asked(session, rows, max(0, int(before) + rows * PRICE + off))
            if isinstance(got, TakenStep):
                assert account.lives(session.key)
                assert before + rows * PRICE <= account.cover <= funded
        elif move == "answer" and mine:
            await desk.answer(session, mine[0])
        elif move == "drop" and mine:
            await desk.drop(session, mine[0].number, begun=True)
        elif move == "end" and keys[which] is not CLIENT:
            until[which] = time
            account.see_key(keys[which].address, time)
        elif move == "funds":
            funded = max(0, FUNDED + 10 * off - 5000)
            account.see(View(Credits(funded)), now=time)
        elif move in ("kill", "leave") and not any(one.pending for one in sessions):
            if move == "kill":
                await desk.restart()
            else:
                for one in sessions:
                    desk.leave(one, Code.MISSING)
            desk.account().see(View(Credits(funded)), now=time)
            sessions = [await desk.session(key=key, until=end) for key, end in zip(keys, until, strict=True)]
        book = desk.journal.book(CLIENT.address)
        assert book.earned <= book.owed <= book.earned + most
    for one in sessions:
        await desk.drop(one, Step(1), begun=True)
        desk.leave(one, Code.MISSING)
    assert not desk.journal._open
    before_end = desk.journal.books(), desk.journal.collectable()
    await desk.restart()
    assert (desk.journal.books(), desk.journal.collectable()) == before_end
    await desk.journal.close()
