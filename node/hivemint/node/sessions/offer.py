"""What a node offers, and the words of a refusal that repeat the offer."""

from dataclasses import dataclass

from hivemint.node.sessions.account import ClientAccount
from hivemint.protocol.eip712 import Session, numerics_hash
from hivemint.protocol.ids import Address, Credits, ModelId, PeerId
from hivemint.swarm.messages import Code, Limits, Refused


@dataclass(frozen=True, slots=True)
class Offer:
    """What this node serves, and for how much: `ask` in wei per token and block."""

    operator: Address
    peer: PeerId
    model_id: ModelId
    first: int
    end: int
    numerics: tuple[str, ...]
    ask: Credits
    limits: Limits

    def price(self, session: Session) -> int:
        """The least price per token for a session's span."""
        return self.ask * session.blocks

    def part(self, session: Session) -> tuple[int, int] | None:
        """The session's blocks, counted from this node's first; None: all of them."""
        if (session.first_block, session.end_block) == (self.first, self.end):
            return None
        return session.first_block - self.first, session.end_block - self.first

    def wire(self, session: Session) -> str | None:
        """The wire form that a session's numerics name, None if this node does not serve them."""
        label = next((label for label in self.numerics if numerics_hash(label) == session.numerics), None)
        return label.rsplit("/", 1)[-1] if label else None


def refusal(code: Code, what: str, why: str = "", next_step: str = "", account: ClientAccount | None = None) -> Refused:
    if account is None:
        return Refused(code, what, why, next_step)
    return Refused(code, what, why, next_step, owed=account.owed, proof=account.proof)
