"""Who serves: owners, operator keys, peer ids, payouts and stake."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import Binding, halves
from hivemint.contracts.chain import Mined
from hivemint.protocol.eip712 import Domain, Operator, peer_id_hash
from hivemint.protocol.ids import Address, Digest, PeerId, Signature
from hivemint.protocol.signing import Signer

_NOBODY = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node's record; amounts in wei of the chain's coin, `unbond_end` in seconds since 1970 (0 = none)."""

    node: Address
    owner: Address
    payout: Address
    peer_id_hash: bytes
    retired: bool
    bonded: int
    unbonding: int
    unbond_end: int
    changed_in_epoch: int
    slashed_in_epoch: int

    @classmethod
    def of(cls, node: Address, raw: Any) -> Self | None:
        """From the contract's tuple (`Node` in INodeRegistry.sol); None if the node is not registered."""
        owner, retired, payout, peer_hash, bonded, _, change, slashed, _, unbonding, unbond_end = raw
        if owner == _NOBODY:
            return None
        return cls(
            node,
            Address(owner),
            Address(payout),
            bytes(peer_hash),
            retired,
            bonded,
            unbonding,
            unbond_end,
            change,
            slashed,
        )


class Registry(Binding):
    NAME = "NodeRegistry"

    async def register(
        self,
        owner: Signer,
        operator: Signer,
        peer_id: PeerId,
        domain: Domain,
        *,
        payout: Address | None = None,
        stake: int = 0,
    ) -> Mined:
        """Enter `operator` as a node of `owner`, with `stake` wei of coin; `payout` is the owner's own by default."""
        consent = Operator(owner.address, operator.address, peer_id_hash(peer_id))
        signature = consent.sign(domain, operator)
        return await self.register_signed(owner, consent, signature, payout=payout, stake=stake)

    async def register_signed(
        self, owner: Signer, consent: Operator, signature: Signature, *, payout: Address | None = None, stake: int = 0
    ) -> Mined:
        """The same with a consent that the operator key signed elsewhere."""
        to = payout or owner.address
        call = self.function("register", consent.operator, consent.peer_id_hash, to, halves(signature))
        return await self.chain.send(owner, call, doing="Registering the node", value=stake)

    async def set_peer(self, owner: Signer, operator: Signer, peer_id: PeerId, domain: Domain) -> Mined:
        """Another peer id for the node of `operator`."""
        consent = Operator(owner.address, operator.address, peer_id_hash(peer_id))
        signature = halves(consent.sign(domain, operator))
        call = self.function("setPeer", operator.address, consent.peer_id_hash, signature)
        return await self.chain.send(owner, call, doing="Changing the node's peer id")

    async def set_payout(self, owner: Signer, node: Address, payout: Address) -> Mined:
        return await self.chain.send(owner, self.function("setPayout", node, payout), doing="Changing the payout")

    async def offer_ownership(self, owner: Signer, node: Address, to: Address | None) -> Mined:
        """Offer the node, its stake and its pay to `to`; None takes an offer back."""
        call = self.function("offerOwnership", node, to or _NOBODY)
        return await self.chain.send(owner, call, doing="Offering the node")

    async def accept_ownership(self, new_owner: Signer, node: Address) -> Mined:
        """Become the owner of a node that was offered; its payout stays until it is changed."""
        return await self.chain.send(new_owner, self.function("acceptOwnership", node), doing="Taking over the node")

    async def offered_to(self, node: Address) -> Address | None:
        """Who may take the node over; None if nobody was offered it."""
        to = await self.read("offeredTo", node)
        return None if to == _NOBODY else Address(to)

    async def bond(self, owner: Signer, node: Address, stake: int) -> Mined:
        """Add `stake` wei of coin; it counts for donated work from the next epoch on."""
        return await self.chain.send(owner, self.function("bond", node), doing="Bonding stake", value=stake)

    async def unbond(self, owner: Signer, node: Address) -> Mined:
        """All stake begins to leave; it is slashable until withdrawn, after UNBOND."""
        return await self.chain.send(owner, self.function("unbond", node), doing="Unbonding the stake")

    async def withdraw_stake(self, owner: Signer, node: Address, to: Address | None = None) -> Mined:
        call = self.function("withdrawStake", node, to or owner.address)
        return await self.chain.send(owner, call, doing="Withdrawing the stake")

    async def reward_of(self, reporter: Address) -> int:
        """Wei of coin that reports have earned and nobody has pulled yet."""
        return int(await self.read("rewardOf", reporter))

    async def pull_reward(self, reporter: Signer, to: Address | None = None) -> Mined:
        call = self.function("pullReward", to or reporter.address)
        return await self.chain.send(reporter, call, doing="Taking the reward")

    async def node(self, node: Address, block: BlockIdentifier = "latest") -> NodeInfo | None:
        """A node's record; None if there is none."""
        return NodeInfo.of(node, await self.read("nodeOf", node, block=block))

    async def nodes(self, nodes: Sequence[Address], block: BlockIdentifier = "latest") -> list[NodeInfo | None]:
        """Many records in one call, in the same order."""
        raw = await self.read("nodesOf", list(nodes), block=block) if nodes else []
        if len(raw) != len(nodes):
            raise self.chain.odd("Reading the nodes", f"{len(raw)} records, asked were {len(nodes)}")
        return [NodeInfo.of(node, one) for node, one in zip(nodes, raw, strict=True)]

    async def stake_for(self, node: Address, epoch: int) -> int:
        """Wei of coin that count in donated work for `epoch` (the current or the last one)."""
        return int(await self.read("stakeFor", node, epoch))

    async def minimum_stake(self) -> int:
        return int(await self.read("MIN_STAKE"))

    async def operator_digest(self, consent: Operator) -> Digest:
        return Digest(bytes(await self.read("operatorDigest", *consent.message().values())))
