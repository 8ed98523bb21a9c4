"""One open session with one node: requests with vouchers, receipts that are checked.

A node is trusted with nothing. A receipt counts only if this client derives the same one from what it sent and from
the row hashes that came with it; a voucher binds the newest receipt whose whole step has passed, at every hop of the
route. Whose signature it carries is looked at last, before that voucher is signed: nothing else depends on it.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

from msgspec import structs

from hivemint.client.pipeline import RoomLost, SessionLimit, StillBusy
from hivemint.client.sessions.errors import NodeEquivocated, NodeLied, NodeRefusal, OtherInput
from hivemint.client.sessions.opening import Greeting, SignedSession
from hivemint.client.sessions.payer import NodeUnproven, Paid, Payer, believe
from hivemint.ledger.store.database import StoreError
from hivemint.protocol import evidence
from hivemint.protocol.eip712 import Receipt, Voucher
from hivemint.protocol.errors import LinkClosed, ProofError, Refusal, SwarmError
from hivemint.protocol.ids import BACKWARD, FORK, FORWARD, Credits, Step
from hivemint.protocol.receipt import (
    CheckedReceipt,
    Leaf,
    MatchedReceipt,
    SignedReceipt,
    SignedVoucher,
    check_signature,
    following,
    fork,
    match,
    sign_voucher,
    work,
)
from hivemint.swarm.messages import (
    Cancel,
    Close,
    Closed,
    Code,
    Peer,
    Previous,
    Refused,
    RowMode,
    StepReceipt,
    StepRequest,
    Tensor,
    TensorHead,
)
from hivemint.swarm.rows import HASH_SIZE, tensor_hash

FAREWELL = 2.0
"""Seconds that a node has to answer Close."""
_USED_UP = (Code.EXPIRY, Code.GAP, Code.LIMIT, Code.BUSY)
"""Closed for these, a session is used up (or its room went to others): the text goes on in a new one."""


class Parent(Protocol):
    """A session at a node whose positions another one begins with. `newest` names its state; `recalled`: it is of an
    earlier process, so what its positions came to is not known here."""

    recalled: bool
    output_rows: bytearray

    @property
    def newest(self) -> MatchedReceipt: ...


class RemoteSession:
    """The client's half of a session. The pipeline that owns it receives from `link` and hands every message over."""

    def __init__(self, greeting: Greeting, signed: SignedSession, payer: Payer, first: CheckedReceipt) -> None:
        self.leg, self.link, self.terms = greeting.leg, greeting.link, greeting.terms
        self.session, self.session_id = signed.session, signed.session_id
        self.newest = match(first.signed, first.body)  # derived from this node's own words
        self.proved = self.newest  # and from every other hop's of the same step
        self.cached = 0  # positions of the state that `proved` is about
        self.bindable = first  # the newest of these that all hops of the route have really signed
        self.spent = 0  # wei of the steps that were delivered, are under way, or whose fate is unknown
        self.raised = 0  # by how much this session's vouchers have raised the highest total signed for the node
        self.pending: dict[Step, StepRequest] = {}
        self.heard = Step(0)  # the newest step whose receipt has come, proved or not
        self.adapter = b""  # the digest of the adapter that the node has loaded, behind the input rows of every step
        self.distrusted = False
        self.cancelling = False
        """The node has been asked to drop what it has not begun, and has not answered yet."""
        self.parent: MatchedReceipt | None = None
        self.length = 0  # positions that the node has, by its own receipts
        self.output_rows = bytearray()  # row hashes of the outputs of these positions, 32 bytes each
        self.recalled = False  # it began with positions of an earlier process: their row hashes are not known
        self.closed = asyncio.Event()
        self._payer = payer
        self._sent: Voucher | None = None  # the newest voucher that has left
        self._derived: dict[Step, tuple[MatchedReceipt, int]] = {}  # and the positions of the state that it is about
        self._again: Step | None = None  # the last step that was signed anew

    @property
    def price(self) -> int:
        """Per token, in wei; 0 in the donated lane."""
        return self.session.price

    @property
    def over(self) -> bool:
        """Nothing more comes of it: the link or the session has ended, or the node is not trusted."""
        return self.distrusted or self.link.closed or self.closed.is_set()

    @property
    def unspent(self) -> int:
        """What the node still reserves of the account for this session, in wei."""
        return max(0, self.session.max_amount - self.spent)

    @property
    def signed(self) -> int:
        """What was signed for this session's sake, delivered or not, in wei."""
        return max(self.spent, self.raised)

    @property
    def room(self) -> int:
        """By how much its vouchers may still raise the highest total signed, in wei."""
        return self.session.max_amount - self.raised

    def admit(self, tokens: int, end: int) -> None:
        """Raises SessionLimit if `tokens` more positions, the last at `end`, are more than was signed for."""
        if end > self.session.max_tokens:
            raise SessionLimit(f"The session holds {self.session.max_tokens} tokens", why=f"{end} are needed")
        if self.signed + tokens * self.price > self.session.max_amount:
            raise SessionLimit("The session's amount is used up", why=f"at the {self.leg}")

    @property
    def as_previous(self) -> Previous:
        """For the node that takes its outputs."""
        return Previous(self.leg.peer, self.leg.operator, self.session_id)

    @property
    def as_next(self) -> Peer:
        """For the node whose outputs it takes."""
        return Peer(self.leg.peer, self.leg.record.addresses)

    @property
    def next_step(self) -> Step:
        """The number of the next request."""
        return Step(max(self.newest.step, *self.pending) + 1) if self.pending else Step(self.newest.step + 1)

    def prepare(
        self,
        start: int,
        count: int,
        paid: Paid,
        *,
        source: Step | None = None,
        push: bool = False,
        rows: RowMode = "all",
        kind: int = FORWARD,
    ) -> StepRequest:
        """The next request, paid for; the rest as in `StepRequest`. From now on the step is pending."""
        self.spent += work(kind, count) * self.price
        self.raised += paid.rise
        self._sent = paid.voucher.body
        step = self.next_step
        self.pending[step] = request = StepRequest(step, kind, start, count, paid.voucher, source, push, rows)
        return request

    def prepare_fork(self, parent: Parent, count: int) -> StepRequest:
        """The first step, free: begin with the K/V of `parent`, a session at this node that is at rest."""
        voucher = sign_voucher(self._payer.domain, self.bindable, Credits(0), self._payer.who.key).signed
        self.parent = parent.newest
        self.output_rows[:] = parent.output_rows[: count * HASH_SIZE].ljust(count * HASH_SIZE, b"\0")
        self.recalled = parent.recalled
        step = self.next_step
        self.pending[step] = request = StepRequest(step, FORK, 0, count, voucher, parent=parent.newest.head)
        return request

    def cost(self, request: StepRequest) -> Credits:
        """In wei."""
        return Credits(work(request.kind, request.count) * self.price)

    async def send(self, request: StepRequest, data: bytes | None) -> None:
        """With the tensor's wire bytes if this is the first hop. Raises LinkClosed."""
        if data is None:
            await self.link.send(request)
        else:
            await self.link.send(request, Tensor(TensorHead(step=request.step), data))

    def take(self, message: StepReceipt, input_rows: bytes) -> bytes:
        """Compare the next receipt with what this client knows: the row hashes of the step's input.

        Gives those of its output. Raises ProofError, of it OtherInput.
        """
        step = Step(self.newest.step + 1)
        request = self.pending.get(step)
        if request is None:
            raise ProofError("A receipt came that nobody asked for", why=f"step {message.receipt.step}")
        rows = 0 if request.kind == FORK else request.count
        if len(message.rows) != rows * HASH_SIZE:
            raise ProofError("A receipt has the wrong number of row hashes", why=f"{len(message.rows)} bytes")
        previous = self.newest.body
        if request.kind == FORK and self.parent is not None:
            leaf = fork(previous, self.parent.body, request.count)
        else:
            hashes = tensor_hash(input_rows + self.adapter), tensor_hash(message.rows)
            leaf = Leaf(previous.head, step, request.kind, request.start, request.count, *hashes)
        self.newest = _fitting(message.receipt, following(previous, leaf))
        self._derived[step] = self.newest, request.start + request.count
        del self.pending[step]
        if request.kind == FORWARD:
            self.output_rows[request.start * HASH_SIZE :] = message.rows
        if request.kind != BACKWARD:
            self.length = request.start + request.count
        if cost := self.cost(request):
            self._payer.book.delivered(self.leg.operator, cost)
        return message.rows

    def prove(self, step: Step) -> None:
        """All hops' receipts of this step fit together: vouchers may bind it (P17), once signatures are checked too."""
        self.proved, self.cached = self._derived.pop(step)

    def prove_rest(self) -> None:
        """The nodes behind have taken all outputs up to now as their inputs, and signed for that."""
        self.proved, self.cached = self.newest, self.length
        self._derived.clear()

    def check(self, proved: MatchedReceipt) -> CheckedReceipt:
        """Whether this node has signed what was proved. Raises NodeLied."""
        if self.bindable.step == proved.step:
            return self.bindable
        try:
            return check_signature(self._payer.domain, proved.signed)
        except ProofError as error:
            raise self.lied(error) from None

    def drop(self, step: Step) -> None:
        """The node will not do this step: nothing is owed for it, what was promised pays the next one."""
        request = self.pending.pop(step, None)
        if request is not None and (cost := self.cost(request)):
            self.spent -= cost
            self._payer.book.released(self.leg.operator, cost)

    async def refused(self, message: Refused) -> SwarmError | Refusal | None:
        """What a refused step means to the caller. None: sign the step anew, once: another process or machine of the
        wallet has changed the sum owed, and the node has shown it. Raises StoreError, ChainError."""
        request = self.pending.get(message.step)
        self.drop(message.step)
        if message.code in (Code.GAP, Code.BUSY):
            return self.lost_room("The session has lost its room", message.what)
        if message.code is Code.STEP and request is not None and request.kind == FORK:
            return StillBusy(message.what, why=f"at the {self.leg}")
        if message.code is not Code.VOUCHER or request is None or not self.cost(request):
            return NodeRefusal(self.leg, message)
        try:
            await believe(self._payer, self.leg, message.owed, message.proof)
        except NodeUnproven as error:
            self.distrusted = True
            return error
        owed = self._payer.book.standing(self.leg.operator).owed
        if request.voucher.body.total == owed + self.cost(request):
            return NodeRefusal(self.leg, message)
        if self.pending or message.step == self._again:
            return self.lost_room("This wallet pays the node from elsewhere too", message.what)
        self._again = message.step
        return None

    def lost_room(self, what: str, why: str) -> RoomLost:
        """The text must be computed again here."""
        return RoomLost(what, why=f"at the {self.leg}: {why}", peers=(self.leg.peer,))

    def ended(self, message: Closed) -> SwarmError | Refusal:
        """What it means that the node closed the session. What it has not answered by now it will not do (C2)."""
        for step in [step for step in self.pending if step > self.heard]:
            self.drop(step)
        if message.code in _USED_UP:
            return self.lost_room(f"The session is over ({message.code})", message.reason)
        code = message.code or Code.FAILED
        return NodeRefusal(self.leg, Refused(code=code, what="it closed the session", why=message.reason))

    def lied(self, error: Exception, *before: "RemoteSession") -> NodeLied:
        """No more vouchers for this node nor for the one whose output it took."""
        for one in (self, *before):
            one.distrusted = True
        return NodeLied(tuple(one.leg for one in (*before, self)), error)

    def equivocated(self, ours: SignedReceipt, theirs: SignedReceipt) -> NodeEquivocated | None:
        """Whether this node has signed both receipts of one step, the one that came here and the one that came to its
        neighbour, and they differ."""
        try:
            proof = evidence.prove(self._payer.domain, ours, theirs)
        except ProofError:
            return None
        self.distrusted = True
        return NodeEquivocated(self.leg, proof)

    async def cancel(self) -> None:
        """Ask the node to drop what it has not begun; the answer comes as Cancelled."""
        if self.pending and not self.distrusted and not self.link.closed:
            self.cancelling = True
            with contextlib.suppress(LinkClosed):
                await self.link.send(Cancel(from_step=Step(self.newest.step + 1)))

    async def close(self) -> None:
        """Sign off: a last voucher for the newest receipt, unless the node lied. Never raises for a dead link."""
        with contextlib.suppress(LinkClosed, TimeoutError, StoreError):  # a book that can't be written signs nothing
            if not self.distrusted and not self.link.closed and not self.closed.is_set():
                async with asyncio.timeout(FAREWELL):
                    await self.link.send(Close(voucher=self._last_voucher()))
                    await self.closed.wait()
        if self.price:
            for request in self.pending.values():  # their fate is unknown: the debt stays, as it may be real
                self._payer.book.delivered(self.leg.operator, self.cost(request))
        self.pending.clear()
        await self.link.close("the session is over")

    def _last_voucher(self) -> SignedVoucher | None:
        """Over the newest bindable receipt, for the sum that has been sent already."""
        if self._sent is None or self._sent.receipt == self.bindable.digest:
            return None
        if self.price:
            self._payer.book.countersigned(self.leg.operator, self._sent.total, self.bindable.digest)
        return sign_voucher(self._payer.domain, self.bindable, self._sent.total, self._payer.who.key).signed


def check_signatures(proved: Sequence[tuple[RemoteSession, MatchedReceipt]]) -> None:
    """Whether all nodes of a route have signed what was proved of one step: then vouchers may bind it, at every hop.

    In whatever thread has time for it. Raises NodeLied, and then none is bound.
    """
    checked = [session.check(receipt) for session, receipt in proved]
    for (session, _), receipt in zip(proved, checked, strict=True):
        session.bindable = receipt


def _fitting(signed: SignedReceipt, expected: Receipt) -> MatchedReceipt:
    """Raises ProofError, of it OtherInput."""
    if signed.body != expected and structs.replace(signed.body, head=expected.head) == expected:
        raise OtherInput("A receipt is for another input or output", why=f"step {expected.step}")
    return match(signed, expected)
