"""A client that leaves a real node, over real links and a real journal, and wants more than that."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hivemint.ledger.books.keeping import WORTHLESS_FOR
from hivemint.ledger.books.writer import GroupWriter
from hivemint.ledger.store.database import reading
from hivemint.ledger.store.tables import accounts
from hivemint.node.sessions.leaving import GOOD_FOR
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import Address, Credits, Signature
from hivemint.protocol.receipt import sign_voucher
from hivemint.protocol.signing import recover
from hivemint.swarm.messages import Close, Closed, Code, Left, Refused
from hivemint.swarm.messages import Leave as LeaveMessage
from support.leaving import dialled, leave, leave_message
from support.node_client import NodeSession, RefusedError, View
from support.one_node import ASK, Served, one_node, rows
from support.promises import DOMAIN, signer

pytest_plugins = ["support.tiny"]
WALLET, KEY, OTHER = signer(160), signer(161), signer(162)
NOW = 1_800_000_000


@pytest.fixture
async def served(tiny_folder: Path, tmp_path: Path) -> AsyncIterator[Served]:
    async with one_node(tiny_folder, tmp_path) as node:
        node.chain.now = NOW
        yield node


async def signed_off(session: NodeSession) -> None:
    """With a voucher for the last receipt. The node has written all down when the link ends."""
    last = sign_voucher(DOMAIN, session.receipt, Credits(session.total), session.key).signed
    await session.link.send(Close(last))
    assert isinstance(await session.link.receive(), Closed)
    with suppress(LinkClosed):
        await session.link.receive()


async def worked(served: Served, tokens: int = 3, **changes: Any) -> int:
    """One session of WALLET, paid and over; the sum owed."""
    session = await served.open(WALLET, price=ASK, **{"expiry": NOW + 3600, **changes})
    await session.step(rows(tokens), 0)
    await signed_off(session)
    return session.total


async def left(served: Served) -> Left:
    """As soon as the last session is written down."""
    async with asyncio.timeout(20):
        while True:
            answer = await leave(served, WALLET)
            if isinstance(answer, Left):
                return answer
            assert answer.code is Code.CONFLICT, answer
            await asyncio.sleep(0.01)


def stored(served: Served) -> dict[Address, int]:
    """Until when each account is released, by the database."""
    with reading(served.journal._engine) as connection:
        return {row.client: row.released_until for row in connection.execute(select(accounts))}


async def opening(served: Served, client: Any = WALLET, price: int = ASK) -> Code | None:
    """Why a session is refused; None if it opens."""
    now = served.chain.now
    try:
        session = await served.open(client, price=price, expiry=max(now, int(time.time())) + 3600)
    except RefusedError as error:
        return error.refused.code
    await session.link.close("enough")
    return None


async def test_a_wallet_is_released_for_what_it_owes(served: Served) -> None:
    owed = await worked(served)
    answer = await left(served)
    release = answer.release
    operator = served.node.offer.operator
    assert (release.node, release.client, release.total) == (operator, WALLET.address, owed)
    assert NOW < release.deadline <= NOW + 3600
    assert recover(release.digest(DOMAIN), answer.signature) == operator
    assert answer.receipt is not None
    assert answer.voucher is not None
    assert answer.voucher.body.total == owed
    assert answer.voucher.body.receipt == answer.receipt.body.digest(DOMAIN)
    assert stored(served) == {WALLET.address: release.deadline}
    assert await left(served) == answer, "asked again it says the same"


async def test_nobody_leaves_for_a_wallet(served: Served) -> None:
    """Not a stranger, not its session key; and they are shown nothing and write nothing."""
    await worked(served)
    await left_nothing(served, Code.KEY, by=OTHER)
    served.chain.keys[WALLET.address, KEY.address] = NOW + 7200
    await left_nothing(served, Code.KEY, by=KEY)
    await left_nothing(served, Code.KEY, domain=Domain(1, DOMAIN.settlement))
    await left_nothing(served, Code.NODE, node=OTHER.address)
    await left_nothing(served, Code.NONCE, nonce=b"\7" * 32)
    link, terms = await dialled(served)
    await link.send(LeaveMessage(leave_message(terms, WALLET).leave, Signature(b"\xff" * 64)))
    assert_nothing(served, await link.receive(), Code.KEY)


async def left_nothing(served: Served, code: Code, **how: Any) -> None:
    assert_nothing(served, await leave(served, WALLET, **how), code)


def assert_nothing(served: Served, answer: object, code: Code) -> None:
    assert isinstance(answer, Refused), answer
    assert (answer.code, answer.proof, answer.owed) == (code, None, 0)
    assert set(stored(served).values()) == {0}


async def test_a_proof_is_good_once_and_for_one_peer(served: Served) -> None:
    await worked(served)
    link, terms = await dialled(served)
    message = leave_message(terms, WALLET)
    await link.send(message)
    assert isinstance(await link.receive(), Left)
    link, _ = await dialled(served)
    await link.send(message)
    answer = await link.receive()
    assert isinstance(answer, Refused)
    assert answer.code is Code.NONCE


async def test_with_a_paid_session_open_nobody_leaves(served: Served) -> None:
    session = await served.open(WALLET, price=ASK, expiry=NOW + 3600)
    await session.step(rows(2), 0)
    await left_nothing(served, Code.CONFLICT)
    free = await served.open(WALLET, price=0, expiry=NOW + 3600)
    await signed_off(session)
    assert (await left(served)).release.total == session.total, "a donated session keeps nobody here"
    free.total = 0
    await free.step(rows(1), 0)


async def test_until_the_release_is_over_no_paid_session_opens(served: Served) -> None:
    await worked(served)
    deadline = (await left(served)).release.deadline
    for now in (NOW, deadline):
        served.chain.now = now
        assert await opening(served) is Code.RELEASED
    assert await opening(served, price=0) is None
    assert await opening(served, OTHER) is None
    served.chain.now = deadline + 1
    assert await opening(served) is None


async def test_no_endpoint_ends_a_release_by_its_word(served: Served) -> None:
    """One names a time that has not come; by another one's the release is still good."""
    await worked(served)
    deadline = (await left(served)).release.deadline
    served.chain.now, served.chain.behind = deadline + 1, 60
    assert await opening(served) is Code.RELEASED
    served.chain.behind = 0
    assert await opening(served) is None


async def test_also_after_a_restart(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path) as node:
        node.chain.now = NOW
        owed = await worked(node)
        answer = await left(node)
    async with one_node(tiny_folder, tmp_path) as node:
        node.chain.now = NOW
        assert await opening(node) is Code.RELEASED
        assert (await left(node)).release == answer.release
        node.chain.now = answer.release.deadline + 1
        assert await opening(node) is None
        assert node.journal.book(WALLET.address).earned == owed


async def test_a_release_leaves_only_when_the_journal_has_it(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the write, the node has said nothing; and what opens meanwhile is refused already."""
    await worked(served)
    gate, write = threading.Event(), GroupWriter._write

    def held(writer: GroupWriter, batch: Any) -> None:
        gate.wait()
        write(writer, batch)

    while served.node.registry.occupants:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    monkeypatch.setattr(GroupWriter, "_write", held)
    asked = [asyncio.create_task(leave(served, WALLET)) for _ in range(2)]
    try:
        async with asyncio.timeout(20):
            while not served.journal.book(WALLET.address).released_until:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await opening(served) is Code.RELEASED
        done, _ = await asyncio.wait(asked, timeout=0.5)
        assert not done
        assert stored(served) == {WALLET.address: 0}
    finally:
        gate.set()
    for answer in await asyncio.gather(*asked):
        assert isinstance(answer, Left)
        assert stored(served) == {WALLET.address: answer.release.deadline}


async def test_no_release_is_for_less_than_was_earned(served: Served) -> None:
    """Whatever the chain is said to have paid, and whatever key has ended: the highest claim counts."""
    served.chain.keys[WALLET.address, KEY.address] = NOW + 7200
    served.chain.accounts[WALLET.address] = View(Credits(10**6))
    owed = await worked(served, 5, key=KEY)
    served.chain.keys[WALLET.address, KEY.address] = NOW - 10 * 86_400
    served.chain.accounts[WALLET.address] = View(Credits(10**6), collected=Credits(7))
    assert (await left(served)).release.total == owed


async def test_a_release_is_renewed_once_half_of_it_is_over(served: Served) -> None:
    await worked(served)
    first = (await left(served)).release.deadline
    served.chain.now = NOW + GOOD_FOR // 2
    assert (await left(served)).release.deadline == first
    served.chain.now += 1
    assert (await left(served)).release.deadline == served.chain.now + GOOD_FOR


async def test_who_has_nothing_here_writes_nothing(served: Served) -> None:
    """Keys are free: an account that holds nothing is no row."""
    for view in (View(Credits(0)), View(Credits(9), collected=Credits(9))):
        served.chain.accounts[OTHER.address] = view
        answer = await leave(served, OTHER)
        assert isinstance(answer, Refused)
        assert answer.code is Code.FUNDS
    assert stored(served) == {}
    served.chain.accounts[OTHER.address] = View(Credits(0), thawing=True)
    answer = await leave(served, OTHER)
    assert isinstance(answer, Left), "a thaw ends with it"
    assert (answer.release.total, answer.receipt, answer.voucher) == (0, None, None)


async def test_an_account_is_not_forgotten_while_its_release_is_good(served: Served) -> None:
    """Paid up for almost three days, it is released: what the node promised is not pruned with what it may forget."""
    owed = await worked(served)
    await served.until(lambda: not served.journal.clients)
    paid = {WALLET.address: True}
    served.journal.observe(WALLET.address, Credits(owed))
    served.journal.judge(paid, NOW - WORTHLESS_FOR)
    deadline = (await left(served)).release.deadline
    for now in (NOW, deadline):
        served.chain.now = now
        served.journal.judge(paid, now)
        assert await opening(served) is Code.RELEASED
    served.journal.judge(paid, deadline + 1)
    assert served.journal.books() == {}
    served.chain.now = deadline + 1
    assert await opening(served) is None


async def test_who_was_forgotten_and_is_released_counts_once_in_the_sums(served: Served) -> None:
    owed = await worked(served)
    await served.until(lambda: not served.journal.clients)
    served.journal.observe(WALLET.address, Credits(owed))
    sums = served.journal.totals
    for now in (NOW - WORTHLESS_FOR, NOW):
        served.journal.judge({WALLET.address: True}, now)
    assert served.journal.books() == {}
    served.chain.accounts[WALLET.address] = View(Credits(10**6), collected=Credits(owed))
    await left(served)
    served.journal.observe(WALLET.address, Credits(owed))
    assert (served.journal.totals.settled, served.journal.totals.minted) == (sums.settled, sums.minted)
