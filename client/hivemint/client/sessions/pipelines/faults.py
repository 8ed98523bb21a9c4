"""Whom a fault on a route is laid on: what one node says of its neighbours, beside what all of them have answered.

The client sees receipts and the last tensor only, so of two neighbours it can't always tell which one is at fault:

- a node that has sent no receipt for the oldest step, while one behind it waits in vain for input, is named alone; if
  that one has not waited as long as the protocol has it wait, so is the one that says so;
- where every node up to the one that complains has answered, what went from one to the other may be either's fault:
  both ends of that link are named, as neither can prove what it sent or got. So is what comes slowly.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hivemint.client.sessions.errors import NodeGone, NodeRefusal
from hivemint.client.sessions.pipelines.proofs import StepProofs
from hivemint.client.sessions.route import Leg
from hivemint.client.sessions.session import RemoteSession
from hivemint.protocol.errors import HivemintError, SwarmError
from hivemint.protocol.receipt import SignedReceipt
from hivemint.swarm.messages import Code

SECOND_HAND = 0.5
"""Seconds that a complaint about a neighbour waits for better news: that neighbour's own, or the end of its link."""
INPUT_LIMIT = 30.0
"""Seconds that a step waits for its input at a node (`docs/protocol.md`, Steps)."""
_CLOCKS = 0.95
"""Of two machines: by how much one may run faster."""
_ABOUT_A_NEIGHBOUR = (Code.MISSING, Code.INPUT)


class NodeSlow(SwarmError):
    """A node is far slower than it publishes. `peers`: it, and the one that its input came from."""

    def __init__(self, leg: Leg, *before: Leg) -> None:
        others = "".join(f", or the {one} is late with its input" for one in before)
        super().__init__(
            f"The {leg} is far slower than it publishes{others}",
            why=f"{leg.published():.3g} s a token by its own record",
            next_step="ask again: a new route is planned without it",
        )
        self.peers = tuple(one.peer for one in (leg, *before))


@dataclass(frozen=True, slots=True)
class _Heard:
    """`waited`: as long as a node waits for its input. One that complains sooner may only want its neighbour named."""

    refusal: NodeRefusal
    evidence: SignedReceipt | None
    waited: bool


class Complaints:
    """What the nodes of one pipeline say of each other, until it is decided whom to name."""

    def __init__(
        self, sessions: Sequence[RemoteSession], steps: StepProofs, tell: Callable[[HivemintError], None]
    ) -> None:
        """`tell` is told what went wrong; the first thing counts, but for an equivocation, which proves itself."""
        self._sessions, self._steps, self._tell = sessions, steps, tell
        self._heard: dict[int, _Heard] = {}
        self._decision: asyncio.TimerHandle | None = None

    def hear(self, hop: int, error: HivemintError, evidence: SignedReceipt | None = None) -> None:
        """A node's refusal or farewell. One about a neighbour waits a moment: who failed may tell it second."""
        self._look_into(hop, evidence)
        if not isinstance(error, NodeRefusal) or error.code not in _ABOUT_A_NEIGHBOUR:
            self._tell(error)
            return
        waited = self._steps.age(hop, error.refused.step) >= _CLOCKS * INPUT_LIMIT
        self._heard.setdefault(hop, _Heard(error, evidence, waited))
        if self._decision is None:
            self._decision = asyncio.get_running_loop().call_later(SECOND_HAND, self._decide)

    def close(self) -> None:
        """Decide nothing any more."""
        if self._decision is not None:
            self._decision.cancel()

    def _decide(self) -> None:
        """By the node nearest to the client: those behind it may have had nothing because of the same fault."""
        for hop, heard in self._heard.items():
            self._look_into(hop, heard.evidence)
        hop = min(self._heard)
        refusal, waited = self._heard[hop].refusal, self._heard[hop].waited
        silent = self._steps.unanswered()
        late = silent is not None and silent < hop and refusal.code == Code.MISSING
        if silent is not None and late and waited:
            says = f"the {refusal.leg} says: {refusal.refused.what}"
            self._tell(NodeGone(self._sessions[silent].leg, "does not answer", says))
            return
        beside = hop + 1 if silent is not None and silent > hop else hop - 1
        if silent is not None and late:
            beside = silent
        if 0 <= beside < len(self._sessions):
            refusal = NodeRefusal(refusal.leg, refusal.refused, self._sessions[beside].leg)
        self._tell(refusal)

    def _look_into(self, hop: int, evidence: SignedReceipt | None) -> None:
        """What a neighbour is said to have signed, beside what it has signed here."""
        ours = self._steps.receipt_of(hop - 1, evidence.step) if evidence is not None and hop else None
        if evidence is None or ours is None:
            return
        if (error := self._sessions[hop - 1].equivocated(ours, evidence)) is not None:
            self._tell(error)
