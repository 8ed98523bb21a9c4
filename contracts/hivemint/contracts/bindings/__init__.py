"""Typed async methods over the deployed contracts. Importing it imports web3.

    async with await Bindings.connect(network) as contracts:
        await contracts.settlement.fund(wallet, {node: Credits(10**18)})

Reading methods take `block` (a number or "latest"); writing ones take the `Signer` that pays the gas, wait until a
block holds the transaction, and raise `chain.Reverted` with the contract's reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from web3.types import LogReceipt

from hivemint.contracts.bindings.base import Binding, decoding
from hivemint.contracts.bindings.disputes import Disputes
from hivemint.contracts.bindings.emission import Claim, ClaimRecord, ClaimSkip, Donation, Emission, Pending, Status
from hivemint.contracts.bindings.events import Event, decode_logs
from hivemint.contracts.bindings.parameters import Fixed, Parameters, Setting
from hivemint.contracts.bindings.registry import NodeInfo, Registry
from hivemint.contracts.bindings.settlement import (
    Account,
    AccountView,
    SessionKey,
    SettledItem,
    Settlement,
    SettlementResult,
    Skip,
    SkippedItem,
)
from hivemint.contracts.bindings.token import Permit, Token
from hivemint.contracts.chain import Chain
from hivemint.contracts.fees import DailyBudget, FeeCeiling
from hivemint.contracts.logs import logs_of_block, read_logs
from hivemint.protocol.errors import ChainError
from hivemint.protocol.ids import Address
from hivemint.protocol.network import Contracts, Network

__all__ = [
    "Account",
    "AccountView",
    "Bindings",
    "Claim",
    "ClaimRecord",
    "ClaimSkip",
    "Disputes",
    "Donation",
    "Emission",
    "Event",
    "Fixed",
    "NodeInfo",
    "Parameters",
    "Pending",
    "Permit",
    "Registry",
    "SessionKey",
    "Setting",
    "SettledItem",
    "Settlement",
    "SettlementResult",
    "Skip",
    "SkippedItem",
    "Status",
    "Token",
]


@dataclass(frozen=True, slots=True)
class Bindings:
    """All contracts of one network over one connection."""

    chain: Chain
    token: Token
    registry: Registry
    settlement: Settlement
    emission: Emission
    parameters: Parameters
    disputes: Disputes

    @classmethod
    async def connect(
        cls, network: Network, *, fees: FeeCeiling | None = None, budget: DailyBudget | None = None
    ) -> Self:
        """Connect to the network's chain, by all its endpoints, and check that the contracts are there.

        fees, budget: what own transactions may cost (`Chain.connect`). Raises ChainError.
        """
        chain = await Chain.connect(network.rpc_urls, network.chain_id, fees=fees, budget=budget)
        try:
            if not await chain.code(network.contracts.settlement):
                raise ChainError(
                    f"The network {network.name} has no contracts at {chain.shown}",
                    why=f"there is no code at {network.contracts.settlement}",
                    next_step="a development chain forgets them on a restart: `hivemint testnet up` deploys again",
                )
        except BaseException:
            await chain.close()
            raise
        return cls.over(chain, network.contracts)

    @classmethod
    def over(cls, chain: Chain, contracts: Contracts) -> Self:
        """Over a connection that exists, without asking the chain anything."""
        token = Token(chain, contracts.token)
        return cls(
            chain=chain,
            token=token,
            registry=Registry(chain, contracts.registry),
            settlement=Settlement(chain, contracts.settlement, token),
            emission=Emission(chain, contracts.emission),
            parameters=Parameters(chain, contracts.parameters),
            disputes=Disputes(chain, contracts.disputes),
        )

    def each(self) -> list[Self]:
        """The same through each endpoint alone, for what several must agree on."""
        if self.chain.each == (self.chain,):
            return [self]
        contracts = Contracts(**{name: getattr(self, name).address for name in Contracts.__dataclass_fields__})
        return [self.over(chain, contracts) for chain in self.chain.each]

    async def events(self, first_block: int, last_block: int) -> list[Event]:
        """All contracts' events of these blocks (both included), in the chain's order. Raises ChainError."""
        addresses = list(self.by_address)
        return self._decoded(await read_logs(self.chain, addresses, first_block, last_block))

    async def events_of(self, block_hash: bytes) -> list[Event]:
        """All contracts' events of one block. Raises ChainError, also if no endpoint knows the block."""
        return self._decoded(await logs_of_block(self.chain, list(self.by_address), block_hash))

    def _decoded(self, logs: Sequence[LogReceipt]) -> list[Event]:
        with decoding(self.chain, "Reading the contracts' events"):
            return decode_logs(self.by_address, logs)

    @property
    def by_address(self) -> dict[Address, Binding]:
        parts = (self.token, self.registry, self.settlement, self.emission, self.parameters, self.disputes)
        return {part.address: part for part in parts}

    async def close(self) -> None:
        await self.chain.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
