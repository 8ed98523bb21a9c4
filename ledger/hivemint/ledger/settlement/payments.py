"""The chain's side of settlement: what the worker asks of the contracts, and what its transactions cost."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from hivemint.contracts.blocks import newest
from hivemint.ledger.books.entries import Donated
from hivemint.ledger.settlement.chainview import each_account
from hivemint.ledger.settlement.gas import settlement_cost
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address, Credits, SessionId
from hivemint.protocol.receipt import Countersigned
from hivemint.protocol.signing import Signer

if TYPE_CHECKING:
    from hivemint.contracts import bindings

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class EscrowState:
    """An account as settlement needs it, in wei and seconds. `key_until`: of the voucher's key; 0 = unknown.

    `collected` is what the newest block says, the highest of all endpoints: what is not worth sending again.
    `confirmed` is what the last confirmed block says, the lowest of all endpoints: what is spent for good.
    `hopeful`, where endpoints differ: what would be collectable if the kindest word of each were true.
    """

    balance: Credits
    collected: Credits
    confirmed: Credits
    thaw_end: int
    key_until: int
    hopeful: "EscrowState | None" = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What one settlement did. `skipped`: client -> the contract's reason."""

    burned: Credits
    minted: Credits
    skipped: dict[Address, str]


@dataclass(frozen=True, slots=True)
class EpochShare:
    """The node's share of an epoch: `status` is nothing, waiting, mintable, minted or void."""

    amount: Credits
    status: str


class Payments(Protocol):
    """The contracts as one node's settlement sees them. Every method raises ChainError."""

    async def time(self) -> int: ...
    async def thaw_seconds(self) -> int: ...
    async def epoch_seconds(self) -> int: ...
    async def registered(self) -> bool: ...
    async def escrows(self, pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]: ...
    async def settle_cost(self, items: int) -> int:
        """What settling so many vouchers at once costs now, in wei of the chain's coin, data fee included."""
        ...

    async def settle(self, items: Sequence[Countersigned]) -> Settled: ...
    async def room(self, epoch: int) -> int:
        """Units (mega-FLOP) that the stake carries in `epoch` and that no claim has filled."""
        ...

    async def rate(self, model_id: bytes, epoch: int) -> int: ...
    async def last_claimed(self, epoch: int) -> bytes: ...
    async def claim(self, epoch: int, items: Sequence[Donated]) -> dict[SessionId, str]:
        """Returns the skipped ones with the contract's reasons."""
        ...

    async def share(self, epoch: int) -> EpochShare: ...
    async def mint(self, epoch: int) -> Credits: ...


class ContractPayments:
    """`Payments` over the contracts; the operator pays the gas."""

    def __init__(
        self,
        contracts: "bindings.Bindings",
        operator: Signer,
        *,
        node: Address | None = None,
        confirmations: int = 1,
    ) -> None:
        self._contracts, self._operator, self._confirmations = contracts, operator, confirmations
        self.node = node or operator.address
        self._each = contracts.each()
        self._fixed: bindings.Fixed | None = None

    async def time(self) -> int:
        return (await newest(self._contracts.chain)).time

    async def thaw_seconds(self) -> int:
        return (await self._numbers()).thaw

    async def epoch_seconds(self) -> int:
        return (await self._numbers()).epoch

    async def _numbers(self) -> "bindings.Fixed":
        if self._fixed is None:
            self._fixed = await self._contracts.parameters.fixed()
        return self._fixed

    async def registered(self) -> bool:
        """By any endpoint: one that denies it must not stop the others' settlements."""
        asked = [contracts.registry.node(self.node) for contracts in self._each]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if any(one is not None and not isinstance(one, BaseException) for one in answers):
            return True
        for one in answers:
            if isinstance(one, BaseException):
                raise one
        return False

    async def escrows(self, pairs: Sequence[tuple[Address, Address]]) -> list[EscrowState]:
        answers = await each_account(self._each, self.node, pairs, self._confirmations)
        return [_most_cautious([(new[at], sure[at]) for new, sure in answers]) for at in range(len(pairs))]

    async def settle_cost(self, items: int) -> int:
        return await settlement_cost(self._contracts.chain, self._contracts.settlement.address, items)

    async def settle(self, items: Sequence[Countersigned]) -> Settled:
        async def by(contracts: "bindings.Bindings") -> "bindings.SettlementResult":
            call = contracts.settlement.settle_call(self.node, items)
            return contracts.settlement.result(await contracts.chain.send(self._operator, call, doing="Settling"))

        result = await self._sent(by)
        if any(one.index >= len(items) for one in result.skipped):
            raise self._contracts.chain.odd("Settling", "it skipped an item that was not sent")
        skipped = {items[one.index].receipt.body.client: _words(one.reason.name) for one in result.skipped}
        return Settled(Credits(result.burned), Credits(result.minted), skipped)

    async def _sent(self, by: "Callable[[bindings.Bindings], Awaitable[_T]]") -> _T:
        """A transaction by the endpoints together; where these say that it can't be sent, by each of them alone: one
        that names a wild fee, or says that the contract refuses, stops nothing. Raises the first one's ChainError.
        """
        from hivemint.contracts.fees import TooDear
        from hivemint.contracts.transactions import Reverted

        try:
            return await by(self._contracts)
        except (TooDear, Reverted) as error:  # nothing has been sent, or it was mined and has changed nothing
            refused = error
        for contracts in self._each if len(self._each) > 1 else ():
            with suppress(ChainError):
                return await by(contracts)
        raise refused

    async def room(self, epoch: int) -> int:
        from hivemint.contracts.bindings import Setting

        carried = await self._contracts.parameters.value(Setting.UNITS_PER_COIN, epoch)
        filled = (await self._contracts.emission.claim_of(self.node, epoch)).units
        stake = await self._contracts.registry.stake_for(self.node, epoch)
        return max(0, stake * carried // 10**18 - filled)

    async def rate(self, model_id: bytes, epoch: int) -> int:
        from hivemint.protocol.ids import ModelId

        return await self._contracts.parameters.rate(ModelId(model_id), epoch)

    async def last_claimed(self, epoch: int) -> bytes:
        return (await self._contracts.emission.claim_of(self.node, epoch)).last_session

    async def claim(self, epoch: int, items: Sequence[Donated]) -> dict[SessionId, str]:
        from hivemint.contracts.bindings import Donation

        donations = [Donation(item.session, item.newest) for item in items]

        async def by(contracts: "bindings.Bindings") -> dict[SessionId, str]:
            call = contracts.emission.claim_call(self.node, epoch, donations)
            mined = await contracts.chain.send(self._operator, call, doing="Claiming donated work")
            skipped = contracts.emission.claimed(mined, donations).skipped
            return {session: _words(reason.name) for session, reason in skipped.items()}

        return await self._sent(by)

    async def share(self, epoch: int) -> EpochShare:
        pending = await self._contracts.emission.pending(self.node, epoch)
        return EpochShare(pending.amount, pending.status.name.lower())

    async def mint(self, epoch: int) -> Credits:
        return await self._sent(lambda contracts: contracts.emission.mint(self._operator, self.node, epoch))


def _most_cautious(views: "Sequence[tuple[bindings.AccountView, bindings.AccountView]]") -> EscrowState:
    """Of what the endpoints say, each at its newest and its last confirmed block."""
    new, sure = [one for one, _ in views], [one for _, one in views]
    cautious = EscrowState(
        balance=Credits(min(one.balance for one in new)),
        collected=Credits(max(one.collected for one in new)),
        confirmed=Credits(min(one.collected for one in sure)),
        thaw_end=min((one.thaw_end for one in new if one.thaw_end), default=0),
        key_until=min(one.key_valid_until for one in new),
    )
    hopeful = replace(
        cautious,
        balance=Credits(max(one.balance for one in new)),
        collected=Credits(min(one.collected for one in new)),
        key_until=max(one.key_valid_until for one in new),
    )
    return cautious if hopeful == cautious else replace(cautious, hopeful=hopeful)


def _words(name: str) -> str:
    return name.lower().replace("_", " ")
