"""What a node can't do, as an error that knows what its client is told."""

from typing import Any

from hivemint.protocol.errors import HivemintError
from hivemint.protocol.receipt import SignedReceipt
from hivemint.swarm.messages import Code, Refused


class Unable(HivemintError):
    """Something that was asked for is not done. Nothing is owed for it."""

    code = Code.FAILED
    """What the client is told."""
    retry_after = 0.0
    """In how many seconds it may ask again; 0: not here."""
    evidence: SignedReceipt | None = None
    """What the neighbour that is to blame has signed."""

    def refused(self, **standing: Any) -> Refused:
        """As a message; `standing`: more of its fields."""
        return Refused.of(self, self.code, retry_after=self.retry_after, evidence=self.evidence, **standing)


class StepFailed(Unable):
    """An accepted step that can't be done."""

    def __init__(
        self, code: Code, what: str, why: str = "", next_step: str = "", evidence: SignedReceipt | None = None
    ) -> None:
        super().__init__(what, why=why, next_step=next_step)
        self.code, self.evidence = code, evidence
