"""The numbers of a deployment: the fixed ones, and the changeable ones by epoch."""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import Binding
from hivemint.protocol.ids import Address, Credits, ModelId


class Setting(IntEnum):
    """What the timelocked owner may change; the order of the contract's enum."""

    UNITS_PER_COIN = 0
    MAX_PER_UNIT = 1
    QUORUM = 2
    STRIKE_LIMIT = 3
    STRIKE_WINDOW = 4
    APPEAL = 5


@dataclass(frozen=True, slots=True)
class Fixed:
    """Fixed at deployment, in the order of the contract's struct. `fee` in 1/10,000, times in seconds, `halving` in
    epochs, `thaw_blocks` in blocks, `min_stake` in wei of coin, `cap` and `bootstrap` in wei of credits."""

    fee: int
    epoch: int
    thaw: int
    thaw_blocks: int
    unbond: int
    delay: int
    halving: int
    min_stake: int
    cap: Credits
    bootstrap: Credits

    def arguments(self) -> tuple[Any, ...]:
        return (
            self.fee,
            self.epoch,
            self.thaw,
            self.thaw_blocks,
            self.unbond,
            self.delay,
            self.halving,
            self.min_stake,
            int(self.cap),
            int(self.bootstrap),
        )


class Parameters(Binding):
    NAME = "Parameters"

    async def fixed(self) -> Fixed:
        read = Fixed(*await self.read("fixedNumbers"))
        return replace(read, cap=Credits(read.cap), bootstrap=Credits(read.bootstrap))

    async def value(self, setting: Setting, epoch: int, block: BlockIdentifier = "latest") -> int:
        """A setting as it counts in `epoch`."""
        return int(await self.read("valueAt", setting.value, epoch, block=block))

    async def rate(self, model: ModelId, epoch: int, block: BlockIdentifier = "latest") -> int:
        """Mega-FLOP per token and block that donated work counts in `epoch`; 0 = not paid."""
        return int(await self.read("rateAt", model, epoch, block=block))

    async def is_auditor(self, auditor: Address, epoch: int) -> bool:
        return bool(await self.read("isAuditor", auditor, epoch))

    async def paused(self) -> bool:
        """Whether `fund` and `mint` are stopped."""
        return bool(await self.read("paused"))

    async def paused_until(self) -> int:
        """When the newest pause ends, or ended, in seconds since 1970; 0 if there was none."""
        return int(await self.read("pausedUntil"))

    async def genesis(self) -> int:
        """The epoch of the deployment."""
        return int(await self.read("GENESIS"))

    async def owner(self) -> Address:
        return Address(await self.read("owner"))
