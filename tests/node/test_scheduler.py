"""The scheduler's promises (P15, P18) in simulation: weighted sharing, the donated lane's reserve, no idle capacity."""

from dataclasses import dataclass, field
from math import ceil

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hivemint.node.engine.scheduler import LINGER, MAX_WEIGHT, SHORT, Job, Lane, Scheduler, weight_of


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Device:
    """One batch a tick of simulated time; knows what was served."""

    scheduler: Scheduler[Job]
    clock: Clock
    served: dict[object, int] = field(default_factory=dict)
    batches: int = 0

    def tick(self) -> list[Job]:
        """Run one batch; the jobs that ended with it."""
        ended = []
        for part in self.scheduler.pick():
            assert part.rows > 0
            assert part.first + part.rows <= part.job.rows
            self.served[part.job.session] = self.served.get(part.job.session, 0) + part.rows
            if part.first + part.rows == part.job.rows:
                ended.append(part.job)
        self.clock.now += 0.01
        self.batches += 1
        return ended


def make(budget: int = 32, share: float = 0.25) -> Device:
    clock = Clock()
    return Device(Scheduler(budget, share, whole=64, clock=clock), clock)


def keep_busy(device: Device, names: list[str], batches: int, rows: int = 16) -> None:
    """Each name always has a step waiting, as far as the loop goes."""
    for name in names:
        device.scheduler.add(paid(name, rows))
    for _ in range(batches):
        for job in device.tick():
            if job.flow in names:
                device.scheduler.add(paid(job.flow, rows))


def paid(session: object, rows: int, weight: float = 1.0) -> Job:
    return Job(Lane.PAID, session, session, rows, weight)


def free(peer: object, session: object, rows: int) -> Job:
    return Job(Lane.DONATED, peer, session, rows)


jobs = st.lists(
    st.tuples(st.sampled_from(list(Lane)), st.integers(0, 5), st.integers(1, 80), st.floats(1, MAX_WEIGHT)),
    min_size=1,
    max_size=40,
)


@given(jobs)
def test_everything_is_served_once_and_no_capacity_is_withheld(work: list[tuple[Lane, int, int, float]]) -> None:
    """Each lane gets its sure share of every batch, as far as it has work; one lane alone gets it all."""
    device = make()
    made = [paid(("p", s), r, w) if lane is Lane.PAID else free(s % 2, ("f", s), r) for lane, s, r, w in work]
    for job in made:
        device.scheduler.add(job)
    ended: list[Job] = []
    only_donated = all(job.lane is Lane.DONATED for job in made)
    paid_sessions = {job.session for job in made if job.lane is Lane.PAID}
    while device.scheduler:
        heads = device.scheduler._heads()
        by_lane = {lane: sum(job.rows - job.done for job in heads if job.lane is lane) for lane in Lane}
        ready = sum(by_lane.values())
        before = dict(device.served)
        ended += device.tick()
        got = {session: rows - before.get(session, 0) for session, rows in device.served.items()}
        paid_ran = sum(rows for session, rows in got.items() if session in paid_sessions)
        ran = sum(got.values())
        assert ran > 0
        scheduler = device.scheduler
        assert paid_ran >= min(by_lane[Lane.PAID], scheduler.budget - scheduler.reserve)
        assert ran - paid_ran >= min(by_lane[Lane.DONATED], scheduler.reserve)
        if only_donated or all(job.lane is Lane.PAID for job in heads):
            assert ran >= min(device.scheduler.budget, ready)
    assert sorted(map(id, ended)) == sorted(map(id, made))
    assert sum(device.served.values()) == sum(job.rows for job in made)


@given(st.integers(1, 6), st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 60), st.integers(0, 9))
def test_p15_a_free_step_starts_within_its_bound_however_much_is_paid(
    whales: int, ahead: list[int], rows: int, warm: int
) -> None:
    """Start within (donated rows served before it) / reserve, plus one batch."""
    device = make()

    def refill() -> None:
        for whale in range(whales):
            device.scheduler.add(paid(("whale", whale), 500, MAX_WEIGHT))

    refill()
    for _ in range(warm):
        device.tick()
    for number, size in enumerate(ahead):
        device.scheduler.add(free(("peer", number), ("peer", number), size))
    mine = free("me", "me", rows)
    device.scheduler.add(mine)
    start = device.batches
    while mine.started_at is None:
        refill()
        device.tick()
    before = sum(rows for session, rows in device.served.items() if isinstance(session, tuple) and session[0] == "peer")
    assert device.batches - start <= ceil(before / device.scheduler.reserve) + 1


@given(st.floats(1, 40), st.floats(1, 40), st.integers(1, 4), st.integers(1, 30))
def test_p18_of_equal_requests_the_higher_bid_is_not_served_later(
    low: float, high: float, others: int, rows: int
) -> None:
    """Closed loop: both ask for the same steps at the same times, among others."""
    low, high = sorted((min(low, MAX_WEIGHT), min(high, MAX_WEIGHT)))
    assume(low < high)
    device = make(budget=8)
    bids = {"low": low, "high": high} | {("other", n): 2.0 for n in range(others)}
    ends: dict[object, list[int]] = {name: [] for name in bids}
    for name, weight in bids.items():
        device.scheduler.add(paid(name, rows, weight))
    while len(ends["low"]) < 12:
        for job in device.tick():
            ends[job.flow].append(device.batches)
            device.scheduler.add(paid(job.flow, rows, job.weight))
    assert all(mine <= theirs for mine, theirs in zip(ends["high"], ends["low"], strict=False))


requests = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 120), st.floats(1, MAX_WEIGHT), st.sampled_from(list(Lane))),
    max_size=30,
)
"""(after how many batches, rows, weight, lane)"""


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 120)), min_size=1, max_size=12),
    requests,
    st.floats(1, MAX_WEIGHT),
    st.floats(1, MAX_WEIGHT),
)
def test_a_higher_bid_never_gets_less(
    mine: list[tuple[int, int]], others: list[tuple[int, int, float, Lane]], one: float, two: float
) -> None:
    """Open loop: two sessions ask the same at the same times, others what they like; at no time has the lower more."""
    low, high = sorted((one, two))
    assume(low < high)
    device = make(budget=16)
    wanted: list[tuple[int, list[Job]]] = [
        (at, [paid(name, rows, bid) for name, bid in (("low", low), ("high", high))]) for at, rows in mine
    ]
    for number, (at, rows, weight, lane) in enumerate(others):
        wanted.append((at, [Job(lane, ("other", number), ("other", number), rows, weight)]))
    wanted.sort(key=lambda one: one[0])
    while wanted or device.scheduler:
        while wanted and wanted[0][0] <= device.batches:
            for job in wanted.pop(0)[1]:
                device.scheduler.add(job)
        device.tick()
        assert device.served.get("high", 0) >= device.served.get("low", 0)


@given(
    st.integers(1, 12),
    st.integers(0, 80),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(SHORT + 1, 400), st.floats(1, MAX_WEIGHT)), min_size=1, max_size=8),
    st.integers(0, 12),
)
def test_a_long_prompt_stalls_no_token_by_more_than_one_batch(
    speakers: int, spoken: int, quiet: int, prompts: list[tuple[int, float]], warm: int
) -> None:
    """However much the speakers have been served before, and whoever else was about and sets newcomers' counters."""
    device = make(budget=32, share=0.25)
    for number in range(quiet):
        device.scheduler.add(paid(("quiet", number), 1))
    keep_busy(device, [f"speaker {n}" for n in range(speakers)], spoken, rows=1)
    while device.scheduler:
        device.tick()
    for number, (rows, weight) in enumerate(prompts):
        device.scheduler.add(paid(("prompt", number), rows, weight))
        device.scheduler.add(free(("peer", number), ("free prompt", number), rows))
    for _ in range(warm):
        device.tick()
    tokens = [paid(f"speaker {n}", 1) for n in range(speakers)]
    for job in tokens:
        device.scheduler.add(job)
    device.tick()
    assert all(job.started_at is not None for job in tokens)


def test_a_prompt_alone_goes_whole_and_in_chunks_as_soon_as_anybody_may_come_back() -> None:
    device = make(budget=32)
    device.scheduler.add(paid("reader", 60))
    assert sum(part.rows for part in device.scheduler.pick()) == 60
    device.scheduler.add(paid("speaker", 1))
    device.tick()  # and its next token is on its way
    device.scheduler.add(paid("reader", 60))
    assert sum(part.rows for part in device.scheduler.pick()) == 32
    device.clock.now += 2 * LINGER
    assert sum(part.rows for part in device.scheduler.pick()) == 28


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(SHORT + 1, 120))
def test_tokens_of_many_never_stop_a_prompt(speakers: int, rows: int) -> None:
    """It ends when all have been served as much, and at most half of its batches go to tokens that are ahead of it."""
    device = make(budget=16, share=0.25)
    names = [f"speaker {n}" for n in range(speakers)]
    for name in names:
        device.scheduler.add(paid(name, 1))
    prompt = paid("reader", rows)
    device.scheduler.add(prompt)
    while prompt.done < prompt.rows:
        for job in device.tick():
            if job.flow in names:
                device.scheduler.add(paid(job.flow, 1))
    assert device.batches <= 2 + ceil((speakers * (rows + 1) + 2 * rows) / device.scheduler.budget)


def test_a_bid_of_four_times_the_ask_gets_four_times_the_rows_under_load() -> None:
    device = make(budget=10, share=0.1)
    for _ in range(400):
        for name, weight in (("one", 1.0), ("four", 4.0)):
            if not any(
                job.session == name for flow in device.scheduler._flows[Lane.PAID].values() for job in flow.jobs
            ):
                device.scheduler.add(paid(name, 40, weight))
        device.tick()
    assert 3.5 < device.served["four"] / device.served["one"] < 4.5


def test_all_sessions_of_one_peer_share_one_turn_in_the_donated_lane() -> None:
    device = make(budget=8, share=1.0)
    for _ in range(100):
        for session in range(5):
            device.scheduler.add(free("crowd", ("crowd", session), 8))
        device.scheduler.add(free("lone", "lone", 8))
        device.tick()
    crowd = sum(rows for session, rows in device.served.items() if session != "lone")
    assert 0.8 < device.served["lone"] / crowd < 1.25


def test_a_newcomer_is_lifted_and_cannot_hold_up_those_who_were_there() -> None:
    device = make(budget=8)
    keep_busy(device, ["old"], 50)
    device.served.clear()
    keep_busy(device, ["old", "new"], 50)
    assert abs(device.served["new"] - device.served["old"]) <= 32


def test_whoever_was_away_has_saved_up_no_turns() -> None:
    device = make(budget=8)
    keep_busy(device, ["away", "there"], 4)
    keep_busy(device, ["there"], 60)
    device.clock.now += 2 * LINGER
    device.served.clear()
    keep_busy(device, ["there", "away"], 40)
    assert device.served["away"] <= device.served["there"] + 32


def test_donated_batches_are_short_while_paid_sessions_are_about() -> None:
    device = make(budget=32, share=0.25)
    device.scheduler.add(paid("payer", 1))
    device.tick()
    device.scheduler.add(free("a", "a", 30))
    device.scheduler.add(free("b", "b", 30))
    assert sum(part.rows for part in device.scheduler.pick()) == 16
    device.clock.now += 2 * LINGER
    assert sum(part.rows for part in device.scheduler.pick()) == 32


def test_donated_rows_fill_a_batch_that_paid_steps_are_in() -> None:
    device = make(budget=32, share=0.25)
    device.scheduler.add(paid("payer", 1))
    for number in range(2):
        device.scheduler.add(free(f"free {number}", f"free {number}", 30))
    batch = device.scheduler.pick()
    assert [part.rows for part in batch if part.job.lane is Lane.PAID] == [1]
    assert sum(part.rows for part in batch) == 32


def test_a_step_can_be_taken_back_begun_or_not() -> None:
    device = make()
    first, second = paid("a", 200), paid("a", 4)
    device.scheduler.add(first)
    device.scheduler.add(second)
    device.tick()
    device.scheduler.drop(second)
    assert device.scheduler.waiting(Lane.PAID) == first.rows - first.done > 0
    device.scheduler.drop(first)
    assert not device.scheduler


def test_weights_end_at_sixteen() -> None:
    assert weight_of(0, 10) == 1
    assert weight_of(10, 10) == 1
    assert weight_of(40, 10) == 4
    assert weight_of(10**9, 10) == MAX_WEIGHT
    assert weight_of(5, 0) == MAX_WEIGHT
