"""All steps of one session: which are under way, which are asked for again, which are taken back.

A step that fails before its tensor leaves costs nothing and takes the steps behind it along.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from hivemint.node.engine.seats import Seat
from hivemint.node.sessions.services import Services
from hivemint.node.sessions.session import ServedSession, TakenStep
from hivemint.node.sessions.steps import forks
from hivemint.node.sessions.steps.checks import Again, judge
from hivemint.node.sessions.steps.entries import JournalEntries
from hivemint.node.sessions.steps.inputs import Awaited, Inputs
from hivemint.node.sessions.steps.outputs import Outputs
from hivemint.node.sessions.steps.repeats import Repeats
from hivemint.node.sessions.steps.resend import resend
from hivemint.node.sessions.steps.serve import StepService
from hivemint.node.sessions.steps.vain import RATE, Vain
from hivemint.node.unable import Unable
from hivemint.protocol.errors import LinkClosed, ProofError, ProtocolError
from hivemint.protocol.ids import FORK, Step
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Code, Refused, Resend, StepRequest, Tensor, TensorHead

END_LIMIT = 60.0
"""Seconds that a node which ends a session gives to the steps under way; clients wait no longer for one."""


class Steps:
    """`broken` is told of errors that are nobody's message."""

    def __init__(
        self,
        services: Services,
        link: Link,
        session: ServedSession,
        seat: Seat,
        wire: str,
        flow: Hashable,
        vain: Vain,
        broken: Callable[[BaseException], None],
        used: Callable[[], None],
    ) -> None:
        """`wire`, `flow`, `used`: see `serve.StepService`."""
        self.inputs = Inputs(services.inbox, services.meter)
        self.outputs = Outputs(services, link, self._told_of)
        self.entries = JournalEntries(services.journal, session, self._told_of)
        self._at = StepService(
            services, session, seat, self.inputs, self.outputs, self.entries, wire=wire, flow=flow, used=used
        )
        self._services, self._link, self.session, self._seat = services, link, session, seat
        self._broken = broken
        self._repeats = Repeats(link, services.meter, session, self.refuse, self._told_of)
        self._vain = vain
        self.row_bytes = self._at.row_bytes
        self._tasks: dict[Step, asyncio.Task[None]] = {}
        self._awaited: dict[TakenStep, Awaited] = {}
        self._background: set[asyncio.Task[Any]] = set()

    # ---- asked by the conversation

    async def ask(self, request: StepRequest) -> None:
        """A request: taken, answered once more, or refused. Raises ProtocolError after too many that led to nothing."""
        session = self.session
        self._check_vain()
        verdict = self._check_route(request) or judge(session, request)
        if verdict is None:
            signed = request.voucher
            try:
                voucher = await self._services.meter.check_voucher(
                    signed, signed.body.receipt, session.terms.session_key
                )
                # Once more: other steps and sessions of this client went on meanwhile. No await from here to `take`.
                verdict = judge(session, request)
            except ProofError as error:
                verdict = session.refused(request, Code.VOUCHER, error.what, error.why)
        if verdict is None:
            self._begin(session.take(request, voucher))
            return
        self._in_vain()
        if isinstance(verdict, Again):
            self._repeats.ask(verdict.taken, request, self._at.width(request))
        else:
            await self.refuse(verdict)

    async def resend(self, wanted: Resend) -> None:
        """Outputs once more. Costs as much as a request that leads to nothing."""
        self._check_vain()
        self._in_vain()
        if refused := await resend(self._services, self.session, self.outputs, wanted):
            await self.refuse(refused)

    def expects(self, head: TensorHead) -> bool:
        """Whether a client's input would be kept."""
        return self.inputs.expects(head.step) or self._repeats.expects(head.step)

    def give(self, tensor: Tensor) -> None:
        """A client's input."""
        if not self.inputs.give(tensor):
            self._repeats.give(tensor)

    def drop(self, first: Step, *, begun: bool = False) -> list[TakenStep]:
        """Take back the steps from `first` on that have not begun; nothing is owed for them, their vouchers stay.

        Their numbers are free at once: the next message may ask for the same ones again.
        """
        gone = self.session.drop(first, begun=begun)
        for step in gone:
            self.entries.begin(0, step.pair)
            self._give_back(step)
            task = self._tasks.get(step.number)
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        return gone

    def evicted(self) -> None:
        """The room has been given to others: what waits for its input has nothing to build on."""
        gone = self.drop(Step(1))
        self.session.evicted()
        self._services.kept.forget(self.session.session_id)
        if gone:
            self._in_vain()
            what, why = "The session's room went to another", "none of its steps was done for long"
            self._spawn(self.refuse(self.session.refused(gone[0].request, Code.BUSY, what, why)))

    async def finish(self, within: float = END_LIMIT) -> bool:
        """Until all steps have their answers, and the next node its inputs. False: some had not after so many seconds;
        of those, the ones without a receipt under way are dropped, begun or not.
        """
        until, done = time.monotonic() + within, True
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks.values()), timeout=within)
            done = not late
        if done and (pushing := self.outputs.pushing) is not None:
            _, late = await asyncio.wait([pushing], timeout=max(0.0, until - time.monotonic()))
            done = not late
        if not done:
            self.drop(Step(1), begun=True)
        return done

    async def settle(self) -> None:
        """Until nothing of this session is under way, the journal's entries included; it learns of the last receipt.

        Its link has ended and what had not begun is dropped: only the device and the journal are waited for.
        """
        self.outputs.lead_to(None)
        await self._repeats.close()
        while self._tasks or self._background:
            await asyncio.gather(*self._tasks.values(), *self._background, return_exceptions=True)
        await self.entries.settle()

    async def refuse(self, refused: Refused) -> None:
        self._services.counts.refused(refused.code)
        await self._link.send(refused)

    # ---- a request

    def _check_route(self, request: StepRequest) -> Refused | None:
        """A step that comes from or goes to a neighbour needs that neighbour's name first."""
        if request.source is not None and self.inputs.previous is None:
            return self.session.refused(request, Code.INPUT, "No previous node has been named", "", "send Neighbours")
        if request.push and self.outputs.next is None:
            return self.session.refused(request, Code.MISSING, "There is no link to a next node", "", "send Neighbours")
        return None

    def _check_vain(self) -> None:
        """Raises ProtocolError after too many requests in vain."""
        if self._vain.rest():
            raise ProtocolError("A client asks for too many steps in vain", why=f"more than {RATE:g} a second")

    def _in_vain(self) -> None:
        """A request has led to nothing."""
        self._vain.take()

    def _begin(self, step: TakenStep) -> None:
        """The request was taken: the step goes its way."""
        if step.request.kind == FORK:
            self._run(step, forks.serve(self._at, step, *forks.begin(self._at, step)))
            return
        awaited = self._awaited[step] = self.inputs.expect(step.request)
        self._run(step, self._at.serve(step, awaited))

    # ---- a step's task

    def _run(self, step: TakenStep, work: Coroutine[Any, Any, None]) -> None:
        """What a step holds is given back when its task is over, also when that was cancelled before it began."""

        def over(task: asyncio.Task[None]) -> None:
            work.close()  # of a task that was cancelled before it began
            if self._tasks.get(step.number) is task:
                del self._tasks[step.number]
            self._give_back(step)
            self._count(step, -1)

        self._count(step, 1)
        task = self._tasks[step.number] = self._spawn(self._serve(step, work))
        task.add_done_callback(over)

    async def _serve(self, step: TakenStep, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Unable as failed:
            if self.drop(step.number, begun=True):
                self._in_vain()
                session, account = self.session, self.session.account
                standing = {"cached": session.length, "owed": account.owed, "proof": account.proof}
                await self.refuse(failed.refused(step=step.number, **standing))

    def _give_back(self, step: TakenStep) -> None:
        """Its input's place; once."""
        if (awaited := self._awaited.pop(step, None)) is not None:
            self.inputs.done(step.number, awaited)

    def _count(self, step: TakenStep, sign: int) -> None:
        if step.fed:
            self._seat.busy += sign
        else:
            self._seat.waits += sign

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(self._told_of)
        return task

    def _told_of(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LinkClosed):
            self._broken(error)
