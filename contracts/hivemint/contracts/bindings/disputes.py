"""What costs a node its stake: equivocation and strikes."""

from collections.abc import Sequence

from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import Binding, halves
from hivemint.contracts.chain import Mined
from hivemint.protocol.eip712 import Pardon, Strike
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Address, Digest, Signature
from hivemint.protocol.receipt import CheckedReceipt
from hivemint.protocol.signing import Signer


class Disputes(Binding):
    NAME = "Disputes"

    async def prove_equivocation(self, reporter: Signer, one: CheckedReceipt, other: CheckedReceipt) -> Mined:
        """Show two different receipts that a node signed for one step. Raises ProofError if they are not that."""
        first, second = one.body, other.body
        same_step = (first.node, first.session_id, first.step) == (second.node, second.session_id, second.step)
        if not same_step or one.digest == other.digest:
            raise ProofError("These two receipts contradict nothing", why="they must differ for one session and step")
        statements = [
            (checked.body.client, checked.tokens, checked.head, halves(checked.signature)) for checked in (one, other)
        ]
        call = self.function("proveEquivocation", first.node, first.session_id, first.step, *statements)
        return await self.chain.send(reporter, call, doing="Proving equivocation")

    async def strike(self, sender: Signer, verdict: Strike, signatures: Sequence[Signature]) -> Mined:
        """Enter the auditors' verdict. `signatures` rise by their signers' addresses."""
        signed = [halves(one) for one in signatures]
        call = self.function("strike", verdict.node, verdict.epoch, verdict.evidence, verdict.accuser, signed)
        return await self.chain.send(sender, call, doing="Striking the node")

    async def pardon(self, sender: Signer, pardon: Pardon, signatures: Sequence[Signature]) -> Mined:
        """Take a strike back, within APPEAL. `signatures` rise by their signers' addresses."""
        signed = [halves(one) for one in signatures]
        call = self.function("pardon", pardon.node, pardon.epoch, pardon.evidence, signed)
        return await self.chain.send(sender, call, doing="Pardoning the node")

    async def slash_struck(self, sender: Signer, node: Address) -> list[int]:
        """Slash a fifth of the stake for the m oldest strikes that count. Returns their epochs, which are spent."""
        mined = await self.chain.send(sender, self.function("slashStruck", node), doing="Slashing for strikes")
        return list(self.events_in(mined, "StrikesSpent")[0]["epochs"])

    async def struck(self, node: Address, epoch: int, block: BlockIdentifier = "latest") -> bool:
        """Whether a strike that is not pardoned voids the node's mint of `epoch`."""
        return bool(await self.read("struck", node, epoch, block=block))

    async def strike_digest(self, strike: Strike) -> Digest:
        return Digest(bytes(await self.read("strikeDigest", *strike.message().values())))

    async def pardon_digest(self, pardon: Pardon) -> Digest:
        return Digest(bytes(await self.read("pardonDigest", *pardon.message().values())))
