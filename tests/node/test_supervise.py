"""No background task ends in silence."""

import asyncio
import gc

import pytest

from hivemint.node.supervise import FIRST_PAUSE, LONGEST_PAUSE, Supervisor
from hivemint.protocol.errors import HivemintError


class Pauses:
    """Counts pauses instead of waiting for them; `enough` is set after so many."""

    def __init__(self, count: int) -> None:
        self.lengths: list[float] = []
        self.enough = asyncio.Event()
        self._count = count

    async def __call__(self, seconds: float) -> None:
        self.lengths.append(seconds)
        if len(self.lengths) == self._count:
            self.enough.set()
            await asyncio.Event().wait()


async def test_what_fails_is_begun_again_with_growing_pauses_and_its_reason_shown() -> None:
    pauses = Pauses(8)
    supervisor = Supervisor(pauses)
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs % 2:
            raise ValueError("zip() argument 2 is shorter than argument 1")

    supervisor.keep_up("settlement", work)
    async with asyncio.timeout(10):
        await pauses.enough.wait()
    assert runs == 8
    assert pauses.lengths == [min(LONGEST_PAUSE, FIRST_PAUSE * 2**n) for n in range(8)]
    assert supervisor.trouble == {"settlement": "it has ended without an error"}
    assert not supervisor.failure.done()
    await supervisor.close()
    assert supervisor.failure.cancelled()


async def test_the_reason_of_an_error_is_shown() -> None:
    pauses = Pauses(1)
    supervisor = Supervisor(pauses)

    async def work() -> None:
        raise ValueError("a short list")

    supervisor.keep_up("sessions", work)
    async with asyncio.timeout(10):
        await pauses.enough.wait()
    assert supervisor.trouble == {"sessions": "ValueError: a short list"}
    await supervisor.close()


async def fails() -> None:
    raise ValueError("odd")


async def ends() -> None:
    pass


async def refuses() -> None:
    raise HivemintError("The device hangs")


@pytest.mark.parametrize(("work", "told"), [(fails, "odd"), (ends, "has ended"), (refuses, "device hangs")])
async def test_the_end_of_an_essential_task_is_the_nodes_end(work: object, told: str) -> None:
    supervisor = Supervisor()
    supervisor.essential("engine", work())  # type: ignore[operator]
    with pytest.raises(HivemintError, match=told):
        async with asyncio.timeout(10):
            await supervisor.failure
    await supervisor.close()


async def test_cancelling_is_no_failure() -> None:
    supervisor = Supervisor()
    supervisor.essential("engine", asyncio.Event().wait())  # type: ignore[arg-type]
    supervisor.keep_up("sessions", asyncio.Event().wait)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await supervisor.close()
    assert supervisor.failure.cancelled()
    assert supervisor.trouble == {}


async def test_a_failure_that_nobody_waited_for_is_no_complaint_later() -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    supervisor = Supervisor()
    supervisor.essential("the task", refuses())
    await asyncio.wait([supervisor.failure])
    await supervisor.close()
    del supervisor
    gc.collect()
    assert not complaints
