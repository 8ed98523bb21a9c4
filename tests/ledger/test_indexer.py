"""The indexer over an in-memory chain: whatever branches it was shown, its tables equal a fresh replay (P12)."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.explorer import indexer as module
from hivemint.ledger.explorer.fold import NOBODY
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.store.database import database_url, reading
from hivemint.ledger.store.tables import blocks
from hivemint.protocol.credits import mintable
from hivemint.protocol.errors import ChainError
from support.index import tables
from support.logchain import NETWORK, LogChain
from support.promises import signer

A, B, C = (signer(number).address for number in (2, 3, 4))
Life = tuple[str, str, dict[str, Any]]


async def opened(path: Path, chain: LogChain) -> Indexer:
    return await Indexer.open(database_url(path), cast(Bindings, chain), NETWORK)


async def replayed(path: Path, chain: LogChain) -> dict[str, list[tuple[object, ...]]]:
    fresh = await opened(path, chain)
    await fresh.follow()
    found = tables(fresh)
    await fresh.close()
    return found


def registered(node: str) -> Life:
    return "NodeRegistry", "Registered", {"node": node, "owner": A, "payout": A, "peerIdHash": bytes(32)}


def minted(holder: str, amount: int) -> Life:
    return "CreditToken", "Transfer", {"from": NOBODY, "to": holder, "value": amount}


def funded(client: str, node: str, amount: int) -> Life:
    return (
        "Settlement",
        "Funded",
        {"client": client, "node": node, "amount": amount, "balance": amount, "payer": client},
    )


def settled(client: str, node: str, burned: int) -> Life:
    values = {"client": client, "node": node, "sessionId": bytes(32), "step": 1, "tokens": 1, "total": burned}
    return "Settlement", "Settled", values | {"burned": burned, "minted": mintable(burned)}


def donated(node: str, epoch: int, amount: int) -> Life:
    return "Emission", "Minted", {"node": node, "epoch": epoch, "payout": A, "amount": amount}


lives = st.one_of(
    st.builds(minted, st.sampled_from([A, B]), st.integers(1, 2**100)),
    st.builds(lambda amount: funded(A, C, amount + 500), st.integers(0, 2**90)),
    st.builds(
        lambda amount: ("NodeRegistry", "Bonded", {"node": C, "amount": 1, "bonded": amount}), st.integers(1, 99)
    ),
    st.builds(lambda end: ("Settlement", "Thawing", {"client": A, "node": C, "thawEnd": end}), st.integers(1, 2**40)),
    st.just(registered(C)),
    st.just(("NodeRegistry", "Retired", {"node": C})),
    st.builds(donated, st.just(C), st.integers(0, 50), st.integers(0, 2**90)),
    st.builds(
        lambda epoch, units: (
            "Emission",
            "Claimed",
            {"node": C, "epoch": epoch, "counted": 2, "units": units, "weight": units // 2},
        ),
        st.integers(0, 50),
        st.integers(0, 2**128 - 1),
    ),
)
turns = st.one_of(
    st.lists(lives, max_size=3).map(lambda life: ("mine", life)),
    st.integers(1, 8).map(lambda depth: ("switch", depth)),
    st.just(("follow", 0)),
    st.just(("restart", 0)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    story=st.lists(turns, max_size=20),
    keep=st.sampled_from([1, 3, 256]),
    step=st.sampled_from([2, 1000]),
    by_hash=st.sampled_from([1, 3, 32]),
)
async def test_any_story_ends_like_a_fresh_replay(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, Any]], keep: int, step: int, by_hash: int
) -> None:
    path, chain = tmp_path_factory.mktemp("index"), LogChain()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_KEEP", keep)  # few kept hashes: the way back then leads over blocks with events
        patch.setattr(module, "_STEP", step)
        patch.setattr(module, "_NEWEST", by_hash)
        chain.mine()
        index = await opened(path / "index.db", chain)
        for turn, what in story:
            if turn == "mine":
                chain.mine(*what)
            elif turn == "switch":
                chain.switch(what)
                chain.mine()
            elif turn == "restart":
                await index.close()
                index = await opened(path / "index.db", chain)
            else:
                await index.follow()
        progress = await index.follow()
        assert progress.indexed == len(chain.blocks) - 1
        assert tables(index) == await replayed(path / "fresh.db", chain)
        await index.close()


async def test_what_events_add_up_to(tmp_path: Path) -> None:
    chain = LogChain()
    chain.mine(registered(C), ("NodeRegistry", "Bonded", {"node": C, "amount": 50, "bonded": 50}))
    chain.mine(minted(A, 1000), funded(A, C, 700))
    chain.mine(settled(A, C, 300), settled(A, C, 101))
    chain.mine(("NodeRegistry", "Slashed", {"node": C, "lost": 20, "reporter": B, "reward": 2}))
    chain.mine(("NodeRegistry", "Unbonding", {"node": C, "amount": 30, "unbondEnd": 1}))
    chain.mine(("Settlement", "Withdrawn", {"client": A, "node": C, "amount": 299}))
    index = await opened(tmp_path / "index.db", chain)
    await index.follow()
    found = tables(index)
    assert [row[1:] for row in found["balances"]] == [(A, 1000)]
    assert [row[3:] for row in found["escrows"]] == [(0, 401, 0)]
    paid = mintable(300) + mintable(101)
    assert [(row[5], row[6], row[8], row[9]) for row in found["registrations"]] == [(0, 30, 401, paid)]
    assert [row[2:] for row in found["epochs"]] == [(401, paid, 0)]
    await index.close()


async def test_an_idle_chain_costs_one_question_a_poll(tmp_path: Path) -> None:
    chain = LogChain()
    for _ in range(5):
        chain.mine(minted(A, 1))
    index = await opened(tmp_path / "index.db", chain)
    await index.follow()
    before = chain.asked
    await index.follow()
    assert chain.asked - before == 1
    await index.close()


async def test_hashes_of_empty_blocks_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEEP", 10)
    chain = LogChain()
    chain.mine(minted(A, 1))
    index = await opened(tmp_path / "index.db", chain)
    for _ in range(40):
        chain.mine()
        await index.follow()
    with reading(index.engine) as connection:
        assert connection.scalar(select(func.count()).select_from(blocks)) == 12  # ten, the newest, and the event's
    await index.close()


async def test_a_branch_switched_during_a_query_is_asked_again(tmp_path: Path) -> None:
    class Treacherous(LogChain):
        async def events_of(self, block_hash: bytes) -> Any:
            found = await super().events_of(block_hash)
            if self._branch == 0:
                self.switch(1)
                self.mine(minted(B, 7))
            return found

    chain = Treacherous()
    chain.mine(minted(A, 1))
    chain.mine(minted(A, 2))
    index = await opened(tmp_path / "index.db", chain)
    await index.follow()
    assert tables(index) == await replayed(tmp_path / "fresh.db", chain)
    await index.close()


async def test_trouble_is_told_and_outlived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = LogChain()
    chain.mine(minted(A, 1))
    index = await opened(tmp_path / "index.db", chain)
    sleeps: list[float] = []
    good = chain.get_block

    async def away(number: int | str) -> Any:
        raise ChainError("The chain cannot be reached")

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 2:
            assert "cannot be reached" in index.trouble
            monkeypatch.setattr(chain, "get_block", good)
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(chain, "get_block", away)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        await index.run(poll=1.0)
    assert sleeps == [2.0, 4.0, 1.0]
    assert index.trouble == ""
    await index.close()


async def test_events_that_an_endpoint_kept_back_are_found_by_the_sums(tmp_path: Path) -> None:
    """A backend that lags answers "no events"; the token contract then says another sum, and the index begins anew."""

    class Forgetful(LogChain):
        lost = True

        def _events(self, number: int) -> Any:
            return [] if self.lost and number == 2 else super()._events(number)

    chain = Forgetful()
    chain.mine(minted(A, 1000))
    chain.mine(("CreditToken", "Transfer", {"from": A, "to": NETWORK.contracts.settlement, "value": 300}))
    index = await opened(tmp_path / "index.db", chain)
    await index.follow()
    assert "supply and escrow" in index.differs
    chain.lost = False
    await index.follow()
    assert index.differs == ""
    assert tables(index) == await replayed(tmp_path / "fresh.db", chain)
    await index.close()
