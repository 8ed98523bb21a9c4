"""What time it is for the swarm, though this machine's clock may be wrong: records are signed and judged by it.

Other peers say their time, one vote a network prefix, and the chain that of its newest block. What most say corrects
this machine's clock, by an hour at most; where the chain agrees with this machine, others are not believed. Whatever
they say, a record that is good by this machine's own clock stays good: lies about the time can't empty a swarm.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Iterable

from hivemint.swarm.records import CheckedRecord, check_record

MOST_CORRECTED = 3600.0
"""Seconds by which others may correct this machine's clock; a clock that is further off is told, and not corrected."""
LEAST_CORRECTED = 2.0
"""Below this a difference may be the way's."""
TOLD_FROM = 30.0
"""Seconds from which on a difference is worth a word."""
SAME = 30.0
"""Seconds within which the time of the chain's newest block agrees with a clock: blocks come now and then."""
STANDS_STILL = 120.0
"""Seconds after which a newest block is old."""
STEPPED = 2.0
"""Seconds by which the clock may part from the steady one before it has been set."""

Votes = Iterable[tuple[Hashable, float]]
"""Network prefix of a peer, and by how many seconds its clock is ahead of this machine's."""


class SwarmClock:
    """`own`: this machine's clock, seconds since 1970; `steady`: one that is never set."""

    def __init__(self, own: Callable[[], float] | None = None, steady: Callable[[], float] = time.monotonic) -> None:
        self._own = own or (lambda: time.time())
        self.steady = steady
        self.votes = 0
        """Prefixes that have told their time at the last measurement."""
        self._peers = 0.0
        self._block: float | None = None
        self._parted = self.own() - self.steady()

    def own(self) -> float:
        """This machine's clock."""
        return self._own()

    def now(self) -> float:
        """The swarm's time, as well as it is known: what a node signs its records by."""
        return self.own() + self.offset

    def earliest(self) -> float:
        """By this machine's clock or the swarm's time, whichever is earlier: what has expired by this is over."""
        return self.own() + min(0.0, self.offset)

    def latest(self) -> float:
        """As `earliest`, the later one."""
        return self.own() + max(0.0, self.offset)

    def check(self, data: bytes) -> CheckedRecord:
        """As `check_record`, by these times. Raises ProofError."""
        return check_record(data, now=self.earliest(), latest=self.latest())

    @property
    def offset(self) -> float:
        """Seconds that are added to this machine's clock."""
        if self._is_confirmed or not LEAST_CORRECTED <= abs(self._peers) <= MOST_CORRECTED:
            return 0.0
        return self._peers

    @property
    def stepped(self) -> bool:
        """Whether the clock was set, or the machine slept, since the last measurement."""
        return abs(self.own() - self.steady() - self._parted) > STEPPED

    def hear(self, votes: Votes) -> None:
        """What peers have said just now, in place of what was said before. Nothing at all changes nothing."""
        prefixes: dict[Hashable, list[float]] = {}
        for prefix, seconds in votes:
            prefixes.setdefault(prefix, []).append(seconds)
        if not prefixes:
            return
        if self.stepped:
            self._block = None  # it was compared with another time
        said = [statistics.median_low(one) for one in prefixes.values()]
        self.votes = len(said)
        self._peers = statistics.median_low(said if len(said) % 2 else [*said, 0.0])  # an even number hears this one
        self._parted = self.own() - self.steady()

    def see_block(self, when: float) -> None:
        """The time of the chain's newest block, as just read."""
        self._block = when - self.own()

    def trouble(self) -> str:
        """What is wrong with this machine's clock, and what to do, in a line; "" if nothing is known to be."""
        peers, block = self._peers if self.votes else None, self._block
        if self._is_confirmed or (peers is not None and abs(peers) < TOLD_FROM):
            return ""
        if peers is None:
            if block is None or -STANDS_STILL < block < TOLD_FROM:
                return ""
            doubt = "it is behind, or that chain runs ahead"
            if block < 0:
                doubt = "it is ahead, or that chain stands still"
            return f"your clock differs from the chain's by {span(block)}: {doubt}; set it"
        others = f"{self.votes} networks of peers" if self.votes > 1 else "the one peer that is known"
        differs, side = f"from that of {others} by {span(peers)}", "behind" if peers > 0 else "ahead"
        verdict = f"it is {side}"
        if block is not None and abs(block) >= TOLD_FROM and (block > 0) == (peers > 0):
            differs = f"from the chain's by {span(block)}, and {differs}"
        elif self.votes == 1:
            verdict = f"it is {side}, or that peer's is wrong"
        limit = "" if abs(peers) <= MOST_CORRECTED else ", too much to be corrected here"
        return f"your clock differs {differs}: {verdict}{limit}; set it"

    def chain_note(self) -> str:
        """Where the chain's newest block has another time than this machine, though its clock is good; "" if not."""
        block = self._block
        if block is None or -STANDS_STILL < block < TOLD_FROM or self.trouble():
            return ""
        return f"the chain's newest block is {span(block)} {'ahead' if block > 0 else 'old'}"

    @property
    def _is_confirmed(self) -> bool:
        return self._block is not None and abs(self._block) <= SAME


def span(seconds: float) -> str:
    """`5 min 3 s`, without a sign."""
    whole = round(abs(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
