"""One session: which step may come next, what it costs, and what has been signed. No input or output happens here.

request n   ->  judge: a Refused, or Again (a step that was taken before), or nothing
            ->  take: owed rises, the step is ours
begin -> seal -> answer      computed; its number used up; its receipt signed (P16: once)
drop                         a step that was not sealed is taken back, owed falls
"""

from dataclasses import dataclass, field

import msgspec

from hivemint.contracts.ids import BACKWARD, FORK, FORWARD, Digest, SessionId, Step, TensorHash
from hivemint.contracts.receipt import CheckedReceipt, CheckedVoucher, Countersigned, work
from hivemint.contracts.signed import Session
from hivemint.node.account import Account
from hivemint.node.scheduler import Job, Lane
from hivemint.swarm.messages import Code, Refused, StepReceipt, StepRequest, Tensor

START = Step(0)


@dataclass(frozen=True, slots=True)
class Again:
    """The same request for a step that was taken before."""

    taken: "TakenStep"


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
    def begun(self) -> bool:
        """The device has some of its rows, or had."""
        return self.request.kind == FORK or (self.job is not None and self.job.started_at is not None)


@dataclass(eq=False)
class ServedSession:
    """The state of one session at this node. `length` is that of its K/V cache once all taken steps have run."""

    terms: Session
    session_id: SessionId
    account: Account
    ahead: int
    max_rows: int
    max_backward: int
    receipt: CheckedReceipt  # the newest that was signed
    adapter: bytes = b""
    """The digest of the adapter that its client has loaded, appended to the input rows of every step."""
    length: int = 0
    spent: int = 0
    last: Step = START
    bound: Step = START  # the newest receipt that a voucher binds
    steps: dict[Step, TakenStep] = field(default_factory=dict)
    receipts: dict[Step, CheckedReceipt] = field(default_factory=dict)
    closed: Code | None = None
    why: str = ""

    def __post_init__(self) -> None:
        self.receipts[self.receipt.receipt.step] = self.receipt
        self.account.sessions.append(self)

    @property
    def lane(self) -> Lane:
        return Lane.PAID if self.terms.price else Lane.FREE

    @property
    def unspent(self) -> int:
        """What the account keeps reserved for this session: nothing once it is closed."""
        return 0 if self.closed else max(0, self.terms.max_amount - self.spent)

    @property
    def pending(self) -> list[TakenStep]:
        """Taken steps without an answer, in order."""
        return [step for step in self.steps.values() if step.answer is None]

    def price_of(self, request: StepRequest) -> int:
        """In wei."""
        return self.terms.price * work(request.kind, request.count)

    def judge(self, request: StepRequest) -> Refused | Again | None:
        """All that can be said without the voucher's signature."""
        if request.step <= self.last:
            return self._repeated(request)
        for check in (self._check_order, self._check_gap, self._check_shape, self._check_amount, self._check_binding):
            if refused := check(request):
                return refused
        return self.check_cover(request)

    def check_cover(self, request: StepRequest) -> Refused | None:
        """The highest voucher covers everything owed, this step included. Called again right before `take`."""
        total, due = request.voucher.voucher.total, self.account.owed + self.price_of(request)
        if not self.terms.price:
            return None if total == 0 else self.refused(request, Code.VOUCHER, "expected a total of 0", f"got {total}")
        if max(total, self.account.highest) < due:
            return self.refused(
                request, Code.VOUCHER, "The voucher does not cover this step",
                f"expected a total of {due} wei or more, got {total}", "sign the sum owed and this step's price",
            )  # fmt: skip
        return None

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
        bound = self.bound_step(voucher.voucher.receipt)
        pair = Countersigned(self.receipts[Step(-1) if bound is None else bound], voucher)
        self.account.promise(voucher.total)
        self.bound = bound = max(self.bound, pair.receipt.receipt.step)
        for number in [number for number in self.steps if number <= bound and self.steps[number].answer]:
            del self.steps[number]
        for number in [number for number in self.receipts if number < min(bound, self.last - self.ahead)]:
            del self.receipts[number]
        return pair

    def seal(self, step: TakenStep) -> None:
        """From here on the step's number is used up, whatever happens."""
        if step.sealed or self.steps.get(step.number) is not step or step.number != self.receipt.receipt.step + 1:
            raise RuntimeError(f"step {step.number} would be signed twice or out of order")
        step.sealed = True

    def answer(self, step: TakenStep, receipt: CheckedReceipt, answer: StepReceipt) -> None:
        self.receipt = self.receipts[step.number] = receipt
        step.answer = answer

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
        return gone

    def evicted(self) -> None:
        """The room has been given to others; the session stays open, at length 0, unless it had an adapter."""
        self.length = 0
        if self.adapter:
            self.close(Code.GAP, "its adapter's room went to another session")

    def check_load(self) -> Refused | None:
        """An adapter is for all steps of a session: it comes before the first one, and once."""
        if self.closed:
            return Refused(self.closed, "The session is closed", self.why, "open a new session")
        if self.last != START or self.adapter:
            return Refused(
                Code.PROTOCOL, "An adapter is loaded before a session's first step, once",
                f"{self.last} steps were taken, {'one' if self.adapter else 'none'} is loaded", "open a new session",
            )  # fmt: skip
        return None

    def close(self, code: Code, why: str) -> None:
        """No step is taken from now on; its reserve in the account is free again."""
        if self.closed is None:
            self.closed, self.why = code, why
            if self in self.account.sessions:
                self.account.sessions.remove(self)

    def refused(self, request: StepRequest, code: Code, what: str, why: str = "", next_step: str = "") -> Refused:
        """A refusal of one step, with where the account stands."""
        return Refused(
            code, what, why, next_step, request.step,
            cached=self.length, highest=self.account.highest, owed=self.account.owed,
        )  # fmt: skip

    def _repeated(self, request: StepRequest) -> Refused | Again:
        step = self.steps.get(request.step)
        if step is None:
            return self.refused(
                request, Code.STEP, "The step was answered before and its answer is not kept any more",
                f"expected step {self.last + 1}, got {request.step}", "go on from the newest receipt",
            )  # fmt: skip
        if msgspec.structs.replace(request, voucher=step.request.voucher) != step.request:
            return self.refused(request, Code.CONFLICT, "The step was taken with another request")
        return Again(step)

    def _check_order(self, request: StepRequest) -> Refused | None:
        if self.closed:
            return self.refused(request, self.closed, "The session is closed", self.why, "open a new session")
        if request.step != self.last + 1:
            return self.refused(
                request, Code.STEP, "The step is out of order", f"expected {self.last + 1}, got {request.step}"
            )
        if len(self.pending) >= self.ahead:
            return self.refused(
                request, Code.STEP, "Too many steps in flight", f"expected at most {self.ahead}", "wait for a receipt"
            )
        return None

    def parent(self, request: StepRequest) -> "ServedSession | None":
        """The open session whose K/V a fork may begin with: of the same key, blocks, numerics and lane as this one."""
        for other in self.account.sessions:
            if other is not self and isinstance(other, ServedSession) and other.receipt.receipt.head == request.parent:
                return other if other.kin == self.kin else None
        return None

    @property
    def kin(self) -> tuple[object, ...]:
        """What two sessions of one client must have in common to share K/V."""
        terms = self.terms
        return terms.session_key, terms.numerics, terms.first_block, terms.end_block, self.lane, self.adapter

    def _check_fork(self, request: StepRequest) -> Refused | None:
        if request.step != 1 or request.start or request.source is not None or request.push or request.rows != "none":
            return self.refused(
                request, Code.PROTOCOL, "A fork is a session's first step, from position 0, without input and output",
                f"got step {request.step}, start {request.start}",
            )  # fmt: skip
        parent = self.parent(request)
        if parent is not None and parent.pending:
            return self.refused(
                request, Code.STEP, "The session to begin with has steps in flight", "", "wait for its receipts"
            )
        cached = 0 if parent is None else parent.length
        if request.count <= cached:
            return None
        refused = self.refused(
            request, Code.GAP, "There is nothing to begin with",
            f"no open session like this one, with that head, has {request.count} tokens, the one here has {cached}",
            "send the tokens themselves",
        )  # fmt: skip
        return msgspec.structs.replace(refused, cached=cached)

    def _check_shape(self, request: StepRequest) -> Refused | None:
        if request.kind == FORK and (refused := self._check_fork(request)):
            return refused
        if request.kind == BACKWARD and (refused := self._check_backward(request)):
            return refused
        if request.kind != FORK and request.parent is not None:
            return self.refused(request, Code.PROTOCOL, "Only a fork names another session")
        if request.kind == FORWARD and request.count > self.max_rows:
            return self.refused(
                request, Code.LIMIT, "The step has too many rows", f"expected at most {self.max_rows}, "
                f"got {request.count}", "send it in smaller chunks",
            )  # fmt: skip
        if request.start + request.count > self.terms.max_tokens:
            return self.refused(
                request, Code.LIMIT, "The step passes the session's maxTokens",
                f"expected at most {self.terms.max_tokens}, got {request.start + request.count}", "open a new session",
            )  # fmt: skip
        return None

    def _check_backward(self, request: StepRequest) -> Refused | None:
        """A whole sequence at once, and not from or to a neighbour: its rows are states and gradients side by side."""
        if not self.max_backward:
            return self.refused(request, Code.PROTOCOL, "This node serves no backward passes", "", "use another node")
        if request.count > self.max_backward:
            return self.refused(
                request, Code.LIMIT, "The backward step has too many rows",
                f"expected at most {self.max_backward}, got {request.count}", "train on shorter sequences",
            )  # fmt: skip
        if request.start or request.source is not None or request.push:
            return self.refused(
                request, Code.PROTOCOL, "A backward step is a whole sequence that the client brings and takes itself",
                f"expected start 0, no source and no push, got start {request.start}", "relay it",
            )  # fmt: skip
        return None

    def _check_gap(self, request: StepRequest) -> Refused | None:
        if request.start <= self.length:
            return None
        return self.refused(
            request, Code.GAP, "The step starts beyond the cache",
            f"expected a start of at most {self.length}, got {request.start}", "send the tokens in between again",
        )  # fmt: skip

    def _check_amount(self, request: StepRequest) -> Refused | None:
        price = self.price_of(request)
        if self.spent + price <= self.terms.max_amount or not price:
            return None
        return self.refused(
            request, Code.LIMIT, "The step passes the session's maxAmount",
            f"{self.spent} of {self.terms.max_amount} wei are spent, the step costs {price}", "open a new session",
        )  # fmt: skip

    def _check_binding(self, request: StepRequest) -> Refused | None:
        bound = self.bound_step(request.voucher.voucher.receipt)
        oldest = max(0, request.step - self.ahead)
        if bound is None or bound < oldest:
            return self.refused(
                request, Code.VOUCHER, "The voucher binds no recent receipt of this session",
                f"expected one of step {oldest} or later, got {'an unknown one' if bound is None else f'step {bound}'}",
                "countersign the newest receipt",
            )  # fmt: skip
        return None

    def bound_step(self, digest: Digest) -> Step | None:
        return next((number for number, kept in self.receipts.items() if kept.digest == digest), None)
