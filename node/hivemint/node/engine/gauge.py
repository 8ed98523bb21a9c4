"""What an engine has measured of itself."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hivemint.node.engine.scheduler import Job, Lane, Slice
from hivemint.node.engine.watchdog import DeviceLoad

_SMOOTH = 0.2


@dataclass
class Gauge:
    """What the loop measures of itself, smoothed: waits in seconds by lane, token rows a second while computing."""

    wait_s: dict[Lane, float] = field(default_factory=lambda: dict.fromkeys(Lane, 0.0))
    rows_per_s: float = 0.0
    step_s: float = 0.0
    """A batch's time."""
    rows_done: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    batches: int = 0
    batch_rows: float = 0.0
    sizes: Counter[int] = field(default_factory=Counter)
    """Batches by their rows, rounded up to a power of two."""
    busy_s: float = 0.0

    def started(self, job: Job) -> None:
        wait = (job.started_at or job.queued_at) - job.queued_at
        self.wait_s[job.lane] += _SMOOTH * (wait - self.wait_s[job.lane])

    def ran(self, batch: Sequence[Slice[Job]], seconds: float) -> None:
        rows = sum(part.rows for part in batch)
        for part in batch:
            self.rows_done[part.job.lane] += part.rows
        speed = rows / max(seconds, 1e-6)
        self.step_s += _SMOOTH * (seconds - self.step_s)
        self.rows_per_s += _SMOOTH * (speed - self.rows_per_s)
        self.batch_rows += _SMOOTH * (rows - self.batch_rows)
        self.batches += 1
        self.sizes[1 << (rows - 1).bit_length()] += 1
        self.busy_s += seconds

    def load(self, batch: Sequence[Slice[Job]]) -> DeviceLoad:
        """What the device is given, and how long that takes by what was measured: at least as long as of late."""
        rows = sum(part.rows for part in batch)
        return DeviceLoad(rows, len(batch), max(self.step_s, rows / self.rows_per_s if self.rows_per_s else 0.0))

    def passed(self, part: Slice[Job], seconds: float) -> None:
        """A backward pass. Its time is no batch's: sessions don't gather for as long."""
        self.rows_done[part.job.lane] += part.rows
        self.batches += 1
        self.busy_s += seconds


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """Token positions of a lane: those that wait, and those whose K/V is held."""

    queued: int
    held: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """Tokens whose K/V fits: now, and in all. Rows that a batch may hold, and those that a step may have in one."""

    kv_free: int
    kv_total: int
    batch_rows: int
    step_rows: int
