"""When donated work is paid, as the chain stands: from which epoch the stake counts, when credits can be minted.

Stake that is bonded in epoch e counts from e + 1 on. Work of an epoch is claimed in the next one and minted in the one
after that (`docs/protocol.md`, section 3). So the first credits of a new node come about two days after its bond.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hivemint.ledger.settlement.worth import span
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address, ModelId
from hivemint.protocol.text import utc

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings

LOOK_EVERY = 30.0
CLAIMED, MINTED = 1, 2
"""Epochs after that of the work in which it is claimed, and from which on it is minted."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the chain says now. `counting`: the stake that counts in this epoch, `bonded` in the next one too, both in
    wei of coin. `now`: the chain's time; `read_at`: the clock's when it was read. `rate` 0: the network mints nothing
    for work on this model.
    """

    now: int
    length: int
    registered: bool
    bonded: int = 0
    counting: int = 0
    rate: int = 1
    read_at: float = 0.0

    @property
    def epoch(self) -> int:
        return self.now // self.length

    @property
    def pays(self) -> bool:
        """Whether donated work that is done now is paid."""
        return self.registered and self.counting > 0 and self.rate > 0

    @property
    def next_epoch_at(self) -> int:
        return (self.epoch + 1) * self.length

    @property
    def first_credits_at(self) -> int | None:
        """When donated work that is done from now on can be minted first; None: not as things stand."""
        if not (self.registered and self.rate and (self.counting or self.bonded)):
            return None
        paid = self.epoch if self.counting else self.epoch + 1
        return (paid + MINTED) * self.length

    def to_go(self, clock: float | None = None) -> int:
        """Seconds until the next epoch, by the clock since the chain was read."""
        passed = (time.time() if clock is None else clock) - self.read_at if self.read_at else 0.0
        return max(0, round(self.next_epoch_at - self.now - max(0.0, passed)))

    def text(self, clock: float | None = None) -> str:
        """Whether donated work is paid, from when on, and when its first credits come."""
        if not self.registered:
            return "unpaid: the node is not registered; run `hivemint node register`"
        if not self.rate:
            return "unpaid: the network mints nothing for donated work on this model"
        if not self.bonded and not self.counting:
            return "unpaid: no stake is bonded; run `hivemint node register --stake AMOUNT`"
        wait = span(self.to_go(clock))
        first = utc(self.first_credits_at or 0, to_the_minute=True)
        if not self.counting:
            return f"unpaid: the stake counts from the next epoch, in {wait}; first credits about {first}"
        return f"work of this epoch, {wait} more, is claimed then; its credits come about {first}"


class PayOutlook:
    """Reads it again and again for a node that runs; the last one stays while the chain is away."""

    def __init__(self, contracts: "Bindings", node: Address, model: ModelId) -> None:
        self._contracts, self._node, self._model = contracts, node, model
        self.last: Outlook | None = None

    async def look(self) -> Outlook:
        """Raises ChainError."""
        contracts = self._contracts
        now, length = await contracts.chain.time(), await contracts.emission.epoch_seconds()
        known, epoch = await contracts.registry.node(self._node), now // length
        if known is None:
            self.last = Outlook(now, length, registered=False, read_at=time.time())
        else:
            self.last = Outlook(
                now,
                length,
                registered=not known.retired,
                bonded=known.bonded,
                counting=await contracts.registry.stake_for(self._node, epoch),
                rate=await contracts.parameters.rate(self._model, epoch),
                read_at=time.time(),
            )
        return self.last

    async def run(self) -> None:
        """Until cancelled. What goes wrong is the settlement's to tell: it asks the same chain."""
        while True:
            with suppress(ChainError):
                await self.look()
            await asyncio.sleep(LOOK_EVERY)
