"""Where a wallet stands with one node: what it has signed, what it owes, and whose word on that it takes.

A node's word counts downwards, and upwards as far as steps of this wallet can account for it. Above that only a
voucher helps that this wallet has signed and no process of this machine has: then another machine did. So the newest
vouchers are kept by total and receipt; what is older than these counts as signed here.
"""

from dataclasses import dataclass, replace

from hivemint.protocol.eip712 import MAX_UINT96
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import Address, Credits
from hivemint.protocol.node_name import named

KEPT = 32
"""Vouchers a node that are told apart from those of other machines."""
_AMOUNT, _RECEIPT = 12, 8  # bytes of a kept voucher's mark: its total, and the beginning of the digest that it binds
_MARK = _AMOUNT + _RECEIPT


class PromiseLimit(HivemintError):
    """A promise would pass what its account holds, or what its session was signed for. Nothing was promised."""

    kind = "refused"


class UnprovenDebt(HivemintError):
    """A node claims more than this wallet can owe it by its own books, and shows no voucher of another machine."""

    kind = "proof"


@dataclass(frozen=True, slots=True)
class Shown:
    """What proves that this wallet has promised `total`, seen by the caller: a voucher of its own over `receipt`.

    `receipt` None: the chain has paid that much to the node, by vouchers that it does not show.
    """

    total: Credits
    receipt: bytes | None = None


@dataclass(frozen=True, slots=True)
class Owing:
    """A step's price, to be promised by a voucher over the receipt with the digest `receipt`.

    `funded`: no total may pass it; `room`: by no more may it raise the highest total signed. None: no such limit.
    """

    node: Address
    amount: Credits
    receipt: bytes = b""
    funded: Credits | None = None
    room: Credits | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """`amount` more is owed to `node`. The voucher carries `total`; the highest total signed before was `before`."""

    node: Address
    amount: Credits
    before: Credits
    total: Credits
    receipt: bytes

    @property
    def rise(self) -> Credits:
        """By how much it raised the highest total signed, in wei."""
        return Credits(max(0, self.total - self.before))


@dataclass(frozen=True, slots=True)
class PromiseStanding:
    """One node's row, in wei; 0 <= owed <= incurred.

    `incurred`: what is owed at most, were each step whose fate is unknown a delivered one. `signed`: the newest
    vouchers, oldest first, as they are stored, 20 bytes each: a step adds one and takes none of them apart. Any voucher
    up to `floor` may have been signed here too. `total`: the highest that was signed.
    """

    owed: int = 0
    incurred: int = 0
    floor: int = 0
    total: int = 0
    signed: bytes = b""

    def owe(self, owing: Owing) -> "PromiseStanding":
        """One more step. Raises PromiseLimit."""
        total = self.owed + owing.amount
        _check(total, self.total, owing)
        return self._noted(total, owing.receipt, owed=total, incurred=self.incurred + owing.amount)

    def without(self, amount: int) -> "PromiseStanding":
        """A step that was refused or cancelled: its price leaves what is owed, its voucher stays signed."""
        owed = max(0, self.owed - amount)
        return replace(self, owed=owed, incurred=max(owed, self.incurred - amount))

    def unsigned(self, promise: Promise) -> "PromiseStanding":
        """A promise whose voucher never left: the highest total is again what the others have signed."""
        kept, mark = _marks(self.signed), _mark(promise.total, promise.receipt)
        if mark in kept:
            kept.remove(mark)
        total = max([self.floor, *map(_total_of, kept)])
        return replace(self.without(promise.amount), signed=b"".join(kept), total=total)

    def also(self, total: int, receipt: bytes) -> "PromiseStanding":
        """One more voucher for a total that was promised already."""
        return self._noted(total, receipt, self.owed, self.incurred)

    def told(self, owed: int, in_flight: int, shown: Shown | None) -> "PromiseStanding":
        """A node's word on the sum owed. `in_flight`: wei of steps that it may not have seen yet.

        Raises UnprovenDebt.
        """
        if owed <= self.incurred:
            return replace(self, owed=max(self.owed, owed) if in_flight else owed)
        if shown is None or shown.total < owed or not self._foreign(shown):
            raise UnprovenDebt(
                "A node claims a debt that was never promised",
                why=f"it says {owed} wei are owed, this wallet's books know of {self.incurred} at most, and it shows "
                "no voucher of this wallet that was signed elsewhere",
                next_step="use another node",
            )
        if shown.receipt is None:
            noted = replace(self, floor=max(self.floor, shown.total), total=max(self.total, shown.total))
        else:
            noted = self.also(shown.total, shown.receipt)
        return replace(noted, owed=owed, incurred=shown.total + in_flight)

    def _foreign(self, shown: Shown) -> bool:
        """Whether nobody here has signed it."""
        if shown.total > self.total:
            return True
        known = shown.receipt is None or _mark(shown.total, shown.receipt) in _marks(self.signed)
        return shown.total > self.floor and not known

    def _noted(self, total: int, receipt: bytes, owed: int, incurred: int) -> "PromiseStanding":
        """With one more voucher, unless it is among those up to `floor`."""
        if total <= self.floor:
            return PromiseStanding(owed, incurred, self.floor, self.total, self.signed)
        signed = self.signed + _mark(total, receipt)
        dropped, signed = signed[: -KEPT * _MARK], signed[-KEPT * _MARK :]
        floor = max([self.floor, *map(_total_of, _marks(dropped))]) if dropped else self.floor
        return PromiseStanding(owed, incurred, floor, max(self.total, total), signed)


def _mark(total: int, receipt: bytes) -> bytes:
    """A signed voucher as it is told from others, by the first bytes of the digest that it binds."""
    return total.to_bytes(_AMOUNT, "big") + receipt[:_RECEIPT].ljust(_RECEIPT, b"\0")


def _marks(signed: bytes) -> list[bytes]:
    """Those of a row; what is left over of a damaged one is no mark."""
    return [signed[at : at + _MARK] for at in range(0, len(signed) - _MARK + 1, _MARK)]


def _total_of(mark: bytes) -> int:
    return int.from_bytes(mark[:_AMOUNT], "big")


def _check(total: int, before: int, owing: Owing) -> None:
    if total > MAX_UINT96:
        raise PromiseLimit("A voucher cannot carry this total", why=f"{total} wei")
    if owing.funded is not None and total > owing.funded:
        raise PromiseLimit(
            f"The account at {named(owing.node)} does not cover the next step",
            why=f"{total} wei would be promised in all, the account holds {owing.funded} (0 while it thaws)",
            next_step="fund it with `hivemint account fund`",
        )
    if owing.room is not None and total - before > owing.room:
        raise PromiseLimit(
            f"The session's amount at {named(owing.node)} is used up",
            why=f"the next voucher would raise what was signed by {total - before} wei, {owing.room} are left",
        )
