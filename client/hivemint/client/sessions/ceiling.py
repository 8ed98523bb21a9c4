"""Nodes that ask more than the client's price ceiling: no route of its would pay them, so no credits belong there."""

from collections.abc import Mapping, Sequence

from hivemint.client.sessions.routing.usual import highest_usual
from hivemint.client.sessions.routing.wish import Wish
from hivemint.protocol.credits import format_credits
from hivemint.protocol.ids import Address, Credits
from hivemint.swarm.records import CheckedRecord, NodeRecord


def too_dear(records: Sequence[CheckedRecord], wish: Wish) -> dict[Address, str]:
    """Operator -> why none of its spans can be in a route that the wish allows, whatever the accounts hold."""
    most, least = highest_usual(records, wish), _least(records, wish)
    reasons: dict[Address, list[str]] = {}
    for one in records:
        reasons.setdefault(one.record.operator, []).append(_dear(one.record, wish, most, least))
    return {operator: whys[0] for operator, whys in reasons.items() if all(whys)}


def _least(records: Sequence[CheckedRecord], wish: Wish) -> dict[int, int]:
    """Block -> the least bid that buys it."""
    least: dict[int, int] = {}
    for one in records:
        if (bid := wish.bid.at(one.record.ask)) is not None:
            for block in _blocks(one.record, wish):
                least[block] = min(least.get(block, int(bid)), int(bid))
    return least


def _blocks(record: NodeRecord, wish: Wish) -> range:
    return range(record.first_block, min(record.end_block, wish.blocks))


def _dear(record: NodeRecord, wish: Wish, most: Credits | None, least: Mapping[int, int]) -> str:
    bid, asks = wish.bid.at(record.ask), f"it asks {format_credits(record.ask, 9)} a token and block"
    if bid is None:
        return f"{asks}, more than the bid of {wish.bid}"
    if most is not None and record.ask > most:
        ceiling = f"{format_credits(most, 9)}, {wish.times_median:g}x the median ask (max_times_median)"
        return f"{asks}, above the price ceiling of {ceiling}"
    if wish.ceiling is not None:
        cheapest = sum(least.values()) + min((bid - least[block] for block in _blocks(record, wish)), default=0)
        if cheapest > wish.ceiling:
            return f"{asks}: no route over it costs at most {format_credits(wish.ceiling, 9)} a token (max_price)"
    return ""
