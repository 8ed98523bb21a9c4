"""What is said before the first question: the model, the lane, the money, who can read along, how to leave."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.table import Table

from hivemint.cli.console import err
from hivemint.cli.talk.answers import Asking, encode
from hivemint.cli.talk.joining import Joined, spinner
from hivemint.cli.talk.lines import unseen
from hivemint.cli.talk.means import Means, means_of
from hivemint.cli.talk.views import two_columns
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.client.pipeline import Plan

READERS = "the nodes can read what you type and what they answer, and may keep it: docs/trust-model.md"
LEAVING = "/bye or Ctrl-D. Ctrl-C ends an answer, /help tells the rest"


def show_banner(place: Joined, how: Asking) -> None:
    with unseen(True), spinner("looking for a way", how.quiet):
        lane = _lane(place, how)
        means = means_of(place.model, place.network) if place.wallet else None
    err.print(banner(place, lane, means))


def show_terms(how: Asking, ids: Any) -> None:
    """Before a single answer, for a person: its lane and price, and who reads along. What stands against any way is
    told by asking."""
    with spinner("looking for a way", how.quiet), suppress(HivemintError):
        plan = how.model.dry_run(ids, max_new_tokens=how.max_tokens)
        err.print(two_columns({"lane": lane_of(plan, how.max_tokens), "privacy": READERS}))


def banner(place: Joined, lane: str, means: Means | None) -> Table:
    model = (
        f"{place.model.folder.name}, {place.model.config.num_hidden_layers} blocks at the nodes of {place.network.name}"
    )
    money = f"{place.wallet}: {means}" if means else "no wallet, nothing is paid (--wallet NAME pays, and goes first)"
    rows = {"model": model, "lane": lane, "balance": money, "privacy": READERS, "leave": LEAVING}
    return two_columns(rows)


def _lane(place: Joined, how: Asking) -> str:
    """Of a first answer as long as it may be. What stands against one is told: a talk may begin before the nodes do."""
    ids = encode(place.tokenizer, [{"role": "user", "content": "Hello"}])
    try:
        return lane_of(place.model.dry_run(ids, max_new_tokens=how.max_tokens), how.max_tokens)
    except HivemintError as error:
        return f"none now: {plain(error.what)}"


def lane_of(plan: "Plan", tokens: int) -> str:
    """What an answer of so many tokens costs, or why it costs nothing."""
    nodes = len({hop.peer for hop in plan.hops})
    by = f"{nodes} node{'' if nodes == 1 else 's'}"
    if plan.lane == "paid":
        price = sum(hop.price for hop in plan.hops)
        each, most = format_credits(price, 18), format_credits(price * tokens)
        return f"paid, {by}: {each} a token, read or written; {most} for an answer of {tokens}"
    return f"donated, {by}: free, and after all who pay" + (f" ({plan.unpaid})" if plan.unpaid else "")
