"""Routes that are tried until one opens, and whom a failure sets aside."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from hivemint.client.pipeline import RoomLost, SessionLimit
from hivemint.client.sessions.errors import NeighbourGone, NodeEquivocated, NodeRefusal
from hivemint.client.sessions.nodes import Nodes
from hivemint.client.sessions.route import Route
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.protocol import evidence
from hivemint.protocol.errors import ConfigError, HivemintError, ProofError, Refusal, SwarmError
from hivemint.protocol.text import plain
from hivemint.swarm.messages import Code

log = structlog.get_logger(__name__)

_T = TypeVar("_T")
ATTEMPTS = 4
"""Routes tried for one pipeline, each without the nodes that failed before."""
_BLAMED = re.compile(r"The node \S+ \(operator [^)]*\) (.*)", re.DOTALL)
"""How an error names its node: see `Leg`."""
_TRY_LATER = (Code.BUSY, Code.RATE)
_UNFUNDED = (Code.FUNDS, Code.THAWING, Code.RELEASED)
_OUR_OWN = (*_UNFUNDED, Code.KEY, Code.REVOKED, Code.EXPIRY, Code.NETWORK)
"""Refusals that are not the node's fault: another one would say the same."""


class Attempts:
    """Of one client, for all that it offers. `proofs`: the folder that keeps evidence against nodes."""

    def __init__(self, nodes: Nodes, speeds: Speeds, proofs: Path | None) -> None:
        self._nodes, self._speeds, self._proofs = nodes, speeds, proofs

    async def until_open(
        self,
        planned: Callable[..., Awaitable[Route]],
        go: Callable[[Route], Awaitable[_T]],
        settings: ClientSettings,
    ) -> _T:
        """What `go` makes of some route. Tries others when nodes fail, and waits for a place while all are busy."""
        deadline = time.monotonic() + settings.patience
        failures, unpaid = 0, ""
        while True:
            route = await planned(unpaid=unpaid)
            try:
                return await go(route)
            except Refusal as error:
                if error.code in _UNFUNDED and route.paid and settings.bid.kind == "auto":
                    unpaid = _told(error)  # a deposit that does not count yet, or sessions elsewhere that reserve it
                elif error.code in _OUR_OWN:
                    raise
                elif error.code not in _TRY_LATER or not await self._later(error, settings, deadline):
                    failures = self._failed(error, settings, failures)
            except (SwarmError, ProofError) as error:
                failures = self._failed(error, settings, failures)

    def another_way(self, error: HivemintError, settings: ClientSettings) -> bool:
        """See `Replacements.another_way`. A refusal that is this client's own fault names nobody."""
        peers = () if getattr(error, "code", None) in _OUR_OWN else getattr(error, "peers", ())
        if not self._nodes.replaceable(peers):
            return False
        self._nodes.set_aside(peers, settings.set_aside, reason=_reason(error))
        for peer in peers:
            self._speeds.forgive(peer)
        return True

    def set_aside(self, error: HivemintError, settings: ClientSettings) -> None:
        """Whomever `error` names, for what it says; and keep what proves a lie."""
        if isinstance(error, NodeEquivocated):
            _keep_proof(self._proofs, error)
        if isinstance(error, RoomLost):
            self._nodes.lost_room(error.peers, settings.set_aside)
        elif not isinstance(error, SessionLimit):
            peers = getattr(error, "peers", ())
            lied = isinstance(error, ProofError) and len(peers) == 1  # of two, one is honest
            self._nodes.set_aside(peers, settings.set_aside, lied=lied, reason=_reason(error))

    async def _later(self, error: Refusal, settings: ClientSettings, deadline: float) -> bool:
        """After a `busy`: take another node meanwhile if there is one, else wait. False: there is no time left."""
        wait = min(error.retry_after, settings.max_wait)
        if not wait or time.monotonic() + wait > deadline:
            return False
        peers = set(getattr(error, "peers", ()))
        if peers and self._nodes.enough_without(peers):
            self._nodes.set_aside(peers, wait, busy=True)
        else:
            await asyncio.sleep(wait)
        return True

    def _failed(self, error: HivemintError, settings: ClientSettings, failures: int) -> int:
        """Set the nodes aside and allow another route, as long as there is another one: one that failed before, too."""
        self.set_aside(error, settings)
        failures += 1
        peers = set(getattr(error, "peers", ()))
        elsewhere = isinstance(error, NeighbourGone)  # no other route for the same blocks mends that
        if elsewhere or failures >= ATTEMPTS or not self._nodes.left_to_try(peers):
            raise error
        return failures


def _keep_proof(folder: Path | None, error: NodeEquivocated) -> None:
    if folder is None:
        return
    try:
        path = evidence.keep(folder, error.evidence)
    except (OSError, ConfigError) as failure:
        log.warning("evidence could not be kept", node=error.evidence.node, reason=str(failure))
    else:
        if path is not None:
            told = {"node": error.evidence.node, "evidence": str(path), "next": f"hivemint node report {path}"}
            log.error("a node signed two answers to one step", **told)


def _reason(error: HivemintError) -> str:
    """What a node did, without its name: that stands beside it."""
    found = _BLAMED.fullmatch(error.what)
    return plain(found[1] if found else error.what)


def _told(error: Refusal) -> str:
    """Which node's account does not count as this client reads it, and the node's own words, in one line."""
    told = f"{error.what} ({error.why})" if error.why else error.what
    if not isinstance(error, NodeRefusal):
        return plain(f"a node says: {told}")
    node, refused = error.leg.name, error.refused
    if error.code == Code.THAWING:
        return f"the escrow at {node} thaws"
    if error.code != Code.FUNDS:
        return plain(f"{node} says: {refused.what}" + (f" ({refused.why})" if refused.why else ""))
    words = f" ({refused.why})" if refused.why else ""
    return plain(f"the deposit at {node} does not count there yet, or other sessions of this wallet reserve it{words}")
