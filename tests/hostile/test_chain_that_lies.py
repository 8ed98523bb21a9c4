"""A node's money where one of the chain's endpoints lies, shortens, lags or asks to wait, and another is true.

Real contracts, a real journal; the lies are those that an endpoint can tell for its own profit or out of malice.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hivemint.ledger.books.entries import Entry
from hivemint.ledger.settlement.chainview import ContractView
from hivemint.ledger.settlement.settler import Settler
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import ONE_CREDIT, Credits
from hivemint.protocol.signing import Signer
from support.lying_rpc import LyingRpc, Status
from support.promises import Work
from support.two_endpoints import ACCOUNTS, Scene, with_field

DAY = 86_400.0
BALANCE, COLLECTED, THAW_END, KEY_END = range(4)


def throttled(method: str, params: list[Any], result: Any) -> Any:
    raise Status(429, headers={"Retry-After": "0"})


def lie(at: int, value: int) -> Callable[[LyingRpc], None]:
    return lambda endpoint: endpoint.call(ACCOUNTS, with_field(at, value))


LIES: dict[str, Callable[[LyingRpc], None]] = {
    "all is collected": lie(COLLECTED, 2**90),
    "a little is collected": lie(COLLECTED, 3),
    "nothing is collected": lie(COLLECTED, 0),
    "the account is empty": lie(BALANCE, 0),
    "the account is rich": lie(BALANCE, 2**90),
    "it thaws": lie(THAW_END, 2**40),
    "the key is over": lie(KEY_END, 1),
    "a short list": lambda endpoint: endpoint.call(ACCOUNTS, lambda answer: answer[:32] + bytes(32)),
    "half an answer": lambda endpoint: endpoint.call(ACCOUNTS, lambda answer: answer[:-32]),
    "bytes of nothing": lambda endpoint: endpoint.call(ACCOUNTS, lambda _: b"\xff" * 96),
    "no contracts": lambda endpoint: endpoint.lie("eth_call", lambda params, result: "0x"),
    "half a word": lambda endpoint: endpoint.lie("eth_call", lambda params, result: "0x" + "ff" * 15),
    "words of nothing": lambda endpoint: endpoint.lie("eth_call", lambda params, result: "0x" + "ff" * 64),
    "no receipts": lambda endpoint: endpoint.lie("eth_getTransactionReceipt", lambda params, result: None),
    "nonces of yesterday": lambda endpoint: endpoint.lie("eth_getTransactionCount", lambda params, result: "0x0"),
    "nonces of tomorrow": lambda endpoint: endpoint.lie("eth_getTransactionCount", lambda params, result: "0x400"),
    "no blocks": lambda endpoint: endpoint.lie("eth_getBlockByNumber", lambda params, result: None),
    "fewer requests": lambda endpoint: endpoint.rule(throttled),
    "gone": lambda endpoint: endpoint.drop(),
    "stands still": lambda endpoint: endpoint.freeze(),
    "the truth": lambda endpoint: endpoint.honest(),
}
STORY = st.lists(
    st.one_of(
        st.tuples(st.just("lie"), st.sampled_from(list(LIES))),
        st.tuples(st.just("promise"), st.integers(1, 300)),
        st.tuples(st.just("fund"), st.integers(1, 300)),
        st.tuples(st.sampled_from(["round", "round", "look", "restart", "wait"]), st.just(0)),
    ),
    min_size=4,
    max_size=10,
)


@pytest.mark.parametrize("name", list(LIES))
async def test_a_lie_is_lived_with(scene: Scene, credits_of: Signer, name: str) -> None:
    """Each lie alone, before and after something was settled."""
    story = [("promise", 180), ("fund", 180), ("lie", name), ("round", 0), ("promise", 20), ("look", 0), ("fund", 30)]
    await play(Money(scene, credits_of), [*story, ("wait", 0), ("round", 0)])


@example(story=[("promise", 180), ("fund", 180), ("lie", "no blocks"), ("lie", "all is collected"), ("promise", 180)])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(story=STORY)
async def test_one_liar_makes_nobody_believe_in_credits_and_keeps_nobody_from_its_pay(
    scene: Scene, credits_of: Signer, story: list[tuple[str, Any]]
) -> None:
    await play(Money(scene, credits_of), story)


async def play(chain: "Money", story: list[tuple[str, Any]]) -> None:
    """Admission never sees more than there is; what receipts carry is collected within two days of the worker's
    rounds though the first endpoint goes on lying; and no proof is lost on the way."""
    scene = chain.scene
    await chain.begin()
    for what, value in story:
        if what == "lie":
            LIES[value](scene.one)
        else:
            await getattr(chain, what)(value)
    for _ in range(3):
        scene.clock[0] += DAY
        await chain.round(0)
    await chain.look(0)
    assert await scene.collected() == min(chain.promised, chain.deposits)
    scene.honest()


class Money:
    """One client of a scene, and what must be true of it. Amounts in wei; a scene is used by many stories."""

    view: ContractView

    def __init__(self, scene: Scene, credits_of: Signer) -> None:
        self.scene, self.credits_of = scene, credits_of
        self.promised = self.deposits = 0

    async def begin(self) -> None:
        scene = self.scene
        scene.honest()
        account = await scene.true.settlement.account(scene.client.address, scene.node.address)
        self.promised = scene.journal.book(scene.client.address).owed  # of the stories before, short of deposits or not
        self.deposits = account.collected + account.balance
        self.view = ContractView(scene.seen, scene.node.address, confirmations=1, clock=lambda: scene.clock[0])

    async def promise(self, amount: int) -> None:
        self.promised += amount
        await self.scene.promise(self.promised)

    async def fund(self, amount: int) -> None:
        scene = self.scene
        self.deposits += amount
        await scene.true.settlement.fund(
            self.credits_of, {scene.node.address: Credits(amount)}, client=scene.client.address
        )

    async def wait(self, _: int) -> None:
        self.scene.clock[0] += 3600
        self.scene.testchain.devchain.mine()

    async def round(self, _: int) -> None:
        with suppress(ChainError):
            await self.scene.settler.round()
        assert await self.scene.collected() <= min(self.promised, self.deposits)

    async def restart(self, _: int) -> None:
        """The worker forgets what it has tried."""
        scene, old = self.scene, self.scene.settler
        scene.settler = Settler(scene.journal, old._payments, old._settings, clock=lambda: scene.clock[0])

    async def look(self, _: int) -> None:
        scene = self.scene
        scene.clock[0] += 1
        scene.testchain.devchain.mine()
        with suppress(ChainError):
            seen = await self.view.account(scene.client.address)
            assert seen.funded <= self.deposits
            assert seen.collected <= await scene.collected()


@pytest.mark.parametrize("total", [3 * ONE_CREDIT, 2**96 - 1])
async def test_a_node_claims_no_total_that_its_receipts_do_not_carry(scene: Scene, total: int) -> None:
    """A voucher that runs ahead of what is owed covers, and is neither stored nor settled."""
    expiry = await scene.true.chain.time() + 9999
    work = Work(scene.client, scene.node, price=1, expiry=expiry, domain=scene.testchain.network.domain)
    await scene.journal.open_session(work.session, work.signature)
    work.step(1)
    await scene.journal.record(Entry(scene.client.address, work.id, Credits(2 * ONE_CREDIT), work.countersign(total)))
    await scene.settler.settle_now()
    assert await scene.collected() == 0
    exact = work.countersign(2 * ONE_CREDIT)
    await scene.journal.record(Entry(scene.client.address, work.id, Credits(2 * ONE_CREDIT), exact))
    await scene.settler.settle_now()
    assert await scene.collected() == 2 * ONE_CREDIT
