"""What must hold when a run is over, whatever befell it. Each check gives the sentences that are wrong, if any.

Money is compared in wei, in four books: the wallet's promises, the nodes' journals, the chain, the ledger's index.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import select

from chaos.clients import ClientProcess
from chaos.faults import Struck, Trouble
from chaos.network import ChaosNet
from chaos.schedule import SPANS, Kind, Schedule
from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.books.voucher_book import VoucherBook
from hivemint.ledger.explorer.fold import DERIVED
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.settlement.payments import ContractPayments
from hivemint.ledger.settlement.settler import Settler
from hivemint.ledger.store.database import database_url, open_store, reading
from hivemint.ledger.store.tables import accounts, events, gone, sessions
from hivemint.protocol.signing import Signer
from hivemint.testnet.localnet import NodePlan

SETTLED_WITHIN = 60.0
EMPTY_WITHIN = 40.0
GONE_WITHIN = 20.0
HELD = ("hivemint_node_sessions", "hivemint_node_queued", "hivemint_node_kv_used")
IN_FLIGHT = 2 * 64
"""Positions that one broken link leaves in doubt: a session's steps in flight, each a chunk of a prompt at most."""
HANGS_AFTER = 150.0
"""Seconds that one thing may take, faults and all."""


def eventually(wrong: Callable[[], list[str]], within: float) -> list[str]:
    """What is still wrong after so long; asked now and then."""
    deadline = time.monotonic() + within
    while (found := wrong()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


# --- what clients got


def answers(net: ChaosNet, clients: Iterable[ClientProcess], trouble: Trouble, kills: dict[str, int]) -> list[str]:
    """Every text is that of the library; one that ended with an error had a reason, and none hangs.

    `kills`: texts of each client that were under way as it was killed.
    """
    wrong = []
    for client in clients:
        begun: dict[tuple[int, int], dict[str, Any]] = {}
        for line in client.results():
            key = (line["thread"], line["number"])
            if "began" in line:
                begun[key] = line
                continue
            began = begun.pop(key)["began"]
            wrong += _wrong(net, client.job, line, began, trouble)
        if len(begun) > kills.get(client.job.name, 0):
            wrong.append(f"{client.job.name} never ended {[one['ask'] for one in begun.values()]}")
    return wrong


def _wrong(net: ChaosNet, job: Any, line: dict[str, Any], began: float, trouble: Trouble) -> list[str]:
    name = f"{job.name}, thread {line['thread']}, {line['ask']} {line['number']}"
    took = line["ended"] - began
    found = [f"{name} took {took:.0f} s"] if took > HANGS_AFTER else []
    if line["error"] in ("differs", "traceback"):
        found.append(f"{name} {line['error']}: {line['told']}")
    elif line["error"] and not excused(net, bool(job.wallet), began, line["ended"], trouble):
        found.append(f"{name} ended though nodes were left: {line['told']}")
    return found


def excused(net: ChaosNet, paid: bool, began: float, ended: float, trouble: Trouble) -> bool:
    """Whether no node was left for some block at some moment; or the chain, which says who may pay."""
    firsts = {plan.first for plan in net.plans}
    assert len(firsts) == SPANS
    spans = [[plan.operator for plan in net.plans if plan.first == first] for first in firsts]
    lost = any(trouble.at_once(span, began, ended) for span in spans)
    return lost or any(trouble.at_once([name], began, ended) for name in ("chain", "machine"))


def count_of(clients: Iterable[ClientProcess]) -> dict[str, int]:
    """Things asked for, by kind; positions of texts computed and paid again; how many ended with an error."""
    lines = [line for client in clients for line in client.results() if "ended" in line]
    asks = sorted({line["ask"] for line in lines})
    counts = {ask: sum(line["ask"] == ask for line in lines) for ask in asks}
    again = {what: sum(line.get(what, 0) for line in lines) for what in ("replayed", "paid again")}
    return {**counts, **again, "ended with an error": sum(bool(line["error"]) for line in lines)}


# --- money


@dataclass(frozen=True)
class Standing:
    """One wallet at one node, in wei. `bound`: what receipts that the wallet has countersigned come to; `signed`: the
    same of all receipts; `proven`: the best voucher that the journal may collect by."""

    promised: int
    bound: int
    signed: int
    owed: int
    proven: int
    chain: int
    ledger: int

    def wrong(self, name: str, in_flight: int) -> list[str]:
        """`in_flight`: positions that were under way as a link or a process broke; their fate may be unknown."""
        rules = {
            "journal, chain and ledger differ": self.proven == self.chain == self.ledger,
            "more was collected than promised": self.chain <= self.promised,
            "more was collected than is owed": self.chain <= self.owed,
            "more is owed than was computed": self.owed <= self.signed + in_flight,
            "a countersigned receipt was not paid": self.bound <= self.chain,
        }
        return [f"{name}: {rule} ({self})" for rule, holds in rules.items() if not holds]


async def settle(net: ChaosNet) -> None:
    """What `hivemint node claim` does, for each node that has ended."""
    async with await Bindings.connect(net.network) as contracts:
        genesis = await contracts.chain.genesis()
        for plan in net.plans:
            journal = Journal.open(net.journal_url(plan), net.network.domain, plan.address, genesis)
            try:
                operator, sure = net.operator(plan), net.network.confirmations
                await Settler(journal, ContractPayments(contracts, operator, confirmations=sure)).settle_now()
            finally:
                await journal.close()


def money(
    net: ChaosNet, wallets: dict[str, tuple[Signer, Path]], broken: int
) -> tuple[list[str], dict[str, dict[str, Standing]]]:
    """Of each wallet (its key, its home) at each node, once all is settled. `broken`: faults that hit somebody."""
    found: dict[str, dict[str, Standing]] = {}

    def wrong() -> list[str]:
        found.update({name: _standings(net, *wallet) for name, wallet in wallets.items()})
        return [
            line
            for name, standings in found.items()
            for node, standing in standings.items()
            for line in standing.wrong(f"{name} at {node}", IN_FLIGHT * broken)
        ]

    return eventually(wrong, SETTLED_WITHIN), found


def _standings(net: ChaosNet, wallet: Signer, home: Path) -> dict[str, Standing]:
    promised = asyncio.run(_promised(net, wallet, home))
    indexed = _indexed(net, wallet)
    return {
        plan.operator: Standing(
            promised.get(plan.address, 0),
            *_journal(net, plan, wallet),
            int(net.account(wallet, plan).collected),
            indexed.get(plan.address, 0),
        )
        for plan in net.plans
    }


async def _promised(net: ChaosNet, wallet: Signer, home: Path) -> dict[str, int]:
    async with await Bindings.connect(net.network) as bindings:
        genesis = await bindings.chain.genesis()
    book = VoucherBook.open(home / "client" / "vouchers.db", net.network.domain, wallet.address, genesis)
    try:
        return {str(node): int(total) for node, (total, _) in book.totals().items()}
    finally:
        book.close()


def _journal(net: ChaosNet, plan: NodePlan, wallet: Signer) -> tuple[int, int, int, int]:
    """(bound, signed, owed, proven). There is one wallet that pays, so all rows that are kept no more are its own."""
    engine = open_store(net.journal_url(plan), read_only=True)
    try:
        with reading(engine) as connection:
            mine = list(connection.execute(select(sessions).where(sessions.c.client == wallet.address)))
            owed = connection.scalar(select(accounts.c.owed).where(accounts.c.client == wallet.address))
            past = connection.execute(select(gone.c.paid_countersigned, gone.c.paid_signed)).first() or (0, 0)
    finally:
        engine.dispose()
    paid = [row for row in mine if row.price]
    bound, signed = (sum(int(row.price) * getattr(row, of) for row in paid) for of in ("tokens", "signed_tokens"))
    blocks = plan.end - plan.first
    proven = max((int(row.voucher_total) for row in paid if row.voucher_total is not None), default=0)
    return bound * blocks + int(past[0]), signed * blocks + int(past[1]), int(owed or 0), proven


def _indexed(net: ChaosNet, wallet: Signer) -> dict[str, int]:
    rows = net.ledger(f"escrows?client={wallet.address}&limit=100")["items"]
    return {row["node"]: int(row["collected"]) for row in rows}


def bills(clients: Iterable[ClientProcess], standings: dict[str, dict[str, Standing]]) -> list[str]:
    """What a client was told of its costs is all that was collected of it, if one life has told all."""
    wrong = []
    for client in clients:
        if client.job.name not in standings or client.lives > 1:
            continue
        spent = int(client.ended[-1]["spent"])
        collected = sum(one.chain for one in standings[client.job.name].values())
        if collected > spent:
            wrong.append(f"{client.job.name} was told of {spent} wei, and {collected} were collected")
    return wrong


def receipts(net: ChaosNet) -> list[str]:
    """No wallet has countersigned what a node has not signed; donated work is owed by nobody."""
    wrong = []
    for plan in net.plans:
        engine = open_store(net.journal_url(plan), read_only=True)
        try:
            with reading(engine) as connection:
                rows = list(connection.execute(select(sessions)))
        finally:
            engine.dispose()
        ahead = [row for row in rows if row.tokens > row.signed_tokens or (row.step or 0) > row.signed_step]
        wrong += [f"{plan.operator}: session {row.id.hex()[:12]} is countersigned beyond its steps" for row in ahead]
    return wrong


def index(net: ChaosNet, folder: Path) -> list[str]:
    """The ledger's tables are those of a fresh replay of the chain, and its supply is the chain's."""
    net.dev.mine_every(0)
    net.dev.rpc("evm_setAutomine", False)
    try:
        wrong = eventually(lambda: _behind(net), SETTLED_WITHIN)
        totals = net.ledger("status")["totals"]
        supply = int(net.chain(lambda bindings: bindings.token.supply()))
        if not totals["supply_ok"] or int(totals["supply"]) != supply:
            wrong.append(f"the ledger's supply is {totals}, the chain's {supply}")
        own = net.home.root / "ledger" / f"{net.network.name}-{net.network.chain_id}.db"
        there, anew = _tables(database_url(own)), _tables(net.chain(lambda found: _replay(net, found, folder)))
        wrong += [f"the ledger's table {name} is not a replay's" for name in anew if there[name] != anew[name]]
    finally:
        net.dev.rpc("evm_setAutomine", True)
        net.dev.mine_every(1)
    return wrong


def _behind(net: ChaosNet) -> list[str]:
    try:
        status = net.ledger("status")
    except httpx.HTTPError as error:
        return [f"the ledger does not answer: {error}"]
    height = int(net.dev.rpc("eth_blockNumber"), 16)
    return [] if status["indexed"] == height else [f"the ledger is at {status['indexed']}, the chain at {height}"]


async def _replay(net: ChaosNet, bindings: Bindings, folder: Path) -> str:
    url = database_url(folder / "replay.db")
    indexer = await Indexer.open(url, bindings, net.network)
    await indexer.follow()
    await indexer.close()
    return url


def _tables(url: str) -> dict[str, list[tuple[object, ...]]]:
    engine = open_store(url, read_only=True)
    try:
        with reading(engine) as connection:
            return {
                table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
                for table in (*DERIVED, events)
            }
    finally:
        engine.dispose()


# --- what is left


def rooms(net: ChaosNet) -> list[str]:
    """No session, no token in the queue, no page of keys and values is held where nobody is."""

    def wrong() -> list[str]:
        found = []
        for plan in net.plans:
            try:
                told = net.metrics(plan)
            except (httpx.HTTPError, OSError) as error:
                found.append(f"{plan.operator} tells no metrics: {error}")
                continue
            held = {name: value for name, value in told.items() if value and name.startswith(HELD)}
            missing = told["hivemint_node_kv_total_tokens"] - told["hivemint_node_kv_free_tokens"]
            if held or missing:
                found.append(f"{plan.operator} still holds {held}, {missing:g} tokens of room are not free")
        return found

    return eventually(wrong, EMPTY_WITHIN)


def daemons(net: ChaosNet) -> list[str]:
    """One libp2p daemon for each process that is in the swarm, while the network is up and no client is."""
    expected = {child.pid for child in net.children if child.alive}

    def wrong() -> list[str]:
        below = [process for process in ours(net.folder) if process.pid not in expected]
        orphans = [process for process in below if not {parent.pid for parent in process.parents()} & expected]
        return [f"orphan: {process.pid} {' '.join(process.cmdline())[:120]}" for process in orphans]

    return eventually(_safe(wrong), GONE_WITHIN)


def nobody(folder: Path) -> list[str]:
    """Once the network is down no process of it is left."""
    words = "left behind: {0.pid} {1}"

    def wrong() -> list[str]:
        return [words.format(process, " ".join(process.cmdline())[:120]) for process in ours(folder)]

    return eventually(_safe(wrong), GONE_WITHIN)


def _safe(wrong: Callable[[], list[str]]) -> Callable[[], list[str]]:
    """A process that ends while it is looked at is gone."""

    def asked() -> list[str]:
        try:
            return wrong()
        except psutil.NoSuchProcess:
            return ["a process was just ending"]

    return asked


def ours(folder: Path) -> list[psutil.Process]:
    """Processes that were started for `folder`: it is on their command line, or their home is in it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("HIVEMINT_HOME", "")]
            if process.pid != psutil.Process().pid and any(str(folder) in word for word in words):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def logs(folder: Path) -> list[str]:
    """Whatever befalls a process, it tells it in words of its own."""
    wrong = []
    for path in sorted(folder.rglob("*.log")):
        text = path.read_text(errors="replace")
        if "Traceback (most recent call last)" in text:
            at = text.index("Traceback (most recent call last)")
            wrong.append(f"{path.name} holds a traceback: {text[at : at + 1200]}")
    return wrong


def not_hit(schedule: Schedule, done: Iterable[Struck]) -> list[str]:
    """Kinds of faults that were to come and never hurt anybody."""
    hit = {struck.fault.kind for struck in done if struck.hit > 0}
    return [str(kind) for kind in Kind if kind in {fault.kind for fault in schedule.faults} - hit]
