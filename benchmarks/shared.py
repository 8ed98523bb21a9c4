"""Texts that begin alike: computed once against computed by each, over two nodes.

    python benchmarks/shared.py [--json FILE]

The other side is the same client whose forks are declined here, so that it sends all tokens. Whole calls of `generate`
with their handshakes: four answers to one prompt (each a token long, so that prefill is what is seen); the first token
of a talk's second turn behind `--prompt-tokens` of history; and two short texts that begin with as few equal tokens as
are shared at all, which must not be slower for it. fp32, one torch thread a process. Paid sessions, everything on.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from harness import Bound, alternate, bars, finish, generate, median_ratio, options, prompt, swarm
from paying import CHEAP, paying_client

from hivemint.client.generation.sequences import SHARED


@contextmanager
def no_forks(model: Any) -> Iterator[None]:
    """The client falls back as it does when nodes have forgotten."""

    async def declined(*_: Any) -> None:
        return None

    model.swarm.fork = declined
    try:
        yield
    finally:
        del model.swarm.fork


def seconds(model: Any, ids: Any, **settings: Any) -> float:
    began = time.perf_counter()
    model.generate(ids, max_new_tokens=1, eos_token_id=None, **settings)
    return time.perf_counter() - began


def second_turn_s(model: Any, history: Any, ids: Any) -> float:
    with model.conversation() as talk:
        model.generate(history, max_new_tokens=1, do_sample=False, eos_token_id=None, conversation=talk)
        began = time.perf_counter()
        _, clock = generate(model, ids, 1, conversation=talk)
        return clock.times[0] - began


def against_none(model: Any, measure: Any, pairs: int) -> list[tuple[float, float]]:
    def unshared() -> float:
        with no_forks(model):
            return float(measure())

    return alternate(measure, unshared, pairs)


def main() -> None:
    args = options(__doc__ or "", prompt_tokens=256)
    ids = prompt(args.prompt_tokens)
    longer = torch.cat([ids, prompt(24, seed=1)], dim=1)
    short = torch.cat([prompt(SHARED).expand(2, -1), prompt(32, seed=2).view(2, 16)], dim=1)
    with swarm(CHEAP) as net, paying_client(net) as model:
        answers = {"do_sample": True, "num_return_sequences": 4}
        runs = {
            "answers4": against_none(model, lambda: seconds(model, ids, **answers), args.pairs),
            "second_turn": against_none(model, lambda: second_turn_s(model, ids, longer), args.pairs),
            "fewest_alike": against_none(model, lambda: seconds(model, short, do_sample=False), args.pairs),
        }
    ratios = {f"{name}_ratio_to_unshared_time": median_ratio(pairs) for name, pairs in runs.items()}
    bounds = {"answers4_ratio_to_unshared_time": Bound(most=0.5), "second_turn_ratio_to_unshared_time": Bound(most=0.5)}
    chart = bars(list(runs), list(ratios.values()), "Time with forks, as a share of the time without", "ratio")
    finish("shared", {**ratios, "pairs": runs}, bounds, args.json, chart)


if __name__ == "__main__":
    main()
