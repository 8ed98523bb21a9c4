"""What paying buys under load, and what it costs the others: open-loop arrivals on two nodes, both lanes in one run.

    python benchmarks/priorities.py [--json FILE] [--seconds 20]

The capacity is measured first: tokens a second that 16 sessions get, each asking again as soon as it has its answer.
Then requests come (Poisson) at 0.5, 0.9, 1.1 and 2.0 of it, 3 in 10 of paying clients (at the ask), the others of
clients in the donated lane; prompts and answers as in `load.py`, whose client processes these are. Of each lane: the
wait for the first token from when the request was due, and a request's tokens a second from then on. Free ones starve
if nobody of them gets a token for long while some wait: the longest such pause is told, and their share of the tokens.

`priority_throughput`: tokens a second with 8 paid and 8 free sessions at saturation, against the mean of 16 paid and
of 16 free ones, among whom there is no priority; alternated, the median of the pairs. Both sides send the same
requests from as many client processes. What a lane costs beside its place in the queue (vouchers) is in both sides of
it by halves.
"""

import random
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from crowd import Crowd, crowd
from harness import Bound, finish, median_ratio, options, swarm
from load import CLIENTS, LEAD, ROOM, arrivals, quantiles, size
from paying import CHEAP, funded_wallets
from rich.console import Console

from hivemint.protocol.signing import Signer

LOADS = (0.5, 0.9, 1.1, 2.0)
PAID_SHARE = 0.3
GROUPS = 4
"""Client processes of each lane."""
REQUESTS = [(16, 8), (64, 16), (16, 32), (256, 16)]
"""Prompt and answer of the sessions of one process at saturation: each process's are the same, so that it does not
matter to the sum whose turn it is."""
LEAST_FREE = 0.08
"""Of the tokens while both lanes wait: a node reserves 0.1 for the donated lane."""
LANES = ("paid", "donated")
Crowds = Mapping[str, Crowd]
say = Console(stderr=True).print


def saturated(crowds: Crowds, at_work: Mapping[str, Sequence[int]], seconds: float) -> float:
    """Tokens a second over the last two thirds of the time, with these processes of each lane at work."""
    begin = time.monotonic() + LEAD
    for lane, one in crowds.items():
        shares = [REQUESTS if n in at_work.get(lane, ()) else [] for n in range(GROUPS)]
        one.tell([{"begin": begin, "seconds": seconds, "sizes": share} for share in shares])
    requests = [one for it in crowds.values() for answer in it.hear() for one in answer["requests"]]
    if failed := Counter(one["error"] for one in requests if "error" in one):
        say(f"  [red]requests failed at saturation: {dict(failed)}[/]")
    steady = begin + seconds / 3
    tokens = sum(steady <= one["due"] + at < begin + seconds for one in requests for at in one["tokens"])
    return float(tokens / (begin + seconds - steady))


def throughput(crowds: Crowds, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """Tokens a second with priorities, and without; the order is swapped in every second pair."""
    found = []
    for index in range(pairs):
        work = {"with": dict.fromkeys(LANES, range(GROUPS // 2))} | {lane: {lane: range(GROUPS)} for lane in LANES}
        turns = ["paid", "with", "donated"] if index % 2 == 0 else ["donated", "with", "paid"]
        got = {turn: saturated(crowds, work[turn], seconds) for turn in turns}
        found.append((got["with"], (got["paid"] + got["donated"]) / 2))
        say(f"  saturated: {got}")
    return found


def loaded(crowds: Crowds, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Figures of each lane for `seconds` of arrivals at `rate` a second, all of them waited for."""
    plan, begin = arrivals(rate, seconds, seed, PAID_SHARE), time.monotonic() + LEAD
    for lane, one in crowds.items():
        one.tell([{"begin": begin, "arrivals": plan[lane][n::GROUPS]} for n in range(GROUPS)])
    requests = {lane: [one for answer in it.hear() for one in answer["requests"]] for lane, it in crowds.items()}
    told: dict[str, Any] = {lane: _lane(its) for lane, its in requests.items()}
    end = begin + seconds
    inside = {lane: sum(one["due"] + at < end for one in its for at in one["tokens"]) for lane, its in requests.items()}
    told["donated"]["share"] = inside["donated"] / max(1, sum(inside.values()))
    told["donated"]["longest_pause_s"] = longest_pause(requests["donated"])
    return told


def _lane(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [one for one in requests if "error" not in one]
    speeds = [(len(one["tokens"]) - 1) / (one["tokens"][-1] - one["tokens"][0]) for one in done]
    waits = quantiles([1000 * one["tokens"][0] for one in done])
    return {
        "requests": len(requests),
        "failed": dict(Counter(one["error"] for one in requests if "error" in one)),
        "wait_ms_p50": waits.get("p50"),
        "wait_ms_p95": waits.get("p95"),
        "tokens_per_s": statistics.median(speeds) if speeds else None,
    }


def longest_pause(requests: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which some of these waited and none of them got a token."""
    came = [(one["due"], 1) for one in requests]
    went = [(one["due"] + (one["tokens"][-1] if one["tokens"] else 0.0), -1) for one in requests]
    got = [(one["due"] + at, 0) for one in requests for at in one["tokens"]]
    waiting, since, longest = 0, 0.0, 0.0
    for at, change in sorted(came + went + got, key=lambda one: (one[0], -abs(one[1]))):
        if waiting and change <= 0:
            longest = max(longest, at - since)
        if not waiting or change <= 0:
            since = at
        waiting += change
    return longest


def main() -> None:
    args = options(__doc__ or "", seconds=20.0)
    with ExitStack() as stack:
        net = stack.enter_context(swarm(CHEAP | ROOM))
        wallets = {"paid": funded_wallets(net, CLIENTS), "donated": [_guest() for _ in range(CLIENTS)]}
        bids = {"paid": "ask", "donated": "free"}
        crowds = {
            lane: stack.enter_context(crowd(net, wallets[lane], GROUPS, ("load_process.py", bids[lane])))
            for lane in LANES
        }
        saturated(crowds, dict.fromkeys(LANES, range(GROUPS)), 4.0)  # routes are known then, and waits measured
        pairs = throughput(crowds, args.pairs, args.seconds)
        capacity = statistics.mean(without for _, without in pairs)
        dice = random.Random(1)
        rate = capacity / statistics.mean(size(dice)[1] for _ in range(2000))
        say(f"  capacity: {capacity:.0f} new tokens/s, {rate:.2f} requests/s")
        loads = {}
        for share in LOADS:
            loads[f"{share:g}"] = one = loaded(crowds, share * rate, args.seconds, seed=int(100 * share))
            say(f"  load {share}: {one}")
    report(pairs, capacity, loads, args)


def _guest() -> Signer:
    return Signer(secrets.token_bytes(32))


def report(pairs: Sequence[tuple[float, float]], capacity: float, loads: Mapping[str, Any], args: Any) -> None:
    figures: dict[str, Any] = {"priority_throughput": median_ratio(pairs), "capacity_tokens_per_s": capacity}
    bounds = {"priority_throughput": Bound(least=0.97)}
    for share, lanes in loads.items():
        for lane, its in lanes.items():
            for key in ("wait_ms_p50", "wait_ms_p95", "tokens_per_s"):
                figures[f"{lane}_{key}_at_{share}"] = its[key]
            figures[f"{lane}_failed_at_{share}"] = sum(its["failed"].values())
        figures[f"free_share_at_{share}"] = lanes["donated"]["share"]
        figures[f"free_longest_pause_s_at_{share}"] = lanes["donated"]["longest_pause_s"]
        bounds[f"free_share_at_{share}"] = Bound(least=LEAST_FREE)
    figures |= {"seconds": args.seconds, "pairs": pairs, "loads": loads}
    finish("priorities", figures, bounds, args.json)


if __name__ == "__main__":
    main()
