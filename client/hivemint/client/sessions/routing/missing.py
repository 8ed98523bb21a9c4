"""Why there is no route: blocks that nobody serves, nodes that are left out, a bid or accounts that don't reach."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hivemint.client.sessions.route import session_amount
from hivemint.client.sessions.routing.wish import Wish
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import OverLimit, SwarmError
from hivemint.protocol.node_name import named, node_name
from hivemint.swarm.records import CheckedRecord, NodeRecord

_MOST_NAMED = 6


class MissingBlocks(SwarmError):
    """Some blocks are served by nobody now."""


class NotCovered(OverLimit):
    """All blocks are there at the bid, but the escrow accounts do not cover a route."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A node that serves, and why it is not used: a few words that go on after "is left out: "."""

    record: NodeRecord
    reason: str

    def __str__(self) -> str:
        blocks = f"{self.record.first_block}:{self.record.end_block}"
        return f"{node_name(self.record.operator)} ({blocks}) is left out: {self.reason}"


def check_covered(records: Iterable[CheckedRecord], wish: Wish, left_out: Sequence[LeftOut] = ()) -> None:
    """Raises MissingBlocks that names the blocks, and who would serve them if it were not left out."""
    served = served_blocks(one.record for one in records)
    missing = [block for block in wish.part if not served >> block & 1]
    if not missing:
        return
    spans = block_spans(missing)
    others = [one for one in left_out if not set(missing).isdisjoint(one.record.blocks)]
    has = block_spans([block for block in range(wish.blocks) if served >> block & 1]) or "none of them"
    why = f"the model has blocks 0:{wish.blocks}, the swarm has {has}"
    start = f"start one: hivemint node start MODEL --blocks {spans.split(',')[0]}; or try again later"
    if others:
        told = [str(one) for one in others[:_MOST_NAMED]]
        why = "; ".join([*told, *([f"and {len(others) - _MOST_NAMED} more"] if len(others) > _MOST_NAMED else [])])
        start = "wait until they count again, or change allowed_nodes and blocked_nodes"
    raise MissingBlocks(f"No node serves blocks {spans}", why=why, next_step=start)


def served_blocks(records: Iterable[NodeRecord]) -> int:
    """The blocks that are served, a bit each: of 500 nodes that is much less than sets take."""
    served = 0
    for one in records:
        served |= (1 << one.end_block) - (1 << one.first_block)
    return served


def block_spans(blocks: Sequence[int]) -> str:
    """`0:10, 15:30`"""
    if not blocks:
        return ""
    breaks = [at + 1 for at, (one, other) in enumerate(pairwise(blocks)) if other != one + 1]
    starts, ends = [0, *breaks], [*breaks, len(blocks)]
    return ", ".join(f"{blocks[start]}:{blocks[end - 1] + 1}" for start, end in zip(starts, ends, strict=True))


def nobody(records: Sequence[CheckedRecord], wish: Wish) -> SwarmError:
    """All blocks are there, but not on these conditions: say which condition it is."""
    asks = sorted({one.record.ask for one in records})
    if wish.bid.kind == "amount" and wish.bid.amount < asks[-1]:
        return OverLimit(
            f"A bid of {wish.bid} per token and block does not reach all blocks",
            why=f"nodes ask from {format_credits(asks[0], 18)} to {format_credits(asks[-1], 18)}",
            next_step="bid more, or `--bid ask`, or use the donated lane with `--bid free`",
        )
    if wish.choice.trusted and (untrusted := _untrusted_ends(records, wish)):
        return SwarmError(
            f"No trusted node computes {' and '.join(untrusted)}",
            why=f"trusted_nodes names {', '.join(wish.choice.trusted)[:200]}",
            next_step="name more of them, or none: then any node may see a text's ends",
        )
    if wish.funds is not None and wish.bid.paid:
        return _not_covered(records, wish)
    return SwarmError(
        "The nodes of this swarm cannot be chained",
        why=f"no node for all of its blocks speaks the wire form {wish.wire}"
        if wish.wire
        else "no wire form is spoken by nodes for all blocks",
        next_step="look at `hivemint swarm status`, and try again later",
    )


def _untrusted_ends(records: Sequence[CheckedRecord], wish: Wish) -> list[str]:
    served = served_blocks(one.record for one in records if wish.choice.trusts(one.record))
    ends = {"the first block": 0, "the last block": wish.blocks - 1}
    return [name for name, block in ends.items() if block in wish.part and not served >> block & 1]


def _not_covered(records: Sequence[CheckedRecord], wish: Wish) -> NotCovered:
    needs = set()
    for one in records:
        price = (wish.bid.at(one.record.ask) or 0) * len(one.record.blocks)
        amount = session_amount(price, wish.work or wish.tokens, wish.margin)
        needs.add(f"{named(one.record.operator)}: {format_credits(amount)}")
    return NotCovered(
        "The escrow accounts do not cover a paid route",
        why=f"for {wish.work or wish.tokens} tokens the nodes need " + ", ".join(sorted(needs)[:_MOST_NAMED]),
        next_step="fund them with `hivemint account fund`, ask for fewer tokens, or use `--bid free`",
    )
