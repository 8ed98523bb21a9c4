"""Hostile clients of one wallet at a real node: its journal a file, its chain the real contracts, its links libp2p.

They sign any total by any key, repeat, cancel, take back, thaw, revoke and withdraw, while endpoints lie and the node
is killed. What must hold after each move:
- no input ends the node, or is an error that nobody foresaw;
- work that nobody can be made to pay for stays within the bound of decision 0018, however often it is tried;
- each step number of a session has one receipt (P16), and each acknowledged voucher that the sum owed has reached is
  stored, over kills too (P11);
and in the end the chain pays what the journal's best voucher says, to the wei.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from hivemint.node.span.span import Span
from hivemint.protocol.eip712 import MAX_UINT96
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import Address, BlockIndex, Credits
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import CONTROL
from hivemint.swarm.messages import Refused, StepReceipt
from support.hostile_client import HostileSession, Sent
from support.money_stage import NODE, WALLET, Stage, profile
from support.node_client import NodeSession, RefusedError
from support.promises import signer
from support.staged_node import AHEAD, ASK, ROWS, StagedNode

pytest_plugins = ["support.node_pair"]
KEYS = (WALLET, signer(61), signer(62))
"""The wallet's own, and two session keys."""
STRANGER = signer(66)
SESSIONS, DEAREST = 3, 2
ONE_STEP = ROWS * ASK * DEAREST
UNPAID = ONE_STEP + (SESSIONS - 1) * (1 + AHEAD) * ONE_STEP
"""This session's step; of each other one a step that was announced and those that were accepted and taken back."""

which = st.integers(0, SESSIONS - 1)
rows = st.integers(1, ROWS)
vouchers = st.sampled_from(
    ["exact"] * 6
    + ["ahead"] * 3
    + ["short", "zero", "funded", "above", "huge", "other", "replay", "foreign", "unbound"]
)
lies = st.sampled_from(["spent", "unpaid", "poor", "dead", "thaw", "short", "down"])
offs = st.integers(1, 3 * ONE_STEP)


class HostileClients(RuleBasedStateMachine):
    collected = 0
    """Over all examples, so that a play in which nothing is ever earned is noticed."""

    def __init__(self, stage: Stage, span: Span) -> None:
        super().__init__()
        self.stage = stage
        self.folder = stage.reset()
        stage.fund(2_000)
        self.served = stage.run(StagedNode.start(stage, span, self.folder / "journal.db"))
        self.sessions: dict[int, HostileSession] = {}
        self.all: list[HostileSession] = []
        self.promised: list[tuple[Address, int]] = []  # acknowledged, and not yet reached by the sum owed
        self.stored: defaultdict[Address, int] = defaultdict(int)  # of each key the highest that was
        self.used: list[int] = [0]
        self.answered = 0

    # ---- sessions

    @initialize()
    def begin(self) -> None:
        """Something is earned, so that there is something to lose."""
        self.open(at=0, key=0, bid=1, amount=2_000)
        self.step(at=0, count=2, kind="exact", off=1, wait=False)

    @rule(
        at=which,
        key=st.integers(0, 2),
        bid=st.sampled_from([1, 1, 1, 2, 0]),
        amount=st.sampled_from([2_000, 600, ONE_STEP, 10**9]),
    )
    def open(self, at: int, key: int, bid: int, amount: int) -> None:
        if at in self.sessions:
            return
        expiry = max(int(time.time()), self.stage.world.chain.time()) + 80_000
        price = bid * ASK
        terms = {"price": price, "max_amount": Credits(amount if price else 0), "expiry": expiry}
        self.served.ticks.now += 1
        try:
            made = self.stage.run(self._open(KEYS[key], terms))
        except (RefusedError, LinkClosed):
            return
        self.sessions[at] = HostileSession(made, KEYS[key])
        self.all.append(self.sessions[at])

    async def _open(self, key: Signer, terms: dict[str, Any]) -> NodeSession:
        host = self.stage.host
        link = await self.stage.client.dial(host.peer_id, host.addresses, CONTROL)
        return await NodeSession.open(link, self.stage.domain, WALLET, key=None if key is WALLET else key, **terms)

    @rule(at=which, count=rows, kind=vouchers, off=offs, wait=st.booleans())
    def step(self, at: int, count: int, kind: str, off: int, wait: bool) -> None:
        """A step with its input, or (`wait`, or behind such a one) without."""
        if (one := self._live(at)) is None:
            return None
        sent = self._make(one, count, kind, off)
        self.used.append(sent.request.voucher.body.total)
        if wait or one.waiting:
            return self.stage.run(one.announce(sent))
        owed = self.served.owed
        answer = self.stage.run(one.ask(sent))
        if isinstance(answer, StepReceipt):
            assert kind not in ("foreign", "unbound", "huge", "above"), "not a voucher that the chain would pay"
            self._acknowledged(one, sent)
        elif isinstance(answer, Refused) and kind == "exact":
            assert self.served.owed == owed, "a refused step is not owed"
        return None

    @rule(at=which)
    def deliver(self, at: int) -> None:
        if (one := self._live(at)) is not None:
            for sent in self.stage.run(one.deliver()):
                self._acknowledged(one, sent)

    @rule(at=which)
    def cancel(self, at: int) -> None:
        if (one := self._live(at)) is not None:
            self.stage.run(one.cancel())

    @rule(at=which, other=st.booleans())
    def repeat(self, at: int, other: bool) -> None:
        if (one := self._live(at)) is not None and one.done and not one.waiting:
            changes = {"count": one.done[-1].request.count + 1} if other else {}
            self.stage.run(one.repeat(one.done[-1], **changes))

    @rule(at=which, last=st.sampled_from(["none", "same", "ahead", "huge", "foreign"]), hang_up=st.booleans())
    def close(self, at: int, last: str, hang_up: bool) -> None:
        if (one := self._live(at)) is None:
            return
        owed = self.served.owed
        total = {"none": None, "same": owed, "ahead": owed + 300, "huge": MAX_UINT96, "foreign": owed}[last]
        work = one.hang_up() if hang_up else one.close(total if one.price else None, self._by(one, last))
        self.stage.run(work)
        self.sessions.pop(at)

    # ---- the wallet on the chain

    @rule(order=st.sampled_from(["thaw", "cancelThaw", "withdraw"]))
    def account(self, order: str) -> None:
        self.stage.order(order, NODE.address)

    @rule(amount=st.integers(1, 1_000))
    def fund(self, amount: int) -> None:
        self.stage.fund(amount)

    @rule(key=st.integers(1, 2), lasts=st.sampled_from([100, 90_000, 5_000_000]))
    def authorize(self, key: int, lasts: int) -> None:
        self.stage.order("authorize", KEYS[key].address, self.stage.world.chain.time() + lasts)

    @rule(key=st.integers(1, 2))
    def revoke(self, key: int) -> None:
        self.stage.order("revoke", KEYS[key].address)

    # ---- the node and the chain

    @rule()
    def look(self) -> None:
        self.stage.run(self.served.look())

    @rule()
    def settle(self) -> None:
        self.stage.run(self.served.settle())
        self.stage.world.chain.mine()

    @rule(seconds=st.sampled_from([30, 3_600, 100_000]))
    def time_passes(self, seconds: int) -> None:
        """The node is there meanwhile: it looks and settles, before and after."""
        for _ in range(2):
            self.stage.run(self.served.look())
            self.settle()
            self.stage.pass_time(seconds // 2)

    @rule(
        endpoints=st.integers(1, 2), kind=st.sampled_from(["spent", "unpaid", "poor", "dead", "thaw", "short", "down"])
    )
    def lie_once(self, endpoints: int, kind: str) -> None:
        """One look, and one round of settlement, at endpoints that lie."""
        self.stage.lie(endpoints, kind)
        try:
            self.stage.run(self._under_lies())
        finally:
            self.stage.honest()

    @rule(kind=st.sampled_from(["rich", "lag"]))
    def one_lies_for_good(self, kind: str) -> None:
        """Of two endpoints one speaks of deposits that are not there, or of a chain as it was."""
        self.stage.lie(1, kind)

    async def _under_lies(self) -> None:
        await self.served.look()
        await self.served.try_to_settle()

    @rule()
    def kill(self) -> None:
        self.served = self.stage.run(self.served.killed())
        self.promised.clear()  # what runs ahead is in memory alone
        for one in self.sessions.values():
            one.over = True

    # ---- what must hold

    @invariant()
    def the_node_lives(self) -> None:
        assert not self.served.node.supervisor.failure.done()
        assert self.stage.told == []

    @invariant()
    def one_receipt_a_number(self) -> None:
        assert all(len(digests) == 1 for one in self.all for digests in one.signed.values())

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        book = self.served.book
        assert book.owed >= self.answered
        for key, total in list(self.promised):
            if total <= book.owed:
                self.stored[key] = max(self.stored[key], total)
                self.promised.remove((key, total))
        if not self.served.node.registry.occupants:
            self.promised.clear()
        for key, total in self.stored.items():
            assert total <= (book.proofs[key].voucher.total if key in book.proofs else 0)

    @invariant()
    def unpaid_work_is_bounded(self) -> None:
        assert self.served.book.owed - self._payable() <= UNPAID

    def teardown(self) -> None:
        """Everything is settled, by a node that was killed once more."""
        try:
            self.stage.honest()
            for one in self.sessions.values():
                self.stage.run(one.hang_up())
            self.served = self.stage.run(self.served.killed())
            self.nothing_acknowledged_is_lost()
            payable = self._payable()
            self.stage.run(self.served.settler.settle_now())
            assert self.stage.account()[1] == payable
            HostileClients.collected += payable
            self.the_node_lives()
        finally:
            self.stage.run(self.served.end())

    # ---- inside

    def _payable(self) -> int:
        """What the chain has paid, or would pay now, of what the journal holds."""
        best, now, thaw = 0, self.stage.world.chain.time(), self.stage.world.numbers.fixed.thaw
        balance, collected, *_ = self.stage.account()
        for key, proof in self.served.book.proofs.items():
            if now <= self.stage.account(key)[3] + thaw:
                best = max(best, proof.voucher.total)
        return max(collected, min(best, balance + collected))

    def _live(self, at: int) -> HostileSession | None:
        one = self.sessions.get(at)
        if one is not None and one.over:
            self.stage.run(one.hang_up())
            del self.sessions[at]
            return None
        return one

    def _acknowledged(self, one: HostileSession, sent: Sent) -> None:
        self.answered += sent.cost
        if one.price:
            self.promised.append((one.key.address, sent.request.voucher.body.total))

    def _by(self, one: HostileSession, kind: str) -> Signer:
        return STRANGER if kind == "foreign" else one.key

    def _make(self, one: HostileSession, count: int, kind: str, off: int) -> Sent:
        due = self.served.owed + one.price * count
        funded = sum(self.stage.account()[:2])
        total = {
            "short": max(0, due - 1),
            "zero": 0,
            "ahead": due + off,
            "funded": funded,
            "above": funded + 1,
            "huge": MAX_UINT96,
            "other": max(self.used),
        }.get(kind, due)
        changes: dict[str, Any] = {"signer": self._by(one, kind)}
        if kind == "replay" and one.done:
            changes["voucher"] = one.done[0].request.voucher
        if kind == "unbound":
            others = [other for other in self.all if other is not one]
            changes["bound"] = others[0].session.receipt if others else one.session.receipt
            changes |= {} if others else {"signer": STRANGER}
        return one.make(count, total if one.price or kind in ("huge", "above") else 0, **changes)


@pytest.fixture(scope="module")
def span(tiny_folder: Path) -> Span:
    return Span.load(tiny_folder, BlockIndex(0), BlockIndex(1))


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory, quick_endpoints: None) -> Iterator[Stage]:
    with Stage.start(tmp_path_factory.mktemp("stage")) as made:
        yield made


@pytest.fixture
def quick_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that does not answer is waited for by no test."""
    for name in ("_FIRST_PAUSE", "_ODD_PAUSE", "_LONGEST_PAUSE", "_PATIENCE"):
        monkeypatch.setattr(f"hivemint.contracts.rpc.{name}", 0.005)


def test_whatever_clients_do_the_node_is_paid_for_all_but_steps_in_flight(stage: Stage, span: Span) -> None:
    run_state_machine_as_test(partial(HostileClients, stage, span), settings=profile(4, 30))  # type: ignore[arg-type]
    assert HostileClients.collected


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_clients_do_for_long(stage: Stage, span: Span) -> None:
    run_state_machine_as_test(partial(HostileClients, stage, span), settings=profile(150, 60))  # type: ignore[arg-type]
    assert HostileClients.collected
