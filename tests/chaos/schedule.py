"""What happens in a run, drawn from its seed alone: which faults when, and what each client asks for, in which order.

Nothing here looks at a clock, a network or a file, so the same seed is the same schedule for ever. Lanes run beside
each other, the faults of one lane one after the other: at most one node of a span is in trouble at a time, unless the
fault is the loss of all of them (`BLACKOUT`).
"""

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A kind of fault."""

    KILLED = "node killed"
    DAEMON_KILLED = "daemon killed"
    STOPPED = "node stopped"
    UNPLUGGED = "node unplugged"
    SLOW = "slow links"
    CUT = "links cut"
    HALF_OPEN = "half-open links"
    GARBAGE = "garbage on links"
    DISK_FULL = "disk full"
    BLACKOUT = "no node left"
    CHAIN_AWAY = "chain away"
    CHAIN_SILENT = "chain silent"
    REORGANISED = "chain reorganised"
    LEDGER_AWAY = "ledger away"
    CLIENT_KILLED = "client killed"
    GARBAGE_FRAMES = "garbage frames"


ON_NODES = tuple(Kind)[: tuple(Kind).index(Kind.CHAIN_AWAY)]
"""Those that befall a node of a span; the others have lanes of their own."""
ONLY_APART = frozenset({Kind.UNPLUGGED})
"""Those that need namespaces."""
SPANS = 2
LANES = {
    "chain": (Kind.CHAIN_AWAY, Kind.REORGANISED, Kind.CHAIN_SILENT),
    "ledger": (Kind.LEDGER_AWAY,),
    "clients": (Kind.GARBAGE_FRAMES, Kind.CLIENT_KILLED),
}
HOLD = (2.5, 5.0)
"""Seconds that a fault lasts, before it is mended."""
CLIENTS = ("payer", "guest")
THREADS = 2
"""Of each client. The first draws random numbers, so it alone samples."""


class Ask(StrEnum):
    """A kind of traffic."""

    GREEDY = "greedy"
    SAMPLED = "sampled"
    FORKED = "forked"
    BATCH = "batch"
    TALK = "talk"
    CROPPED = "cropped"
    WHOLE = "whole"
    TRAINED = "trained"


SAMPLES = frozenset({Ask.SAMPLED, Ask.FORKED})
_WEIGHTS = {
    Ask.GREEDY: 4,
    Ask.SAMPLED: 4,
    Ask.FORKED: 2,
    Ask.BATCH: 2,
    Ask.TALK: 3,
    Ask.CROPPED: 2,
    Ask.WHOLE: 1,
    Ask.TRAINED: 2,
}


@dataclass(frozen=True)
class Fault:
    """`at` seconds after the start, in `lane`; mended after `hold` seconds. `draw`: for what else must be chosen."""

    at: float
    lane: str
    kind: Kind
    hold: float
    draw: int


@dataclass(frozen=True)
class Item:
    """One thing that a client asks for: tokens of its prompt and of its answer, the seed of all that it chooses."""

    number: int
    ask: Ask
    seed: int
    prompt: int
    tokens: int


@dataclass(frozen=True)
class Profile:
    """How long a run is: `seconds` of faults and traffic, each kind of fault `rounds` times, these left out.

    On a busy machine faults take longer to mend and the next ones come later, but none begins after `latest` seconds.
    """

    seconds: float
    latest: float
    rounds: int
    items: int
    without: frozenset[Kind] = frozenset()


SHORT = Profile(48.0, 150.0, 1, 120, frozenset({Kind.BLACKOUT, Kind.DAEMON_KILLED, Kind.CHAIN_SILENT}))
LONG = Profile(380.0, 430.0, 3, 1200)


@dataclass(frozen=True)
class Schedule:
    """`faults` by time. `traffic`: of each client, of each of its threads, one item after the other."""

    seed: int
    profile: Profile
    faults: tuple[Fault, ...]
    traffic: dict[str, tuple[tuple[Item, ...], ...]]

    def lane(self, name: str) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if fault.lane == name)

    @property
    def lanes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fault.lane for fault in self.faults))


def draw(seed: int, profile: Profile, *, apart: bool = True) -> Schedule:
    """The schedule of this seed. `apart`: whether nodes can be unplugged."""
    dice = random.Random(seed)
    left_out = profile.without | (frozenset() if apart else ONLY_APART)
    dealt = _deal(dice, [kind for kind in ON_NODES if kind not in left_out], profile.rounds)
    for name, kinds in LANES.items():
        dealt[name] = [kind for _ in range(profile.rounds) for kind in kinds if kind not in left_out]
    faults = [fault for name, kinds in dealt.items() for fault in _timed(dice, name, kinds, profile.seconds)]
    traffic = {
        client: tuple(tuple(_items(dice, profile.items, samples=not thread)) for thread in range(THREADS))
        for client in CLIENTS
    }
    return Schedule(seed, profile, tuple(sorted(faults, key=lambda fault: fault.at)), traffic)


def _deal(dice: random.Random, kinds: list[Kind], rounds: int) -> dict[str, list[Kind]]:
    """Kinds of faults to spans: each kind as often as there are rounds, each span as many as the others, or one less.

    Who had a kind in one round has others in the next, as far as chance will have it.
    """
    hands: dict[str, list[Kind]] = {f"span{number}": [] for number in range(SPANS)}
    for _ in range(rounds):
        shuffled = dice.sample(kinds, len(kinds))
        for kind in shuffled:
            fewest = min(len(hand) for hand in hands.values())
            hands[dice.choice([name for name, hand in hands.items() if len(hand) == fewest])].append(kind)
    return hands


def _timed(dice: random.Random, lane: str, kinds: list[Kind], seconds: float) -> list[Fault]:
    """One after the other over the time of the run, the first soon, the last early enough to be mended in it."""
    if not kinds:
        return []
    step = seconds / (len(kinds) + 0.5)
    hold = min(HOLD[1], step / 2)
    return [
        Fault(
            round(step * (number + dice.uniform(0.1, 0.4)), 2),
            lane,
            kind,
            round(dice.uniform(min(HOLD[0], hold), hold), 2),
            dice.getrandbits(32),
        )
        for number, kind in enumerate(kinds)
    ]


def _items(dice: random.Random, count: int, *, samples: bool) -> list[Item]:
    """The first ones have each kind once, so that a short run has them too."""
    kinds = [ask for ask in Ask if samples or ask not in SAMPLES]
    first = dice.sample(kinds, len(kinds))
    more = dice.choices(kinds, [_WEIGHTS[kind] for kind in kinds], k=max(0, count - len(first)))
    return [
        Item(number, ask, dice.getrandbits(31), dice.randint(20, 60), dice.randint(20, 120))
        for number, ask in enumerate([*first, *more][:count])
    ]
