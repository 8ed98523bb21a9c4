"""The vouchers of one pipeline's steps, one a hop: promised in one transaction, signed in a thread.

The receipts that they bind have been derived by then; whether they carry their nodes' signatures is seen here.

In decode they are drawn while the step before is on its way, so that the next token leaves at once. Such a voucher
binds the newest receipt that was proved by then, one step older than the last, which `ahead` of 2 allows. It is sent
only after that last step has been proved too; if the text ends first it is not sent at all, and the promise is taken
back. While other sequences of the same wallet are open nothing is drawn ahead: their totals would count a promise
that may never be needed.

They are drawn a little later than they could be: when a token has just left, those of other sessions are still being
computed on this machine, and for these each core is needed; while the nodes compute there is time.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from hivemint.client.pipeline import SessionLimit
from hivemint.client.sessions.payer import Paid, Payer
from hivemint.client.sessions.session import RemoteSession, check_signatures
from hivemint.ledger.books.voucher_book import Promise, PromiseLimit
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import Credits, Step
from hivemint.protocol.receipt import CheckedReceipt, MatchedReceipt, sign_voucher


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Vouchers that pay `count` more tokens at some hops, over the receipts of the steps `bound`, a hop each."""

    count: int
    hops: range
    bound: list[Step]
    promises: list[Promise]
    paid: list[Paid]


class VoucherSource:
    """Belongs to one pipeline and its event loop. A step's vouchers are taken once, in the order of the steps.

    `alone` tells whether no other sequence of this wallet is open.
    """

    def __init__(self, sessions: Sequence[RemoteSession], payer: Payer, alone: Callable[[], bool]) -> None:
        self._sessions, self._payer, self._alone = sessions, payer, alone
        self._all = range(len(sessions))
        self._ahead = min(one.terms.limits.ahead for one in sessions)
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[_Drawn] | None = None
        self._soon: asyncio.TimerHandle | None = None

    async def take(self, count: int, hops: range | None = None) -> list[Paid]:
        """One voucher a hop for `count` positions, at each session's next step: those that were drawn ahead, if they
        fit. `hops`: of these alone.

        Raises SessionLimit where an account or a session does not cover them, NodeLied, StoreError.
        """
        hops = self._all if hops is None else hops
        if (drawing := self._drawing()) is not None:
            drawn = await self._waited(drawing)
            if drawn.count == count and drawn.hops == hops and self._recent(drawn):
                return drawn.paid
            self._take_back(drawn)
        return (await self._waited(self._draw(count, hops))).paid

    def _recent(self, drawn: _Drawn) -> bool:
        """Whether the nodes still take vouchers over these receipts for their next steps."""
        return all(
            bound >= self._sessions[hop].next_step - self._ahead
            for hop, bound in zip(drawn.hops, drawn.bound, strict=True)
        )

    async def again(self, hop: int, count: int) -> Paid:
        """A new voucher for a step that the node refused because it knew of another debt. Raises as `take` does."""
        return (await self._waited(self._draw(count, range(hop, hop + 1)))).paid[0]

    def draw_ahead(self, end: int, wait: float = 0.0) -> None:
        """In `wait` seconds begin with the vouchers of a decode step at position `end - 1`, if the sessions admit one.

        Not if they are taken or put back before.
        """
        if self._next is not None or self._soon is not None or self._ahead < 2:
            return
        if wait > 0:
            self._soon = self._loop.call_later(wait, self._draw_next, end)
        else:
            self._draw_next(end)

    def _draw_next(self, end: int) -> None:
        self._soon = None
        if not self._alone():
            return
        with suppress(SessionLimit):
            for session in self._sessions:
                session.admit(1, end)
            self._next = self._draw(1, self._all)

    async def put_back(self) -> None:
        """Take back what was drawn ahead and not taken."""
        if (drawing := self._drawing()) is not None:
            with suppress(HivemintError):  # what cannot be drawn cannot be owed; who takes the next ones is told
                self._take_back(await self._waited(drawing))

    def _drawing(self) -> "asyncio.Future[_Drawn] | None":
        """What has been drawn ahead or is just being; afterwards nothing is, and nothing will be unasked."""
        if self._soon is not None:
            self._soon.cancel()
        drawing, self._next, self._soon = self._next, None, None
        return drawing

    def _take_back(self, drawn: _Drawn) -> None:
        self._payer.book.take_back(drawn.promises)

    async def _waited(self, drawing: "asyncio.Future[_Drawn]") -> _Drawn:
        try:
            return await asyncio.shield(drawing)
        except asyncio.CancelledError:
            drawing.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, drawing: "asyncio.Future[_Drawn]") -> None:
        if not drawing.cancelled() and drawing.exception() is None:
            self._take_back(drawing.result())

    def _draw(self, count: int, hops: range) -> "asyncio.Future[_Drawn]":
        proved = [(one, one.proved) for one in self._sessions]
        return self._loop.run_in_executor(None, self._sign, count, hops, proved)

    def _sign(self, count: int, drawn: range, proved: Sequence[tuple[RemoteSession, MatchedReceipt]]) -> _Drawn:
        """In a thread: the nodes' signatures, a transaction of the wallet's book, then the wallet's signatures."""
        payer = self._payer
        check_signatures(proved)
        hops = [(one, one.bindable) for one in (self._sessions[hop] for hop in drawn)]
        owing = [
            payer.owing(one.leg.operator, count * one.price, receipt.digest, one.room)
            for one, receipt in hops
            if one.price
        ]
        try:
            promises = payer.book.promise_all(owing)
        except PromiseLimit as error:
            raise SessionLimit(error.what, why=error.why, next_step=error.next_step) from None
        rest = iter(promises)
        paid = [self._one(receipt, next(rest) if one.price else None) for one, receipt in hops]
        return _Drawn(count, drawn, [receipt.step for _, receipt in hops], promises, paid)

    def _one(self, receipt: CheckedReceipt, promise: Promise | None) -> Paid:
        total, rise = (promise.total, promise.rise) if promise else (Credits(0), 0)
        return Paid(sign_voucher(self._payer.domain, receipt, total, self._payer.who.key).signed, rise)
