"""The network as `SwarmModelForCausalLM` holds it: finds nodes, plans routes, opens sessions along them."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivemint.client.handshake import Greeting, Payer, greet, neighbours, shake_hands, sign_session
from hivemint.client.live_pipeline import LivePipeline
from hivemint.client.pipeline import Plan, SessionLimit
from hivemint.client.route import Leg, MissingBlocks, Route, Speeds, Wish, plan_route
from hivemint.client.session import NodeSession
from hivemint.client.settings import Bid, ClientSettings
from hivemint.client.wallet import ChainPort, ContractPort, Identity, unlock
from hivemint.contracts.errors import ConfigError, HivemintError, Refusal, SwarmError
from hivemint.contracts.home import Home
from hivemint.contracts.ids import Address, ModelId, PeerId
from hivemint.contracts.network import Network
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import peer_id_hash
from hivemint.ledger.vouchers import VoucherBook
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.messages import Code
from hivemint.swarm.models import LocalModel
from hivemint.swarm.records import CheckedRecord

LOOK_UP_GOOD = 3.0
"""Seconds that the directory's answer serves for further routes."""
ATTEMPTS = 4
"""Routes tried for one pipeline, each without the nodes that failed before."""
_TRY_LATER = (Code.BUSY, Code.RATE)
_UNFUNDED = (Code.FUNDS, Code.THAWING)
_OUR_OWN = (*_UNFUNDED, Code.KEY, Code.REVOKED, Code.EXPIRY, Code.NETWORK)
"""Refusals that are not the node's fault: another one would say the same."""
_LOOK_AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """The model whose blocks are looked for. `hidden` numbers a row."""

    model_id: ModelId
    blocks: int
    hidden: int


class SwarmClient:
    """Implements `client.pipeline.Swarm` over one libp2p host. `chain` None: no registry, no accounts, own clock."""

    def __init__(
        self, host: Host, target: Target, payer: Payer, chain: ChainPort | None, settings: ClientSettings
    ) -> None:
        self._host, self._target, self._payer, self._chain = host, target, payer, chain
        self.settings = settings
        self.speeds = Speeds()
        self._aside: dict[PeerId, float] = {}
        self._records: tuple[float, list[CheckedRecord]] | None = None
        self._look_up = asyncio.Lock()
        self._pipelines: set[LivePipeline] = set()

    @property
    def payer(self) -> Payer:
        return self._payer

    @property
    def spent(self) -> int:
        """Wei that this wallet owes the nodes by its own book, ever."""
        return sum(owed for _, owed in self._payer.book.totals().values())

    async def open(self, tokens: int) -> LivePipeline:
        """See `Swarm.open`. Tries other routes when nodes fail, and waits for a place while all are busy."""
        deadline = time.monotonic() + self.settings.patience
        failures, free_only = 0, False
        while True:
            route = await self._awaited_route(tokens, free_only)
            try:
                pipeline = await self._along(route, tokens)
            except Refusal as error:
                if error.code in _UNFUNDED and route.paid and self.settings.bid.kind == "auto":
                    free_only = True  # a deposit that does not count yet, or sessions elsewhere that reserve it
                elif error.code in _OUR_OWN:
                    raise
                elif error.code not in _TRY_LATER or not await self._later(error, deadline):
                    failures = self._failed(error, failures)
            except SwarmError as error:
                failures = self._failed(error, failures)
            else:
                self._pipelines = {one for one in self._pipelines if one.open}
                self._pipelines.add(pipeline)
                return pipeline

    async def plan(self, tokens: int) -> Plan:
        """See `Swarm.plan`."""
        return (await self.route(tokens)).plan(tokens, self.settings.margin)

    async def route(self, tokens: int, *, free_only: bool = False) -> Route:
        """The cheapest route by what is known now. Raises SwarmError that names what is missing."""
        records = await self.nodes()
        bid, ceiling = Bid("free") if free_only else self.settings.bid, self.settings.max_price
        wish = Wish(
            blocks=self._target.blocks,
            tokens=tokens,
            bid=bid,
            ceiling=ceiling,
            seconds_per_credit=self.settings.seconds_per_credit,
            margin=self.settings.margin,
        )
        if not bid.paid:
            return plan_route(records, wish, self.speeds)
        funds = await self._funds(records) if self._chain else None
        if bid.kind != "auto":
            return plan_route(records, _with(wish, bid, funds), self.speeds)
        if funds and any(funds.values()):
            try:
                return plan_route(records, _with(wish, Bid("times"), funds), self.speeds)
            except SwarmError:
                pass  # not enough for a paid route: the free lane is what `auto` stands for then
        return plan_route(records, _with(wish, Bid("free"), None), self.speeds)

    async def nodes(self) -> list[CheckedRecord]:
        """Nodes of this model that are registered with the peer id that they show, and not set aside."""
        async with self._look_up:
            if self._records is None or time.monotonic() - self._records[0] > LOOK_UP_GOOD:
                found = await self._host.find(self._target.model_id, range(self._target.blocks))
                self._records = (time.monotonic(), await self._registered(found))
        now = time.monotonic()
        self._aside = {peer: until for peer, until in self._aside.items() if until > now}
        alive = [one for one in self._records[1] if one.record.expires > time.time()]
        usable = [one for one in alive if one.peer not in self._aside]
        return usable if _covers(usable, self._target.blocks) else alive

    async def close(self) -> None:
        """Sign off everywhere, leave the swarm. Harmless when called again."""
        await asyncio.gather(*(one.close() for one in self._pipelines), return_exceptions=True)
        self._pipelines.clear()
        await self._host.close()
        if self._chain is not None:
            await self._chain.close()
        self._payer.book.close()

    # ---- inside

    async def _awaited_route(self, tokens: int, free_only: bool) -> Route:
        """A route; where blocks are missing, wait for them as long as the settings say."""
        deadline = time.monotonic() + self.settings.wait_for_blocks
        while True:
            try:
                return await self.route(tokens, free_only=free_only)
            except MissingBlocks:
                if time.monotonic() + _LOOK_AGAIN > deadline:
                    raise
                await asyncio.sleep(_LOOK_AGAIN)
                self._records = None

    async def _later(self, error: Refusal, deadline: float) -> bool:
        """After a `busy`: take another node meanwhile if there is one, else wait. False: there is no time left."""
        now, wait = time.monotonic(), error.retry_after
        if not wait or now + wait > deadline:
            return False
        peers = set(getattr(error, "peers", ()))
        others = [] if self._records is None else self._records[1]
        if peers and _covers(
            [one for one in others if one.peer not in peers | self._aside.keys()], self._target.blocks
        ):
            self._aside |= dict.fromkeys(peers, now + wait)
        else:
            await asyncio.sleep(wait)
        return True

    async def _along(self, route: Route, tokens: int) -> LivePipeline:
        """Dial all hops at once, sign all sessions, then shake hands with all of them at once."""
        timeout = self.settings.open_timeout
        greetings = await self._greet_all(route, timeout)
        try:
            expiry = await self._expiry()
            signed = [
                sign_session(one, self._payer, tokens=tokens, margin=self.settings.margin, expiry=expiry)
                for one in greetings
            ]
            places = neighbours(greetings, signed)
            firsts = await _all(
                [
                    shake_hands(one, its, self._payer, previous=previous, next_hop=after, timeout=timeout)
                    for one, its, (previous, after) in reversed(list(zip(greetings, signed, places, strict=True)))
                ]
            )
        except BaseException:
            await _hang_up(greetings)
            raise
        sessions = [
            NodeSession(one, its, self._payer, first)
            for one, its, first in zip(greetings, signed, reversed(firsts), strict=True)
        ]
        return LivePipeline(sessions, self._target.hidden, self.settings, self.speeds, self._set_aside)

    async def _greet_all(self, route: Route, timeout: float) -> list[Greeting]:
        done: list[Greeting] = []

        async def one(leg: Leg) -> Greeting:
            greeting = await greet(self._host, leg, timeout)
            done.append(greeting)
            self.speeds.trip(leg.peer, greeting.trip)
            return greeting

        try:
            return await _all([one(leg) for leg in route.legs])
        except BaseException:
            await _hang_up(done)
            raise

    async def _expiry(self) -> int:
        """By the later of the two clocks; never beyond a separate key's own end."""
        now = int(time.time())
        if self._chain is not None:
            now = max(now, await self._chain.time())
        expiry = now + int(self.settings.session_time)
        return min(expiry, self._payer.who.valid_until or expiry)

    async def _registered(self, records: list[CheckedRecord]) -> list[CheckedRecord]:
        if self._chain is None or not records:
            return records
        hashes = await self._chain.peer_hashes(sorted({one.record.operator for one in records}))
        known = [one for one in records if hashes.get(one.record.operator) == peer_id_hash(one.peer)]
        if not known:
            raise SwarmError(
                f"None of the {len(records)} nodes of this model is registered",
                why="the registry on the chain does not hold their operators with these peer ids",
                next_step="their owners register them with `hivemint node register`",
            )
        return known

    async def _funds(self, records: list[CheckedRecord]) -> dict[Address, int]:
        """What each node's account still admits: funded, less what is owed already."""
        assert self._chain is not None  # noqa: S101 - the caller has looked
        nodes = sorted({one.record.operator for one in records})
        accounts, totals = await self._chain.accounts(self._payer.who.client, nodes), self._payer.book.totals()
        owed = {node: max(account.collected, totals.get(node, (0, 0))[1]) for node, account in accounts.items()}
        for session in (session for one in self._pipelines if one.open for session in one.sessions):
            owed[session.leg.operator] = owed.get(session.leg.operator, 0) + session.unspent
        return {node: max(0, account.funded - owed[node]) for node, account in accounts.items()}

    def _failed(self, error: HivemintError, failures: int) -> int:
        """Set the nodes aside and allow another route, as long as there is another one."""
        self._set_aside(error)
        failures += 1
        peers = set(getattr(error, "peers", ()))
        others = [] if self._records is None else [one for one in self._records[1] if one.peer not in self._aside]
        if not peers or failures >= ATTEMPTS or not _covers(others, self._target.blocks):
            raise error
        return failures

    def _set_aside(self, error: HivemintError) -> None:
        if isinstance(error, SessionLimit):
            return
        until = time.monotonic() + self.settings.set_aside
        self._aside |= dict.fromkeys(getattr(error, "peers", ()), until)


async def connect(
    model: LocalModel,
    *,
    network: str | Path | Network,
    wallet: str | Signer | None = None,
    password: str | None = None,
    home: Home | None = None,
    **settings: Any,
) -> SwarmClient:
    """Join `network` with `wallet`: a keystore's name, a key, or None for a throw-away one (free lane only).

    Raises ConfigError (settings, network, model of another network), WalletError, ChainError, SwarmError.
    """
    home = home or Home.open()
    chosen = ClientSettings.load(home, **settings)
    place = network if isinstance(network, Network) else Network.load(Path(network))
    _check_model(place, model)
    if wallet is None:
        chosen, signer = chosen.model_copy(update={"bid": Bid("free")}), Signer(secrets.token_bytes(32))
    elif isinstance(wallet, Signer):
        signer = wallet
    else:
        signer = await asyncio.to_thread(unlock, wallet, password=password, home=home)
    book = VoucherBook.open(home.client / "vouchers.db", place.domain, signer.address)
    chain: ContractPort | None = None
    try:
        chain = await ContractPort.connect(place)
        host = await Host.start(HostSettings(network=place.name, listen=(), bootstrap=place.bootstrap))
    except BaseException:
        if chain is not None:
            await chain.close()
        book.close()
        raise
    target = Target(model.model_id, model.anatomy.num_blocks, model.anatomy.hidden_size)
    return SwarmClient(host, target, Payer(Identity.own(signer), place.domain, book), chain, chosen)


def _check_model(network: Network, model: LocalModel) -> None:
    """Another model under the same name would find no nodes, or wrong ones: say so at once."""
    if network.models and model.model_id not in {one.model_id for one in network.models}:
        served = ", ".join(one.name for one in network.models)
        raise ConfigError(
            f"The network {network.name} does not serve this {model.name}",
            why=f"its model id is 0x{model.model_id.hex()[:12]}...; the network names {served}",
            next_step="choose one of these, pull the model again, or use another network file",
        )


def _with(wish: Wish, bid: Bid, funds: Mapping[Address, int] | None) -> Wish:
    return Wish(wish.blocks, wish.tokens, bid, wish.ceiling, wish.seconds_per_credit, wish.margin, funds)


def _covers(records: list[CheckedRecord], blocks: int) -> bool:
    return len({block for one in records for block in one.record.blocks if block < blocks}) == blocks


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
