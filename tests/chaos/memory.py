"""1,000 sessions after a warm-up, none of them disturbed: do nodes, daemons or clients grow?

    python -m chaos.memory --seed N --folder DIR [--tag NAMESPACES]

Prints one line of JSON: by which share the resident memory of each kind of process, taken together, has grown from the
first looks to the last ones; and what is wrong, as a run of `conduct` does.
"""

import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil

from chaos import invariants
from chaos.conduct import World, arguments
from chaos.schedule import SHORT, draw

WARM_UP, WARM_AT_LAST, MEASURED, EACH = 600, 2000, 1000, 100
"""Sessions before the first look, at least and at most; between the middles of the first and the last looks; and from
look to look."""
WARM = 0.005
"""By less than so much all kinds have grown over the last looks, when they are warm. What leaks never is."""
WINDOW = 3
"""Looks at either end whose median is compared."""
MOST = 0.02
WITHIN = 300.0


def processes(world: World) -> dict[str, list[psutil.Process]]:
    """Nodes, clients, and the daemons of both."""
    found: dict[str, list[psutil.Process]] = {"nodes": [], "clients": [], "daemons": []}
    roots = {"nodes": [world.net.child(plan.operator).pid for plan in world.net.plans]}
    roots["clients"] = [client.process.pid for client in world.clients.values()]
    for kind, pids in roots.items():
        for root in map(psutil.Process, pids):
            found[kind].append(root)
            found["daemons"] += [one for one in root.children(recursive=True) if "p2pd" in one.name()]
    return found


def had(world: World, count: int) -> int:
    """`count` sessions, by all clients at once; how many failed."""
    clients = list(world.clients.values())

    def one(number: int) -> int:
        clients[number].tell(f"sessions {count // len(clients)}")
        return int(clients[number].wait("had", WITHIN)["failed"])

    with ThreadPoolExecutor(len(clients)) as pool:
        return sum(pool.map(one, range(len(clients))))


def look(watched: dict[str, list[psutil.Process]]) -> dict[str, int]:
    return {kind: sum(one.memory_info().rss for one in those) for kind, those in watched.items()}


def growth(series: list[int]) -> float:
    return statistics.median(series[-WINDOW:]) / statistics.median(series[:WINDOW]) - 1


def warm(looks: list[dict[str, int]]) -> bool:
    """Whether the processes have what they keep for good: buffers, pools, the daemons' heaps."""
    last = looks[-WINDOW:]
    return len(looks) > WARM_UP // EACH and all(
        max(one[kind] for one in last) < last[0][kind] * (1 + WARM) for kind in last[0]
    )


def measure(world: World) -> tuple[dict[str, float], dict[str, list[int]], list[str]]:
    """Growth of each kind of process, the looks that it comes of, and what is wrong."""
    watched = processes(world)
    failed, before = 0, [look(watched)]
    while not warm(before) and len(before) <= WARM_AT_LAST // EACH:
        failed += had(world, EACH)
        before.append(look(watched))
    looks = before[-1:]
    for _ in range(MEASURED // EACH + WINDOW - 1):
        failed += had(world, EACH)
        looks.append(look(watched))
    series = {kind: [one[kind] for one in looks] for kind in watched}
    grown = {kind: growth(values) for kind, values in series.items()}
    wrong = [f"memory of the {kind} has grown by {share:.2%}" for kind, share in grown.items() if share >= MOST]
    wrong += [f"{failed} sessions failed, and nobody had disturbed them"] if failed else []
    for client in world.clients.values():
        client.end()
    return grown, series, [*wrong, *invariants.rooms(world.net), *invariants.daemons(world.net)]


def run(seed: int, folder: Path, tag: str) -> tuple[dict[str, object], list[str]]:
    schedule = replace(draw(seed, replace(SHORT, items=0)), faults=())
    with ExitStack() as stack:
        world = stack.enter_context(World(folder, tag, schedule))
        grown, series, wrong = measure(world)
    wrong += invariants.nobody(folder)
    shares = {f"{kind}_growth": round(share, 4) for kind, share in grown.items()}
    return {**shares, "megabytes": {kind: [value >> 20 for value in values] for kind, values in series.items()}}, wrong


def main() -> int:
    given = arguments().parse_args()
    figures, wrong = run(given.seed, given.folder, given.tag)
    sys.stdout.write(json.dumps(figures) + "\n" + "".join(f"WRONG: {line}\n" for line in wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
