"""What a node offers, and the words of a refusal that repeat the offer."""

import time
from dataclasses import dataclass

from hivemint.node.sessions.account import ClientAccount
from hivemint.protocol.eip712 import Session, numerics_hash
from hivemint.protocol.ids import Address, Credits, ModelId, PeerId
from hivemint.swarm.messages import Code, Limits, Refused

SHOWN = 60.0
"""Seconds for which an ask that was shown to a client is good: as long as the nonce that came with it."""


@dataclass(slots=True)
class Offer:
    """What this node serves, and for how much: `ask` in wei per token and block, which may change."""

    operator: Address
    peer: PeerId
    model_id: ModelId
    first: int
    end: int
    numerics: tuple[str, ...]
    ask: Credits
    limits: Limits
    shown: int = 0
    shown_until: float = 0.0

    def reprice(self, ask: Credits) -> None:
        """From now on. Who was shown a lower ask within the last minute may still open a session by it."""
        self.shown, self.shown_until = self.ask, time.monotonic() + SHOWN
        self.ask = ask

    def price(self, session: Session) -> int:
        """The least price per token for a session's span."""
        least = min(self.ask, self.shown) if time.monotonic() < self.shown_until else self.ask
        return least * session.blocks

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
