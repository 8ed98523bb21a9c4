"""Which route a client takes: what nodes there are, what it may spend at each, and the bid of its settings."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hivemint.client.pipeline import Alternative
from hivemint.client.sessions.nodes import Nodes, Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.routing.missing import MissingBlocks, NotCovered
from hivemint.client.sessions.routing.planning import explain_route, plan_route
from hivemint.client.sessions.routing.view import NodeView
from hivemint.client.sessions.routing.wish import Wish
from hivemint.client.sessions.shortfall import NodeFunds, not_covered, shortfall
from hivemint.client.sessions.speeds import Speeds
from hivemint.client.settings import Bid, ClientSettings
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import Address, PeerId
from hivemint.swarm.records import CheckedRecord

_LOOK_AGAIN = 0.5
_MOST_NAMED = 8


class RoutePlanner:
    """Plans routes through the blocks of one model for one payer, by settings and speeds as they are at each call."""

    def __init__(
        self, nodes: Nodes, target: Target, payer: Payer, reserved: Callable[[], Mapping[Address, int]]
    ) -> None:
        """`reserved` tells what each node still reserves for open sessions, in wei."""
        self._nodes, self._target, self._payer, self._reserved = nodes, target, payer, reserved
        self._salt = bytes.fromhex(payer.who.client.removeprefix("0x"))

    async def route(
        self,
        tokens: int,
        settings: ClientSettings,
        speeds: Speeds,
        *,
        unpaid: str = "",
        work: int = 0,
        blocks: range | None = None,
        wire: str | None = None,
        only: PeerId | None = None,
    ) -> Route:
        """The cheapest route by what is known now, `work` as in `Wish`. `unpaid`: why donated work alone is asked for.

        `blocks`: the part of the model that it leads through (None: all of it), over nodes that speak the wire form
        `wire` (None: any, the same for all); `only`: at this node alone. `settings.max_price` then bounds the price of
        that part.
        Raises SwarmError: what is missing, and whether this machine's clock may be why; ValueError for blocks that the
        model has not.
        """
        part = range(self._target.blocks) if blocks is None else blocks
        if part.step != 1 or not 0 <= part.start < part.stop <= self._target.blocks:
            raise ValueError(f"{part} is no part of blocks 0:{self._target.blocks}")
        try:
            view = await self._nodes.view()
            if only is not None:
                view = NodeView([one for one in view.records if one.peer == only])
            wish = self._wish(tokens, settings, part, work, wire)
            if unpaid:
                wish = replace(wish, bid=Bid("free"))
            return await self._in_lane(view, wish, speeds, unpaid)
        except MissingBlocks as error:
            if trouble := self._nodes.clock_trouble:
                raise MissingBlocks(error.what, why=f"{error.why}; {trouble}", next_step=error.next_step) from None
            raise

    async def explained(
        self, tokens: int, settings: ClientSettings, speeds: Speeds
    ) -> tuple[Route, tuple[Alternative | None, ...]]:
        """The route, and for each of its legs the best one without that node. Raises what `route` raises."""
        route, view = await self.route(tokens, settings, speeds), await self._nodes.view()
        wish = self._wish(tokens, settings, range(self._target.blocks), 0, None)
        if not route.paid:
            wish = replace(wish, bid=Bid("free"))
        elif (accounts := await self._funds(view.records)) is not None:
            bid = Bid("times") if wish.bid.kind == "auto" else wish.bid
            wish = replace(wish, bid=bid, funds={node: one.left for node, one in accounts.items()})
        notes = (*route.notes, *(str(one) for one in self._nodes.left_out()[:_MOST_NAMED]))
        return replace(route, notes=notes), explain_route(view, wish, speeds, route)

    def _wish(self, tokens: int, settings: ClientSettings, part: range, work: int, wire: str | None) -> Wish:
        return Wish(
            blocks=self._target.blocks,
            tokens=tokens,
            bid=settings.bid,
            ceiling=settings.max_price,
            seconds_per_credit=settings.seconds_per_credit,
            margin=settings.margin,
            work=work,
            times_median=settings.max_times_median,
            first=part.start,
            end=part.stop,
            wire=wire,
            choice=self._nodes.choice,
            salt=self._salt,
            spread=settings.spread,
        )

    async def _in_lane(self, view: NodeView, wish: Wish, speeds: Speeds, unpaid: str) -> Route:
        """Paid or donated, as the bid and the accounts have it."""
        bid, left_out = wish.bid, self._nodes.left_out()
        free = replace(wish, bid=Bid("free"), funds=None)
        if not bid.paid:
            return replace(plan_route(view, wish, speeds, left_out), unpaid=unpaid)
        accounts = await self._funds(view.records)
        funds = None if accounts is None else {node: one.left for node, one in accounts.items()}
        if bid.kind != "auto":
            try:
                return plan_route(view, replace(wish, funds=funds), speeds, left_out)
            except NotCovered:
                raise not_covered(view.records, wish, speeds, accounts or {}) from None
        if not any(one.record.ask for one in view.records):  # nobody asks for anything
            return plan_route(view, free, speeds, left_out)
        paying = replace(wish, bid=Bid("times"), funds=funds)
        if funds is not None:
            try:
                return plan_route(view, paying, speeds)
            except SwarmError:  # not enough for a paid route: donated work is what `auto` stands for then
                pass
        why = shortfall(view, paying, speeds, accounts)
        return replace(plan_route(view, free, speeds, left_out), unpaid=why)

    async def at(
        self, stops: Sequence[tuple[PeerId, range]], tokens: int, settings: ClientSettings, speeds: Speeds
    ) -> list[Leg]:
        """These nodes and no others, for these blocks, first to last. Raises what `route` raises."""
        legs: list[Leg] = []
        for peer, blocks in stops:
            wire = legs[0].wire if legs else None
            legs += (await self.route(tokens, settings, speeds, blocks=blocks, wire=wire, only=peer)).legs
        return legs

    async def spendable(self) -> dict[Address, int] | None:
        """What the account at each node that serves now still admits, in wei. None where no chain is known.

        Raises ChainError, SwarmError.
        """
        accounts = await self._funds(await self._nodes.usable())
        return None if accounts is None else {node: one.left for node, one in accounts.items()}

    async def awaited(
        self,
        tokens: int,
        settings: ClientSettings,
        speeds: Speeds,
        *,
        unpaid: str = "",
        work: int = 0,
        blocks: range | None = None,
        wire: str | None = None,
    ) -> Route:
        """A route; where blocks are missing, wait for them as long as the settings say. Raises what `route` raises."""
        deadline = time.monotonic() + settings.wait_for_blocks
        while True:
            try:
                route = await self.route(tokens, settings, speeds, unpaid=unpaid, work=work, blocks=blocks, wire=wire)
                self._nodes.trying(leg.peer for leg in route.legs)
                return route
            except MissingBlocks:
                if time.monotonic() + _LOOK_AGAIN > deadline:
                    raise
                await asyncio.sleep(_LOOK_AGAIN)
                self._nodes.forget()

    async def _funds(self, records: Sequence[CheckedRecord]) -> dict[Address, NodeFunds] | None:
        """What each node's account still admits: funded, less what is owed already. None where no chain is known."""
        payer = self._payer
        if payer.chain is None:
            return None
        nodes = sorted({one.record.operator for one in records})
        accounts, totals = await payer.chain.accounts(payer.who.client, nodes), payer.book.totals()
        payer.funded.update({node: account.funded for node, account in accounts.items()})
        reserved = self._reserved()
        return {
            node: NodeFunds(
                funded=account.funded,
                owed=max(account.collected, totals.get(node, (0, 0))[1]),
                reserved=reserved.get(node, 0),
                thaw_end=account.thaw_end,
            )
            for node, account in accounts.items()
        }
