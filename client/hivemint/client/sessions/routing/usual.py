"""What this swarm usually asks: without a ceiling of the user's, nodes far above it are left out."""

import statistics
from collections.abc import Sequence

from hivemint.client.sessions.routing.missing import block_spans
from hivemint.client.sessions.routing.wish import Wish
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import OverLimit
from hivemint.protocol.ids import Credits
from hivemint.swarm.records import CheckedRecord


def usual_asks(records: Sequence[CheckedRecord], wish: Wish) -> tuple[Sequence[CheckedRecord], tuple[str, ...]]:
    """The nodes that ask what this swarm usually asks, and a note on what that is. The user's own word goes before.

    Raises OverLimit where blocks are served by dearer ones alone: these blocks are not missing.
    """
    if not _compares(records, wish):
        return records, ()
    most = highest_usual(records, wish)
    if most is None:
        return records, ("no price ceiling: there is one node alone to compare with",)
    note = f"price ceiling {format_credits(most, 18)} a token and block, {wish.times_median:g}x the median ask"
    usual = [one for one in records if one.record.ask <= most]
    if len(usual) == len(records):
        return records, (note,)
    served = {block for one in usual for block in one.record.blocks}
    if dear := [block for block in wish.part if block not in served]:
        lowest = min(one.record.ask for one in records if not set(dear).isdisjoint(one.record.blocks))
        raise OverLimit(
            f"Blocks {block_spans(dear)} cost more than the default price ceiling",
            why=f"{note}; their nodes ask {format_credits(lowest, 18)} or more",
            next_step="name a ceiling of your own (--max-price), or use the donated lane (--bid free)",
        )
    return usual, (note,)


def highest_usual(records: Sequence[CheckedRecord], wish: Wish) -> Credits | None:
    """The most that a node may ask for a token and block; None where no other node's ask bounds it."""
    if wish.times_median is None or not _compares(records, wish) or len({one.record.operator for one in records}) == 1:
        return None
    asks = [one.record.ask for one in records if one.record.ask]
    return Credits(statistics.median_low(asks) * round(wish.times_median * 1000) // 1000)


def _compares(records: Sequence[CheckedRecord], wish: Wish) -> bool:
    own_word = wish.times_median is None or wish.ceiling is not None or wish.bid.kind in ("free", "amount")
    return not own_word and any(one.record.ask for one in records)
