"""Who goes next: weighted fair queueing by token counters, and a reserve for the free lane.

Virtual token counters (VTC, arXiv 2401.00588): each flow counts the token rows it was served, divided by its weight;
whose next step would end at the lowest count goes first. A flow that was away is lifted to the least active one, so
nobody saves up turns. A paid session is a flow of its own, weighted by bid / ask; in the free lane all sessions of one
remote peer are one.

Nothing here knows of time, tensors or networks: `clock` is a parameter, and a simulation drives it in the tests.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import StrEnum

MAX_WEIGHT = 16.0
"""One whale cannot stop the others, and a slip of the finger costs little (`protocol.md`, section 6)."""
LINGER = 0.5
"""Seconds for which a flow counts as active after its last step: a token's way through the other nodes and back."""


class Lane(StrEnum):
    PAID = "paid"
    FREE = "free"


def weight_of(bid: int, ask: int) -> float:
    """Bid / ask (both for the session's span), from 1 to 16; a free session has weight 1."""
    if bid <= 0:
        return 1.0
    return min(MAX_WEIGHT, max(1.0, bid / ask if ask > 0 else MAX_WEIGHT))


@dataclass(eq=False, slots=True)
class Job:
    """One step that waits. `done` rows of `rows` have been handed out."""

    lane: Lane
    flow: Hashable
    session: Hashable
    rows: int
    weight: float = 1.0
    done: int = 0
    queued_at: float = 0.0
    started_at: float | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `first .. first + rows - 1` of a job, for the next batch."""

    job: Job
    first: int
    rows: int


@dataclass(eq=False, slots=True)
class _Flow:
    weight: float = 1.0
    counter: float = 0.0
    last_active: float = float("-inf")
    jobs: deque[Job] = field(default_factory=deque)


class Scheduler:
    """All steps that wait at one device.

    `budget`: token rows a batch may hold, so that a long prompt never holds up the others for more than one chunk.
    `free_share`: the part of it that the free lane is sure of while anyone waits there.
    """

    def __init__(
        self, budget: int, free_share: float = 0.1, *, whole: int = 512, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget, self.whole = budget, max(whole, budget)
        self.reserve = max(1, int(budget * free_share))
        self._clock = clock
        self._flows: dict[Lane, dict[Hashable, _Flow]] = {lane: {} for lane in Lane}
        self._left: dict[Lane, float] = dict.fromkeys(Lane, 0.0)  # counter of the flow that was active last

    def add(self, job: Job) -> None:
        """Queue a step behind the others of its flow."""
        now = self._clock()
        job.queued_at = now
        flow = self._flows[job.lane].setdefault(job.flow, _Flow())
        if not flow.jobs and now - flow.last_active > LINGER:
            flow.counter = max(flow.counter, self._least_active(job.lane, now))
        flow.weight, flow.last_active = job.weight, now
        flow.jobs.append(job)

    def remove(self, job: Job) -> bool:
        """Take a step back that has not begun. False: it has begun, or is not here."""
        flow = self._flows[job.lane].get(job.flow)
        if job.started_at is not None or flow is None or job not in flow.jobs:
            return False
        flow.jobs.remove(job)
        return True

    def drop(self, job: Job) -> None:
        """Forget the rest of a step, begun or not: it failed."""
        flow = self._flows[job.lane].get(job.flow)
        if flow is not None and job in flow.jobs:
            flow.jobs.remove(job)

    def forget(self, lane: Lane, name: Hashable) -> None:
        """A flow has ended."""
        flow = self._flows[lane].get(name)
        if flow is not None and not flow.jobs:
            del self._flows[lane][name]

    def waiting(self, lane: Lane) -> int:
        """Token rows that wait in a lane."""
        return sum(job.rows - job.done for flow in self._flows[lane].values() for job in flow.jobs)

    @property
    def jobs(self) -> int:
        """Steps that wait, in both lanes."""
        return sum(len(flow.jobs) for flows in self._flows.values() for flow in flows.values())

    def __bool__(self) -> bool:
        return any(flow.jobs for flows in self._flows.values() for flow in flows.values())

    def pick(self) -> list[Slice]:
        """The next batch, at most one slice a session; empty only if nothing waits."""
        now = self._clock()
        heads = self._heads()
        paid_about = self._paid_active(now)
        if len(heads) == 1 and (heads[0].lane is Lane.PAID or not paid_about):
            return self._fill(heads[0].lane, self.whole, now)  # nobody to hold up: the whole step at once is fastest
        free_rows = sum(job.rows - job.done for job in heads if job.lane is Lane.FREE)
        batch = self._fill(Lane.PAID, self.budget - min(self.reserve, free_rows), now)
        paid_rows = sum(part.rows for part in batch)
        # While paid sessions are about, free work comes in short batches one after the other: a paid step that
        # arrives in between waits for a short one. Without them the free lane has it all.
        share = self.reserve if paid_about else self.budget
        return batch + self._fill(Lane.FREE, min(share, self.budget - paid_rows), now)

    def _heads(self) -> list[Job]:
        """The first waiting step of each session."""
        seen: dict[Hashable, Job] = {}
        for flows in self._flows.values():
            for flow in flows.values():
                for job in flow.jobs:
                    seen.setdefault(job.session, job)
        return list(seen.values())

    def _fill(self, lane: Lane, room: int, now: float) -> list[Slice]:
        batch: list[Slice] = []
        taken: set[Hashable] = set()
        while room > 0:
            ready = [(flow, job) for flow in self._flows[lane].values() if (job := _next(flow, taken))]
            if not ready:
                break
            flow, job = min(ready, key=_finish)
            rows = min(room, job.rows - job.done)
            batch.append(Slice(job, job.done, rows))
            taken.add(job.session)
            room -= rows
            job.done += rows
            if job.started_at is None:
                job.started_at = now
            if job.done == job.rows:
                flow.jobs.remove(job)
            flow.counter += rows / flow.weight
            flow.last_active = now
            self._left[lane] = flow.counter
        return batch

    def _least_active(self, lane: Lane, now: float) -> float:
        active = [f.counter for f in self._flows[lane].values() if f.jobs or now - f.last_active <= LINGER]
        return min(active, default=self._left[lane])

    def _paid_active(self, now: float) -> bool:
        return any(f.jobs or now - f.last_active <= LINGER for f in self._flows[Lane.PAID].values())


def _finish(pair: tuple[_Flow, Job]) -> tuple[float, float]:
    """The counter at which the step would end. It stays the same while the step is served in parts, so of equal
    requests the higher bid is never overtaken (P18), and a decode step does not queue behind a long prompt.
    """
    flow, job = pair
    return flow.counter + (job.rows - job.done) / flow.weight, job.queued_at


def _next(flow: _Flow, taken: set[Hashable]) -> Job | None:
    """The flow's first job of a session that is not in the batch yet."""
    return next((job for job in flow.jobs if job.session not in taken), None)
