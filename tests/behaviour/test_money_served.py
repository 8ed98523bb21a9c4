"""A real node over real links and a real journal, against wallets and a chain that turn on it while sessions run."""

import asyncio
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import func, select
from structlog.testing import capture_logs

from hivemint.ledger.books.writer import GroupWriter, WriteFailed
from hivemint.ledger.store.database import reading
from hivemint.ledger.store.tables import accounts, sessions
from hivemint.node.sessions.account import ClientAccount
from hivemint.node.sessions.inbox import Inbox
from hivemint.protocol import evidence
from hivemint.protocol.eip712 import MAX_UINT96, Delegation, Receipt
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import Address, Credits, Head, PeerId, Step, Tokens
from hivemint.protocol.receipt import SignedReceipt, sign_receipt, sign_voucher
from hivemint.swarm.held import Held
from hivemint.swarm.messages import (
    Close,
    Closed,
    Code,
    HopReceipt,
    Refused,
    SignedDelegation,
    StepReceipt,
)
from support.node_client import NodeSession, RefusedError, View
from support.one_node import ASK, Served, one_node, rows, until
from support.promises import DOMAIN, signer

pytest_plugins = ["support.one_node"]
WALLET, KEY, OTHER = signer(60), signer(61), signer(62)


async def closed(session: NodeSession) -> Closed:
    async with asyncio.timeout(20):
        message, _ = await session.answer()
    assert isinstance(message, Closed), message
    return message


async def refused(session: NodeSession, request: Any, hidden: torch.Tensor) -> Refused:
    await session.send(request, hidden)
    async with asyncio.timeout(20):
        message, _ = await session.answer()
    assert isinstance(message, Refused), message
    return message


class HeldWrites:
    """The journal's thread, held up before each transaction from `shut` on until `open`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()
        write: Any = GroupWriter._write

        def held(writer: GroupWriter, batch: Any) -> None:
            if not self.gate.is_set():
                self.reached.set()
            self.gate.wait()
            write(writer, batch)

        monkeypatch.setattr(GroupWriter, "_write", held)


@pytest.mark.parametrize("price", [0, ASK])
async def test_a_receipt_leaves_only_when_the_journal_has_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, price: int
) -> None:
    """The core of P11. The tensor may leave first; nothing signed does while the write is not done."""
    writes = HeldWrites(monkeypatch)
    session = await served.open(WALLET, price=price)
    writes.gate.clear()
    try:
        request = session.request(2, start=0)
        await session.send(request, rows(2))
        await asyncio.to_thread(writes.reached.wait, 20)
        assert writes.reached.is_set()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await session.answer()
        with reading(served.journal._engine) as connection:
            assert list(connection.scalars(select(sessions.c.signed_step))) == [0]
    finally:
        writes.gate.set()
    async with asyncio.timeout(20):
        answer, _ = await session.answer()
    assert isinstance(answer, StepReceipt)
    with reading(served.journal._engine) as connection:
        assert list(connection.scalars(select(sessions.c.step))) == [0], "it binds the opening receipt"


async def test_two_sessions_of_one_wallet_whose_steps_cross(served: Served) -> None:
    """The second one's voucher builds on the first one's step, and is stored before it."""
    one, two = await served.open(WALLET, price=ASK), await served.open(WALLET, price=ASK)
    first = one.request(2, start=0, total=2 * ASK)
    await one.send(first)  # its input is on its way
    served_one = served.node.registry._accounts[WALLET.address]
    await until(lambda: served_one.owed == 2 * ASK)
    two.total = 2 * ASK
    await two.step(rows(3), 0)
    assert served.journal.book(WALLET.address).owed == 3 * ASK
    assert [pair.voucher.total for pair in served.journal.collectable()] == [2 * ASK], "5 are promised, 3 are owed"
    second = one.request(2, start=0, total=2 * ASK)
    await one.send(second, rows(2))  # the same request again, with its input
    async with asyncio.timeout(20):
        answer, _ = await one.answer()
    assert isinstance(answer, StepReceipt)
    assert [pair.voucher.total for pair in served.journal.collectable()] == [5 * ASK]
    two.total = 5 * ASK
    await two.step(rows(1), 3)
    assert served.journal.book(WALLET.address).earned == 6 * ASK


async def test_a_dead_keys_huge_voucher_buys_nothing(served: Served) -> None:
    """2^96 - 1 by a key that then ends, and vouchers of 0 behind it."""
    served.chain.accounts[WALLET.address] = View(Credits(20_000))
    served.chain.keys[WALLET.address, KEY.address] = int(time.time()) + 7200
    session = await served.open(WALLET, key=KEY, price=ASK, max_amount=Credits(5_000))
    for total in (MAX_UINT96, 20_001, 20_000):
        said = await refused(session, session.request(1, start=0, total=total), rows())
        assert (said.code, said.owed, said.proof) == (Code.VOUCHER, 0, None)
    session.total = 0
    await session.step(rows(), 0)
    served.chain.keys[WALLET.address, KEY.address] = int(time.time()) - 1
    assert (await closed(session)).code is Code.REVOKED, "a revocation closes the session"
    mine = await served.open(WALLET, price=ASK, max_amount=Credits(5_000))
    batches = served.node.engine.gauge.batches
    for total in (0, ASK):
        said = await refused(mine, mine.request(1, start=0, total=total), rows())
        assert (said.code, said.owed) == (Code.VOUCHER, ASK)
        assert said.proof is not None
        assert said.proof.body.total == ASK, "what the dead key has paid for is shown"
    assert served.node.engine.gauge.batches == batches
    mine.total = ASK
    await mine.step(rows(), 0)


async def test_an_account_that_shrinks_ends_its_sessions(served: Served) -> None:
    """A deposit that was trusted is reorganised away at token 3: the session ends within a look."""
    served.chain.accounts[WALLET.address] = View(Credits(100 * ASK))
    session = await served.open(WALLET, price=ASK, max_amount=Credits(100 * ASK))
    for number in range(3):
        await session.step(rows(), number)
    served.chain.accounts[WALLET.address] = View(Credits(2 * ASK))
    told = await closed(session)
    assert told.code is Code.FUNDS
    assert "are owed" in told.reason


async def test_a_revocation_of_a_key_that_was_never_set_ends_its_donated_session(served: Served) -> None:
    granted = Delegation(WALLET.address, KEY.address, int(time.time()) + 7200, paid=False)
    shown = SignedDelegation(granted, granted.sign(DOMAIN, WALLET))
    session = await served.open(WALLET, key=KEY, delegation=shown)
    await session.step(rows(), 0)
    served.chain.keys[WALLET.address, KEY.address] = 1  # what the view answers for it
    assert (await closed(session)).code is Code.REVOKED
    with pytest.raises(RefusedError) as caught:
        await served.open(WALLET, key=KEY, delegation=shown)
    assert caught.value.refused.code is Code.REVOKED


async def test_a_foreign_voucher_is_not_believed(served: Served) -> None:
    """Of a stranger, over another session's receipt, or by another key of the same wallet: nothing is done for it."""
    session, other = await served.open(WALLET, price=ASK), await served.open(WALLET, price=ASK)
    batches = served.node.engine.gauge.batches
    for changes in ({"signer": OTHER}, {"signer": KEY}, {"bound": other.receipt}):
        said = await refused(session, session.request(1, start=0, total=ASK, **changes), rows())
        assert (said.code, said.owed, said.proof) == (Code.VOUCHER, 0, None)
    assert served.node.engine.gauge.batches == batches
    session.total = 0
    await session.step(rows(), 0)
    stored = served.journal.book(WALLET.address)
    assert stored.earned == ASK


@pytest.mark.parametrize("total", [ASK, 2 * ASK, MAX_UINT96])
@pytest.mark.parametrize("by", [WALLET, OTHER])
async def test_the_last_voucher_counts_like_any_other(served: Served, total: int, by: Any) -> None:
    session = await served.open(WALLET, price=ASK)
    await session.step(rows(), 0)
    last = sign_voucher(DOMAIN, session.receipt, Credits(total), by).signed
    await session.link.send(Close(last))
    message, _ = await session.answer()
    assert isinstance(message, Closed)
    with suppress(LinkClosed):
        await session.link.receive()
    (proof,) = served.journal.collectable()
    assert proof.voucher.total == ASK
    assert proof.receipt.step == (1 if (total, by) == (ASK, WALLET) else 0)


async def test_refused_opens_leave_nothing(served: Served) -> None:
    poor = [signer(2000 + number) for number in range(20)]
    for number, wallet in enumerate(poor):
        served.chain.accounts[wallet.address] = View(Credits(number), collected=Credits(number))
        for changes in ({"price": ASK}, {"price": ASK, "max_amount": Credits(0)}, {"key": KEY}):
            with pytest.raises(RefusedError):
                await served.open(wallet, **changes)
    node = served.node
    assert (node.registry.occupants, node.registry._accounts) == ([], {})
    assert (node.engine.room.seats, served.journal.books(), len(served.journal._open)) == ([], {}, 0)
    with reading(served.journal._engine) as connection:
        for table in (accounts, sessions):
            assert connection.scalar(select(func.count()).select_from(table)) == 0
    session = await served.open(WALLET, price=ASK)
    await session.link.close("enough")
    await until(lambda: not node.registry.occupants)
    assert (node.registry._accounts, served.journal.books(), len(served.journal._open)) == ({}, {}, 0)


async def test_one_bad_answer_of_the_chain_keeps_nobody_else_from_being_looked_at(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, sound = await served.open(OTHER, price=ASK), await served.open(WALLET, price=ASK)
    account = served.chain.account

    async def answers(client: Address) -> View:
        if client == OTHER.address:
            raise ValueError("zip() argument 2 is shorter than argument 1")
        return await account(client)

    monkeypatch.setattr(served.chain, "account", answers)
    served.chain.accounts[WALLET.address] = View(Credits(0), thawing=True)
    assert (await closed(sound)).code is Code.THAWING
    await odd.step(rows(), 0)
    with pytest.raises(LinkClosed):
        await served.open(OTHER, price=ASK)  # its Open fails, and nothing else does
    monkeypatch.undo()
    served.chain.accounts[OTHER.address] = View(Credits(0), thawing=True)
    assert (await closed(odd)).code is Code.THAWING


async def test_an_entry_that_does_not_hold_ends_its_session_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = await served.open(OTHER, price=ASK), await served.open(WALLET, price=ASK)
    entered = ClientAccount.entered

    def wrong(account: ClientAccount, price: int) -> Credits:
        owed = entered(account, price)
        return Credits(owed + 10**6) if account.client == OTHER.address else owed

    monkeypatch.setattr(ClientAccount, "entered", wrong)
    await broken.send(broken.request(1, start=0), rows())
    with pytest.raises(LinkClosed):
        async with asyncio.timeout(20):
            await broken.answer()
    await sound.step(rows(), 0)
    assert not served.node.supervisor.failure.done()


async def test_a_write_that_fails_ends_the_node(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    ended: list[object] = []
    with pytest.raises(WriteFailed, match="no space left"):  # noqa: PT012
        async with one_node(tiny_folder, tmp_path) as served, asyncio.timeout(30):
            session = await served.open(WALLET, price=ASK)
            monkeypatch.setattr(GroupWriter, "_write", full)
            await session.send(session.request(1, start=0), rows())
            with pytest.raises(WriteFailed, match="no space left"):
                await served.node.run(asyncio.Event())
            ended.append(served.node)
    assert ended, "what the journal raises as it closes would be seen too if the node had gone on"


async def test_a_step_behind_one_that_could_not_be_written_is_no_fault_of_its_own(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps in flight, and the disk fills: the second one does not follow, and nobody logs an unexpected error."""
    both = threading.Event()

    def full(*_: object) -> None:
        both.wait(20)
        raise OSError("no space left on device")

    with capture_logs() as told:
        with pytest.raises(WriteFailed, match="no space left"):  # noqa: PT012
            async with one_node(tiny_folder, tmp_path) as served, asyncio.timeout(60):
                session = await served.open(WALLET, price=ASK)
                monkeypatch.setattr(GroupWriter, "_write", full)
                await session.send(session.request(1, start=0), rows())
                await session.send(session.request(1, start=1, step=2), rows())
                await until(lambda: served.span.ended == 2)
                both.set()
                with pytest.raises(WriteFailed, match="no space left"):
                    await served.node.run(asyncio.Event())
                await until(lambda: not served.node.registry.occupants)
        assert [one["event"] for one in told if "unexpectedly" in one["event"]] == []


def hop(step: int, tokens: int, node: Any = OTHER, session: bytes = b"\x09" * 32) -> HopReceipt:
    receipt = Receipt(node.address, WALLET.address, session, Step(step), Tokens(tokens), Head(secrets.token_bytes(32)))  # type: ignore[arg-type]
    made = sign_receipt(DOMAIN, receipt, node)
    leaf: Any = None
    return HopReceipt(made.signed, leaf)


async def test_two_receipts_of_one_step_are_kept_as_a_pair(served: Served, tmp_path: Path) -> None:
    pairs: list[tuple[SignedReceipt, SignedReceipt]] = []
    inbox = Inbox(2, lambda one, other: pairs.append((one, other)))
    peer, holder = PeerId(b"the neighbour"), Held(2**20)
    taken = inbox.name(hop(1, 1).receipt.session_id, peer)
    (source,) = inbox._sources.values()
    first, second = hop(1, 1), hop(1, 2)
    for message in (first, first, hop(2, 2), second):
        inbox.accept(peer, message, holder)
    assert pairs == [(first.receipt, second.receipt)]
    for step in range(3, 100):
        inbox.accept(peer, hop(step, step), holder)
    assert len(source.signed) <= 4
    inbox.forget(taken)
    assert not inbox._sources

    folder = tmp_path / "evidence"
    object.__setattr__(served.node.kit, "evidence", folder)
    forged = SignedReceipt(second.receipt.body, first.receipt.signature)
    served.node._differ(first.receipt, forged)
    assert not folder.exists()
    served.node._differ(first.receipt, second.receipt)
    (kept,) = folder.iterdir()
    assert evidence.read(kept).node == OTHER.address
