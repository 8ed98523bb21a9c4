"""The nodes that a deposit may go to: who serves, who answers, and where an account stands already."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hivemint.cli.wallet.purchase import POSITIONS, answers
from hivemint.protocol.eip712 import peer_id_hash
from hivemint.protocol.errors import BadInput, SwarmError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address, Credits, PeerId
from hivemint.protocol.network import Network

if TYPE_CHECKING:
    from hivemint.client.sessions.shortfall import NodeFunds
    from hivemint.contracts.bindings import Bindings
    from hivemint.contracts.bindings.registry import NodeInfo
    from hivemint.swarm.host import Host
    from hivemint.swarm.records import CheckedRecord, NodeRecord

_AT_ONCE = 128
"""Nodes that the registry is asked for in one call."""


@dataclass(slots=True)
class Candidates:
    """`nodes`: operators that may be funded. `left_out`: operator -> why not. `records`: of each model, by its name."""

    nodes: list[Address] = field(default_factory=list)
    left_out: dict[Address, str] = field(default_factory=dict)
    records: dict[str, list["CheckedRecord"]] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    funds: dict[Address, "NodeFunds"] = field(default_factory=dict)

    def leave_out(self, node: Address, why: str) -> None:
        self.left_out[node] = why
        self.nodes = [one for one in self.nodes if one != node]

    def leave_out_dear(self) -> None:
        """Who asks more than this client's own ceiling, by the rule of its routes: it would never be paid."""
        from hivemint.client.sessions.ceiling import too_dear
        from hivemint.client.sessions.routing.wish import Wish
        from hivemint.client.settings import Bid, ClientSettings

        settings = ClientSettings.load()
        bid = settings.bid if settings.bid.paid else Bid("times")
        dear: dict[Address, str] = {}
        usual: set[Address] = set()
        for model, records in self.records.items():
            wish = Wish(self.blocks[model], POSITIONS, bid, settings.max_price, times_median=settings.max_times_median)
            reasons = too_dear(records, wish)
            dear |= reasons
            usual |= {one.record.operator for one in records if one.record.operator not in reasons}
        for node in [node for node in self.nodes if node in dear and node not in usual]:
            self.leave_out(node, dear[node])

    def spans(self, node: Address) -> str:
        found = [one.record for records in self.records.values() for one in records if one.record.operator == node]
        return ", ".join(f"{one.first_block}:{one.end_block}" for one in found) or "?"

    def ask(self, node: Address) -> Credits | None:
        """Of a token and block, the dearest of its spans; None for a node that is not in the swarm."""
        found = [one.record for records in self.records.values() for one in records if one.record.operator == node]
        return Credits(max(one.ask for one in found)) if found else None

    def buys(self, deposits: dict[Address, int]) -> dict[str, int]:
        """Model -> how many usual answers the accounts pay for after these deposits; 0 where they pay for none."""
        from hivemint.client.sessions.routing.planning import plan_route
        from hivemint.client.sessions.routing.wish import Wish
        from hivemint.client.sessions.speeds import Speeds
        from hivemint.client.settings import Bid

        after = {node: deposits.get(node, 0) + self._left(node) for node in {*deposits, *self.funds}}
        counts: dict[str, int] = {}
        for model, records in self.records.items():
            usable = [one for one in records if one.record.operator not in self.left_out]
            wish = Wish(self.blocks[model], POSITIONS, Bid("times"), funds=after)
            try:
                route = plan_route(usable, wish, Speeds())
            except SwarmError:
                counts[model] = 0
                continue
            prices: dict[Address, int] = {}
            for leg in route.legs:
                prices[leg.operator] = prices.get(leg.operator, 0) + leg.price
            if (count := answers(prices, after)) is not None:
                counts[model] = count
        return counts

    def costs(self) -> dict[str, int]:
        """Model -> what one usual answer costs on the cheapest route, in wei, whatever the accounts hold."""
        from hivemint.client.sessions.routing.planning import plan_route
        from hivemint.client.sessions.routing.wish import Wish
        from hivemint.client.sessions.speeds import Speeds
        from hivemint.client.settings import Bid

        costs: dict[str, int] = {}
        for model, records in self.records.items():
            usable = [one for one in records if one.record.operator not in self.left_out]
            with suppress(SwarmError):
                route = plan_route(usable, Wish(self.blocks[model], POSITIONS, Bid("times")), Speeds())
                costs[model] = route.price * POSITIONS
        return costs

    def _left(self, node: Address) -> int:
        return self.funds[node].left if node in self.funds else 0


async def candidates(
    network: Network,
    contracts: "Bindings",
    client: Address,
    named: Sequence[Address],
    model: str | None,
    dial: bool,
    *,
    within_ceiling: bool,
) -> Candidates:
    """`named`, else all that serve (`model` alone), without those that do not answer and those whose account thaws;
    `within_ceiling`: without those that ask more than this client pays.

    Raises BadInput for a node that nobody registered: it could never be paid. Raises SwarmError if nobody is left,
    ChainError if the chain does not tell who is registered.
    """
    found = Candidates()
    await _check_registered(contracts, named)
    if network.bootstrap and network.models:
        await _look(network, contracts, found, named, model, dial, within_ceiling)
    elif not named:
        raise SwarmError("Nobody serves this network's models now", next_step="name the nodes with --node")
    else:
        found.nodes = list(dict.fromkeys(named))
        await _leave_out_unregistered(contracts, found)
    found.funds = await account_funds(network, contracts, client, [*found.nodes])
    for node, funds in found.funds.items():
        if funds.thaw_end:
            found.leave_out(node, f"its account thaws: `hivemint account cancel {node}` opens it again")
    if not found.nodes:
        why = "; ".join(f"{node}: {reason}" for node, reason in found.left_out.items())
        step = "try again when nodes are back" if why else "name the nodes with --node"
        raise SwarmError("There is no node to deposit at now", why=why or "nobody serves", next_step=step)
    return found


async def account_funds(
    network: Network, contracts: "Bindings", client: Address, nodes: Sequence[Address]
) -> dict[Address, "NodeFunds"]:
    """Where the client's accounts stand by chain and by its own book of vouchers."""
    from hivemint.client.sessions.shortfall import NodeFunds
    from hivemint.client.sessions.wallet import ContractPort
    from hivemint.ledger.books.voucher_book import VoucherBook

    accounts = await ContractPort(contracts).accounts(client, nodes)
    genesis = await contracts.chain.genesis()
    book = VoucherBook.open(Home.open().client / "vouchers.db", network.domain, client, genesis)
    try:
        totals = book.totals()
    finally:
        book.close()
    return {
        node: NodeFunds(one.funded, max(one.collected, totals.get(node, (0, 0))[0]), 0, one.thaw_end)
        for node, one in accounts.items()
    }


async def _check_registered(contracts: "Bindings", named: Sequence[Address]) -> None:
    for node, known in zip(named, await contracts.registry.nodes(named) if named else [], strict=True):
        if known is None:
            raise BadInput(
                f"{node} is no registered node",
                why="credits there serve nobody until a thaw is over",
                next_step="check the address: `hivemint swarm status --json` names the operators of nodes",
            )


async def _leave_out_unregistered(contracts: "Bindings", found: Candidates) -> None:
    """The contract's own word on every node: a swarm that was looked at while the chain stumbled ranks nobody."""
    served = {one.record.operator for records in found.records.values() for one in records}
    asked, known = sorted({*found.nodes, *served}), dict[Address, "NodeInfo | None"]()
    for at in range(0, len(asked), _AT_ONCE):
        some = asked[at : at + _AT_ONCE]
        known |= dict(zip(some, await contracts.registry.nodes(some), strict=True))

    def counts(one: "CheckedRecord") -> bool:
        info = known[one.record.operator]
        return info is not None and not info.retired and info.peer_id_hash == peer_id_hash(PeerId(one.record.peer))

    found.records = {model: [one for one in records if counts(one)] for model, records in found.records.items()}
    counted = {one.record.operator for records in found.records.values() for one in records}
    for node in list(found.nodes):
        info = known[node]
        if info is None:
            found.leave_out(node, "it is not registered: credits there would serve nobody until a thaw is over")
        elif info.retired:
            found.leave_out(node, "it is retired: it was convicted, and no route takes it any more")
        elif node in served and node not in counted:
            found.leave_out(node, "it shows a peer id that is not the registered one, so no route takes it")


async def _look(
    network: Network,
    contracts: "Bindings",
    found: Candidates,
    named: Sequence[Address],
    model: str | None,
    dial: bool,
    within_ceiling: bool,
) -> None:
    """Who is in the swarm and registered; with `dial`, only who answers. The dear are not even asked."""
    from hivemint.cli.swarm import block_counts, visiting

    chosen, counts = [network.model(model)] if model else list(network.models), block_counts(network)
    async with visiting(network) as host:
        for one in chosen:
            records = await host.find(one.model_id, range(counts[one.model_id]))
            kept = [record for record in records if not host.ranks or host.is_registered(record)]
            found.records[one.name], found.blocks[one.name] = kept, counts[one.model_id]
        serving = {one.record.operator: one.record for records in found.records.values() for one in records}
        found.nodes = list(dict.fromkeys(named or sorted(serving)))
        await _leave_out_unregistered(contracts, found)
        if within_ceiling:
            found.leave_out_dear()
        if not dial:
            return
        for node in [node for node in found.nodes if node not in serving]:
            found.leave_out(node, "it is not in the swarm now (--no-dial deposits there all the same)")
        silent = await _silent(network, contracts, host, [serving[node] for node in found.nodes])
        for node in [node for node in found.nodes if bytes(serving[node].peer) in silent]:
            found.leave_out(node, silent[bytes(serving[node].peer)])


async def _silent(
    network: Network, contracts: "Bindings", host: "Host", records: Sequence["NodeRecord"]
) -> dict[bytes, str]:
    """Asked with a throw-away key, so with a throw-away book too."""
    from hivemint.client.answering import silent_nodes
    from hivemint.client.sessions.wallet import ContractPort
    from hivemint.ledger.books.voucher_book import VoucherBook

    nobody, genesis = Address("0x" + "00" * 20), await contracts.chain.genesis()
    with tempfile.TemporaryDirectory(prefix="hivemint-") as folder:
        book = VoucherBook.open(Path(folder) / "vouchers.db", network.domain, nobody, genesis)
        try:
            return await silent_nodes(host, records, network.domain, book, ContractPort(contracts))
        finally:
            book.close()
