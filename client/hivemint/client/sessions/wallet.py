"""Who pays and who signs: the client's wallet, its session key, and its escrow accounts at nodes.

An EOA may be its own session key. A separate one is worth having where a process runs for long: it can neither
deposit nor withdraw, and the wallet may revoke it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hivemint.contracts.bindings import Account, Bindings
from hivemint.contracts.bindings.registry import Registry
from hivemint.protocol.eip712 import Delegation, Domain
from hivemint.protocol.errors import WalletError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores, read_password
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import SignedDelegation

MAX_DELEGATION = 90 * 86_400
"""`Settlement` takes no key for longer, in seconds."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The client's address and the key that signs its sessions and vouchers.

    `valid_until` (seconds since 1970) bounds a separate key; None: the wallet's own key, without a limit.
    """

    client: Address
    key: Signer
    delegation: SignedDelegation | None = None
    valid_until: int | None = None

    @classmethod
    def own(cls, wallet: Signer) -> "Identity":
        """The wallet signs itself."""
        return cls(wallet.address, wallet)

    @classmethod
    def delegated(cls, domain: Domain, wallet: Signer, key: Signer, valid_until: int) -> "Identity":
        """`key` signs for the wallet until `valid_until`, by a Delegation that is shown to nodes in the donated lane.

        It is no permission for paid work: that needs `Settlement.authorize`.
        """
        delegation = Delegation(wallet.address, key.address, valid_until, paid=False)
        signed = SignedDelegation(delegation=delegation, signature=delegation.sign(domain, wallet))
        return cls(wallet.address, key, signed, valid_until)

    @classmethod
    def authorized(cls, client: Address, key: Signer, valid_until: int) -> "Identity":
        """`key` is on record at `Settlement` (`hivemint key authorize`)."""
        return cls(client, key, None, valid_until)


def unlock(
    name: str, *, password: str | None = None, password_file: Path | None = None, home: Home | None = None
) -> Signer:
    """The key of the wallet `name`; without `password` it comes from the file, the environment or the terminal.

    Raises WalletError for an unknown wallet or a wrong password, BadInput if there is nobody to ask.
    """
    keystores = Keystores((home or Home.open()).keystores)
    keystores.find(name)
    return keystores.unlock(name, password if password is not None else read_password(name, file=password_file))


class ChainPort(Protocol):
    """What a client asks of the chain. The in-memory reference is in tests/support."""

    async def time(self) -> int:
        """Of the newest block, in seconds since 1970."""
        ...

    async def accounts(self, client: Address, nodes: Sequence[Address]) -> Mapping[Address, Account]: ...

    async def peer_hashes(self, nodes: Sequence[Address]) -> Mapping[Address, bytes]:
        """keccak256 of the peer id of every registered node that is not retired; others are left out."""
        ...

    async def on_record(self, client: Address, key: Address) -> bool:
        """Whether `client` has ever authorized `key` on the chain."""
        ...

    async def close(self) -> None: ...


class ContractPort:
    """The contracts of one network. `time` is asked of the chain once a second at most."""

    _TIME_GOOD = 1.0

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._time: tuple[float, int] | None = None

    @classmethod
    async def connect(cls, network: Network) -> "ContractPort":
        """Raises ChainError if the chain is not there, is another one, or lacks the contracts."""
        return cls(await Bindings.connect(network))

    @property
    def registry(self) -> Registry:
        """What ranks the records of nodes (`Host.rank_by`)."""
        return self._bindings.registry

    async def time(self) -> int:
        now = time.monotonic()
        if self._time is None or now - self._time[0] > self._TIME_GOOD:
            self._time = (now, await self._bindings.chain.time())
        return self._time[1] + int(now - self._time[0])

    async def accounts(self, client: Address, nodes: Sequence[Address]) -> dict[Address, Account]:
        found = await asyncio.gather(*(self._bindings.settlement.account(client, node) for node in nodes))
        return dict(zip(nodes, found, strict=True))

    async def peer_hashes(self, nodes: Sequence[Address]) -> dict[Address, bytes]:
        found = await self._bindings.registry.nodes(nodes)
        return {one.node: one.peer_id_hash for one in found if one is not None and not one.retired}

    async def on_record(self, client: Address, key: Address) -> bool:
        return (await self._bindings.settlement.session_key(client, key)).authorized

    async def genesis(self) -> bytes:
        """The hash of the chain's first block."""
        return await self._bindings.chain.genesis()

    async def key_until(self, client: Address, key: Address) -> int:
        """Until when (seconds since 1970) `key` may sign for `client`; 0 if it never may, or was revoked."""
        found = await self._bindings.settlement.session_key(client, key)
        return found.valid_until if found.authorized and found.valid_until > await self._bindings.chain.time() else 0

    async def close(self) -> None:
        await self._bindings.close()


async def sign_by_key(chain: ContractPort, client: Address, key: Signer) -> Identity:
    """`key` for the wallet `client`, as `Settlement` knows it. Raises WalletError if it may not sign."""
    until = await chain.key_until(client, key.address)
    if not until:
        raise WalletError(
            f"The key {key.address} may not sign for {client}",
            why="it was never authorized, its time is over, or it was revoked",
            next_step="authorize a new one with `hivemint key authorize`",
        )
    return Identity.authorized(client, key, until)


async def funded_nodes(bindings: Bindings, client: Address, first_block: int) -> dict[Address, Account]:
    """Every account that anybody ever funded for `client`, by node: from the chain's events since `first_block`."""
    found = await bindings.settlement.read_events("Funded", first_block, client=client)
    nodes = sorted({Address(event["node"]) for event in found})
    return await ContractPort(bindings).accounts(client, nodes)


def check_validity(days: float) -> int:
    """Seconds that a session key lasts. Raises WalletError outside 0 .. 90 days."""
    if not 1 <= days * 86_400 <= MAX_DELEGATION:  # false for what is no number, too
        raise WalletError(f"A session key cannot last {days:g} days", why="the contract takes at most 90 days")
    return int(days * 86_400)
