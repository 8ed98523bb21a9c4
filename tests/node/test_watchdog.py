"""A device that hangs ends the node, and everybody hears why; one that is slow, or a process that slept, does not."""

import asyncio
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemint.node.engine.watchdog import LOOK, DeviceHung, DeviceLoad, HangLimit, watch
from hivemint.swarm.messages import Closed, Code, Refused
from support.node_client import RefusedError
from support.one_node import ASK, one_node
from support.promises import signer
from support.virtual_time import VirtualLoop, run

pytest_plugins = ["support.tiny"]


class Device:
    on_device: DeviceLoad | None = None


@given(
    st.lists(st.tuples(st.floats(0.001, 3), st.floats(0, 0.9), st.floats(0, 1)), min_size=1, max_size=20),
    st.floats(0.5, 40),
    st.floats(2, 100),
)
def test_batches_that_end_in_time_are_no_hang_and_one_that_does_not_is(
    batches: list[tuple[float, float, float]], least: float, times: float
) -> None:
    """(what is usual, the part of the limit that it takes, a pause): the last one never ends."""
    device, limit = Device(), HangLimit(times, least)

    async def story(loop: VirtualLoop) -> float:
        watching = asyncio.create_task(watch(device, limit))
        for usual, part, pause in batches:
            device.on_device = DeviceLoad(4, 2, usual)
            await asyncio.sleep(part * limit.of(device.on_device))
            assert not watching.done()
            device.on_device = None
            await asyncio.sleep(pause)
        device.on_device, began = DeviceLoad(7, 3, batches[-1][0]), loop.time()
        with pytest.raises(DeviceHung, match="batch of 7 tokens of 3 sessions"):
            await watching
        return loop.time() - began

    age, most = run(story), limit.of(DeviceLoad(7, 3, batches[-1][0]))
    assert most <= age <= most + 3 * LOOK


def test_a_process_that_slept_is_not_to_blame() -> None:
    """SIGSTOP, a laptop's lid: the clock leaps, the device had no chance."""
    device = Device()

    async def story(loop: VirtualLoop) -> None:
        watching = asyncio.create_task(watch(device, HangLimit(100, 30)))
        device.on_device = DeviceLoad(1, 1, 0.01)
        for _ in range(3):
            await asyncio.sleep(9)
            loop.now += 3600
        await asyncio.sleep(2)
        assert not watching.done()
        await asyncio.sleep(3)
        with pytest.raises(DeviceHung):
            await watching

    run(story)


async def test_a_hung_device_ends_the_node_and_every_session_hears_why(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, hung_least=0.5, hung_times=2) as served:
        serving = asyncio.create_task(served.node.run(asyncio.Event()))
        sessions = [await served.open(signer(n), price=ASK) for n in (1, 2, 3)]
        for session in sessions:
            await session.step(torch.randn(4, 32), 0)
        served.span.shut()
        on_device, queued, _ = sessions
        await on_device.send(on_device.request(2, start=4), torch.randn(2, 32))
        await asyncio.to_thread(served.span.held.wait)
        await queued.send(queued.request(3, start=4), torch.randn(3, 32))
        with pytest.raises(DeviceHung, match="batch of 2 tokens of 1 sessions") as hung:
            await serving
        await served.node.close()

        for session in (on_device, queued):
            answer, tensor = await session.answer()
            assert isinstance(answer, Refused)
            assert (answer.code, answer.what, tensor) == (Code.FAILED, "The device hangs", None)
            assert answer.why == hung.value.why
            assert answer.owed == 4 * ASK  # nothing for the step that failed
        for session in sessions:
            closed, _ = await session.answer()
            assert isinstance(closed, Closed)
            assert closed.code is Code.FAILED
            assert closed.reason == "The device hangs"  # more is the operator's to know
        assert served.journal.book(signer(1).address).owed == 4 * ASK
        with pytest.raises(RefusedError) as late:
            await served.open(signer(4))
        assert late.value.refused.code is Code.DRAINING
        assert served.span.begun == served.span.ended + 1  # and the batch hangs still
