"""One session of a client that keeps to no rule, over a real link: it says what it likes, and hears all that comes."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import torch

from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import Credits, Step
from hivemint.protocol.receipt import SignedVoucher, sign_voucher
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import (
    Cancel,
    Cancelled,
    Close,
    Closed,
    Refused,
    StepReceipt,
    StepRequest,
    Tensor,
    TensorHead,
)
from hivemint.swarm.rows import to_wire
from support.node_client import NodeSession, hash_of

HIDDEN, TOKENS = 32, 64
_NONE = Step(2**62)
"""A step that is never reached: to cancel from it on asks where the node stands, and changes nothing."""


@dataclass
class Sent:
    request: StepRequest
    rows: torch.Tensor
    cost: int


@dataclass(eq=False)
class HostileSession:
    """`done`: steps that were answered with a receipt; `waiting`: accepted ones whose input has not been sent."""

    session: NodeSession
    key: Signer
    over: bool = False
    position: int = 0
    waiting: list[Sent] = field(default_factory=list)
    done: list[Sent] = field(default_factory=list)
    signed: dict[int, set[bytes]] = field(default_factory=dict)
    """For each step number the digests of all receipts that came for it."""

    @property
    def price(self) -> int:
        return self.session.session.price

    def make(self, count: int, total: int, **changes: Any) -> Sent:
        """The next step, at the end of the cache, or from the beginning where there is no more room."""
        here = self.position if self.position + count <= TOKENS else 0
        step = self.session.receipt.step + len(self.waiting) + 1
        voucher: SignedVoucher | None = changes.pop("voucher", None)
        request = self.session.request(count, start=here, step=step, total=total, rows="none", **changes)
        if voucher is not None:
            request = StepRequest(**{**{f: getattr(request, f) for f in request.__struct_fields__}, "voucher": voucher})
        return Sent(request, torch.randn(count, HIDDEN), self.price * count)

    async def ask(self, sent: Sent) -> StepReceipt | Refused | None:
        """Request and input at once, and the answer. None: the session is over."""
        if not await self._say(sent.request, self._tensor(sent)):
            return None
        answer = await self._hear()
        return self._answered(sent, answer)

    async def announce(self, sent: Sent) -> None:
        """The request without its input: accepted or refused."""
        if await self._say(sent.request, Cancel(_NONE)) and isinstance(await self._hear(), Cancelled):
            self.waiting.append(sent)
            self.position = sent.request.start + sent.request.count
        elif not self.over:
            await self._hear()  # the fence behind the refusal

    async def deliver(self) -> list[Sent]:
        """The inputs of what waits; the steps that were done."""
        waiting, self.waiting = self.waiting, []
        done = []
        for sent in waiting:
            if not await self._say(self._tensor(sent)):
                break
            if not isinstance(self._answered(sent, await self._hear()), StepReceipt):
                break
            done.append(sent)
        return done

    async def cancel(self) -> None:
        if self.waiting and await self._say(Cancel(self.waiting[0].request.step)):
            self.position = self.waiting[0].request.start
            self.waiting.clear()
            await self._hear()

    async def repeat(self, sent: Sent, **changes: Any) -> None:
        """A step that was done, once more: the same, or (`changes`) another under its number."""
        fields = {name: getattr(sent.request, name) for name in sent.request.__struct_fields__}
        if await self._say(StepRequest(**fields | changes), self._tensor(sent)):
            self._note(await self._hear())

    async def close(self, total: int | None, by: Signer) -> None:
        """With a last voucher by anybody, of any total; None: without one."""
        last = None if total is None else sign_voucher(self.session.domain, self.session.receipt, Credits(total), by)
        if await self._say(Close(last.signed if last else None)):
            while not self.over:
                await self._hear()
        await self.hang_up()

    async def hang_up(self) -> None:
        self.over = True
        await self.session.link.close("enough")

    def _tensor(self, sent: Sent) -> Tensor:
        return Tensor(TensorHead(sent.request.step), to_wire(sent.rows, "fp32"))

    async def _say(self, *messages: Any) -> bool:
        try:
            await self.session.link.send(*messages)
        except LinkClosed:
            self.over = True
        return not self.over

    async def _hear(self) -> Any:
        try:
            async with asyncio.timeout(60):
                message, _ = await self.session.answer()
        except LinkClosed:
            message = None
        self.over = self.over or message is None or isinstance(message, Closed)
        return message

    def _note(self, answer: Any) -> None:
        if isinstance(answer, StepReceipt):
            receipt = answer.receipt.body
            self.signed.setdefault(receipt.step, set()).add(receipt.digest(self.session.domain))

    def _answered(self, sent: Sent, answer: Any) -> StepReceipt | Refused | None:
        self._note(answer)
        if isinstance(answer, StepReceipt):
            self.session.check(sent.request, hash_of(sent.rows), answer)
            self.position = sent.request.start + sent.request.count
            self.done.append(sent)
            return answer
        if isinstance(answer, Refused):
            self.position = min(self.position, answer.cached)
            return answer
        return None
