"""Open-loop load on two nodes: requests come when they come (Poisson), however slow the answers are.

    python benchmarks/load.py [--json FILE] [--seconds 60]

The capacity is measured first in the same run: what 16 paid sessions get, each asking again as soon as it has its
answer. Then arrivals at 0.5, 0.8 and 1.1 of that rate, 7 in 10 in the paid lane (at the ask), the others in the free
lane; prompts of 16, 64 and 256 tokens, answers of 8 to 32. First token: from the moment when the request was due,
session open included. fp32, one torch thread a process, two nodes of 15 blocks, everything on.

The clients run no head and do not sample; what they use of the machine, and how late their own timers are, stands
beside the figures. A client process that uses most of a core would be the bottleneck, and is reported as such.
"""

import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from crowd import Crowd, crowd, nodes_cpu_s
from harness import Bound, finish, options, swarm
from paying import CHEAP, funded_wallets
from rich.console import Console

from hivemint.protocol.signing import Signer

LOADS = (0.5, 0.8, 1.1)
PAID_SHARE = 0.7
PROMPTS = {16: 0.5, 64: 0.35, 256: 0.15}
ANSWERS = {8: 0.4, 16: 0.4, 32: 0.2}
PROCESSES, CLIENTS = 2, 4
"""Of each lane: client processes, and wallets in all."""
WORKERS = 16
ROOM = {
    "HIVEMINT_MAX_SESSIONS": "512",
    "HIVEMINT_MAX_SESSIONS_A_CLIENT": "512",
    "HIVEMINT_MAX_SESSIONS_A_PREFIX": "512",
    "HIVEMINT_MAX_DONATED_SESSIONS": "256",
    "HIVEMINT_MAX_DONATED_A_PREFIX": "256",
}
"""What is measured is the queue, not the limits on strangers."""
QUICK = 0.05
"""Seconds within which a control call should be answered."""
BUSY_CLIENT = 0.8
"""Cores: a client process that uses more is too near to its one."""
LEAD = 1.0
COLOURS = {"paid": "#0f766e", "donated": "#b45309"}
say = Console(stderr=True).print


def size(dice: random.Random) -> tuple[int, int]:
    """Tokens of a prompt and of its answer."""
    return _draw(dice, PROMPTS), _draw(dice, ANSWERS)


def _draw(dice: random.Random, choices: Mapping[int, float]) -> int:
    return dice.choices(list(choices), list(choices.values()))[0]


def arrivals(
    rate: float, seconds: float, seed: int, paid_share: float = PAID_SHARE
) -> dict[str, list[tuple[float, int, int]]]:
    """Poisson arrivals by lane: (when, prompt, answer)."""
    dice, at = random.Random(seed), 0.0
    lanes: dict[str, list[tuple[float, int, int]]] = {"paid": [], "donated": []}
    while (at := at + dice.expovariate(rate)) < seconds:
        lanes["paid" if dice.random() < paid_share else "donated"].append((at, *size(dice)))
    return lanes


def capacity(paid: Crowd, seconds: float) -> dict[str, float]:
    """Answers' tokens a second at saturation, over the last two thirds of the time, and the requests that makes."""
    dice = random.Random(0)
    sizes = [size(dice) for _ in range(WORKERS)]
    begin = time.monotonic() + LEAD
    answers = paid.ask([{"begin": begin, "seconds": seconds, "sizes": sizes[n::PROCESSES]} for n in range(PROCESSES)])
    requests = [one for answer in answers for one in answer["requests"]]
    if failed := [one["error"] for one in requests if "error" in one]:
        raise SystemExit(f"requests failed while the capacity was measured: {Counter(failed)}")
    steady = begin + seconds / 3
    tokens = sum(steady <= one["due"] + at < begin + seconds for one in requests for at in one["tokens"])
    per_s = tokens / (begin + seconds - steady)
    return {
        "requests_per_s": per_s / statistics.mean(answer for _, answer in sizes),
        "new_tokens_per_s": per_s,
    }


def loaded(net: Any, crowds: Mapping[str, Crowd], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Figures of `seconds` of arrivals at `rate` a second, all of them waited for."""
    plan = arrivals(rate, seconds, seed)
    before, began = nodes_cpu_s(net), time.monotonic()
    clients = sum(one.cpu_s() for one in crowds.values())
    begin = began + LEAD
    for lane, one in crowds.items():
        one.tell([{"begin": begin, "arrivals": plan[lane][n::PROCESSES]} for n in range(PROCESSES)])
    answers = {lane: one.hear() for lane, one in crowds.items()}
    took = time.monotonic() - began
    everyone = [answer for heard in answers.values() for answer in heard]
    control = [call for answer in everyone for call in answer["control"]]
    tokens = sum(len(one["tokens"]) for answer in everyone for one in answer["requests"])
    return {
        "offered_requests_per_s": sum(map(len, plan.values())) / seconds,
        "lanes": {
            lane: figures_of([one for answer in heard for one in answer["requests"]]) for lane, heard in answers.items()
        },
        "new_tokens_per_s": tokens / took,
        "control_within_50ms": sum(call <= QUICK for call in control) / len(control),
        "nodes_cores": (nodes_cpu_s(net) - before) / took,
        "clients_cores": (sum(one.cpu_s() for one in crowds.values()) - clients) / took,
        "busiest_client_cores": max(answer["cpu_s"] for answer in everyone) / took,
        "client_lag_ms": quantiles([1000 * late for answer in everyone for late in answer["lag"]]),
        "late_ms": quantiles([1000 * one["late"] for answer in everyone for one in answer["requests"]]),
    }


def figures_of(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """One lane. Waits in ms; requests that failed count in `failed` alone."""
    done = [one for one in requests if "error" not in one]
    gaps = [1000 * (b - a) for one in done for a, b in zip(one["tokens"], one["tokens"][1:], strict=False)]
    return {
        "requests": len(requests),
        "failed": dict(Counter(one["error"] for one in requests if "error" in one)),
        "first_token_ms": quantiles([1000 * one["tokens"][0] for one in done]),
        "between_tokens_ms": quantiles(gaps),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def plot(loads: Mapping[str, Any]) -> Callable[[Any], None]:
    """Waits of both lanes over the offered load."""

    def draw(axes: Any) -> None:
        figure = axes.figure
        axes.remove()
        sides = figure.subplots(1, 2)
        for side, key in zip(sides, ("first_token_ms", "between_tokens_ms"), strict=True):
            for lane, colour in COLOURS.items():
                waits = {float(share): one["lanes"][lane][key] for share, one in loads.items()}
                for name, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
                    points = [(share, its[name]) for share, its in waits.items() if its]
                    if not points:
                        continue  # too few requests to say
                    side.plot(*zip(*points, strict=True), style, color=colour, marker="o", ms=3, label=f"{lane} {name}")
            side.set(title=key.removesuffix("_ms").replace("_", " "), yscale="log")
            side.set(xlabel="offered load / capacity", ylabel="ms")
            side.grid(alpha=0.3, which="both")
        sides[0].legend(fontsize=7, handlelength=4)

    return draw


def main() -> None:
    args = options(__doc__ or "", seconds=60.0)
    with ExitStack() as stack:
        net = stack.enter_context(swarm(CHEAP | ROOM))
        payers = funded_wallets(net, CLIENTS)
        guests = [Signer(secrets.token_bytes(32)) for _ in range(CLIENTS)]
        crowds = {
            lane: stack.enter_context(crowd(net, wallets, PROCESSES, ("load_process.py", bid)))
            for lane, wallets, bid in (("paid", payers, "ask"), ("donated", guests, "free"))
        }
        capacity(crowds["paid"], 5.0)  # routes are known then, and waits measured
        most = capacity(crowds["paid"], args.seconds / 2)
        say(f"  capacity: {most['requests_per_s']:.2f} requests/s, {most['new_tokens_per_s']:.0f} new tokens/s")
        loads = {}
        for share in LOADS:
            rate = share * most["requests_per_s"]
            loads[f"{share:g}"] = one = loaded(net, crowds, rate, args.seconds, seed=int(100 * share))
            for lane, its in one["lanes"].items():
                say(f"  load {share}, {lane}: {its['requests']} requests, first token {its['first_token_ms']}")
    report(most, loads, args)


def report(most: Mapping[str, float], loads: Mapping[str, Any], args: Any) -> None:
    figures: dict[str, Any] = {f"capacity_{name}": value for name, value in most.items()}
    for share, one in loads.items():
        figures[f"new_tokens_per_s_at_{share}"] = one["new_tokens_per_s"]
        figures[f"control_within_50ms_at_{share}"] = one["control_within_50ms"]
        for lane, its in one["lanes"].items():
            for key in ("first_token_ms", "between_tokens_ms"):
                for name, value in its[key].items():
                    figures[f"{lane}_{key}_{name}_at_{share}"] = value
            figures[f"{lane}_failed_at_{share}"] = sum(its["failed"].values())
    figures["busiest_client_cores"] = busiest = max(one["busiest_client_cores"] for one in loads.values())
    figures["clients_are_the_bottleneck"] = busiest > BUSY_CLIENT
    if busiest > BUSY_CLIENT:
        say(f"[red]a client process used {busiest:.2f} cores: it may have been the bottleneck[/]")
    figures |= {"seconds": args.seconds, "loads": loads}
    finish("load", figures, {"busiest_client_cores": Bound(most=BUSY_CLIENT)}, args.json, plot(loads))


if __name__ == "__main__":
    main()
