"""Nodes that the user has named: which alone may be used, which never, which rather, and which see a text's ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from hivemint.client.settings import ClientSettings
from hivemint.protocol.ids import PeerId
from hivemint.protocol.node_name import node_name
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import NodeRecord


@dataclass(frozen=True, slots=True)
class NodeChoice:
    """Each a list of names: a node's readable name, its operator's address, or its peer id. () names nobody.

    `allowed`: these alone, where any is named. `trusted`: where any is named, the first and the last blocks of a model
    are computed by these alone, as a text is nearest to plain there. `preferred` nodes may take longer than others.
    """

    allowed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    preferred: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: ClientSettings) -> Self:
        return cls(settings.allowed_nodes, settings.blocked_nodes, settings.preferred_nodes, settings.trusted_nodes)

    def excludes(self, record: NodeRecord) -> str:
        """Why it may not be used, in a few words; "" if it may."""
        if _names(self.blocked, record):
            return "blocked_nodes names it"
        if self.allowed and not _names(self.allowed, record):
            return "allowed_nodes names others alone"
        return ""

    def prefers(self, record: NodeRecord) -> bool:
        return _names(self.preferred, record)

    def trusts(self, record: NodeRecord) -> bool:
        """Whether a text's first and last blocks may be computed there."""
        return not self.trusted or _names(self.trusted, record)


def _names(names: Sequence[str], record: NodeRecord) -> bool:
    """A name or an address in any case of its letters; a peer id as it is."""
    if not names:
        return False
    lower = {one.lower() for one in names}
    known = {record.operator.lower(), node_name(record.operator)}
    return not lower.isdisjoint(known) or peer_text(PeerId(record.peer)) in names
