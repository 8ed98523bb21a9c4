"""The settlement worker against the contracts' rules in memory: when it settles, what it survives, what it explains."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.contracts.credits import mintable
from hivemint.contracts.errors import ChainError
from hivemint.contracts.ids import Credits
from hivemint.ledger.entries import Entry
from hivemint.ledger.journal import Journal
from hivemint.ledger.settlement import Settler, SettlerSettings
from hivemint.ledger.store import database_url
from support.payments import EPOCH, THAW, ReferencePayments
from support.promises import DOMAIN, Work, signer

NODE, ALICE, BOB = signer(1), signer(2), signer(3)


class Bench:
    """A journal, the reference chain, a worker, and its clock."""

    def __init__(self, path: Path, **wanted: object) -> None:
        self.journal = Journal.open(database_url(path / "journal.db"), DOMAIN, NODE.address)
        self.chain = ReferencePayments()
        self.clock = 0.0
        self.settings = replace(SettlerSettings(settle_min=Credits(100), settle_every=60), **wanted)  # type: ignore[arg-type]
        self.restart()

    def restart(self) -> None:
        self.settler = Settler(self.journal, self.chain, self.settings, clock=lambda: self.clock)

    async def promise(self, client: int, total: int) -> Work:
        work = Work(signer(client), NODE)
        await self.journal.open_session(work.session, work.signature)
        work.step()
        await self.journal.record(Entry(work.client.address, work.id, Credits(total), work.countersign(total)))
        return work

    async def donate(self, expiry: int, tokens: int) -> Work:
        work = Work(BOB, NODE, price=0, expiry=expiry)
        await self.journal.open_session(work.session, work.signature)
        work.step(tokens)
        await self.journal.record(Entry(BOB.address, work.id, Credits(0), work.countersign(0)))
        self.journal.close_session(work.id)
        return work

    def collected(self, client: int) -> int:
        return self.chain.escrow[signer(client).address].collected


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.journal.close()


async def test_it_waits_until_it_is_worth_the_gas(bench: Bench) -> None:
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 60)
    await bench.settler.round()
    assert bench.chain.calls == []
    assert "worth their gas" in bench.settler.reasons["settled"]
    await bench.promise(2, 100)
    await bench.settler.round()
    assert bench.collected(2) == 100
    assert bench.settler.reasons["settled"] == ""
    totals = bench.journal.totals
    assert (totals.settled, totals.minted) == (100, mintable(100))
    await bench.settler.round()
    assert len(bench.chain.calls) == 1


async def test_small_sums_settle_in_time(bench: Bench) -> None:
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 5)
    await bench.settler.round()
    bench.clock = 61
    await bench.settler.round()
    assert bench.collected(2) == 5


@pytest.mark.parametrize("change", [{"thaw_end": 10 * EPOCH + THAW}, {"key_until": 10 * EPOCH - 1}])
async def test_a_thaw_or_a_revocation_settles_at_once_and_alone(bench: Bench, change: dict[str, int]) -> None:
    bench.chain.fund(ALICE.address, 1000)
    bench.chain.fund(BOB.address, 1000)
    await bench.promise(2, 5)
    await bench.promise(3, 5)
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], **change)  # type: ignore[arg-type]
    await bench.settler.round()
    assert (bench.collected(2), bench.collected(3)) == (5, 0)


async def test_what_cannot_be_collected_is_explained_and_not_sent(bench: Bench) -> None:
    await bench.promise(2, 500)
    await bench.settler.round()
    assert "account is empty" in bench.settler.reasons["settled"]
    bench.chain.fund(ALICE.address, 200)
    await bench.settler.round()
    assert bench.collected(2) == 200
    await bench.settler.round()
    assert "account is empty" in bench.journal.book(ALICE.address).reason
    bench.chain.fund(ALICE.address, 1000)  # a top-up: the same voucher pays on
    await bench.settler.round()
    assert bench.collected(2) == 500
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], key_until=1)
    await bench.promise(2, 900)
    await bench.settler.round()
    assert "ended for good" in bench.settler.reasons["settled"]
    bench.chain.is_registered = False
    await bench.settler.round()
    assert "not registered" in bench.settler.reasons["settled"]


async def test_a_crash_between_sending_and_confirming_counts_once(bench: Bench) -> None:
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 300)
    bench.chain.fail_after = 1
    with pytest.raises(ChainError):
        await bench.settler.round()
    bench.restart()
    await bench.settler.round()
    await bench.settler.round()
    assert (bench.collected(2), bench.chain.minted_paid) == (300, mintable(300))
    assert len(bench.chain.calls) == 1


async def test_a_reorganisation_that_takes_a_settlement_back_is_made_good(bench: Bench) -> None:
    bench.chain.fund(ALICE.address, 1000)
    before = bench.chain.escrow[ALICE.address]
    await bench.promise(2, 300)
    await bench.settler.round()
    bench.chain.escrow[ALICE.address] = before
    await bench.settler.round()
    assert bench.collected(2) == 300
    bench.chain.escrow[ALICE.address] = before  # while the node was away: the next run looks at everything once
    bench.clock = 10**6
    bench.restart()
    await bench.settler.round()
    assert bench.collected(2) == 300


async def test_batches(bench: Bench) -> None:
    bench.settings = replace(bench.settings, batch=2)
    bench.restart()
    for client in range(2, 7):
        bench.chain.fund(signer(client).address, 1000)
        await bench.promise(client, 100 + client)
    assert await bench.settler.settle_now() == sum(100 + client for client in range(2, 7))
    assert [number for _, number in bench.chain.calls] == [2, 2, 1]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["promise", "fund", "round", "before", "after", "restart"]),
            st.integers(2, 3),
            st.integers(1, 400),
        ),
        max_size=15,
    )
)
async def test_whatever_fails_each_voucher_is_paid_once(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, int]]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("settle"), settle_min=Credits(1))
    highest, deposits = {2: 0, 3: 0}, {2: 0, 3: 0}
    for name, client, amount in actions:
        if name == "promise":
            highest[client] += amount
            await bench.promise(client, highest[client])
        elif name == "fund":
            deposits[client] += amount
            bench.chain.fund(signer(client).address, amount)
        elif name == "before":
            bench.chain.fail_before = 1
        elif name == "after":
            bench.chain.fail_after = 1
        elif name == "restart":
            bench.restart()
        else:
            try:
                await bench.settler.round()
            except ChainError:
                continue
    bench.chain.fail_before = bench.chain.fail_after = 0
    await bench.settler.round()
    for client in (2, 3):
        escrow = bench.chain.escrow.get(signer(client).address)
        assert (escrow.collected if escrow else 0) == min(highest[client], deposits[client])
    paid = sum(mintable(min(highest[client], deposits[client])) for client in (2, 3))
    assert bench.chain.minted_paid == paid
    await bench.journal.close()


async def test_donated_work_is_claimed_in_rising_order_and_minted(bench: Bench) -> None:
    bench.settings = replace(bench.settings, batch=2)
    bench.restart()
    works = [await bench.donate(10 * EPOCH + 5, tokens=3) for _ in range(5)]
    await bench.settler.round()
    assert "no free session" in bench.settler.reasons["claimed"]
    bench.chain.now = 11 * EPOCH + 1
    await bench.settler.round()
    assert bench.chain.calls == [("claim", 2), ("claim", 2), ("claim", 1)]
    assert bench.chain.units[10] == 5 * 3 * 15 * 7
    assert bench.chain.last[10] == max(work.id for work in works)
    assert "can be minted when epoch 12 begins" in bench.settler.reasons["minted"]
    bench.restart()
    await bench.settler.round()
    assert len(bench.chain.calls) == 3
    bench.chain.now = 12 * EPOCH
    await bench.settler.round()
    await bench.settler.round()
    assert bench.chain.calls[3:] == [("mint", 10)]
    assert bench.settler.donated_minted == bench.chain.units[10]
    assert bench.settler.reasons["minted"] == ""


async def test_a_claim_goes_on_after_a_crash(bench: Bench) -> None:
    bench.settings = replace(bench.settings, batch=2)
    bench.restart()
    for _ in range(4):
        await bench.donate(10 * EPOCH, tokens=1)
    bench.chain.now = 11 * EPOCH
    bench.chain.fail_after = 1
    with pytest.raises(ChainError):
        await bench.settler.round()
    bench.restart()
    await bench.settler.round()
    assert bench.chain.units[10] == 4 * 15 * 7
    await bench.journal.close()
    bench.journal = Journal.open(database_url(Path(str(bench.journal._engine.url.database))), DOMAIN, NODE.address)
    assert {one.claim for one in bench.journal.donated(10 * EPOCH, 11 * EPOCH)} == {"claimed in epoch 10"}


async def test_a_little_stake_claims_the_largest_sessions(bench: Bench) -> None:
    small = [await bench.donate(10 * EPOCH, tokens=1) for _ in range(3)]
    large = [await bench.donate(10 * EPOCH, tokens=50) for _ in range(2)]
    bench.chain.capacity = 2 * 50 * 15 * 7
    bench.chain.now = 11 * EPOCH
    await bench.settler.round()
    assert bench.chain.calls == [("claim", 2)]
    assert bench.chain.last[10] == max(work.id for work in large)
    assert small
    bench.chain.capacity = 0
    bench.chain.now = 12 * EPOCH
    await bench.donate(11 * EPOCH, tokens=1)
    await bench.settler.round()
    assert "no stake" in bench.settler.reasons["claimed"]


async def test_a_reorganisation_that_takes_a_claim_back_is_made_good(bench: Bench) -> None:
    await bench.donate(10 * EPOCH, tokens=1)
    bench.chain.now = 11 * EPOCH
    await bench.settler.round()
    claimed = bench.chain.units[10]
    bench.chain.last.clear()
    bench.chain.units.clear()
    await bench.settler.round()
    await bench.settler.round()
    assert bench.chain.units[10] == claimed
    assert len(bench.chain.calls) == 2


async def test_run_outlives_trouble_and_tells_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 300)
    bench.chain.fail_before = 2
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            assert "cannot be reached" in bench.settler.reasons["settled"]
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        await bench.settler.run()
    assert pauses == [4.0, 8.0, 2.0]
    assert bench.collected(2) == 300


async def test_a_void_share_says_why(bench: Bench) -> None:
    await bench.donate(10 * EPOCH, tokens=1)
    bench.chain.now = 11 * EPOCH
    await bench.settler.round()
    bench.chain.void.add(10)
    bench.chain.now = 12 * EPOCH
    await bench.settler.round()
    await bench.settler.round()
    assert "voids" in bench.settler.reasons["minted"]
