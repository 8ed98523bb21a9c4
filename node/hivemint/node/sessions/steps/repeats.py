"""Steps that are asked for again: the stored answer, if the input is the same too. Nothing is computed or owed."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from hivemint.node.sessions.metering import Meter
from hivemint.node.sessions.session import ServedSession, TakenStep
from hivemint.node.sessions.steps import inputs
from hivemint.protocol.ids import FORK, Step
from hivemint.swarm.link import Link
from hivemint.swarm.messages import Code, Refused, StepRequest, Tensor
from hivemint.swarm.rows import tensor_hash


class Repeats:
    """Of one session: one at a time of a step, whose input comes within INPUT_LIMIT; `close` cancels them all."""

    def __init__(
        self,
        link: Link,
        meter: Meter,
        session: ServedSession,
        refuse: Callable[[Refused], Awaitable[None]],
        ended: "Callable[[asyncio.Task[None]], None]",
    ) -> None:
        """`ended` hears of each task that is over, however it ended."""
        self._link, self._meter, self._session, self._refuse, self._ended = link, meter, session, refuse, ended
        self._tasks: dict[Step, asyncio.Task[None]] = {}
        self._inputs: dict[Step, asyncio.Future[Tensor]] = {}

    def ask(self, step: TakenStep, request: StepRequest, row_bytes: int) -> None:
        """A step that is under way answers by itself, and one that was asked for again already is answered once."""
        if step.answer is None or step.number in self._tasks:
            return
        if request.source is None and request.kind != FORK:  # the tensor follows at once: there must be a place
            self._inputs[step.number] = asyncio.get_running_loop().create_future()
        task = self._tasks[step.number] = asyncio.create_task(self._repeat(step, request, row_bytes))
        task.add_done_callback(partial(self._done, step.number))

    def expects(self, number: Step) -> bool:
        """A client's input. One that no repeat waits for belongs to a refused request."""
        waiting = self._inputs.get(number)
        return waiting is not None and not waiting.done()

    def give(self, tensor: Tensor) -> None:
        if self.expects(tensor.head.step):
            self._inputs[tensor.head.step].set_result(tensor)

    async def close(self) -> None:
        """The link has ended: nobody waits for these answers."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, step: TakenStep, request: StepRequest, row_bytes: int) -> None:
        waiting = self._inputs.get(step.number)
        if waiting is not None:
            try:
                async with asyncio.timeout(inputs.INPUT_LIMIT):
                    data = (await waiting).data
            except TimeoutError:
                what, why = "The repeated step's input did not come", f"waited {inputs.INPUT_LIMIT:.0f} s"
                return await self._refuse(self._session.refused(request, Code.MISSING, what, why))
            if not await self._same(step, data, request.count * row_bytes, row_bytes):
                what = "The step had another input"
                return await self._refuse(self._session.refused(request, Code.CONFLICT, what))
        if step.answer is not None:
            await self._link.send(*([step.tensor] if step.tensor else []), step.answer)
        return None

    async def _same(self, step: TakenStep, data: bytes | memoryview, expected: int, row_bytes: int) -> bool:
        if len(data) != expected:
            return False
        return step.input_hash == tensor_hash(await self._meter.hash_rows(data, row_bytes) + self._session.adapter)

    def _done(self, number: Step, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(number, None)
        self._inputs.pop(number, None)
        self._ended(task)
