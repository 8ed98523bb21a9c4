"""What a route is for, and on what conditions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hivemint.client.sessions.routing.choice import NodeChoice
from hivemint.client.settings import Bid
from hivemint.protocol.ids import Address, Credits

ANY_NODE = NodeChoice()
"""The user has named none."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a route is for: sessions of `tokens` positions.

    `work`: positions that they compute in all, where that is more (training); 0: as many. `funds`: wei that the account
    at each operator still admits; None: don't ask. `ceiling`: wei per token through all blocks. Without one, nodes that
    ask more than `times_median` times the median of all asks are left out; None: no node is. `first` and `end` (None:
    the model's) name a part of the model to find a way through; `wire`: the wire form that its neighbours speak (None:
    any). By `salt`, the client's own, each node's time looks up to the share `spread` worse than it is, differently for
    each client: those that see the same choose differently among what is about as good. b"": always the best.
    """

    blocks: int
    tokens: int
    bid: Bid
    ceiling: Credits | None = None
    seconds_per_credit: float = 10.0
    margin: float = 1.25
    funds: Mapping[Address, int] | None = field(default=None, repr=False)
    work: int = 0
    times_median: float | None = None
    first: int = 0
    end: int | None = None
    wire: str | None = None
    choice: NodeChoice = ANY_NODE
    salt: bytes = b""
    spread: float = 0.25

    @property
    def part(self) -> range:
        """The blocks that the route leads through."""
        return range(self.first, self.blocks if self.end is None else self.end)
