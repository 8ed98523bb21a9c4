"""What one call was and has cost, and what a model has spent since it was loaded."""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hivemint.protocol.credits import format_credits
from hivemint.protocol.ids import Credits

if TYPE_CHECKING:
    from hivemint.client.generation.sequences import Bill, Sequences
    from hivemint.client.generation.tuning import Ceiling
    from hivemint.client.pipeline import Hop


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `generate`, or of the model itself; also one that has failed or was interrupted.

    `prompt_tokens` and `tokens` count all rows: what came in without padding, and what was generated. `lane` is `paid`
    if any row was, None where no session was opened; `why` tells why it was donated work though the settings would have
    paid. `nodes` are those of the last route of each row, each once. `spent` is in wei (10**-18 credits), 0 in the
    donated lane: what the call's own steps cost, computed again or not.
    """

    prompt_tokens: int
    tokens: int
    lane: Literal["paid", "donated"] | None
    why: str
    nodes: "tuple[Hop, ...]"
    spent: Credits

    @classmethod
    def of(cls, sequences: "Sequences", bill: "Bill", before: int) -> "Call":
        """What `sequences` have done; `before`: what stood on `bill` when they began, in wei."""
        plans = [plan for plan in sequences.plans if plan is not None]
        paid = [plan for plan in plans if plan.lane == "paid"]
        hops = {(hop.peer, hop.first, hop.end): hop for plan in plans for hop in plan.hops}
        return cls(
            sequences.prompt_tokens,
            sequences.tokens,
            "paid" if paid else "donated" if plans else None,
            "" if paid else next((plan.unpaid for plan in plans if plan.unpaid), ""),
            tuple(hops.values()),
            Credits(bill.wei - before),
        )

    def __str__(self) -> str:
        """One line for people."""
        way = " -> ".join(f"{hop.name} {hop.first}:{hop.end}" for hop in self.nodes)
        lane = f"{self.lane} lane" if self.lane else "no session"
        parts = [f"{self.tokens} tokens after {self.prompt_tokens}", lane + (f" ({self.why})" if self.why else "")]
        return ", ".join([*parts, *([way] if way else []), format_credits(self.spent, digits=9)])


class Spending:
    """All that one model has spent, in wei. Thread-safe."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._calls = 0
        self._trainings: list[Ceiling] = []
        self.last: Call | None = None

    def note(self, call: Call) -> None:
        """A call has ended."""
        with self._changing:
            self._calls += call.spent
            self.last = call

    def watch(self, training: "Ceiling") -> None:
        """What its lanes sign counts, now and later."""
        with self._changing:
            self._trainings.append(training)

    @property
    def total(self) -> Credits:
        with self._changing:
            return Credits(self._calls + sum(one.signed for one in self._trainings))
