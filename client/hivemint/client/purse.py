"""The vouchers of one pipeline's steps, one a hop: promised in one transaction, signed in a thread.

In decode they are drawn while the step before is on its way, so that the next token leaves at once. Such a voucher
binds the newest receipt that was proved by then, one step older than the last, which `ahead` of 2 allows. It is sent
only after that last step has been proved too; if the text ends first it is not sent at all and its promise pays the
next step at that node.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hivemint.client.handshake import Payer
from hivemint.client.pipeline import SessionLimit
from hivemint.client.session import NodeSession
from hivemint.contracts.errors import HivemintError
from hivemint.contracts.ids import Credits, Step
from hivemint.contracts.receipt import CheckedReceipt, SignedVoucher, sign_voucher


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Vouchers that pay `count` more tokens at each hop, over the receipts of step `bound`."""

    count: int
    bound: Step
    vouchers: list[SignedVoucher]


class Purse:
    """Belongs to one pipeline and its event loop. A step's vouchers are taken once, in the order of the steps."""

    def __init__(self, sessions: Sequence[NodeSession], payer: Payer, ahead: int) -> None:
        self._sessions, self._payer, self._ahead = sessions, payer, ahead
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[_Drawn] | None = None

    async def take(self, step: Step, count: int) -> list[SignedVoucher]:
        """One voucher a hop for `count` positions at `step`: those that were drawn ahead, if they fit."""
        drawing, self._next = self._next, None
        if drawing is not None:
            drawn = await self._waited(drawing)
            if drawn.count == count and drawn.bound >= step - self._ahead:
                return drawn.vouchers
            self.release(drawn.count)
        return (await self._waited(self._draw(count))).vouchers

    def draw_ahead(self, end: int) -> None:
        """Begin with the vouchers of a decode step at position `end - 1`, if the sessions admit one."""
        if self._next is not None or self._ahead < 2:
            return
        with suppress(SessionLimit):
            for session in self._sessions:
                session.admit(1, end)
            self._next = self._draw(1)

    async def put_back(self) -> None:
        """Give back what was drawn ahead and not taken."""
        drawing, self._next = self._next, None
        if drawing is not None:
            with suppress(HivemintError):  # what cannot be drawn cannot be owed; who takes the next ones is told
                self.release((await self._waited(drawing)).count)

    def release(self, count: int) -> None:
        """Vouchers for `count` positions were never sent: nothing is owed for them."""
        for session in self._sessions:
            if session.price:
                self._payer.book.released(session.leg.operator, Credits(count * session.price))

    async def _waited(self, drawing: "asyncio.Future[_Drawn]") -> _Drawn:
        try:
            return await asyncio.shield(drawing)
        except asyncio.CancelledError:
            drawing.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, drawing: "asyncio.Future[_Drawn]") -> None:
        if not drawing.cancelled() and drawing.exception() is None:
            self.release(drawing.result().count)

    def _draw(self, count: int) -> "asyncio.Future[_Drawn]":
        receipts = [session.proved for session in self._sessions]
        return self._loop.run_in_executor(None, self._sign, count, receipts)

    def _sign(self, count: int, receipts: list[CheckedReceipt]) -> _Drawn:
        """In a thread: a transaction of the wallet's book, then the signatures."""
        payer = self._payer
        owing = [(one.leg.operator, Credits(count * one.price)) for one in self._sessions]
        totals = payer.book.promise_all(owing) if any(cost for _, cost in owing) else [Credits(0)] * len(owing)
        vouchers = [
            sign_voucher(payer.domain, receipt, total, payer.who.key).signed
            for receipt, total in zip(receipts, totals, strict=True)
        ]
        return _Drawn(count, receipts[0].receipt.step, vouchers)
