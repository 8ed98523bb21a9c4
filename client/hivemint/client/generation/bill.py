"""What an answer has cost, of whom it came, and on which lane: for a last line, for JSON, for a program."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from hivemint.client.pipeline import Hop, Plan
from hivemint.protocol.credits import format_credits
from hivemint.protocol.text import plain
from hivemint.swarm.identity import peer_text

Lane = Literal["paid", "donated"]


@dataclass(slots=True)
class Bill:
    """What calls of `generate` have cost by their own steps, in wei, whatever other processes of the wallet pay.

    `spent` is 0 in the donated lane. `plans`: the last route of each row. `prompt_tokens` and `tokens` are those of the
    prompts and of the answers, of all rows, without padding; what a conversation has computed before is in
    `prompt_tokens` too, and costs nothing again. `seconds`: from the call to its end. A call that fails or is
    interrupted adds what it has had until then.

    `replayed`: positions whose keys and values were lost with a node, or given to others, and were computed again: once
    for each span that was lost. `paid_again`: positions that were paid a second time, at each span that was.
    """

    spent: int = 0
    plans: list[Plan] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    replayed: int = 0
    paid_again: int = 0

    @property
    def plan(self) -> Plan | None:
        """The last route that was paid, else the last one; None where none was found."""
        routes = [plan for plan in self.plans if plan.lane == "paid"] or self.plans
        return routes[-1] if routes else None

    @property
    def lane(self) -> Lane | None:
        """`paid` if any row was; None where no session was opened."""
        return self.plan.lane if self.plan else None

    @property
    def why(self) -> str:
        """Why it is donated work though the settings would have paid; "" otherwise. A node's own words, as one line."""
        return plain(self.plan.unpaid) if self.plan else ""

    @property
    def nodes(self) -> list[Hop]:
        """Those of all routes, each with its blocks once, in the order of the blocks."""
        found = {(hop.first, hop.end, hop.peer): hop for plan in self.plans for hop in plan.hops}
        return [found[key] for key in sorted(found)]

    @property
    def price(self) -> int:
        """Wei a token through all blocks, on the last route."""
        return sum(hop.price for hop in self.plan.hops) if self.plan else 0

    def add(self, other: "Bill") -> None:
        """Take what another call has cost into the sum."""
        self.spent += other.spent
        self.plans += other.plans
        self.prompt_tokens += other.prompt_tokens
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.replayed += other.replayed
        self.paid_again += other.paid_again

    def document(self) -> dict[str, Any]:
        """For JSON. Amounts in wei."""
        return {
            "lane": self.lane,
            "unpaid": self.why,
            "notes": [plain(note) for note in self.plan.notes] if self.plan else [],
            "nodes": hops(self.nodes),
            "price_wei": self.price,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "spent_wei": self.spent,
            "seconds": round(self.seconds, 3),
            "replayed": self.replayed,
            "paid_again": self.paid_again,
        }

    def __str__(self) -> str:
        """One line for people: `40 tokens, by candid-quail-52d6 0:15 -> calm-fern-11ab 15:30, 0.00012 HMC`."""
        parts = [f"{self.tokens} tokens"]
        if self.plan and self.plan.hops:
            parts.append("by " + way(self.plan.hops))
        if self.spent or self.lane == "paid":
            parts.append(format_credits(self.spent))
        if self.lane == "donated":
            parts.append("donated lane" + (f": {self.why}" if self.why else ""))
        if self.replayed:
            parts.append(f"{self.replayed} positions computed again")
        return ", ".join(parts)


def way(hops: Iterable[Hop]) -> str:
    """The nodes in order, by name and blocks."""
    return " -> ".join(f"{hop.name} {hop.first}:{hop.end}" for hop in hops)


def hops(nodes: Iterable[Hop]) -> list[dict[str, Any]]:
    """Nodes of a route for JSON: by name, and by who they are. `price_wei` a token, for all of its blocks here."""
    return [
        {
            "name": hop.name,
            "operator": hop.operator,
            "peer": peer_text(hop.peer),
            "first": hop.first,
            "end": hop.end,
            "price_wei": int(hop.price),
            "wait_ms": round(hop.wait_ms, 1),
        }
        for hop in nodes
    ]
