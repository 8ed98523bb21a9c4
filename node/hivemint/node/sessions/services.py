"""What the sessions of a node share."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch

from hivemint.ledger.books.journal import Journal
from hivemint.node.engine.engine import Engine
from hivemint.node.engine.seats import Seat
from hivemint.node.sessions.admission import Admission
from hivemint.node.sessions.inbox import Inbox
from hivemint.node.sessions.leaving import Leaving
from hivemint.node.sessions.metering import Meter
from hivemint.node.sessions.offer import Offer
from hivemint.node.sessions.outlets import Outlets
from hivemint.node.sessions.registry import SessionRegistry
from hivemint.node.sessions.steps.kept import KeptOutputs
from hivemint.node.span.lora import Adapters
from hivemint.protocol.ids import PeerId, SessionId
from hivemint.swarm.messages import Code


class Counts:
    """Since the start: refusals by reason, tensors that left by whom they went to (hops are counted, not believed)."""

    def __init__(self) -> None:
        self.refusals: Counter[str] = Counter()
        self.outputs: Counter[str] = Counter()

    def refused(self, code: Code) -> None:
        self.refusals[code.value] += 1

    def sent(self, to: Literal["next", "client"]) -> None:
        self.outputs[to] += 1


@dataclass(frozen=True, kw_only=True)
class Services:
    """Made once by the node. `prefix_of`: the network that a peer comes from."""

    offer: Offer
    admission: Admission
    registry: SessionRegistry
    leaving: Leaving
    engine: Engine
    adapters: Adapters
    hidden_size: int
    dtype: torch.dtype
    meter: Meter
    journal: Journal
    inbox: Inbox
    outlets: Outlets
    kept: KeptOutputs
    counts: Counts
    prefix_of: Callable[[PeerId], Hashable]
    seats: dict[SessionId, Seat] = field(default_factory=dict)
    """K/V room of every open session."""
