"""Voucher totals of several sessions at one node, whatever is delivered, refused or lost: a property over a model."""

import asyncio
import tempfile
import time
from pathlib import Path

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hivemint.client.sessions.opening import Greeting, SignedSession, sign_session
from hivemint.client.sessions.payer import NodeUnproven, Payer
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.route import Leg
from hivemint.client.sessions.session import RemoteSession
from hivemint.client.sessions.wallet import Identity
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.ids import BlockIndex, Credits, Step
from hivemint.protocol.receipt import opening, sign_receipt
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.messages import Code, Limits, Refused, Terms
from hivemint.swarm.records import NodeRecord
from support.promises import DOMAIN, GENESIS, signer

CLIENT, NODE, PEER = signer(1), signer(2), PeerKey.generate()
PRICE = 7


class Vouchers(RuleBasedStateMachine):
    """The node's rule is the protocol's: a step is taken only if the highest total covers all that is owed then.

    Deliveries, refusals and cancellations come in any order over three sessions.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.book = VoucherBook.open(Path(self.folder.name) / "vouchers.db", DOMAIN, CLIENT.address, GENESIS)
        self.payer = Payer(Identity.own(CLIENT), DOMAIN, self.book)
        self.loop = asyncio.new_event_loop()
        self.sessions = [self._session(bytes([number]) * 32) for number in range(3)]
        self.sources = [self.loop.run_until_complete(self._source(session)) for session in self.sessions]
        self.drawn = [0, 0, 0]  # vouchers that wait for their step
        self.awaited = [False, False, False]  # whether the time to draw some has not come
        self.waiting: list[tuple[int, Step, int, int]] = []  # session, step, cost, total: sent, not yet decided
        self.highest = self.owed = self.most_in_flight = self.done = 0

    async def _source(self, session: RemoteSession) -> VoucherSource:
        return VoucherSource([session], self.payer, lambda: True)

    def _session(self, nonce: bytes) -> RemoteSession:
        record = NodeRecord(
            network="t",
            model_id=b"\1" * 32,
            first_block=BlockIndex(0),
            end_block=BlockIndex(1),
            peer=PEER.peer_id,
            operator=NODE.address,
            numerics=("fp32/fp32/fp32",),
            ask=Credits(PRICE),
            expires=time.time() + 60,
        )
        leg = Leg(record, BlockIndex(0), BlockIndex(1), Credits(PRICE), "fp32/fp32/fp32", 0.0, 0.0)
        terms = Terms(nonce, NODE.address, b"\1" * 32, 0, 1, ("fp32/fp32/fp32",), Credits(PRICE), Limits(10**6, 512, 2))
        greeting = Greeting(leg, None, terms, 0.0)  # type: ignore[arg-type]
        signed: SignedSession = sign_session(greeting, self.payer, tokens=10**6, margin=1.25, expiry=2**40)
        first = sign_receipt(DOMAIN, opening(NODE.address, CLIENT.address, signed.session_id), NODE)
        return RemoteSession(greeting, signed, self.payer, first)

    @rule(number=st.integers(0, 2), count=st.integers(1, 40))
    def request(self, number: int, count: int) -> None:
        self.drawn[number], self.awaited[number] = 0, False
        [paid] = self.loop.run_until_complete(self.sources[number].take(count))
        request = self.sessions[number].prepare(0, count, paid, rows="none")
        self.waiting.append((number, request.step, count * PRICE, request.voucher.body.total))
        self._note()

    @rule(number=st.integers(0, 2), later=st.booleans())
    def draw_ahead(self, number: int, later: bool) -> None:
        """The vouchers of a decode step, before it is known whether there will be one; or a time to do so that never
        comes.
        """

        async def draw() -> None:
            self.sources[number].draw_ahead(1, 3600.0 if later else 0.0)

        self.loop.run_until_complete(draw())
        if later and not self.drawn[number]:
            self.awaited[number] = True
        if not self.awaited[number]:
            self.drawn[number] = PRICE
        # the thread's transaction is over when the next one can be made
        self.loop.run_until_complete(self.loop.run_in_executor(None, self.book.promise, NODE.address, Credits(0)))
        self._note()

    @rule(number=st.integers(0, 2))
    def put_back(self, number: int) -> None:
        self.loop.run_until_complete(self.sources[number].put_back())
        self.drawn[number], self.awaited[number] = 0, False

    def _note(self) -> None:
        self.most_in_flight = max(self.most_in_flight, sum(cost for _, _, cost, _ in self.waiting) + sum(self.drawn))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def delivered(self, data: st.DataObject) -> None:
        """Requests arrive in any order across sessions; each must be covered when it does."""
        number, step, cost, total = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.highest = max(self.highest, total)
        assert self.highest >= self.owed + cost, "an honest node would have to refuse this"
        self.owed += cost
        self.done += 1
        session = self.sessions[number]
        request = session.pending.pop(step)
        self.book.delivered(NODE.address, Credits(request.count * PRICE))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), code=st.sampled_from([Code.INPUT, Code.LIMIT, Code.FAILED]))
    def refused(self, data: st.DataObject, code: Code) -> None:
        """The voucher has arrived all the same: a node may keep it."""
        number, step, _, total = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.highest = max(self.highest, total)
        message = Refused(code=code, what="no", step=step, owed=Credits(self.owed))
        assert self.loop.run_until_complete(self.sessions[number].refused(message)) is not None

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def robbed(self, data: st.DataObject) -> None:
        """The node keeps the voucher, refuses the step, and claims what it has just been promised, or a wei more."""
        number, step, _, total = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.highest = max(self.highest, total)
        session = self.sessions[number]
        claim = max(total, self.book.standing(NODE.address).incurred + 1)
        message = Refused(Code.VOUCHER, "no", step=step, owed=Credits(claim), proof=session.pending[step].voucher)
        assert isinstance(self.loop.run_until_complete(session.refused(message)), NodeUnproven)

    @invariant()
    def no_more_is_promised_than_ever_was_in_flight(self) -> None:
        if hasattr(self, "book"):
            total, owed = self.book.totals().get(NODE.address, (Credits(0), Credits(0)))
            assert total - self.owed <= self.most_in_flight
            assert owed == self.owed + sum(cost for _, _, cost, _ in self.waiting) + sum(self.drawn)
            assert sum(session.spent for session in self.sessions) == owed - sum(self.drawn)

    def teardown(self) -> None:
        if hasattr(self, "book"):
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.book.close()
            self.folder.cleanup()


TestVouchers = Vouchers.TestCase
TestVouchers.settings = hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None)
