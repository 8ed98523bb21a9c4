"""The chain's side of settlement: what the worker asks of the contracts, and how a transaction is seen through."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hivemint.contracts.errors import ChainError
from hivemint.contracts.ids import Address, Credits, SessionId
from hivemint.contracts.receipt import Countersigned
from hivemint.contracts.signature import Signer
from hivemint.ledger.blocks import newest
from hivemint.ledger.entries import Donated

if TYPE_CHECKING:
    from hivemint.contracts import bindings
    from hivemint.contracts.chain import Mined

_PATIENCE = 60.0  # seconds before a transaction is sent again at a higher price
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Escrow:
    """An account as settlement needs it, in wei and seconds. `key_until`: of the newest voucher's key; 0 = unknown."""

    balance: Credits
    collected: Credits
    thaw_end: int
    key_until: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What one settlement did. `skipped`: client -> the contract's reason."""

    burned: Credits
    minted: Credits
    skipped: dict[Address, str]


@dataclass(frozen=True, slots=True)
class Share:
    """The node's share of an epoch: `status` is nothing, waiting, mintable, minted or void."""

    amount: Credits
    status: str


class Payments(Protocol):
    """The contracts as one node's settlement sees them. Every method raises ChainError."""

    async def time(self) -> int: ...
    async def thaw_seconds(self) -> int: ...
    async def epoch_seconds(self) -> int: ...
    async def registered(self) -> bool: ...
    async def escrows(self, pairs: Sequence[tuple[Address, Address]]) -> list[Escrow]: ...
    async def settle(self, items: Sequence[Countersigned]) -> Settled: ...
    async def room(self, epoch: int) -> int:
        """Units (mega-FLOP) that the stake carries in `epoch` and that no claim has filled."""
        ...

    async def rate(self, model_id: bytes, epoch: int) -> int: ...
    async def last_claimed(self, epoch: int) -> bytes: ...
    async def claim(self, epoch: int, items: Sequence[Donated]) -> dict[SessionId, str]:
        """Returns the skipped ones with the contract's reasons."""
        ...

    async def share(self, epoch: int) -> Share: ...
    async def mint(self, epoch: int) -> Credits: ...


class ContractPayments:
    """`Payments` over the contracts; the operator pays the gas."""

    def __init__(
        self,
        contracts: "bindings.Bindings",
        operator: Signer,
        *,
        node: Address | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self._contracts, self._operator, self._patience = contracts, operator, patience
        self.node = node or operator.address
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
        return await self._contracts.registry.node(self.node) is not None

    async def escrows(self, pairs: Sequence[tuple[Address, Address]]) -> list[Escrow]:
        found = await self._contracts.settlement.accounts(self.node, pairs)
        return [Escrow(one.balance, one.collected, one.thaw_end, one.key_valid_until) for one in found]

    async def settle(self, items: Sequence[Countersigned]) -> Settled:
        settlement = self._contracts.settlement
        mined = await self._see_through(settlement.settle_call(self.node, items), "Settling")
        result = settlement.result(mined)
        skipped = {items[one.index].receipt.receipt.client: _words(one.reason.name) for one in result.skipped}
        return Settled(Credits(result.burned), Credits(result.minted), skipped)

    async def room(self, epoch: int) -> int:
        from hivemint.contracts.bindings import Setting

        carried = await self._contracts.parameters.value(Setting.UNITS_PER_COIN, epoch)
        filled = (await self._contracts.emission.claim_of(self.node, epoch)).units
        stake = await self._contracts.registry.stake_for(self.node, epoch)
        return max(0, stake * carried // 10**18 - filled)

    async def rate(self, model_id: bytes, epoch: int) -> int:
        from hivemint.contracts.ids import ModelId

        return await self._contracts.parameters.rate(ModelId(model_id), epoch)

    async def last_claimed(self, epoch: int) -> bytes:
        return (await self._contracts.emission.claim_of(self.node, epoch)).last_session

    async def claim(self, epoch: int, items: Sequence[Donated]) -> dict[SessionId, str]:
        from hivemint.contracts.bindings import Donation

        donations = [Donation(item.session, item.newest) for item in items]
        emission = self._contracts.emission
        mined = await self._see_through(emission.claim_call(self.node, epoch, donations), "Claiming donated work")
        return {session: _words(reason.name) for session, reason in emission.claimed(mined, donations).skipped.items()}

    async def share(self, epoch: int) -> Share:
        pending = await self._contracts.emission.pending(self.node, epoch)
        return Share(pending.amount, pending.status.name.lower())

    async def mint(self, epoch: int) -> Credits:
        emission = self._contracts.emission
        mined = await self._see_through(emission.function("mint", self.node, epoch), "Minting for donated work")
        return Credits(emission.events_in(mined, "Minted")[0]["amount"])

    async def _see_through(self, call: Any, doing: str) -> "Mined":
        """Send and wait; if no block takes it, offer more for the lowest nonce that is not mined yet.

        That nonce may belong to a transaction that an earlier run of this node left behind too cheap: it blocks all
        later ones, and is replaced. Whatever of this is then mined twice does nothing the second time.
        """
        from hivemint.contracts.chain import Reverted, raised_fees

        chain = self._contracts.chain
        submitted = await chain.submit(self._operator, call, doing=doing)
        for _ in range(_ATTEMPTS - 1):
            try:
                return await chain.wait(submitted, timeout=self._patience)
            except Reverted:
                raise
            except ChainError:
                waiting = await chain.nonce(self._operator.address, "latest")
                if waiting > submitted.nonce:  # mined in the last moment, or displaced by another process
                    found = await chain.mined(submitted)
                    if found is not None:
                        return found
                    submitted = await chain.submit(self._operator, call, doing=doing)
                    continue
                fees = raised_fees(submitted)
                submitted = await chain.submit(self._operator, call, doing=doing, nonce=waiting, fees=fees)
        return await chain.wait(submitted, timeout=self._patience)


def _words(name: str) -> str:
    return name.lower().replace("_", " ")
