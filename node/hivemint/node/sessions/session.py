"""One session: which step may come next, what it costs, and what has been signed. No input or output happens here.

request n   ->  steps.checks.judge: a Refused, or Again (a step that was taken before), or nothing
            ->  take: owed rises, the step is ours
begin -> seal -> answer      computed; its number used up; its receipt signed (P16: once)
drop                         a step that was not sealed is taken back, owed falls
"""

from dataclasses import dataclass, field

from hivemint.node.engine.scheduler import Job, Lane
from hivemint.node.sessions.account import ClientAccount
from hivemint.protocol.eip712 import Session
from hivemint.protocol.ids import BACKWARD, FORK, FORWARD, Address, Digest, SessionId, Step, TensorHash
from hivemint.protocol.receipt import CheckedReceipt, CheckedVoucher, Countersigned, work
from hivemint.swarm.messages import Code, Limits, Refused, StepReceipt, StepRequest, Tensor

START = Step(0)
OPENING = 16
"""Positions whose price is worth a session's opening, signatures and books included: some 5 ms of a processor."""


@dataclass(eq=False, slots=True)
class TakenStep:
    """An accepted step. `sealed`: a receipt for its number is being signed, so it can't be taken back."""

    request: StepRequest
    price: int
    pair: Countersigned
    before: int = 0  # the cache's length without this step
    job: Job | None = None
    sealed: bool = False
    input_hash: TensorHash | None = None
    tensor: Tensor | None = None
    answer: StepReceipt | None = None

    @property
    def number(self) -> Step:
        return self.request.step

    @property
    def fed(self) -> bool:
        """Its input is here, and can be computed with."""
        return self.request.kind == FORK or self.job is not None or self.answer is not None

    @property
    def begun(self) -> bool:
        """The device has some of its rows, or had."""
        return self.request.kind == FORK or (self.job is not None and self.job.started_at is not None)


@dataclass(eq=False, slots=True)
class Resends:
    """Positions that a session, and all that began with its K/V, have computed and have sent once more."""

    computed: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a fork may begin with: a session, the receipt of it that was named, and how many positions of that state its
    cache still has."""

    session: "ServedSession"
    receipt: CheckedReceipt
    length: int


@dataclass(eq=False)
class ServedSession:
    """The state of one session at this node. `length` is that of its K/V cache once all taken steps have run."""

    terms: Session
    session_id: SessionId
    account: ClientAccount
    limits: Limits
    receipt: CheckedReceipt  # the newest that was signed
    adapter: bytes = b""
    """The digest of the adapter that its client has loaded, appended to the input rows of every step."""
    length: int = 0
    spent: int = 0
    resends: Resends = field(default_factory=Resends)
    resent_to: int = 0
    """Outputs before this position were sent once more to the next node of now, or were not wanted."""
    last: Step = START
    bound: Step = START  # the newest receipt that a voucher binds
    steps: dict[Step, TakenStep] = field(default_factory=dict)
    receipts: dict[Step, CheckedReceipt] = field(default_factory=dict)
    lengths: dict[Step, int] = field(default_factory=dict)
    """Of these receipts: how many positions of the state that each is about the cache still has."""
    closed: Code | None = None
    why: str = ""

    def __post_init__(self) -> None:
        self.receipts[self.receipt.step] = self.receipt
        self.lengths[self.receipt.step] = 0
        self.account.sessions.append(self)

    @property
    def lane(self) -> Lane:
        return Lane.PAID if self.terms.price else Lane.DONATED

    @property
    def key(self) -> Address:
        return self.terms.session_key

    @property
    def unspent(self) -> int:
        """What the account keeps reserved for this session: nothing in the donated lane and once it is closed."""
        if self.closed or not self.terms.price:
            return 0
        return max(0, self.terms.max_amount - self.spent)

    @property
    def one_step(self) -> int:
        """The most that a step may cost here. A position of a backward step is paid twice."""
        return min(self.unspent, self.terms.price * self.limits.widest)

    @property
    def in_flight(self) -> int:
        """The most that the requests which may be under way here cost together."""
        return min(self.unspent, self.limits.ahead * self.terms.price * self.limits.widest)

    @property
    def pending(self) -> list[TakenStep]:
        """Taken steps without an answer, in order."""
        return [step for step in self.steps.values() if step.answer is None]

    @property
    def pays(self) -> bool:
        """Whether its client was charged for more than opening a session costs a node, about."""
        return self.spent >= OPENING * self.terms.price > 0

    def price_of(self, request: StepRequest) -> int:
        """In wei."""
        return self.terms.price * work(request.kind, request.count)

    def may_promise(self, total: int) -> bool:
        """Whether a voucher without a step, a session's last, may have this total."""
        if not self.terms.price:
            return total == 0
        return total <= min(self.account.funded, self.account.reach(self.account.owed))

    def take(self, request: StepRequest, voucher: CheckedVoucher) -> TakenStep:
        """The request has passed all checks: owed rises, the voucher counts."""
        step = TakenStep(request, self.price_of(request), self.countersign(voucher), self.length)
        self.account.charge(step.price)
        self.spent += step.price
        self.last = request.step
        if request.kind != BACKWARD:
            self.length = request.start + request.count
        self.steps[request.step] = step
        return step

    def countersign(self, voucher: CheckedVoucher) -> Countersigned:
        """A voucher over one of our receipts; answers up to it have arrived and need not be kept.

        Raises KeyError if its receipt is not known here (any more).
        """
        bound = self.bound_step(voucher.body.receipt)
        pair = Countersigned(self.receipts[Step(-1) if bound is None else bound], voucher)
        if self.terms.price:
            self.account.promise(pair)
        self.bound = bound = max(self.bound, pair.receipt.step)
        for number in [number for number in self.steps if number <= bound and self.steps[number].answer]:
            del self.steps[number]
        for number in [number for number in self.receipts if number < min(bound, self.last - self.limits.ahead)]:
            del self.receipts[number], self.lengths[number]
        return pair

    def seal(self, step: TakenStep) -> None:
        """From here on the step's number is used up, whatever happens."""
        if step.sealed or self.steps.get(step.number) is not step or step.number != self.receipt.step + 1:
            raise RuntimeError(f"step {step.number} would be signed twice or out of order")
        step.sealed = True

    def answer(self, step: TakenStep, receipt: CheckedReceipt, answer: StepReceipt) -> None:
        request, before = step.request, self.lengths[self.receipt.step]
        if request.kind == BACKWARD:
            self.lengths[step.number] = before
        else:
            self._cut(request.start)
            self.resends.computed += request.count if request.kind == FORWARD else 0
            self.lengths[step.number] = request.start + request.count
        self.receipt = self.receipts[step.number] = receipt
        step.answer, step.job = answer, None  # it may be kept for long, its rows need not

    def drop(self, first: Step, *, begun: bool = False) -> list[TakenStep]:
        """Take back the steps from `first` on; those that have begun only with `begun`, those sealed never."""
        gone = [s for s in self.pending if s.number >= first and not s.sealed and (begun or not s.begun)]
        for step in gone:
            del self.steps[step.number]
            self.account.charge(-step.price)
            self.spent -= step.price
        if gone:
            self.last = Step(gone[0].number - 1)
            # those that never began have cropped nothing; one that did may have written from its start on
            written = [s.request.start for s in gone if s.begun and s.request.kind != BACKWARD]
            self.length = min([gone[0].before, *written])
            self._cut(self.length)
        return gone

    def _cut(self, length: int) -> None:
        """What is behind `length` in the cache is of none of the receipts so far."""
        self.lengths = {number: min(length, before) for number, before in self.lengths.items()}
        self.resent_to = min(self.resent_to, length)

    def evicted(self) -> None:
        """The room has been given to others; the session stays open, at length 0, unless it had an adapter."""
        self.length = 0
        self._cut(0)
        if self.adapter:
            self.close(Code.GAP, "its adapter's room went to another session")

    def check_load(self) -> Refused | None:
        """An adapter is for all steps of a session: it comes before the first one, and once."""
        if self.closed:
            return Refused(self.closed, "The session is closed", self.why, "open a new session")
        if self.last != START or self.adapter:
            return Refused(
                Code.PROTOCOL,
                "An adapter is loaded before a session's first step, once",
                f"{self.last} steps were taken, {'one' if self.adapter else 'none'} is loaded",
                "open a new session",
            )
        return None

    def close(self, code: Code, why: str) -> None:
        """No step is taken from now on; its reserve in the account is free again."""
        if self.closed is None:
            self.closed, self.why = code, why
            if self in self.account.sessions:
                self.account.sessions.remove(self)

    def park(self) -> None:
        """Its link is lost: nothing is taken any more, others of its key may begin with it until it is forgotten."""
        self.close(Code.MISSING, "the link has ended")
        if self not in self.account.sessions:
            self.account.sessions.append(self)

    def forget(self) -> None:
        """Parked no longer."""
        if self in self.account.sessions:
            self.account.sessions.remove(self)

    def refused(self, request: StepRequest, code: Code, what: str, why: str = "", next_step: str = "") -> Refused:
        """A refusal of one step, with where the account stands."""
        return Refused(
            code,
            what,
            why,
            next_step,
            request.step,
            cached=self.length,
            owed=self.account.owed,
            proof=self.account.proof,
        )

    def parent(self, request: StepRequest) -> Beginning | None:
        """The session, open or parked, whose K/V a fork may begin with: of the same key, blocks, numerics and lane as
        this one. The head is that of any receipt that is still kept: a client that comes back may not have the newest.
        """
        for other in self.account.sessions:
            if other is self or not isinstance(other, ServedSession) or other.kin != self.kin:
                continue
            for number, receipt in other.receipts.items():
                if receipt.head == request.parent:
                    return Beginning(other, receipt, other.lengths[number])
        return None

    @property
    def kin(self) -> tuple[object, ...]:
        """What two sessions of one client must have in common to share K/V."""
        terms = self.terms
        return terms.session_key, terms.numerics, terms.first_block, terms.end_block, self.lane, self.adapter

    def bound_step(self, digest: Digest) -> Step | None:
        return next((number for number, kept in self.receipts.items() if kept.digest == digest), None)
