"""Operators that are listed with more than one peer: a peer key was lost, or two machines run with one operator key."""

from collections.abc import Iterable

from hivemint.protocol.ids import Address
from hivemint.protocol.node_name import node_name
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import CheckedRecord


def doubled(found: Iterable[CheckedRecord]) -> list[str]:
    """A line for each such operator, by name, with its peers: those published last first."""
    listed: dict[Address, list[CheckedRecord]] = {}
    for one in found:
        listed.setdefault(one.record.operator, []).append(one)
    lines = []
    for operator, records in sorted(listed.items()):
        newest = sorted(records, key=lambda one: one.record.expires, reverse=True)
        names = list(dict.fromkeys(f"{peer_text(one.peer)} ({_span(one)})" for one in newest))
        if len({one.peer for one in records}) > 1:
            lines.append(
                f"node {node_name(operator)} is listed with {len(names)} peer ids, {' and '.join(names)}: its peer key "
                "was lost, or two machines run with its operator key; the one that the registry knows counts"
            )
    return lines


def _span(one: CheckedRecord) -> str:
    return f"blocks {one.record.first_block}:{one.record.end_block}"
