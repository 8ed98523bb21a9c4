"""One decode step's walk through a node, counted: what it wears, and how often each file is entered (decision 0026)."""

import asyncio
import inspect
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch

from hivemint import node as package
from hivemint.node.engine.step_job import StepJob, StepSlice
from hivemint.node.sessions.conversation import Conversation
from hivemint.node.sessions.session import TakenStep
from hivemint.node.span.packing import Work
from hivemint.swarm.messages import StepRequest
from support.node_pair import ASK, Pair
from support.promises import signer

pytest_plugins = ["support.node_pair"]

MOST = 4
QUESTIONS = {
    "sessions/account.py": {"lives", "reach", "uncarried"},
    "sessions/offer.py": {"price"},
    "sessions/session.py": {"price_of", "bound_step"},
    "engine/scheduler.py": {"__bool__", "weight_of"},
    "kv/cache.py": {"missing"},
    "kv/pages.py": {"pages_for"},
}
"""What is asked of a file and changes nothing there: a method where others have a property."""
BESIDE = {"server.py", "sessions/registry.py", "engine/watchdog.py", "supervise.py"}
"""What looks after a node by the clock: it is no part of a request's walk when it calls."""


class Walk:
    """A profiler's hook: each call of a function of the node by another file of it.

    What goes on after an `await` is no call, and what a file hands to the event loop or to a thread comes back to it.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        (self._root,) = package.__path__

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        place = self._place(frame)
        if event != "call" or place is None or frame.f_lineno != code.co_firstlineno or code.co_name.startswith("<"):
            return
        back = frame.f_back
        while back is not None and self._place(back) is None:
            back = back.f_back
        caller = None if back is None else self._place(back)
        if caller is not None and caller != place and caller not in BESIDE:
            self.calls[place, code.co_qualname] += 1

    def _place(self, frame: FrameType) -> str | None:
        path = Path(frame.f_code.co_filename)
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else None

    def entries(self) -> Counter[str]:
        """By file, without properties and other questions."""
        found: Counter[str] = Counter()
        for (place, name), times in self.calls.items():
            if not _is_property(place, name) and name.rpartition(".")[2] not in QUESTIONS.get(place, ()):
                found[place] += times
        return found


def _is_property(place: str, name: str) -> bool:
    at: Any = sys.modules["hivemint.node." + place.removesuffix(".py").replace("/", ".")]
    for part in name.split("."):
        if not isinstance(at, type | ModuleType):
            return False  # within a function
        at = inspect.getattr_static(at, part)
    return isinstance(at, property | cached_property)


async def test_no_file_is_entered_more_than_four_times_for_one_token(pair: Pair) -> None:
    device, walk = pair.first.node.engine.device, Walk()
    session = await pair.open(pair.first, signer(1), price=ASK)
    await session.step(torch.randn(4, 32), 0)
    await session.step(torch.randn(1, 32), 4)
    await device.do(lambda: sys.setprofile(walk))
    sys.setprofile(walk)
    try:
        await session.step(torch.randn(1, 32), 5)
        await asyncio.sleep(0.01)  # the step's task ends behind its receipt
    finally:
        sys.setprofile(None)
        await device.do(lambda: sys.setprofile(None))
    entries = walk.entries()
    assert {place: times for place, times in entries.items() if times > MOST} == {}


async def test_a_request_wears_four_clothes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message, the step that was taken, the job that waits, a row of the batch; each holds the one before or is
    held by it, and the job is one object from its session to its batch."""
    worn: list[Any] = []
    node = pair.first.node
    device, span = node.engine.device, node.kit.span
    compute, run = device.run, span.run

    async def batch_of(batch: list[StepSlice]) -> Any:
        (conversation,) = node.registry.occupants
        assert isinstance(conversation, Conversation)
        assert conversation.session is not None
        taken = conversation.session.steps[conversation.session.last]
        assert taken.job is batch[0].job
        worn.append((taken, batch))
        return await compute(batch)

    def rows_of(works: list[Work]) -> list[torch.Tensor]:
        worn.append(works)
        return run(works)

    monkeypatch.setattr(device, "run", batch_of)
    monkeypatch.setattr(span, "run", rows_of)
    session = await pair.open(pair.first, signer(1), price=ASK)
    await session.step(torch.randn(4, 32), 0)
    (taken, (part,)), (work,) = worn
    assert [type(one) for one in (taken.request, taken, work)] == [StepRequest, TakenStep, Work]
    assert type(part.job) is StepJob
    assert work.hidden.data_ptr() == part.job.hidden.data_ptr(), "rows are not copied on the way"
    assert part.job.output.result().shape == (4, 32)
