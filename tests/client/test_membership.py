"""A model leaves the network once: closed, dropped, or alive as the interpreter ends."""

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from hivemint.client.generation.loop import LoopThread
from hivemint.client.generation.membership import Membership
from hivemint.protocol.errors import SwarmError


class Owner:
    """Stands for a model."""


class Place:
    """A swarm that notes when it is left."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.closed, self._error, self._seconds = 0, error, seconds

    async def close(self) -> None:
        self.closed += 1
        await asyncio.sleep(self._seconds)
        if self._error is not None:
            raise self._error


def joined(owner: object, **settings: Any) -> tuple[Membership, Place, LoopThread]:
    place: Any = Place(**settings)
    loop = LoopThread()
    return Membership(owner, place, loop), place, loop


def test_what_is_closed_is_left_once() -> None:
    owner = Owner()
    membership, place, loop = joined(owner)
    membership.leave()
    membership.leave()
    assert (place.closed, loop.alive) == (1, False)
    del owner
    assert place.closed == 1


def test_what_is_dropped_leaves_without_keeping_anybody_waiting() -> None:
    owner = Owner()
    _, place, loop = joined(owner, seconds=0.2)
    del owner
    assert loop.alive, "who dropped it did not wait"
    loop.join(5)
    assert (place.closed, loop.alive) == (1, False)


def test_the_networks_own_thread_may_drop_it_too() -> None:
    owner = Owner()
    _, place, loop = joined(owner)
    holding, owner = [owner], None  # type: ignore[assignment]

    async def drop() -> None:
        holding.clear()

    loop.run(drop)
    loop.join(5)
    assert (place.closed, loop.alive) == (1, False)


def test_a_goodbye_that_fails_ends_the_thread_all_the_same() -> None:
    owner = Owner()
    _, place, loop = joined(owner, error=SwarmError("a node is gone"))
    del owner
    loop.join(5)
    assert (place.closed, loop.alive) == (1, False)
    owner = Owner()
    membership, _, loop = joined(owner, error=SwarmError("a node is gone"))
    with pytest.raises(SwarmError, match="is gone"):
        membership.leave()
    assert not loop.alive


def test_the_end_of_the_interpreter_waits_for_a_goodbye_but_not_for_ever() -> None:
    owner = Owner()
    membership, place, loop = joined(owner, seconds=0.1)
    membership.wait(5)
    assert (place.closed, loop.alive) == (1, False)
    membership, _, loop = joined(owner, seconds=60)
    membership.wait(0.1)
    assert loop.alive
    loop.stop()


def test_nothing_of_it_is_kept_when_it_has_left() -> None:
    owner = Owner()
    place = weakref.ref(joined(owner)[1])
    del owner
    thread = next(one for one in threading.enumerate() if one.name == "hivemint-client")
    thread.join(5)
    last = Owner()
    membership, _, _ = joined(last)  # who comes next clears up
    gc.collect()
    assert place() is None
    membership.leave()


def in_a_fork(act: Callable[[], object]) -> int:
    """The exit status of a child that does only this."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_can_neither_use_nor_end_it() -> None:
    holding = [Owner()]
    membership, place, loop = joined(holding[0])

    def act() -> None:
        with pytest.raises(SwarmError, match="belongs to the process that loaded it"):
            loop.run(asyncio.sleep, 0)
        holding.clear()
        membership.leave()
        assert place.closed == 0

    assert in_a_fork(act) == 0
    loop.run(asyncio.sleep, 0)
    membership.leave()
    assert place.closed == 1
