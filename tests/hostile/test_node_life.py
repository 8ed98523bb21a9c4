"""What may befall a node while it serves: one account a wallet, a chain that is away, clocks that jump, full disks."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hivemint.cli.node.live_view import view
from hivemint.ledger.settlement import chainview
from hivemint.ledger.settlement.chainview import ContractView
from hivemint.node import server
from hivemint.node.sessions import registry
from hivemint.node.sessions.nonces import Nonces
from hivemint.node.status import Snapshot, write_status
from hivemint.protocol.errors import ChainError, SwarmError
from hivemint.protocol.ids import Address, Credits
from hivemint.swarm.messages import Closed, Code
from support.node_client import FakeFunds, NodeSession, RefusedError, View
from support.one_node import ASK, Served, rows, until
from support.promises import signer

pytest_plugins = ["support.one_node"]
WALLET = signer(60)


class Held(FakeFunds):
    """Answers about accounts wait until so many are asked for at once."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.together, self.waiting = together, 0
        self.go = asyncio.Event()

    async def account(self, client: Address) -> View:
        self.waiting += 1
        if self.waiting >= self.together:
            self.go.set()
        await self.go.wait()
        return await super().account(client)


def hold(served: Served, chain: Any) -> None:
    served.node._services.admission._chain = chain


async def opened(served: Served, count: int, **terms: Any) -> list[NodeSession]:
    """So many sessions of one wallet asked for at once; those that were let in."""
    asked = [served.open(WALLET, price=ASK, **terms) for _ in range(count)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, NodeSession | RefusedError) for one in answers), answers
    return [one for one in answers if isinstance(one, NodeSession)]


async def test_sessions_of_one_wallet_opened_at_once_have_one_account(served: Served) -> None:
    """The account's check and the booking are one: together they reserve no more than is funded."""
    chain = Held(together=6)
    chain.accounts[WALLET.address] = View(Credits(2500))
    hold(served, chain)
    sessions = await opened(served, 6, max_amount=Credits(1000))
    assert len(sessions) == 2
    occupants = [occupant.session for occupant in served.node.registry.occupants if occupant.session]
    assert {id(session.account) for session in occupants} == {id(served.node.registry._accounts[WALLET.address])}
    assert served.node.registry.account(WALLET.address).needed(0) == 2000


async def test_an_account_lives_while_a_session_leaves_and_another_comes(served: Served) -> None:
    """The last session goes while the next one's account is being asked for: what was owed is known to it."""
    first = await served.open(WALLET, price=ASK)
    await first.step(rows(), 0)
    chain = Held(together=2)
    hold(served, chain)
    coming = asyncio.create_task(served.open(WALLET, price=ASK))
    await until(lambda: chain.waiting == 1)
    await first.link.close("gone")
    await until(lambda: not served.node.registry.occupants)
    assert served.node.registry._accounts == {}
    assert served.journal.clients == set()
    chain.go.set()
    second = await coming
    assert second.total == ASK
    account = served.node.registry._accounts[WALLET.address]
    assert [occupant.session.account for occupant in served.node.registry.occupants if occupant.session] == [account]
    await second.step(rows(), 0)
    assert served.journal.book(WALLET.address).owed == 2 * ASK


async def test_refused_opens_leave_no_account_and_no_book(served: Served) -> None:
    served.chain.accounts = {signer(number).address: View(Credits(1)) for number in range(100, 160)}
    for number in range(100, 160):
        with pytest.raises(RefusedError):
            await served.open(signer(number), price=ASK)
    await until(lambda: not served.node.registry.occupants)
    assert (served.node.registry._accounts, served.journal.books(), served.journal.clients) == ({}, {}, set())


SECRET = "https://rpc.example/v2/secret-api-key"


class Away(FakeFunds):
    async def time(self) -> int:
        raise ChainError(f"The chain at {SECRET} cannot be reached", why=SECRET, next_step=f"check {SECRET}")


async def test_a_stranger_hears_nothing_of_the_endpoint(served: Served) -> None:
    hold(served, Away())
    with pytest.raises(RefusedError) as caught:
        await served.open(WALLET, price=ASK)
    said = caught.value.refused
    assert said.code is Code.BUSY
    assert "secret" not in repr(said)
    assert "rpc" not in repr(said)
    assert said.retry_after > 0


class NeverAnswers:
    """A chain behind whose endpoint nobody is; `asked` counts. It is its own web3, too."""

    def __init__(self) -> None:
        self.asked = 0
        self.chain = self.w3 = self.eth = self

    def each(self) -> list[Any]:
        return [self]

    @asynccontextmanager
    async def explained(self, _: str) -> AsyncIterator[None]:
        yield

    async def get_block(self, _: Any) -> Any:
        self.asked += 1
        await asyncio.Event().wait()


async def test_a_chain_that_is_away_is_known_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question for all who ask; who comes when it has not been answered in time is told at once."""
    monkeypatch.setattr(chainview, "WAIT", 0.05)
    contracts: Any = NeverAnswers()
    view = ContractView(contracts, WALLET.address, confirmations=1)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(view.time() for _ in range(50)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {ChainError}
        monkeypatch.setattr(chainview, "WAIT", -1.0)  # nobody waits now
        with pytest.raises(ChainError, match="does not answer"):
            await view.account(WALLET.address)
    assert contracts.asked == 1
    assert view._polling is not None
    view._polling.cancel()
    with suppress(asyncio.CancelledError):
        await view._polling


async def test_a_clock_that_jumps_ahead_ends_sessions_with_the_reason(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await served.open(WALLET, price=ASK)
    await session.step(rows(), 0)
    real = time.time

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return real() + 86_400

    monkeypatch.setattr(registry, "time", Clock)
    async with asyncio.timeout(20):
        said, _ = await session.answer()
    assert isinstance(said, Closed)
    assert said.code is Code.EXPIRY
    assert served.journal.book(WALLET.address).earned == ASK


async def test_a_clock_that_falls_back_lets_nothing_outlive_the_chains_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain's time is the floor; nonces run by a clock that does not jump."""
    session = await served.open(WALLET, price=ASK)
    real = time.time

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return real() - 86_400

    monkeypatch.setattr(registry, "time", Clock)
    monkeypatch.setattr(served.node._services.admission, "_clock", Clock.time)
    await session.step(rows(), 0)
    served.chain.now = session.session.expiry
    async with asyncio.timeout(20):
        said, _ = await session.answer()
    assert isinstance(said, Closed)
    assert said.code is Code.EXPIRY
    with pytest.raises(RefusedError) as caught:
        await served.open(WALLET, price=ASK)
    assert caught.value.refused.code is Code.EXPIRY


def test_nonces_are_good_for_a_minute_whatever_the_wall_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    nonces = Nonces(lambda: now[0])
    nonce = nonces.issue(WALLET.address.encode())  # type: ignore[arg-type]
    for jumped in (time.time() + 86_400, time.time() - 86_400):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda jumped=jumped: jumped)
            assert nonces.check(WALLET.address.encode(), nonce) is None  # type: ignore[arg-type]
    now[0] += 61
    assert nonces.check(WALLET.address.encode(), nonce) is not None  # type: ignore[arg-type]


async def test_a_record_that_cannot_be_stored_is_said_and_stored_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, fails = served.host.publish, [True]

    async def doubtful(record: Any) -> None:
        if fails[0]:
            raise SwarmError("No peer has stored the record")
        await publish(record)

    monkeypatch.setattr(served.host, "publish", doubtful)
    monkeypatch.setattr(server, "PUBLISH_EVERY", 0.0)
    trouble = served.node.supervisor.trouble
    await until(lambda: "No peer has stored" in trouble.get("record", ""))
    monkeypatch.setattr(server, "PUBLISH_EVERY", 3600.0)  # it is tried again at once, not when it would be due
    fails[0] = False
    await until(lambda: "record" not in trouble)


EVIL = "[/x][bold]\x1b[2J"


def snapshot(**changes: Any) -> Snapshot:
    lanes = {"paid": 0, "donated": 0}
    fields: dict[str, Any] = {
        "at": 0.0,
        "peer": "12D3",
        "addresses": [],
        "operator": "0x",
        "model": "m",
        "blocks": "0:1",
        "numerics": "fp32",
        "sessions": lanes,
        "tokens": lanes,
        "tokens_per_s": 0.0,
        "wait_s": {"paid": 0.0, "donated": 0.0},
        "kv_free": 1,
        "kv_total": 1,
        "refusals": {},
        "receipts": {},
        "reasons": {},
        "trouble": {},
        "credits": dict.fromkeys(("signed", "countersigned", "settled", "minted", "donated_minted"), 0),
    }
    return Snapshot(**fields | changes)


def test_a_status_that_cannot_be_written_is_a_word_not_an_end(tmp_path: Path) -> None:
    """Every write to /dev/full fails as on a full disk."""
    assert write_status(tmp_path, snapshot()) == ""
    before = (tmp_path / "status.json").read_text()
    (tmp_path / ".status.json.new").symlink_to("/dev/full")
    assert "No space left" in write_status(tmp_path, snapshot(model="another"))
    assert (tmp_path / "status.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert "cannot be written" in write_status(tmp_path / "gone", snapshot())


def test_what_an_endpoint_or_a_model_says_is_no_markup_in_the_live_view() -> None:
    seen = io.StringIO()
    stages = ("signed", "countersigned", "settled", "minted", "served", "donated")
    told = snapshot(model=EVIL, reasons=dict.fromkeys(stages, EVIL), trouble={"record": EVIL})
    Console(file=seen, force_terminal=True, width=200).print(view(told))
    assert seen.getvalue().count("[/x][bold]") == 8
    assert "\x1b[2J" not in seen.getvalue()
