"""A model's place in the network: the swarm and the thread of its loop, given back once, whoever forgets to.

A model is closed by its owner (`close`, `with`); or it is dropped; or the interpreter ends, with notebooks and scripts
that never close anything. In each case the nodes hear a goodbye, and daemon and sockets are gone.
"""

import atexit
import contextlib
import ctypes
import os
import weakref

from hivemint.client.generation.loop import LoopThread
from hivemint.client.pipeline import Swarm
from hivemint.protocol.errors import HivemintError

LAST = 10.0
"""Seconds that the end of the interpreter waits for one model's goodbye."""
_CALLS = 2.0
"""Seconds that it waits for daemon threads to come out of what they compute."""
_present: set["Membership"] = set()


class Membership:
    """Left once: by `leave`, when `owner` is dropped, or as the interpreter ends."""

    def __init__(self, owner: object, swarm: Swarm, loop: LoopThread) -> None:
        self.swarm, self.loop = swarm, loop
        self._process = os.getpid()
        self._dropped = weakref.finalize(owner, self._leave_soon)
        self._dropped.atexit = False  # then there is somebody who waits: `_leave_all`
        _present.difference_update([one for one in list(_present) if not one.loop.alive])  # dropped, and left since
        _present.add(self)

    def leave(self) -> None:
        """Sign off everywhere and end the thread. Harmless when called again."""
        self._dropped.detach()
        _present.discard(self)
        try:
            if self.loop.alive:
                self.loop.run(self.swarm.close)
        finally:
            self.loop.stop()

    def wait(self, seconds: float) -> None:
        """As `leave`, for so long at most."""
        self.loop.ending = True
        self._leave_soon()
        self.loop.join(seconds)
        self.loop.wait_for_calls(_CALLS)
        _present.discard(self)

    def _leave_soon(self) -> None:
        """Without waiting: who drops a model may be any thread, the network's own one too."""
        if os.getpid() == self._process:  # a fork has none of this: sockets and daemon are its parent's
            self.loop.stop_after(self.swarm.close)


def _leave_all() -> None:
    for one in list(_present):
        with contextlib.suppress(HivemintError):
            one.wait(LAST)


def _keep_for_parent() -> None:
    """In a fork nothing of a model may be freed: closing the loop's handles would change the parent's, which are shared
    with it. So they get a reference that nobody gives back."""
    for one in _present:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
    _present.clear()


atexit.register(_leave_all)
os.register_at_fork(after_in_child=_keep_for_parent)
