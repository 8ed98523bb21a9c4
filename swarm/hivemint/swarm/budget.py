"""A rate with a burst: what somebody may ask for, refilled with time."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Budget:
    """`rate` units a second, at most `burst` at once. `now` in seconds, of any clock that only rises."""

    rate: float
    burst: float
    now: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.burst

    def take(self, now: float, units: float = 1.0) -> bool:
        """Whether there was enough; nothing is taken otherwise."""
        self._refill(now)
        if self.left < units:
            return False
        self.left -= units
        return True

    def give_back(self, units: float = 1.0) -> None:
        """What was taken and turned out not to count."""
        self.left = min(self.burst, self.left + units)

    def wait(self, units: float = 1.0) -> float:
        """Seconds until `units` are there, counted from the last look."""
        return max(0.0, (units - self.left) / self.rate)

    def full(self, now: float) -> bool:
        self._refill(now)
        return self.left >= self.burst

    def _refill(self, now: float) -> None:
        self.left = min(self.burst, self.left + max(0.0, now - self.now) * self.rate)
        self.now = max(self.now, now)
