"""The settlement worker against the contracts' rules in memory: when it settles, what it survives, what it explains."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.settlement.payments import EscrowState, Settled
from hivemint.ledger.settlement.settler import Settler, SettlerSettings
from hivemint.ledger.store.database import database_url
from hivemint.protocol.credits import mintable
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import ONE_CREDIT, Address, Credits
from hivemint.protocol.receipt import Countersigned, sign_voucher
from support.payments import EPOCH, THAW, ReferencePayments
from support.promises import DOMAIN, Work, signer

NODE, ALICE, BOB = signer(1), signer(2), signer(3)


class Bench:
    """A journal, the reference chain, a worker, and its clock."""

    def __init__(self, path: Path, **wanted: object) -> None:
        self.journal = Journal.open(database_url(path / "journal.db"), DOMAIN, NODE.address)
        self.chain = ReferencePayments()
        self.clock = 0.0
        self.settings = replace(
            SettlerSettings(settle_min=Credits(100), settle_every=60, dust=Credits(1)),
            **wanted,  # type: ignore[arg-type]
        )
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


async def test_a_small_last_payment_is_told_as_soon_as_it_is_confirmed(tmp_path: Path) -> None:
    """Below `dust`, of a client that has gone: not ten minutes later, at the next look at all accounts."""
    bench = Bench(tmp_path, settle_min=Credits(1), dust=Credits(10))
    bench.chain.fund(ALICE.address, 1000)
    work = await bench.promise(2, 5)
    bench.journal.close_session(work.id)
    settle = bench.chain.settle

    async def unconfirmed(items: Sequence[Countersigned]) -> Settled:
        done = await settle(items)
        bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], confirmed=Credits(0))
        return done

    bench.chain.settle = unconfirmed  # type: ignore[method-assign]
    await bench.settler.round()
    assert (bench.collected(2), bench.journal.totals.settled) == (5, 0)
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], confirmed=Credits(5))
    await bench.settler.round()
    assert bench.journal.totals.settled == 5
    await bench.journal.close()


@pytest.mark.parametrize(
    ("change", "after"), [({"thaw_end": 10 * EPOCH + THAW}, 0), ({"key_until": 10 * EPOCH}, THAW // 2)]
)
async def test_a_thaw_is_settled_at_once_and_a_key_that_ends_with_half_of_thaw_left(
    bench: Bench, change: dict[str, int], after: int
) -> None:
    """Each once. A chain that then stands still for the rest of a thaw takes nothing."""
    bench.chain.fund(ALICE.address, 1000)
    bench.chain.fund(BOB.address, 1000)
    await bench.promise(2, 5)
    await bench.promise(3, 5)
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], **change)  # type: ignore[arg-type]
    for now in range(10 * EPOCH, 10 * EPOCH + THAW, 10):
        bench.chain.now = now
        await bench.settler.round()
        assert bench.collected(2) == (5 if now >= 10 * EPOCH + after else 0)
    assert bench.collected(3) == 0
    assert bench.chain.calls == [("settle", 1)]


async def test_a_key_that_is_about_to_end_makes_nobody_settle_each_wei(bench: Bench) -> None:
    """A client with a short-lived key, a wei a round: no transaction before its end, and one after it."""
    bench.chain.fund(ALICE.address, 1000)
    end = 10 * EPOCH + 100
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], key_until=end)
    for total in range(1, 31):
        await bench.promise(2, total)
        bench.chain.now += 3
        await bench.settler.round()
    assert bench.chain.calls == []
    bench.chain.now = end + THAW - 1
    await bench.settler.round()
    await bench.settler.round()
    assert (bench.chain.calls, bench.collected(2)) == ([("settle", 1)], 30)


async def test_dust_is_let_go_and_says_so(bench: Bench) -> None:
    """A thaw with 1 wei owed costs a node nothing."""
    bench.settings = replace(bench.settings, dust=Credits(50))
    bench.restart()
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 1)
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], thaw_end=10 * EPOCH + THAW)
    bench.chain.now += THAW
    bench.clock = 10**6
    await bench.settler.round()
    assert bench.chain.calls == []
    assert "it is let go" in bench.settler.reasons["settled"]
    assert "it is let go" in bench.journal.book(ALICE.address).reason
    await bench.promise(2, 60)
    await bench.settler.round()
    assert (bench.collected(2), bench.journal.book(ALICE.address).reason) == (60, "")


async def test_with_a_price_a_settlement_brings_what_it_costs(bench: Bench) -> None:
    """A credit of one coin; a settlement of one costs 90,000 times the gas price, another in it 27,000."""
    bench.settings = replace(bench.settings, credit_price=ONE_CREDIT, settle_min=Credits(1), gas_share=0.1)
    bench.restart()
    bench.chain.fund(ALICE.address, 10**9)
    bench.chain.fund(BOB.address, 10**9)
    await bench.promise(2, 899_999)  # ten times the cost would be worth it at once
    await bench.promise(3, 26_999)  # never worth its place
    await bench.settler.round()
    assert bench.chain.calls == []
    assert "wait to be worth their gas" in bench.settler.reasons["settled"]
    await bench.promise(2, 900_000)
    await bench.settler.round()
    assert bench.chain.calls == [("settle", 1)]
    bench.chain.gas_price = 100  # gas becomes dear: the time alone is no reason any more
    await bench.promise(2, 900_000 + 8_999_999)
    await bench.settler.round()
    bench.clock = 61
    await bench.settler.round()
    assert len(bench.chain.calls) == 1
    assert "what it costs now" in bench.settler.reasons["settled"]
    bench.chain.gas_price = 99
    await bench.settler.round()
    assert (len(bench.chain.calls), bench.collected(3)) == (2, 0)


async def test_of_a_clients_proofs_the_highest_that_can_be_collected_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The higher one's key has ended for good; the lower one's lives."""
    bench.chain.fund(ALICE.address, 1000)
    work = await bench.promise(2, 150)
    lower, higher = work.countersign(150), work.countersign(900)
    dead = signer(77)
    higher = replace(higher, voucher=sign_voucher(DOMAIN, higher.receipt, Credits(900), dead))
    monkeypatch.setattr(bench.journal, "collectable", lambda: [higher, lower])
    ask = bench.chain.escrows

    async def escrows(pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        told = await ask(pairs)
        return [
            replace(one, key_until=1) if key == dead.address else one for one, (_, key) in zip(told, pairs, strict=True)
        ]

    monkeypatch.setattr(bench.chain, "escrows", escrows)
    await bench.settler.round()
    assert bench.collected(2) == 150


async def test_a_settlement_that_fails_holds_no_claims(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 300)
    await bench.donate(10 * EPOCH, tokens=1)
    bench.chain.now = 11 * EPOCH

    async def stuck(items: Sequence[Countersigned]) -> Settled:
        raise ChainError("Settling was sent, but no block holds it")

    monkeypatch.setattr(bench.chain, "settle", stuck)
    with pytest.raises(ChainError):
        await bench.settler.round()
    assert bench.chain.calls == [("claim", 1)]
    assert "no block holds it" in bench.settler.reasons["settled"]


async def test_a_claim_that_fails_holds_no_mint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims that the chain refuses, round after round: what was claimed before is minted all the same."""
    claimed = bench.chain.now // EPOCH - 1
    await bench.donate(claimed * EPOCH + 1, 100)
    await bench.settler.round()
    await bench.donate((claimed + 1) * EPOCH + 1, 100)

    async def refused(*_: object) -> None:
        raise ChainError("EnforcedPause")

    monkeypatch.setattr(bench.chain, "claim", refused)
    bench.chain.now = (claimed + 2) * EPOCH
    with pytest.raises(ChainError, match="EnforcedPause"):
        await bench.settler.round()
    assert bench.chain.minted == {claimed}
    assert "EnforcedPause" in bench.settler.reasons["claimed"]


async def test_an_unforeseen_error_is_shown_and_raised(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the worker supervises it: nothing ends in silence."""

    async def broken() -> bool:
        raise KeyError("nobody foresaw this")

    monkeypatch.setattr(bench.chain, "registered", broken)
    with pytest.raises(KeyError):
        await bench.settler.run()
    assert "nobody foresaw this" in bench.settler.reasons["settled"]


async def test_an_endpoint_that_denies_a_settlement_makes_nobody_pay_for_it_each_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.chain.fund(ALICE.address, 1000)
    before = [bench.chain.escrow[ALICE.address]]
    await bench.promise(2, 300)

    async def escrows(pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        return before

    monkeypatch.setattr(bench.chain, "escrows", escrows)
    for _ in range(20):
        await bench.settler.round()
    assert bench.chain.calls == [("settle", 1)]
    assert "not seen on the chain yet" in bench.settler.reasons["settled"]


@pytest.mark.parametrize("lie", [{"collected": 10**6}, {"balance": 0}, {"key_until": 1}])
async def test_one_endpoint_of_several_cannot_keep_a_node_from_its_pay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, lie: dict[str, int]
) -> None:
    """It says that there is nothing to collect, always; another tells the truth. On a thaw it is settled at once."""
    bench.chain.fund(ALICE.address, 1000)
    truth = bench.chain.escrows

    async def differing(pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        return [replace(one, **lie, hopeful=one) for one in await truth(pairs)]  # type: ignore[arg-type]

    monkeypatch.setattr(bench.chain, "escrows", differing)
    await bench.promise(2, 300)
    await bench.settler.round()
    if "key_until" not in lie:  # a key that is said to be over is urgent
        assert bench.chain.calls == []
        assert "endpoints differ" in bench.settler.reasons["settled"]
    bench.clock = 60  # `settle_every`
    await bench.settler.round()
    assert bench.collected(2) == 300
    await bench.promise(2, 500)
    bench.chain.escrow[ALICE.address] = replace(bench.chain.escrow[ALICE.address], thaw_end=10 * EPOCH + THAW)
    bench.clock = 60 + 600
    await bench.settler.round()
    assert bench.collected(2) == 500


async def test_an_endpoint_that_hides_payments_costs_ever_fewer_transactions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten days of rounds, and by its word a thaw, so that it is urgent all the time."""
    bench.chain.fund(ALICE.address, 1000)
    await bench.promise(2, 300)
    hidden = replace(bench.chain.escrow[ALICE.address], thaw_end=10**9)
    truth = bench.chain.escrows

    async def differing(pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        return [replace(one, confirmed=Credits(0), thaw_end=10**9, hopeful=hidden) for one in await truth(pairs)]

    monkeypatch.setattr(bench.chain, "escrows", differing)
    for minute in range(0, 10 * 1440, 10):
        bench.clock = 60.0 * minute
        await bench.settler.round()
    assert bench.collected(2) == 300
    assert 5 <= len(bench.chain.calls) <= 20


LIES = st.one_of(
    st.tuples(st.just("promise"), st.integers(1, 300)),
    st.tuples(st.just("fund"), st.integers(1, 300)),
    st.tuples(st.sampled_from(["collected", "confirmed", "balance", "thaw_end", "key_until"]), st.integers(0, 10**6)),
    st.tuples(st.just("truth"), st.just(0)),
    st.tuples(st.just("round"), st.just(0)),
    st.tuples(st.just("restart"), st.just(0)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=st.lists(LIES, max_size=20))
async def test_whatever_is_lied_about_no_proof_is_lost(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]]
) -> None:
    """Once the chain tells the truth everything is collected."""
    path = tmp_path_factory.mktemp("lies")
    bench = Bench(path, settle_min=Credits(1))
    bench.chain.fund(ALICE.address, 1)
    truth, lies = bench.chain.escrows, dict[str, int]()

    async def escrows(pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        return [replace(one, **lies) for one in await truth(pairs)]  # type: ignore[arg-type]

    bench.chain.escrows = escrows  # type: ignore[method-assign]
    promised, deposits = 0, 1
    for what, amount in story:
        if what == "promise":
            promised += amount
            await bench.promise(2, promised)
        elif what == "fund":
            deposits += amount
            bench.chain.fund(ALICE.address, amount)
        elif what == "truth":
            lies.clear()
        elif what == "restart":
            await bench.journal.close()
            bench.journal = Journal.open(database_url(path / "journal.db"), DOMAIN, NODE.address)
            bench.restart()
        elif what == "round":
            await bench.settler.round()
        else:
            lies[what] = amount
    lies.clear()
    bench.clock += 10**6
    await bench.settler.round()
    assert bench.collected(2) == min(promised, deposits)
    await bench.journal.close()


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
    bench.clock = 600  # paid accounts are looked at now and then
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
    assert "no donated session" in bench.settler.reasons["claimed"]
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
    assert {one.claim for one in bench.journal.donated_sessions.donated(10 * EPOCH, 11 * EPOCH)} == {
        "claimed in epoch 10"
    }


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
