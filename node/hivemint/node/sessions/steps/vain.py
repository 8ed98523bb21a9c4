"""Requests that lead to no answer of their own: repeats, refused and failed steps. Each costs a check, at least."""

import time

from hivemint.swarm.budget import Budget

RATE, BURST = 10.0, 128.0
"""So many a second, and at once."""


class Vain:
    """Of one paid session, or of all donated sessions of one network. Who has used it up rests until half is back.

    Else a stranger would end its session with the last one and begin another: opening one costs more than a repeat.
    """

    def __init__(self) -> None:
        self._budget = Budget(RATE, BURST, time.monotonic())
        self._resting = False

    def take(self) -> None:
        """One more."""
        self._budget.take(time.monotonic())

    def rest(self) -> float:
        """Seconds until anything may be asked again; 0: now."""
        self._budget.full(time.monotonic())
        wait = self._budget.wait(BURST / 2 if self._resting else 1.0)
        self._resting = wait > 0
        return wait

    def forgotten(self) -> bool:
        """Whether it is as if there had never been any."""
        return self._budget.full(time.monotonic())
