"""What a model has spent since it was loaded, and what its last call was."""

import threading
from typing import TYPE_CHECKING

from hivemint.client.generation.bill import Bill
from hivemint.protocol.ids import Credits

if TYPE_CHECKING:
    from hivemint.client.generation.tuning import Ceiling


class Spending:
    """All that one model has spent, in wei. Thread-safe."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._calls = 0
        self._trainings: list[Ceiling] = []
        self.last: Bill | None = None

    def note(self, call: Bill) -> None:
        """A call has ended."""
        with self._changing:
            self._calls += call.spent
            self.last = call

    def watch(self, training: "Ceiling") -> None:
        """What its lanes sign counts, now and later."""
        with self._changing:
            self._trainings.append(training)

    @property
    def total(self) -> Credits:
        with self._changing:
            return Credits(self._calls + sum(one.signed for one in self._trainings))
