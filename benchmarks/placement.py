"""Placement, simulated: our rule against Petals' greedy one, Parallax' water-filling, and the most that any could do.

    python benchmarks/placement.py [--json FILE] [--seeds N] [--hours H] [--largest N]

Swarms of 3 to 500 mixed machines in three regions, by published memory and bandwidth of their cards, with one model of
80 blocks (`placement_model.py`). *Static*: machines come one after the other, then all look again until nobody moves.
*Churn*: machines live four hours on average, as many come as go, in the middle one region loses half of its machines
at once; who moves is away for as long as draining and loading take. All rules see the same machines and the same
comings and goings, and what they reach is measured by the same maximal flow. The bound (`placement_model.bound`) is
what no placement of the machines that are there at a moment exceeds, if moving and loading took no time; machines
count from the end of their first loading on. A figure for several sizes is the least of the sizes' medians.

With one seed of 30 machines `reference` compares the rule's own level with the flow, and `networkx` gives the flow
without links once more.
"""

import os
import random
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import networkx
from harness import Bound, bars, finish, options
from placement_model import BLOCK_BYTES, BLOCKS, Machine, Places, bound, draw, draw_swarm, flow
from placement_rules import Ours, Parallax, Petals, Span
from rich.console import Console

from hivemint.node.placement.rule import Placed, choose, lowest

STATIC = (3, 5, 7, 10, 15, 30, 100, 500)
CHURN = (10, 30, 100, 300)
LIFE = 4 * 3600.0
TICK, SAMPLE = 30.0, 1200.0
DRAIN, DISK = 60.0, 1.5e9
"""Seconds that a machine drains before it moves, and bytes a second at which it loads blocks."""
ROUNDS = 20
UNSEEN = 100
BOUNDS = {"static_to_bound": Bound(least=0.95), "churn_to_bound": Bound(least=0.90)}
RULES = (Ours(), Petals(), Parallax())
Rule = Ours | Petals | Parallax


def settled(rule: Rule, machines: Sequence[Machine], seed: int) -> Places:
    """All have come, and looked again until nobody moves, or ROUNDS times."""
    source = random.Random(seed)
    places: dict[Machine, Span] = {}
    for machine in machines:
        places[machine] = rule.join(machine, places, source)
        places.update(rule.repair(places, source))
    done = False
    for _ in range(ROUNDS):
        moved = False
        for machine in source.sample(list(machines), len(machines)):
            span = rule.look(machine, places, source)
            if span is not None:
                places[machine], moved = span, True
        if not moved and done:
            break
        done = not moved  # who has left a move to another once makes it now
    return places


@dataclass(frozen=True)
class Event:
    at: float
    machine: Machine
    comes: bool


def trace(count: int, hours: float, seed: int) -> tuple[list[Machine], list[Event]]:
    """Who is there at the beginning, and who comes and goes when."""
    source, end = random.Random(seed), 3600 * hours
    first = draw_swarm(count, source)
    leaves = {machine: source.expovariate(1 / LIFE) for machine in first}
    events, at, number = [], 0.0, count
    while (at := at + source.expovariate(count / LIFE)) < end:
        machine = draw(number, source)
        number += 1
        events.append(Event(at, machine, True))
        leaves[machine] = at + source.expovariate(1 / LIFE)
    came = {event.machine: event.at for event in events}
    there = [one for one in leaves if one.region == 0 and came.get(one, 0.0) < end / 2 < leaves[one]]
    for machine in source.sample(there, len(there) // 2):
        leaves[machine] = end / 2
    events += [Event(left, machine, False) for machine, left in leaves.items() if left < end]
    return first, sorted(events, key=lambda event: event.at)


@dataclass
class World:
    """One rule's swarm through a trace."""

    rule: Rule
    source: random.Random
    places: dict[Machine, Span] = field(default_factory=dict)
    ready: dict[Machine, float] = field(default_factory=dict)
    looks: dict[Machine, float] = field(default_factory=dict)
    moves: int = 0

    def view(self, now: float) -> Places:
        return self.places if self.rule.sees_loading else self.serving(now)

    def serving(self, now: float) -> Places:
        return {machine: span for machine, span in self.places.items() if self.ready[machine] <= now}

    def come(self, machine: Machine, now: float) -> None:
        self.places[machine] = self.rule.join(machine, self.view(now), self.source)
        self.ready[machine] = now + loading(machine)
        self._schedule(machine, self.ready[machine])
        self._repair(now)

    def go(self, machine: Machine, now: float) -> None:
        for kept in (self.places, self.ready, self.looks):
            kept.pop(machine, None)
        self._repair(now)

    def tick(self, now: float) -> None:
        for machine in [one for one, at in self.looks.items() if at <= now]:
            self._schedule(machine, now)
            view = self.view(now)
            if machine in view and (span := self.rule.look(machine, view, self.source)) is not None:
                self._move(machine, span, now)

    def _schedule(self, machine: Machine, now: float) -> None:
        self.looks[machine] = now + self.rule.pause(len(self.places), self.source)

    def _repair(self, now: float) -> None:
        for machine, span in self.rule.repair(self.places, self.source).items():
            self._move(machine, span, now)

    def _move(self, machine: Machine, span: Span, now: float) -> None:
        self.places[machine] = span
        self.ready[machine] = now + DRAIN + loading(machine)
        self.moves += 1


def loading(machine: Machine) -> float:
    """Seconds to load as many blocks as it holds."""
    return machine.holds * BLOCK_BYTES / DISK


@dataclass(frozen=True)
class Churned:
    """Means over the samples, tokens a second, and how often machines moved."""

    reached: dict[str, float]
    bound: float
    moves: dict[str, int]


def churned(count: int, hours: float, seed: int) -> Churned:
    first, events = trace(count, hours, seed)
    worlds = [World(rule, random.Random(seed)) for rule in RULES]
    for world in worlds:
        world.places = dict(settled(world.rule, first, seed))
        world.ready = dict.fromkeys(first, 0.0)
        for machine in first:
            world._schedule(machine, 0.0)
    able = dict.fromkeys(first, 0.0)
    sums, most, samples, pending = {rule.name: 0.0 for rule in RULES}, 0.0, 0, list(reversed(events))
    for tick in range(1, int(3600 * hours / TICK) + 1):
        now = tick * TICK
        while pending and pending[-1].at <= now:
            event = pending.pop()
            if event.comes:
                able[event.machine] = now + loading(event.machine)
            else:
                del able[event.machine]
            for world in worlds:
                (world.come if event.comes else world.go)(event.machine, now)
        for world in worlds:
            world.tick(now)
        if tick % int(SAMPLE / TICK) == 0:
            samples += 1
            most += bound([machine for machine, since in able.items() if since <= now])
            for world in worlds:
                sums[world.rule.name] += flow(world.serving(now))
    means = {name: total / samples for name, total in sums.items()}
    return Churned(means, most / samples, {world.rule.name: world.moves for world in worlds})


def reference(machines: Sequence[Machine]) -> dict[str, float]:
    """The rule's own lowest level, and networkx' maximal flow without links: bisected, as all blocks need the same."""
    placed: list[Placed] = []
    for machine in machines:
        placed.append(Placed(*choose(BLOCKS, placed, machine.holds, machine.rate).span, machine.rate))
    graph = networkx.DiGraph()
    for index, one in enumerate(placed):
        graph.add_edge("source", index, capacity=one.rate)
        for block in range(one.first, one.end):
            graph.add_edge(index, f"block {block}")
    low, high = 0.0, sum(one.rate for one in placed) / BLOCKS
    for _ in range(20):
        middle = (low + high) / 2
        for block in range(BLOCKS):
            graph.add_edge(f"block {block}", "sink", capacity=middle)
        whole = networkx.maximum_flow_value(graph, "source", "sink") >= middle * BLOCKS * (1 - 1e-9)
        low, high = (middle, high) if whole else (low, middle)
    return {"level": lowest(BLOCKS, placed), "networkx": low}


def least_median(shares: Iterable[Sequence[float]]) -> float:
    return min(statistics.median(one) for one in shares)


@dataclass(frozen=True)
class Job:
    """One swarm, by all rules: settled, or with machines that come and go for `hours`."""

    kind: str
    count: int
    seed: int
    hours: float = 0.0


@dataclass(frozen=True)
class Found:
    """Shares of the bound by rule, and of a churn how often a machine moved in an hour."""

    job: Job
    shares: dict[str, float]
    moves: dict[str, float]


def run(job: Job) -> Found:
    if job.kind == "churn":
        found = churned(job.count, job.hours, 7919 * job.seed + job.count)
        shares = {name: reached / found.bound for name, reached in found.reached.items()}
        return Found(job, shares, {name: moves / job.hours / job.count for name, moves in found.moves.items()})
    machines = draw_swarm(job.count, random.Random(1000 * job.seed + job.count))
    most = bound(machines)
    return Found(job, {rule.name: flow(settled(rule, machines, job.seed)) / most for rule in RULES}, {})


def jobs(seeds: int, hours: float, largest: int) -> list[Job]:
    """The longest ones first. Seeds from UNSEEN on: the rule's thresholds were chosen with those below."""
    few = [Job("static", count, UNSEEN + seed) for count in STATIC for seed in range(seeds if count <= 30 else 1)]
    many = [
        Job("churn", count, UNSEEN + seed, hours if count <= 100 else hours / 4)
        for count in CHURN
        for seed in range(seeds if count <= 30 else 1)
    ]
    return sorted((one for one in few + many if one.count <= largest), key=lambda one: -one.count * (1 + one.hours))


def main() -> None:
    args = options(__doc__ or "", seeds=5, hours=8.0, largest=500)
    say = Console(stderr=True).print
    shares: dict[str, dict[str, dict[int, list[float]]]] = {
        kind: {rule.name: defaultdict(list) for rule in RULES} for kind in ("static", "churn")
    }
    moves: dict[str, dict[int, float]] = {rule.name: {} for rule in RULES}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs(args.seeds, args.hours, args.largest)]):
            found = done.result()
            for name, share in found.shares.items():
                shares[found.job.kind][name][found.job.count].append(share)
            for name, often in found.moves.items():
                moves[name][found.job.count] = often
            told = ", ".join(f"{name} {share:.3f}" for name, share in found.shares.items())
            say(f"  {found.job.kind} {found.job.count}: {told}")
    static, churn = shares["static"], shares["churn"]
    check = reference(draw_swarm(30, random.Random(30)))
    figures: dict[str, Any] = {
        "static_to_bound": least_median(static["ours"].values()),
        "churn_to_bound": least_median(churn["ours"].values()),
        "petals_to_bound": least_median(static["petals"].values()),
        "parallax_to_bound": least_median(static["parallax"].values()),
        "petals_churn_to_bound": least_median(churn["petals"].values()),
        "parallax_churn_to_bound": least_median(churn["parallax"].values()),
        "static_worst": min(min(one) for one in static["ours"].values()),
        "churn_worst": min(min(one) for one in churn["ours"].values()),
        "level_to_networkx": check["level"] / check["networkx"],
        "static": {name: medians(found) for name, found in static.items()},
        "churn": {name: medians(found) for name, found in churn.items()},
        "moves_a_machine_and_hour": moves,
    }
    names = ["ours", "Petals", "Parallax"]
    values = [figures[key] for key in ("churn_to_bound", "petals_churn_to_bound", "parallax_churn_to_bound")]
    finish("placement", figures, BOUNDS, args.json, bars(names, values, "Tokens/s under churn", "of the bound"))


def medians(found: dict[int, list[float]]) -> dict[str, float]:
    return {str(count): statistics.median(shares) for count, shares in sorted(found.items())}


if __name__ == "__main__":
    main()
