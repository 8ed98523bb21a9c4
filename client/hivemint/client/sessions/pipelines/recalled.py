"""What nodes may still hold of a text whose client is gone: the place that a new pipeline begins at."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hivemint.client.kept import KeptHop, TextMark
from hivemint.client.pipeline import Hop, Plan, Rows
from hivemint.client.sessions.route import Leg
from hivemint.client.sessions.session import RemoteSession
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import ProofError, SwarmError
from hivemint.protocol.ids import Address, BlockIndex, Credits, PeerId
from hivemint.protocol.node_name import node_name
from hivemint.protocol.receipt import MatchedReceipt, check_signature, match


def mark_of(sessions: tuple[RemoteSession, ...]) -> TextMark | None:
    """What has been proved of a pipeline, by all of its hops alike. None: nothing yet."""
    position = min(one.cached for one in sessions)
    if not position:
        return None
    hops = [KeptHop(one.leg.peer, one.leg.first, one.leg.end, one.proved.signed) for one in sessions]
    return TextMark(position, tuple(hops))


@dataclass(slots=True)
class RecalledSession:
    """A session that another process of this key had. `newest`: the receipt that names its state."""

    leg: Leg
    newest: MatchedReceipt
    recalled: bool = True
    output_rows: bytearray = field(default_factory=bytearray)


class RecalledPipeline:
    """Implements `client.pipeline.Pipeline` as far as a parent of a fork must: nothing can be computed on it."""

    def __init__(self, mark: TextMark, hidden_size: int) -> None:
        self.mark, self.hidden_size, self.position = mark, hidden_size, mark.position
        self.price = self.spent = self.signed = self.replayed = self.paid_again = 0
        self.inputs = bytearray()
        self.admit: Callable[[int], None] = lambda wei: None
        self.slow: SwarmError | None = None
        self.sessions: tuple[RecalledSession, ...] = ()
        self.plan = Plan(tuple(_hop(one) for one in mark.hops), mark.position, Credits(0), Credits(0), "donated")

    def found(self, legs: list[Leg], domain: Domain, client: Address) -> None:
        """Its nodes, hop by hop. Raises ProofError where what was kept is not what they have signed."""
        for leg, hop in zip(legs, self.mark.hops, strict=True):
            body = check_signature(domain, hop.receipt).body
            if (body.node, body.client, leg.first, leg.end) != (leg.operator, client, hop.first, hop.end):
                raise ProofError("What was kept of a talk is of another session", why=f"at the {leg}")
        receipts = [match(hop.receipt, hop.receipt.body) for hop in self.mark.hops]
        self.sessions = tuple(RecalledSession(leg, one) for leg, one in zip(legs, receipts, strict=True))

    async def forward(self, hidden: torch.Tensor, *, rows: Rows = "last") -> torch.Tensor:
        """Raises SwarmError."""
        raise SwarmError("Nothing can be computed on sessions of another process", next_step="open a pipeline")

    def crop(self, length: int) -> None:
        """See `Pipeline.crop`."""
        self.position = length

    async def close(self) -> None:
        """Nobody listens: the nodes forget by themselves."""

    async def cancel(self) -> None:
        """Nothing is under way."""


def _hop(one: KeptHop) -> Hop:
    operator = one.receipt.body.node
    first, end = BlockIndex(one.first), BlockIndex(one.end)
    return Hop(PeerId(one.peer), node_name(operator), first, end, Credits(0), 0.0, operator)
