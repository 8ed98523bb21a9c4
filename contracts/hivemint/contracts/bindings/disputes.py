"""What costs a node its stake: equivocation and strikes."""

from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import Binding, halves
from hivemint.contracts.chain import Mined
from hivemint.contracts.errors import ProofError
from hivemint.contracts.ids import Address, Digest
from hivemint.contracts.receipt import CheckedReceipt
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import Pardon, Strike


class Disputes(Binding):
    NAME = "Disputes"

    async def prove_equivocation(self, reporter: Signer, one: CheckedReceipt, other: CheckedReceipt) -> Mined:
        """Show two different receipts that a node signed for one step. Raises ProofError if they are not that."""
        first, second = one.receipt, other.receipt
        same_step = (first.node, first.session_id, first.step) == (second.node, second.session_id, second.step)
        if not same_step or one.digest == other.digest:
            raise ProofError("These two receipts contradict nothing", why="they must differ for one session and step")
        statements = [
            (checked.receipt.client, checked.receipt.tokens, checked.receipt.head, halves(checked.signature))
            for checked in (one, other)
        ]
        call = self.function("proveEquivocation", first.node, first.session_id, first.step, *statements)
        return await self.chain.send(reporter, call, doing="Proving equivocation")

    async def struck(self, node: Address, epoch: int, block: BlockIdentifier = "latest") -> bool:
        """Whether a strike that is not pardoned voids the node's mint of `epoch`."""
        return bool(await self.read("struck", node, epoch, block=block))

    async def strike_digest(self, strike: Strike) -> Digest:
        return Digest(bytes(await self.read("strikeDigest", *strike.message().values())))

    async def pardon_digest(self, pardon: Pardon) -> Digest:
        return Digest(bytes(await self.read("pardonDigest", *pardon.message().values())))
