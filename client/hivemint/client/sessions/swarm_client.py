"""The network as `SwarmModelForCausalLM` holds it: finds nodes, plans routes, opens sessions along them."""

import asyncio
import contextlib
import copy
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from hivemint.client.kept import TextMark
from hivemint.client.pipeline import Pipeline, Plan, StillBusy
from hivemint.client.sessions.attempts import Attempts
from hivemint.client.sessions.nodes import Nodes, Target
from hivemint.client.sessions.payer import Payer
from hivemint.client.sessions.peft import LoraAdapter
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.client.sessions.pipelines.recalled import RecalledPipeline
from hivemint.client.sessions.pipelines.relay import Relay
from hivemint.client.sessions.pipelines.repair import Hole
from hivemint.client.sessions.pipelines.vouchers import VoucherSource
from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.route_opener import RouteOpener
from hivemint.client.sessions.route_planner import RoutePlanner
from hivemint.client.sessions.routing.choice import NodeChoice
from hivemint.client.sessions.session import RemoteSession
from hivemint.client.sessions.speeds import Allowance, Speeds
from hivemint.client.sessions.wallet import ContractPort, Identity, sign_by_key, unlock
from hivemint.client.settings import Bid, ClientSettings
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.model import companions
from hivemint.model.local_models import LocalModel
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import ConfigError, HivemintError, ProofError, Refusal, SwarmError, WalletError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address, Credits, PeerId
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host, HostSettings

log = structlog.get_logger(__name__)

_P = TypeVar("_P", LivePipeline, Relay)

RETURN = 5.0
"""Seconds that a node may take to see that a client which comes back had gone: its silence, and one step."""


class SwarmClient:
    """Implements `client.pipeline.Swarm` over one libp2p host.

    Where `payer` knows no chain there is no registry, no accounts, and the own clock counts.
    """

    def __init__(
        self,
        host: Host,
        target: Target,
        payer: Payer,
        settings: ClientSettings,
        adapter: LoraAdapter | None = None,
        proofs: Path | None = None,
        *,
        network: str = "",
        throw_away: bool = False,
    ) -> None:
        """`adapter`: loaded by every node of every route, for these sessions alone.

        `proofs`: the folder that keeps evidence against nodes. `network`: its name, for people. `throw_away`: the key
        is nobody's wallet, so nobody can be paid.
        """
        self._host, self._target, self._payer = host, target, payer
        self._network, self._throw_away = network, throw_away
        self.settings = settings
        self.speeds = Speeds(Allowance(settings.slow_times, settings.slow_floor))
        self.nodes = Nodes(host, target, payer.chain, self.speeds, NodeChoice.of(settings))
        self._attempts = Attempts(self.nodes, self.speeds, proofs)
        self._pipelines: set[LivePipeline | Relay] = set()
        self._planner = RoutePlanner(self.nodes, target, payer, self._reserved)
        self._opener = RouteOpener(host, payer, adapter)

    @property
    def host(self) -> Host:
        """This client's place in the swarm."""
        return self._host

    @property
    def payer(self) -> Payer:
        return self._payer

    @property
    def description(self) -> str:
        """See `Swarm.description`."""
        who = "without a wallet, donated work only" if self._throw_away else f"as {self._payer.who.client}"
        ceiling = self.settings.max_price
        most = "" if ceiling is None else f", at most {format_credits(ceiling, 18)} a token"
        return f"network {self._network or '?'}, {who}, bid {self.settings.bid}{most}"

    def offering(self, *, bid: object = None, max_price: object = None) -> "SwarmClient":
        """See `Swarm.offering`."""
        if bid is None and max_price is None:
            return self
        other = copy.copy(self)
        other.settings = self.settings.changed(bid=bid, max_price=max_price)
        if self._throw_away:
            other.settings = _unpaid(other.settings)
        return other

    @property
    def replay_margin(self) -> float:
        """See `Swarm.replay_margin`."""
        return self.settings.replay_margin

    async def open(self, tokens: int) -> LivePipeline:
        """See `Swarm.open`."""
        return await self._place(partial(self.along, tokens=tokens), tokens)

    async def relay(self, tokens: int, work: int) -> Relay:
        """See `Swarm.relay`."""
        return await self._place(partial(self.relay_along, tokens=tokens, work=work), tokens, work)

    def look_around(self) -> None:
        """See `Replacements.look_around`."""
        self.nodes.look_around()

    async def replace(self, hole: Hole) -> list[RemoteSession]:
        """See `Replacements.replace`. At the bid of this client; a ceiling holds for the whole route."""
        settings = self.settings
        if settings.max_price is not None:
            settings = settings.model_copy(update={"max_price": Credits(max(0, settings.max_price - hole.kept))})
        go = partial(self._opener.fill, hole, settings=settings, speeds=self.speeds)
        planned = partial(self._planner.awaited, hole.tokens, settings, self.speeds, blocks=hole.blocks, wire=hole.wire)
        return await self._attempts.until_open(planned, go, settings)

    async def reopen(self, leg: Leg, tokens: int) -> RemoteSession:
        """See `Replacements.reopen`."""
        (session,) = await self._opener.open(Route((leg,)), tokens, self.settings, self.speeds)
        return session

    def vouchers(self, sessions: Sequence[RemoteSession]) -> VoucherSource:
        """See `Replacements.vouchers`."""
        return VoucherSource(sessions, self._payer, lambda: sum(one.open for one in self._pipelines) < 2)

    def plan_of(self, sessions: Sequence[RemoteSession], before: Plan) -> Plan:
        """See `Replacements.plan_of`."""
        route = Route(tuple(one.leg for one in sessions), unpaid=before.unpaid)
        return route.plan(before.tokens, self.settings.margin)

    async def _place(self, go: Callable[[Route], Awaitable[_P]], tokens: int, work: int = 0) -> _P:
        planned = partial(self._planner.awaited, tokens, self.settings, self.speeds, work=work)
        return self._kept(await self._attempts.until_open(planned, go, self.settings))

    def another_way(self, error: HivemintError) -> bool:
        """See `Replacements.another_way`."""
        return self._attempts.another_way(error, self.settings)

    async def fork(self, parent: Pipeline, tokens: int, count: int) -> LivePipeline | None:
        """See `Swarm.fork`. A child is at the nodes of its parent, whatever the best route is now, and at its bid."""
        if not isinstance(parent, LivePipeline | RecalledPipeline) or not 0 < count <= min(parent.position, tokens):
            return None
        if isinstance(parent, LivePipeline) and not _offered_alike(parent.settings, self.settings):
            return None
        patience = time.monotonic() + RETURN
        while True:
            try:
                return self._kept(await self._forked(parent, tokens, count))
            except StillBusy as error:  # the node computes its last step yet
                if isinstance(parent, LivePipeline) or time.monotonic() > patience:
                    log.info("nothing to begin with", reason=str(error))
                    return None
                await asyncio.sleep(RETURN / 20)
            except (SwarmError, Refusal, ProofError) as error:
                log.info("nothing to begin with", reason=str(error))
                return None

    async def _forked(self, parent: LivePipeline | RecalledPipeline, tokens: int, count: int) -> LivePipeline:
        try:
            if isinstance(parent, RecalledPipeline):
                stops = [(PeerId(one.peer), range(one.first, one.end)) for one in parent.mark.hops]
                legs = await self._planner.at(stops, tokens, self.settings, self.speeds)
                parent.found(legs, self._payer.domain, self._payer.who.client)
            else:
                await parent.settle()
            route = Route(tuple(one.leg for one in parent.sessions), unpaid=parent.plan.unpaid)
            pipeline = await self.along(route, tokens)
        except (SwarmError, ProofError) as error:
            self._set_aside(error)
            raise
        try:
            await pipeline.fork(parent, count)
        except BaseException:
            with contextlib.suppress(ProofError):  # it is what failed here
                await pipeline.close()
            raise
        return pipeline

    async def mark(self, pipeline: Pipeline) -> TextMark | None:
        """See `Swarm.mark`."""
        return await pipeline.mark() if isinstance(pipeline, LivePipeline) else None

    def recall(self, mark: TextMark) -> RecalledPipeline:
        """See `Swarm.recall`."""
        return RecalledPipeline(mark, self._target.hidden)

    async def plan(self, tokens: int) -> Plan:
        """See `Swarm.plan`."""
        route, instead = await self._planner.explained(tokens, self.settings, self.speeds)
        return route.plan(tokens, self.settings.margin, instead)

    async def route(self, tokens: int, *, work: int = 0) -> Route:
        """The cheapest route by what is known now, `work` as in `Wish`. Raises SwarmError: what is missing."""
        return await self._planner.route(tokens, self.settings, self.speeds, work=work)

    async def spendable(self) -> dict[Address, int] | None:
        """What the account at each node of this model still admits, in wei. None where no chain is known."""
        return await self._planner.spendable()

    async def along(self, route: Route, tokens: int) -> LivePipeline:
        """A pipeline over these nodes."""
        sessions = await self._opener.open(route, tokens, self.settings, self.speeds)
        plan = route.plan(tokens, self.settings.margin)
        return LivePipeline(sessions, plan, self._target.hidden, self.settings, self.speeds, self, self._set_aside)

    async def relay_along(self, route: Route, tokens: int, work: int) -> Relay:
        """A relay over these nodes."""
        opened = partial(self._opener.open, tokens=tokens, settings=self.settings, speeds=self.speeds, work=work)

        async def others_for(lost: RemoteSession) -> list[RemoteSession]:
            leg, planned = lost.leg, partial(self._planner.awaited, tokens, self.settings, self.speeds, work=work)
            part = partial(planned, blocks=range(leg.first, leg.end), wire=leg.wire)
            return await self._attempts.until_open(part, opened, self.settings)

        sessions, hidden = await opened(route), self._target.hidden
        return Relay(sessions, hidden, self._payer, self.settings, self.speeds, self._set_aside, others_for)

    def _set_aside(self, error: HivemintError) -> None:
        self._attempts.set_aside(error, self.settings)

    async def expiry(self) -> int:
        """By the later of the two clocks; never beyond a separate key's own end."""
        return await self._payer.expiry(self.settings.session_time)

    async def close(self) -> None:
        """Sign off everywhere, leave the swarm. Harmless when called again."""
        await asyncio.gather(*(one.close() for one in self._pipelines), return_exceptions=True)
        self._pipelines.clear()
        await self.nodes.close()
        await self._host.close()
        if self._payer.chain is not None:
            await self._payer.chain.close()
        self._payer.book.close()

    # ---- inside

    def _kept(self, pipeline: _P) -> _P:
        self._pipelines -= {one for one in self._pipelines if not one.open}  # in place: `offering` shares it
        self._pipelines.add(pipeline)
        return pipeline

    def _reserved(self) -> Counter[Address]:
        """What each node still reserves for sessions that are open, in wei."""
        reserved: Counter[Address] = Counter()
        for session in (session for one in self._pipelines if one.open for session in one.sessions):
            reserved[session.leg.operator] += session.unspent
        return reserved


async def connect(
    model: LocalModel,
    *,
    network: str | Path | Network | None = None,
    wallet: str | Signer | None = None,
    session_key: str | Signer | None = None,
    password: str | None = None,
    home: Home | None = None,
    adapter: str | Path | None = None,
    **settings: Any,
) -> SwarmClient:
    """Join `network` (None: `$HIVEMINT_NETWORK`) with `wallet`: a keystore's name, a key, or None for a throw-away one
    (donated work only: another bid raises WalletError).

    With `session_key` (a keystore's name or a key that the wallet has authorized) the wallet itself stays locked;
    `password` then opens the key. `adapter`: the folder of a PEFT LoRA adapter for the blocks. Raises ConfigError
    (settings, network, model of another network), ModelError (adapter), WalletError, ChainError, SwarmError,
    StoreError (books that cannot be used, or are of another chain).
    """
    home = home or Home.open()
    chosen = ClientSettings.load(home, **settings)
    place = Network.of(network)
    await asyncio.to_thread(_check_model, place, model)
    lora = None if adapter is None else await asyncio.to_thread(LoraAdapter.load, adapter, model.anatomy)
    throw_away = wallet is None
    if wallet is None:
        chosen, wallet = _unpaid(chosen), Signer(secrets.token_bytes(32))
    signing = session_key if session_key is not None else wallet
    if isinstance(signing, str):
        signing = await asyncio.to_thread(unlock, signing, password=password, home=home)
    client = wallet.address if isinstance(wallet, Signer) else Keystores(home.keystores).find(wallet).address
    async with contextlib.AsyncExitStack() as undo:
        chain = await ContractPort.connect(place)
        undo.push_async_callback(chain.close)
        who = Identity.own(signing) if session_key is None else await sign_by_key(chain, client, signing)
        book = VoucherBook.open(home.client / "vouchers.db", place.domain, client, await chain.genesis())
        undo.callback(book.close)
        known = home.client / f"peers-{place.name}.json"
        host = await Host.start(
            HostSettings(place.name, listen=(), bootstrap=place.bootstrap, swarm_key=place.swarm_key, known=known)
        )
        undo.push_async_callback(host.close)
        host.rank_by(chain.registry)
        host.clock.see_block(await chain.time())
        if trouble := host.clock.trouble():
            log.warning("this machine's clock is off", trouble=trouble)
        undo.pop_all()
    target = Target(model.model_id, model.anatomy.num_blocks, model.anatomy.hidden_size)
    payer = Payer(who, place.domain, book, chain)
    proofs = home.client / "evidence"
    return SwarmClient(host, target, payer, chosen, lora, proofs, network=place.name, throw_away=throw_away)


def _offered_alike(one: ClientSettings, other: ClientSettings) -> bool:
    """Whether sessions opened by these may stand for each other: their bid and their ceiling."""
    return (one.bid, one.max_price) == (other.bid, other.max_price)


def _unpaid(settings: ClientSettings) -> ClientSettings:
    """These where no wallet is: nobody can be paid. Raises WalletError where a bid asks for it."""
    if settings.bid.kind not in ("auto", "free"):
        raise WalletError(
            "No wallet",
            why=f"the bid is {settings.bid}, and somebody has to pay it",
            next_step="name one (--wallet), or ask for donated work (--bid free)",
        )
    return settings.changed(bid=Bid("free"))


def _check_model(network: Network, model: LocalModel) -> None:
    """Another model under the same name would find no nodes, or wrong ones: say so at once."""
    if network.models and model.model_id not in {one.model_id for one in network.models}:
        served = ", ".join(one.name for one in network.models)
        raise ConfigError(
            f"The network {network.name} does not serve this {model.name}",
            why=f"its model id is 0x{model.model_id.hex()[:12]}...; the network names {served}",
            next_step="choose one of these, pull the model again, or use another network file",
        )
    for one in network.models:
        if one.model_id == model.model_id:
            companions.check(model.folder, one.files)
