"""A route becomes sessions: at all of its nodes at once, or at none."""

import asyncio
from collections.abc import Sequence
from typing import Any

from hivemint.client.sessions.errors import NodeRefusal
from hivemint.client.sessions.opening import (
    Greeting,
    SignedSession,
    check_training,
    greet,
    neighbours,
    shake_hands,
    sign_session,
    within,
)
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.peft import LoraAdapter, load_adapter
from hivemint.client.sessions.pipelines.repair import Hole, check_next
from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.session import RemoteSession
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import ClientSettings
from hivemint.swarm.host import Host
from hivemint.swarm.messages import Code, Peer, Previous


class RouteOpener:
    """Dials, signs and shakes hands for one payer. `adapter`: loaded by every node, for the sessions opened here."""

    def __init__(self, host: Host, payer: Payer, adapter: LoraAdapter | None = None) -> None:
        self._host, self._payer, self.adapter = host, payer, adapter

    async def open(
        self,
        route: Route,
        tokens: int,
        settings: ClientSettings,
        speeds: Speeds,
        work: int = 0,
        *,
        before: Previous | None = None,
        after: Peer | None = None,
    ) -> list[RemoteSession]:
        """Dial all hops at once, sign all sessions, then shake hands with all of them at once; `speeds` learns trips.

        `before` and `after`: the neighbours of a part of a route. With `work` the sessions are for training: no node
        knows its neighbours. Raises NodeGone, NodeRefusal, NodeLied,
        NodeUnproven, ChainError, StoreError; then no link is left open.
        """
        greetings = await self._greet_all(route, settings, speeds)
        try:
            await self._payer.look(leg.operator for leg in route.legs if leg.price)
            expiry = await self._payer.expiry(settings.session_time)
            if work:
                check_training(greetings, tokens)
            signed = [
                sign_session(one, self._payer, tokens=tokens, margin=settings.margin, expiry=expiry, work=work)
                for one in greetings
            ]
            places = [(None, None)] * len(signed) if work else neighbours(greetings, signed, before, after)
            try:
                sessions = await self._shake_hands(greetings, signed, settings.open_timeout, places)
            except NodeRefusal as refusal:
                raise _with_next(refusal, route) from None
            if self.adapter is not None:
                loads = [load_adapter(one, self.adapter, settings.step_timeout) for one in greetings]
                for session, digest in zip(sessions, await _all(loads), strict=True):
                    session.adapter = digest
        except BaseException:
            await _hang_up(greetings)
            raise
        return sessions

    async def fill(self, hole: Hole, route: Route, settings: ClientSettings, speeds: Speeds) -> list[RemoteSession]:
        """Sessions along `route`, between those that stay. Raises what `open` raises, and NeighbourGone where it is a
        node that was to stay which has failed."""
        before = hole.before.as_previous if hole.before else None
        after = hole.after.as_next if hole.after else None
        try:
            return await self.open(route, hole.tokens, settings, speeds, before=before, after=after)
        except NodeRefusal as refusal:
            if refusal.leg is route.legs[-1]:
                await check_next(refusal, hole.after)
            raise

    async def _greet_all(self, route: Route, settings: ClientSettings, speeds: Speeds) -> list[Greeting]:
        done: list[Greeting] = []

        async def one(leg: Leg) -> Greeting:
            greeting = within(await greet(self._host, leg, settings.open_timeout), settings)
            done.append(greeting)
            speeds.trip(leg.peer, greeting.trip)
            return greeting

        try:
            return await _all([one(leg) for leg in route.legs])
        except BaseException:
            await _hang_up(done)
            raise

    async def _shake_hands(
        self,
        greetings: list[Greeting],
        signed: list[SignedSession],
        timeout: float,
        places: Sequence[tuple[Previous | None, Peer | None]],
    ) -> list[RemoteSession]:
        """The last hop first. `places`: for each, whose output it takes and where its own goes."""
        firsts = await _all(
            [
                shake_hands(one, its, self._payer, previous=previous, next_hop=after, timeout=timeout)
                for one, its, (previous, after) in reversed(list(zip(greetings, signed, places, strict=True)))
            ]
        )
        return [
            RemoteSession(one, its, self._payer, first)
            for one, its, first in zip(greetings, signed, reversed(firsts), strict=True)
        ]


def _with_next(refusal: NodeRefusal, route: Route) -> NodeRefusal:
    """Who says that it cannot reach the next node of the route is named with it: either may not take the other."""
    if refusal.code != Code.MISSING or refusal.leg is route.legs[-1]:
        return refusal
    return NodeRefusal(refusal.leg, refusal.refused, route.legs[route.legs.index(refusal.leg) + 1])


async def _all(work: list[Any]) -> list[Any]:
    """All results in order, or the first error after the others have been cancelled and have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _hang_up(greetings: list[Greeting]) -> None:
    await asyncio.gather(*(one.link.close("the route could not be opened") for one in greetings))
