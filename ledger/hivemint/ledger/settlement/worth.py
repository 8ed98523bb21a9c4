"""Whether a settlement is worth its transaction: what it brings, what it costs, and what waiting risks.

Three times at which an account may be settled: when enough has come together (`settle_min`), when it has waited long
enough (`settle_every`), and when waiting risks it. Each asks for a least amount, so that nobody makes a node pay more
in gas than it gets. What is at risk is settled once: an account that thaws at once, as no step comes after it and a
chain that stands still counts its days too; a key that ends in the last part of THAW, by which its vouchers outlive it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hivemint.ledger.settlement.payments import EscrowState, Payments
from hivemint.protocol.credits import format_credits
from hivemint.protocol.ids import ONE_CREDIT, Address, Credits
from hivemint.protocol.receipt import Countersigned

_NEVER = 2**64 - 1
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class SettlerSettings:
    """When a settlement is worth its gas. Amounts in wei; times in seconds."""

    settle_min: Credits = field(default_factory=lambda: Credits(ONE_CREDIT))
    """Settle as soon as so much has come together, over all accounts."""
    settle_every: float = 6 * 3600.0
    """Settle what has waited so long, if it is more than `dust`."""
    dust: Credits = field(default_factory=lambda: Credits(ONE_CREDIT // 1000))
    """No account is settled for less, not even before it is lost."""
    credit_price: int = 0
    """Wei of the chain's coin that one credit is worth; 0 = unknown. With it a settlement must bring what it costs, and
    `gas_share` bounds the cost's part of what is not urgent."""
    gas_share: float = 0.1
    hurry: float = 86_400.0
    """So long before the end of the time that a key's vouchers outlive it; never more than half of THAW."""
    poll: float = 2.0
    longest_pause: float = 60.0
    batch: int = 50


@dataclass(frozen=True, slots=True)
class Due:
    """What one client's proof would bring now. `reason`: why nothing can be collected, "" if something can.

    disputed: one endpoint says that more can be collected than another does, and `amount` is the higher figure.
    """

    proof: Countersigned
    amount: int
    collected: Credits
    confirmed: Credits
    key_end: int
    thawing: bool
    thaw: int
    reason: str
    over: bool
    """Its key has ended so long ago that the chain pays none of its vouchers any more."""
    disputed: bool = False

    @classmethod
    def of(cls, proof: Countersigned, escrow: EscrowState, now: int, thaw: int) -> "Due":
        due = cls._by(proof, escrow, now, thaw)
        if escrow.hopeful is None:
            return due
        hoped = cls._by(proof, escrow.hopeful, now, thaw)
        if not hoped.collectable or (due.collectable and due.amount >= hoped.amount):
            return due
        return replace(due, amount=hoped.amount, reason="", disputed=True)

    @classmethod
    def _by(cls, proof: Countersigned, escrow: EscrowState, now: int, thaw: int) -> "Due":
        amount = max(0, min(proof.voucher.total - escrow.collected, escrow.balance))
        key_end = escrow.key_until + thaw if escrow.key_until < _NEVER else _NEVER
        reason = obstacle(escrow, proof.voucher.total, now, thaw)
        over = escrow.key_until > 0 and now > key_end
        return cls(
            proof, amount, escrow.collected, escrow.confirmed, key_end, bool(escrow.thaw_end), thaw, reason, over
        )

    @property
    def collectable(self) -> bool:
        return self.amount > 0 and not self.reason

    @property
    def client(self) -> Address:
        return self.proof.receipt.body.client

    @property
    def total(self) -> Credits:
        return self.proof.voucher.total

    def urgent(self, now: int, hurry: float) -> bool:
        return self.thawing or now >= self.key_end - min(hurry, self.thaw / 2)


class Worth:
    """The judgement of one round."""

    def __init__(self, settings: SettlerSettings, payments: Payments) -> None:
        self._settings, self._payments = settings, payments

    async def choose(self, due: Sequence[Due], now: int, age: float) -> tuple[list[Due], dict[Address, str], str]:
        """What to settle now; why accounts that are too small wait, by client; and why nothing is settled.

        age: seconds since the first of them has waited. Raises ChainError if gas has to be priced and can't be.
        """
        settings = self._settings
        least = max(
            min(settings.dust, settings.settle_min), self._in_credits(await self._cost(2) - await self._cost(1))
        )
        worth = sorted((one for one in due if one.amount >= least), key=lambda one: -one.amount)
        small = {one.client: self._too_small(one, least, now) for one in due if one.amount < least}
        if not worth:
            return [], small, "; ".join(sorted(small.values())[:_SHOWN])
        floor = self._in_credits(await self._cost(len(worth)))
        waiting, bar = sum(one.amount for one in worth), max(settings.settle_min, round(floor / settings.gas_share))
        if waiting >= bar or (age >= settings.settle_every and waiting >= floor):
            return worth, small, ""
        urgent = [one for one in worth if one.urgent(now, settings.hurry)]
        if urgent and sum(one.amount for one in urgent) >= self._in_credits(await self._cost(len(urgent))):
            return urgent, small, ""
        return [], small, self._waits(waiting, bar, floor, age)

    def _waits(self, waiting: int, bar: int, floor: int, age: float) -> str:
        left = self._settings.settle_every - age
        later = f"or in {span(left)}" if left > 0 else f"or from {format_credits(floor)} on, what it costs now"
        return f"{format_credits(waiting)} wait to be worth their gas: from {format_credits(bar)} on, {later}"

    async def _cost(self, items: int) -> int:
        """Wei of coin for settling so many. Not asked where a credit has no price."""
        return await self._payments.settle_cost(items) if self._settings.credit_price else 0

    def _in_credits(self, coin: int) -> int:
        return -(-coin * ONE_CREDIT // self._settings.credit_price) if coin > 0 else 0

    def _too_small(self, one: Due, least: int, now: int) -> str:
        what = f"{format_credits(one.amount)} of one account are less than a settlement is worth"
        letting_go = "; it is let go" if one.urgent(now, self._settings.hurry) else ""
        return f"{what}, {format_credits(least)}{letting_go}"


def obstacle(escrow: EscrowState, total: int, now: int, thaw: int) -> str:
    """Why nothing of a voucher can be collected; empty if something can."""
    if total <= escrow.collected:
        return ""
    if not escrow.balance:
        return "the account is empty; the rest is collectable after a top-up"
    if not escrow.key_until:
        return "the chain does not know the key of the newest voucher"
    if now > escrow.key_until + thaw:
        return "the key of the newest voucher has ended for good"
    return ""


def span(seconds: float) -> str:
    """For people."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
