"""Why nobody is paid, node by node: what each escrow account still admits, and what keeps it from admitting more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hivemint.client.sessions.route import Route, session_amount
from hivemint.client.sessions.routing.planning import plan_route
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.speeds import Speeds
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import OverLimit, SwarmError
from hivemint.protocol.ids import Address
from hivemint.protocol.node_name import node_name
from hivemint.protocol.text import utc
from hivemint.swarm.records import CheckedRecord


@dataclass(frozen=True, slots=True)
class NodeFunds:
    """The account at one node, in wei. `funded` counts what was ever deposited, 0 while it thaws.

    `owed`: what of it is collected or promised. `reserved`: for this client's open sessions. `thaw_end` in seconds
    since 1970, 0 = open.
    """

    funded: int = 0
    owed: int = 0
    reserved: int = 0
    thaw_end: int = 0

    @property
    def left(self) -> int:
        """What the account still admits."""
        return max(0, self.funded - self.owed - self.reserved)

    def lacks(self, node: str, needed: int) -> str:
        """Why it does not admit `needed`, in a few words; "" if it does."""
        if needed <= self.left:
            return ""
        if self.thaw_end:
            return f"the escrow at {node} thaws until {utc(self.thaw_end)}"
        if not self.funded:
            return f"no escrow is funded at {node}"
        open_sessions = f" ({format_credits(self.reserved, 9)} reserved by open sessions)" if self.reserved else ""
        covers = format_credits(self.left, 9, symbol=False)
        return f"the escrow at {node} covers {covers} of {format_credits(needed, 9)}{open_sessions}"


def shortfall(
    records: Sequence[CheckedRecord] | NodeView, wish: Wish, speeds: Speeds, funds: Mapping[Address, NodeFunds] | None
) -> str:
    """Why there is no paid route, in a line: which accounts do not cover the cheapest one, or what else stands against
    it, a price ceiling for one."""
    try:
        route = plan_route(records, replace(wish, funds=None), speeds)
    except SwarmError as error:
        return f"{error.what}: {error.why}" if error.why else error.what
    if funds is None:
        return "this network names no chain"
    return ", ".join(lacking(route, wish, funds)) or "the escrow accounts do not cover a paid route"


def lacking(route: Route, wish: Wish, funds: Mapping[Address, NodeFunds]) -> list[str]:
    """A reason for each node of the route whose account falls short. One operator has one account for all its legs."""
    needed: dict[Address, int] = {}
    for leg in route.legs:
        amount = session_amount(leg.price, wish.work or wish.tokens, wish.margin)
        needed[leg.operator] = needed.get(leg.operator, 0) + amount
    reasons = [
        funds.get(operator, NodeFunds()).lacks(node_name(operator), amount) for operator, amount in needed.items()
    ]
    return [reason for reason in reasons if reason]


def not_covered(
    records: Sequence[CheckedRecord],
    wish: Wish,
    speeds: Speeds,
    funds: Mapping[Address, NodeFunds],
) -> OverLimit:
    """What is told where the bid leaves only paid work. Nobody is told to fund an account that thaws."""
    thawing = [funds[one.record.operator].thaw_end for one in records if one.record.operator in funds]
    cure = "fund them with `hivemint account fund`"
    if any(thawing):
        cure = "open what thaws again with `hivemint account cancel NODE`, or take other nodes"
    return OverLimit(
        "The escrow accounts do not cover a paid route",
        why=shortfall(records, wish, speeds, funds),
        next_step=f"{cure}; or ask for fewer tokens, or use `--bid free`",
    )
