"""Where a node's work stands on its way to credits: two flows, one sum. All views tell these figures.

paid       signed > bound (a voucher binds the receipt) > settled (burned) > minted
donated    served > bound > minted, epoch by epoch
"""

from dataclasses import asdict, dataclass
from typing import Any

from hivemint.ledger.books.entries import NodeTotals


@dataclass(frozen=True, slots=True)
class CreditFlow:
    """Credits in wei, work in tokens; all of it since the books began, but for the last three: of the last hour, of the
    last day, and since the node started.
    """

    signed: int
    bound: int
    promised: int
    settled: int
    minted: int
    paid_tokens: int
    served_tokens: int
    """Donated, by signed receipts."""
    bound_tokens: int
    """Donated, by receipts that a voucher binds: what can be claimed."""
    donated_minted: int
    hour: int = 0
    day: int = 0
    since_start: int = 0

    @classmethod
    def of(cls, totals: NodeTotals, donated_minted: int, *, hour: int, day: int, since_start: int) -> "CreditFlow":
        return cls(
            signed=int(totals.paid.signed),
            bound=int(totals.paid.countersigned),
            promised=int(totals.promised),
            settled=int(totals.settled),
            minted=int(totals.minted),
            paid_tokens=totals.paid.tokens_signed,
            served_tokens=totals.donated.tokens_signed,
            bound_tokens=totals.donated.tokens_countersigned,
            donated_minted=int(donated_minted),
            hour=hour,
            day=day,
            since_start=since_start,
        )

    @property
    def earned(self) -> int:
        """In all: what was minted for paid and for donated work."""
        return self.minted + self.donated_minted

    @property
    def unsettled(self) -> int:
        """Promised by vouchers, and not collected yet."""
        return max(0, self.promised - self.settled)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "earned": self.earned, "unsettled": self.unsettled}
