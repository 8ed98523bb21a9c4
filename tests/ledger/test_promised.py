"""What a wallet signs against a node that says whatever suits it: properties over books that processes share."""

import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hivemint.ledger.books.promised import Owing, Promise, PromiseLimit, Shown, UnprovenDebt
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.protocol.ids import Credits
from support.promises import DOMAIN, GENESIS, signer

WALLET, NODE = signer(1).address, signer(2).address
FUNDED = Credits(400)
AMOUNTS = st.integers(1, 40)


@dataclass
class Step:
    """A promise of one process: `left` once its voucher has gone to the node."""

    book: VoucherBook
    promise: Promise
    left: bool = False


class OneMachine(RuleBasedStateMachine):
    """Three processes of one machine at a hostile node.

    The node has seen every voucher that left. It takes, refuses or lets die any step, and claims any debt at any time,
    with any of these vouchers, or what it has collected, as a proof.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "vouchers.db"
        self.books = [VoucherBook.open(path, DOMAIN, WALLET, GENESIS) for _ in range(3)]
        self.steps: list[Step] = []
        self.seen: list[Shown] = []
        self.highest = self.delivered = self.unknown = 0

    @property
    def in_flight(self) -> int:
        return sum(step.promise.amount for step in self.steps)

    @rule(number=st.integers(0, 2), amount=AMOUNTS, room=st.one_of(st.none(), st.integers(0, 60)))
    def promise(self, number: int, amount: int, room: int | None) -> None:
        book, before = self.books[number], self.books[0].standing(NODE)
        owing = Owing(NODE, Credits(amount), secrets.token_bytes(32), FUNDED, None if room is None else Credits(room))
        try:
            (made,) = book.promise_all([owing])
        except PromiseLimit:
            assert book.standing(NODE) == before
            assert before.owed + amount > FUNDED or (room is not None and before.owed + amount - before.total > room)
            return
        self.steps.append(Step(book, made))
        assert made.total <= self.delivered + self.unknown + self.in_flight
        assert made.total <= FUNDED
        assert room is None or made.rise <= room

    @precondition(lambda self: any(not step.left for step in self.steps))
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([step for step in self.steps if not step.left]))
        step.left = True
        self._left(step.promise.total, step.promise.receipt)

    @precondition(lambda self: any(not step.left for step in self.steps))
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from([step for step in self.steps if not step.left]))
        self.steps.remove(step)
        step.book.take_back([step.promise])

    @precondition(lambda self: any(step.left for step in self.steps))
    @rule(data=st.data(), fate=st.sampled_from(["delivered", "unknown", "refused"]))
    def end(self, data: st.DataObject, fate: str) -> None:
        step = data.draw(st.sampled_from([step for step in self.steps if step.left]))
        self.steps.remove(step)
        if fate == "refused":
            return step.book.released(NODE, step.promise.amount)
        self.delivered += step.promise.amount if fate == "delivered" else 0
        self.unknown += step.promise.amount if fate == "unknown" else 0
        return step.book.delivered(NODE, step.promise.amount)

    @precondition(lambda self: self.seen)
    @rule(number=st.integers(0, 2), data=st.data())
    def sign_off(self, number: int, data: st.DataObject) -> None:
        """A session's last voucher: another receipt for a total that was signed."""
        total, receipt = data.draw(st.sampled_from(self.seen)).total, secrets.token_bytes(32)
        self.books[number].countersigned(NODE, total, receipt)
        self._left(total, receipt)

    @rule(number=st.integers(0, 2), claim=st.integers(0, 500))
    def claim(self, number: int, claim: int) -> None:
        self._claim(number, claim, None)

    @precondition(lambda self: self.seen)
    @rule(number=st.integers(0, 2), data=st.data(), less=st.integers(0, 5), collected=st.booleans())
    def claim_with_proof(self, number: int, data: st.DataObject, less: int, collected: bool) -> None:
        shown = Shown(Credits(self.highest)) if collected else data.draw(st.sampled_from(self.seen))
        self._claim(number, max(0, shown.total - less), shown)

    def _claim(self, number: int, claim: int, shown: Shown | None) -> None:
        before = self.books[0].standing(NODE)
        try:
            self.books[number].learn(NODE, Credits(claim), shown)
        except UnprovenDebt:
            assert claim > before.incurred
            assert self.books[0].standing(NODE) == before

    def _left(self, total: Credits, receipt: bytes) -> None:
        self.seen.append(Shown(total, receipt))
        self.highest = max(self.highest, total)

    @invariant()
    def nothing_is_owed_that_was_not_promised(self) -> None:
        if hasattr(self, "books"):
            standing = self.books[0].standing(NODE)
            assert standing.owed <= standing.incurred == self.delivered + self.unknown + self.in_flight
            assert self.highest <= standing.total <= FUNDED, "what has left is never forgotten"
            drawn = max((step.promise.total for step in self.steps), default=0)
            assert standing.total == max(self.highest, drawn, standing.floor)

    def teardown(self) -> None:
        if hasattr(self, "books"):
            for book in self.books:
                book.close()
            self.folder.cleanup()


class TwoMachines(RuleBasedStateMachine):
    """Two machines of one wallet, each with a file of its own and a step in flight at a time, at a faithful node.

    It takes a step that the highest voucher it has taken covers, else it refuses it with that voucher as a proof.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        paths = [Path(self.folder.name) / f"{number}.db" for number in range(2)]
        self.books = [VoucherBook.open(path, DOMAIN, WALLET, GENESIS) for path in paths]
        self.waiting: dict[int, Promise] = {}
        self.highest: Shown = Shown(Credits(0), bytes(32))
        self.owed = self.unknown = 0

    @rule(number=st.integers(0, 1), amount=st.sampled_from([10, 10, 10, 3, 25]))
    def request(self, number: int, amount: int) -> None:
        assume(number not in self.waiting)
        (made,) = self.books[number].promise_all([Owing(NODE, Credits(amount), secrets.token_bytes(32))])
        self.waiting[number] = made

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), dies=st.booleans())
    def arrive(self, data: st.DataObject, dies: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        made, book = self.waiting.pop(number), self.books[number]
        if max(self.highest.total, made.total) >= self.owed + made.amount:
            self.owed += made.amount
            if made.total >= self.highest.total:
                self.highest = Shown(made.total, made.receipt)
            return book.delivered(NODE, made.amount)
        if dies:  # the refusal never came: its fate is unknown here
            self.unknown += made.amount
            return book.delivered(NODE, made.amount)
        book.released(NODE, made.amount)
        book.learn(NODE, Credits(self.owed), self.highest)  # must be believed
        (again,) = book.promise_all([Owing(NODE, made.amount, secrets.token_bytes(32))])
        assert again.total == self.owed + made.amount
        self.waiting[number] = again
        return None

    @rule(number=st.integers(0, 1))
    def open(self, number: int) -> None:
        assume(number not in self.waiting)
        self.books[number].learn(NODE, Credits(self.owed), self.highest)

    @invariant()
    def no_more_is_promised_than_in_flight(self) -> None:
        if hasattr(self, "books"):
            in_flight = sum(promise.amount for promise in self.waiting.values())
            for book in self.books:
                assert book.standing(NODE).owed <= self.owed + self.unknown + in_flight

    def teardown(self) -> None:
        if hasattr(self, "books"):
            for book in self.books:
                book.close()
            self.folder.cleanup()


_MANY = [HealthCheck.filter_too_much]  # a play that has come to its end has few moves left
TestOneMachine = OneMachine.TestCase
TestOneMachine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=_MANY)
TestTwoMachines = TwoMachines.TestCase
TestTwoMachines.settings = settings(max_examples=18, stateful_step_count=30, deadline=None, suppress_health_check=_MANY)
