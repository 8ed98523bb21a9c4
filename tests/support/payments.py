"""The rules of `Settlement` and `Emission` as far as one node's worker meets them, in memory."""

from collections.abc import Sequence
from dataclasses import replace

from hivemint.ledger.books.entries import Donated
from hivemint.ledger.settlement.payments import EpochShare, EscrowState, Settled
from hivemint.protocol.credits import mintable
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address, Credits, SessionId
from hivemint.protocol.receipt import Countersigned

ALWAYS = 2**64 - 1
EPOCH, THAW = 1000, 300


class ReferencePayments:
    """`Payments` of one node. So many next writes raise before (`fail_before`) or after (`fail_after`) they count."""

    def __init__(self) -> None:
        self.now = 10 * EPOCH
        self.is_registered = True
        self.escrow: dict[Address, EscrowState] = {}
        self.minted_paid = 0
        self.capacity = 10**9
        self.rate_of = 7
        self.last: dict[int, bytes] = {}
        self.units: dict[int, int] = {}
        self.minted: set[int] = set()
        self.void: set[int] = set()
        self.gas_price = 1
        self.calls: list[tuple[str, int]] = []
        self.fail_before = self.fail_after = 0

    def fund(self, client: Address, amount: int) -> None:
        old = self._account(client)
        self.escrow[client] = replace(old, balance=Credits(old.balance + amount))

    def _account(self, client: Address) -> EscrowState:
        return self.escrow.get(client, EscrowState(Credits(0), Credits(0), Credits(0), 0, ALWAYS))

    async def time(self) -> int:
        return self.now

    async def thaw_seconds(self) -> int:
        return THAW

    async def epoch_seconds(self) -> int:
        return EPOCH

    async def registered(self) -> bool:
        return self.is_registered

    async def escrows(self, pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        return [self._account(client) for client, _ in pairs]

    async def settle_cost(self, items: int) -> int:
        return self.gas_price * (90_000 + 27_000 * (items - 1))

    async def settle(self, items: Sequence[Countersigned]) -> Settled:
        self._before("settle", len(items))
        burned = minted = 0
        skipped = {}
        for item in items:
            client, total = item.receipt.body.client, item.voucher.total
            escrow = self._account(client)
            due = min(total - escrow.collected, escrow.balance)
            if total <= escrow.collected:
                skipped[client] = "nothing owed"
            elif not escrow.balance:
                skipped[client] = "empty account"
            elif self.now > escrow.key_until + THAW:
                skipped[client] = "key over"
            else:
                collected = Credits(escrow.collected + due)
                balance = Credits(escrow.balance - due)
                self.escrow[client] = replace(escrow, balance=balance, collected=collected, confirmed=collected)
                burned += due
                minted += mintable(collected) - mintable(escrow.collected)
        self.minted_paid += minted
        self._after()
        return Settled(Credits(burned), Credits(minted), skipped)

    async def room(self, epoch: int) -> int:
        return max(0, self.capacity - self.units.get(epoch, 0))

    async def rate(self, model_id: bytes, epoch: int) -> int:
        return self.rate_of

    async def last_claimed(self, epoch: int) -> bytes:
        return self.last.get(epoch, bytes(32))

    async def claim(self, epoch: int, items: Sequence[Donated]) -> dict[SessionId, str]:
        self._before("claim", len(items))
        if epoch != self.now // EPOCH - 1:
            raise ChainError("WrongEpoch")
        skipped = {}
        for item in items:
            session = item.newest.receipt.session_id
            if session <= self.last.get(epoch, bytes(32)):
                skipped[session] = "not rising"
                continue
            self.last[epoch] = session
            self.units[epoch] = self.units.get(epoch, 0) + item.work * self.rate_of
        self._after()
        return skipped

    async def share(self, epoch: int) -> EpochShare:
        amount = Credits(min(self.units.get(epoch, 0), self.capacity))
        if not amount:
            return EpochShare(amount, "nothing")
        if epoch in self.minted:
            return EpochShare(amount, "minted")
        if epoch in self.void:
            return EpochShare(Credits(0), "void")
        return EpochShare(amount, "mintable" if self.now // EPOCH >= epoch + 2 else "waiting")

    async def mint(self, epoch: int) -> Credits:
        self._before("mint", epoch)
        share = await self.share(epoch)
        if share.status != "mintable":
            raise ChainError(f"not mintable: {share.status}")
        self.minted.add(epoch)
        self._after()
        return share.amount

    def _before(self, name: str, number: int) -> None:
        if self.fail_before:
            self.fail_before -= 1
            raise ChainError("The chain cannot be reached")
        self.calls.append((name, number))

    def _after(self) -> None:
        if self.fail_after:
            self.fail_after -= 1
            raise ChainError("sent, but no block holds it")
