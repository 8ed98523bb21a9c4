"""How often a settlement is sent again of which the chain, or who speaks for it, says that it changed nothing.

One endpoint that hides a payment could have it sent anew each round; one that invents a payment could have it never
sent. So what is not seen, or on what endpoints differ, is tried at times that double, to a day.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hivemint.ledger.settlement.worth import Due, SettlerSettings, span
from hivemint.protocol.ids import Address, Credits

_FIRST, _LONGEST = 600.0, 86_400.0  # seconds


@dataclass(frozen=True, slots=True)
class _Try:
    """`collected` before it; `count` of tries since something was last seen to change, 0: only waited since `at`."""

    collected: Credits
    at: float
    count: int

    @property
    def pause(self) -> float:
        return min(_LONGEST, _FIRST * 2.0 ** (min(self.count, 20) - 1))


class Tries:
    """Of one worker's run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[Address, _Try] = {}

    def sent(self, some: Sequence[Due]) -> None:
        """These were mined."""
        now = self._clock()
        for due in some:
            last = self._last.get(due.client)
            count = last.count if last is not None and last.collected == due.collected else 0
            self._last[due.client] = _Try(due.collected, now, count + 1)
        self._last = {client: one for client, one in self._last.items() if now < one.at + 2 * _LONGEST}

    def held(self, due: Due, time: int, settings: SettlerSettings) -> str:
        """Why this must wait before it is sent (again); empty if it need not.

        What endpoints differ on waits for `settle_every`, in which most differences pass: one of them lagged.
        `time`: the chain's.
        """
        urgent = due.urgent(time, settings.hurry)
        now, last = self._clock(), self._last.get(due.client)
        if last is not None and not due.disputed and (last.collected != due.collected or not last.count):
            del self._last[due.client]
            last = None
        if last is None and due.disputed and not urgent:
            last = self._last[due.client] = _Try(due.collected, now, 0)
        if last is None or (last.count == 0 and urgent):
            return ""
        left = last.at + (last.pause if last.count else settings.settle_every) - now
        if left <= 0:
            return ""
        if due.disputed:
            return f"the chain's endpoints differ on what can be collected; it is tried in {span(left)}"
        return f"what was settled is not seen on the chain yet; it is tried again in {span(left)}"
