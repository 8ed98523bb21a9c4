"""What a deposit buys, and how a budget is shared out: sums alone, no chain."""

import math
from collections.abc import Mapping
from typing import TypeVar

Node = TypeVar("Node", bound=str)

PROMPT_TOKENS, ANSWER_TOKENS = 33, 200
POSITIONS = PROMPT_TOKENS + ANSWER_TOKENS
"""Of a usual answer: a short question, and as many tokens as `hivemint generate` asks for. Both are paid for."""


def answers(prices: Mapping[Node, int], deposits: Mapping[Node, int], tokens: int = POSITIONS) -> int | None:
    """How many answers of so many tokens the deposits pay along a route: the scarcest account decides.

    `prices` in wei a token for each node of the route; None where nobody on it asks for anything.
    """
    counts = [deposits.get(node, 0) // (price * tokens) for node, price in prices.items() if price]
    return min(counts, default=None)


def top_ups(
    left: Mapping[Node, int], keep: int, budget: int, asks: Mapping[Node, int] | None = None
) -> dict[Node, int]:
    """What raises each account to `keep`, never more than `budget` in all. The lowest of the `asks` first, as routes
    go there; then, and where they are the same, the emptiest account. Who asks nothing needs nothing, and is last.
    """
    prices = asks or {}
    chosen: dict[Node, int] = {}
    for node in sorted(left, key=lambda one: (prices.get(one) or math.inf, left[one], one)):
        more = min(max(0, keep - left[node]), budget - sum(chosen.values()))
        if more > 0:
            chosen[node] = more
    return chosen
