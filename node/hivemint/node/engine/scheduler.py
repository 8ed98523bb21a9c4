"""Who goes next: weighted fair queueing by token counters, and a reserve for the donated lane.

Virtual token counters (VTC, arXiv 2401.00588): each flow counts the token rows it was served, divided by its weight;
whose next step would end at the lowest count goes first. A flow that was away is lifted to the least active one, so
nobody saves up turns. A paid session is a flow of its own, weighted by bid / ask; in the donated lane all sessions of
one network prefix are one.

Nothing here knows of time, tensors or networks: `clock` is a parameter, and a simulation drives it in the tests.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

MAX_WEIGHT = 16.0
"""One whale cannot stop the others, and a slip of the finger costs little (`docs/protocol.md`, section 6)."""
LINGER = 0.5
"""Seconds for which a flow counts as active after its last step: a token's way through the other nodes and back."""
SHORT = 16
"""Rows of a step that is a token's (decode, or drafts to verify) and no prompt's."""


class Lane(StrEnum):
    PAID = "paid"
    DONATED = "donated"


def weight_of(bid: int, ask: int) -> float:
    """Bid / ask (both for the session's span), from 1 to 16; a donated session has weight 1."""
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


J = TypeVar("J", bound=Job)
"""What is scheduled: whoever queues something of its own gets it back as it came."""
J_co = TypeVar("J_co", bound=Job, covariant=True)


@dataclass(frozen=True, slots=True)
class Slice(Generic[J_co]):
    """Rows `first .. first + rows - 1` of a job, for the next batch."""

    job: J_co
    first: int
    rows: int

    @property
    def last(self) -> bool:
        """Whether the job has no rows behind these."""
        return self.first + self.rows == self.job.rows


@dataclass(eq=False, slots=True)
class _Flow(Generic[J]):
    weight: float = 1.0
    counter: float = 0.0
    last_active: float = float("-inf")
    tokens: bool = False
    """Whether its newest step was a token's and no prompt's."""
    jobs: deque[J] = field(default_factory=deque)

    def active(self, now: float) -> bool:
        """It has something to do here, or had a moment ago: its next token may be on its way."""
        return bool(self.jobs) or now - self.last_active <= LINGER


class Scheduler(Generic[J]):
    """All steps that wait at one device.

    `budget`: token rows a batch may hold while others are about, so that a long prompt never holds them up for more
    than one chunk; `whole`: rows for one that is alone. `donated_share`: the part of the budget that the donated lane
    is sure of while anyone waits there.
    """

    def __init__(
        self, budget: int, donated_share: float = 0.1, *, whole: int = 512, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget, self.whole = budget, max(whole, budget)
        self.reserve = max(1, int(budget * donated_share))
        self._clock = clock
        self._flows: dict[Lane, dict[Hashable, _Flow[J]]] = {lane: {} for lane in Lane}
        self._left: dict[Lane, float] = dict.fromkeys(Lane, 0.0)  # counter of the flow that was active last

    def add(self, job: J) -> None:
        """Queue a step behind the others of its flow."""
        now = self._clock()
        job.queued_at = now
        flow = self._flows[job.lane].setdefault(job.flow, _Flow())
        if not flow.jobs and now - flow.last_active > LINGER:
            flow.counter = max(flow.counter, self._least_active(job.lane, now))
        flow.weight, flow.last_active, flow.tokens = job.weight, now, job.rows <= SHORT
        flow.jobs.append(job)

    def drop(self, job: J) -> None:
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

    def ahead_of(self, lane: Lane, name: Hashable) -> int:
        """Token rows that another step of this flow would wait for: its own, and as many of each other flow's."""
        rows = {flow: sum(job.rows - job.done for job in its.jobs) for flow, its in self._flows[lane].items()}
        return sum(min(waiting, rows.get(name, 0)) for waiting in rows.values())

    def __bool__(self) -> bool:
        return any(flow.jobs for flows in self._flows.values() for flow in flows.values())

    def holds_up(self, job: J) -> bool:
        """Whether somebody else would wait for tokens while `job` has the device to itself: paid sessions as long as
        they last if it is donated work, others while they are active."""
        now, mine = self._clock(), self._flows[job.lane].get(job.flow)
        return any(
            flow is not mine and flow.tokens and ((lane is Lane.PAID and job.lane is Lane.DONATED) or flow.active(now))
            for lane, flows in self._flows.items()
            for flow in flows.values()
        )

    def pick(self) -> list[Slice[J]]:
        """The next batch, at most one slice a session; empty only if nothing waits."""
        now = self._clock()
        heads = self._heads()
        paid_about = self._paid_active(now)
        if len(heads) == 1 and self._alone(heads[0], now):
            return self._fill(heads[0].lane, self.whole, now)  # nobody to hold up: the whole step at once is fastest
        donated_rows = sum(job.rows - job.done for job in heads if job.lane is Lane.DONATED)
        batch = self._fill(Lane.PAID, self.budget - min(self.reserve, donated_rows), now)
        paid_rows = sum(part.rows for part in batch)
        # A batch that paid steps are in takes as long as it may in any company: the rest of it is donated work's. While
        # they are elsewhere but about, donated work comes in batches of half the length: a paid step that arrives in
        # between waits for a short one, and rows in such a batch cost hardly more than in a full one.
        share = self.budget // 2 if paid_about and not batch else self.budget
        return batch + self._fill(Lane.DONATED, min(share, self.budget - paid_rows), now)

    def _heads(self) -> list[J]:
        """The first waiting step of each session."""
        seen: dict[Hashable, J] = {}
        for flows in self._flows.values():
            for flow in flows.values():
                for job in flow.jobs:
                    seen.setdefault(job.session, job)
        return list(seen.values())

    def _fill(self, lane: Lane, room: int, now: float) -> list[Slice[J]]:
        """Slices of one lane, at most `room` rows.

        Half of the room goes to short steps first, whoever's turn it is: so a token waits for no prompt longer than
        the batch that is under way, and a prompt for no more than that many tokens. The rest follows the counters.
        """
        batch: list[Slice[J]] = []
        taken: set[Hashable] = set()
        for most, limit in ((SHORT, room // 2), (None, room)):
            left = limit - sum(part.rows for part in batch)
            for flow, job in self._in_turn(lane, taken, most):
                rows = min(left, job.rows - job.done)
                if rows < 1 or (most and rows < job.rows - job.done):
                    break
                batch.append(self._serve(lane, flow, job, rows, now))
                taken.add(job.session)
                left -= rows
        return batch

    def _in_turn(self, lane: Lane, taken: set[Hashable], most: int | None) -> Iterator[tuple[_Flow[J], J]]:
        """Steps of at most `most` rows, one a session, by the counters, which change as they are served."""
        flows = list(self._flows[lane].values())
        ready = [(*_finish(flow, job), n, job) for n, flow in enumerate(flows) if (job := _next(flow, taken, most))]
        heapify(ready)
        while ready:
            *_, number, job = heappop(ready)
            flow = flows[number]
            yield flow, job
            if following := _next(flow, taken, most):
                heappush(ready, (*_finish(flow, following), number, following))

    def _serve(self, lane: Lane, flow: _Flow[J], job: J, rows: int, now: float) -> Slice[J]:
        part = Slice(job, job.done, rows)
        job.done += rows
        if job.started_at is None:
            job.started_at = now
        if job.done == job.rows:
            flow.jobs.remove(job)
        flow.counter += rows / flow.weight
        flow.last_active = now
        self._left[lane] = flow.counter
        return part

    def _least_active(self, lane: Lane, now: float) -> float:
        active = [flow.counter for flow in self._flows[lane].values() if flow.active(now)]
        return min(active, default=self._left[lane])

    def _alone(self, job: J, now: float) -> bool:
        """No other flow is active."""
        mine = self._flows[job.lane].get(job.flow)
        flows = [flow for flows in self._flows.values() for flow in flows.values() if flow is not mine]
        return not any(flow.active(now) for flow in flows)

    def _paid_active(self, now: float) -> bool:
        return any(flow.active(now) for flow in self._flows[Lane.PAID].values())


def _finish(flow: _Flow[J], job: J) -> tuple[float, float]:
    """The counter at which the step would end. It stays the same while the step is served in parts, so of equal
    requests the higher bid is never overtaken (P18), and a decode step does not queue behind a long prompt.
    """
    return flow.counter + (job.rows - job.done) / flow.weight, job.queued_at


def _next(flow: _Flow[J], taken: set[Hashable], most: int | None) -> J | None:
    """The first job, of at most `most` rows, of a session that is not in the batch yet."""
    seen = set(taken)
    for job in flow.jobs:
        if job.session not in seen and (most is None or job.rows <= most):
            return job
        seen.add(job.session)  # steps of one session keep their order
    return None
