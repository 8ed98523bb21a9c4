"""`hivemint node status`: whether the node runs, what it said of itself, and how it stands on the chain.

It works while the chain is away, and while the node is: then it tells what the books know.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from hivemint.cli.console import JsonFlag, NetworkOption, WalletOption, emit, out, run_async, shown, table
from hivemint.cli.node.live_view import flow_table, next_steps
from hivemint.cli.node.operators import NameOption, operator_wallet, standing, with_contracts
from hivemint.cli.node.registering import coins
from hivemint.cli.transact import load_network
from hivemint.protocol.credits import format_credits, in_words
from hivemint.protocol.errors import ChainError, ConfigError
from hivemint.protocol.home import Home, read_small
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import node_name
from hivemint.protocol.text import utc

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings

FRESH = 15.0
"""Seconds after which a node that has written nothing is not said to run: it writes every second."""
STATUS_SIZE = 1 << 20


def status(
    wallet: WalletOption = None, network: NetworkOption = None, name: NameOption = None, as_json: JsonFlag = False
) -> None:
    """Whether the node runs, what it has earned, why not more; and its standing on the chain."""
    wallet, where = operator_wallet(wallet), load_network(network)
    home = Home.open()
    operator = Keystores(home.keystores).find(wallet).address
    folder = home.node(name or wallet)
    seen = last_seen(folder / "status.json")
    told = run_async(_on_chain(network, where, operator)) | running(seen)
    if seen is not None:
        told["last_seen"] = seen if told["running"] else brought_up(seen, by_books(folder, where, operator))
    else:
        told["books"] = by_books(folder, where, operator)
    if as_json:
        emit(told)
    else:
        show(told)


async def _on_chain(path: Path | None, network: Network, operator: Address) -> dict[str, Any]:
    """The registry's record, or why it can't be read."""
    from hivemint.cli.node.operators import pay_of

    async def work(contracts: "Bindings") -> dict[str, Any]:
        known = await standing(contracts, operator)
        return known | {"pay": await pay_of(contracts, network, known)}

    try:
        return await with_contracts(path, work)
    except ChainError as error:
        return {"name": node_name(operator), "operator": operator, "registered": None, "chain": str(error)}


Time = Annotated[float, msgspec.Meta(ge=0, lt=253_402_300_800)]
"""Up to the year 9999, the last that has a name."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class LastSeen(msgspec.Struct, frozen=True):
    """What a node wrote of itself, as `node.status.Snapshot` has it. A newer node may tell more: that is left out."""

    model: str
    blocks: str
    credits: dict[str, int]
    reasons: dict[str, str]
    at: Time = 0.0
    pid: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    peer: str = ""
    addresses: list[str] = []
    operator: str = ""
    numerics: str = ""
    sessions: dict[str, Count] = {}
    tokens: dict[str, Count] = {}
    tokens_per_s: float = 0.0
    wait_s: dict[str, float] = {}
    kv_free: Count = 0
    kv_total: Count = 0
    refusals: dict[str, Count] = {}
    receipts: dict[str, Count] = {}
    trouble: dict[str, str] = {}
    flow: dict[str, int] = {}
    pay: str = ""
    ask: int = 0
    ask_note: str = ""
    reach: list[tuple[str, str]] = []
    reach_fix: str = ""
    network: str = ""
    started: Time = 0.0
    stopped: Time = 0.0

    def __post_init__(self) -> None:
        if max(map(abs, (self.ask, *self.credits.values(), *self.flow.values()))) >= 2**128:  # Meta holds 63 bits
            raise ValueError("an amount is larger than all credits")


def last_seen(path: Path) -> LastSeen | None:
    """What the node wrote of itself; None if it never did. Raises BadInput for a damaged file."""
    if not os.path.lexists(path):
        return None
    data = read_small(path, STATUS_SIZE, "node's status")
    try:
        return msgspec.json.decode(data, type=LastSeen)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not a node's status", why=str(error), next_step="remove it: a node that runs writes it anew"
        ) from None


def running(seen: LastSeen | None, now: float | None = None) -> dict[str, Any]:
    """`running`, and since when; or when it stopped, and whether it said so."""
    now = time.time() if now is None else now
    if seen is None:
        return {"running": False, "since": None, "state": "never started from this folder"}
    if seen.stopped:
        return {"running": False, "since": seen.stopped, "state": f"stopped since {utc(seen.stopped)}"}
    if _alive(seen.pid) and now - seen.at < FRESH:
        since = seen.started or seen.at
        return {"running": True, "since": since, "state": f"running since {utc(since)}"}
    ended = f"not running: it ended without a word, last seen {utc(seen.at)}"
    return {"running": False, "since": seen.at, "state": ended}


def by_books(folder: Path, network: Network, operator: Address) -> dict[str, Any]:
    """The flow by the journal alone, as a node would tell it. Empty without one."""
    from hivemint.ledger.explorer.statements import Statements

    path = folder / "journal.db"
    if not path.is_file():
        return {}
    statements = Statements(f"sqlite:///{path}", network)
    try:
        found = next((one for one in statements.nodes() if one.node == operator), None)
    finally:
        statements.close()
    if found is None:
        return {}
    return {
        "signed": found.paid.signed,
        "bound": found.paid.countersigned,
        "promised": found.promised,
        "settled": found.collected,
        "minted": found.minted,
        "served_tokens": found.donated.tokens_signed,
        "bound_tokens": found.donated.tokens_countersigned,
        "donated_minted": 0,
        "earned": found.minted,
        "unsettled": max(0, found.promised - found.collected),
    }


def brought_up(seen: LastSeen, books: dict[str, int]) -> LastSeen:
    """With what has been settled since the node stopped (`hivemint node claim`): only its books know of that."""
    if books.get("settled", 0) <= seen.flow.get("settled", 0):
        return seen
    minted = books["minted"] - seen.flow.get("minted", 0)
    flow = seen.flow | {name: books[name] for name in ("settled", "minted", "unsettled")}
    reasons = {stage: text for stage, text in seen.reasons.items() if stage not in ("settled", "minted")}
    return msgspec.structs.replace(seen, flow=flow | {"earned": flow.get("earned", 0) + minted}, reasons=reasons)


def show(told: dict[str, Any]) -> None:
    """State first, then what it earned, then the chain."""
    seen: LastSeen | None = told.get("last_seen")
    rows: list[tuple[str, ...]] = [
        ("state", told["state"]),
        ("name", node_name(told["operator"])),
        ("operator", told["operator"]),
    ]
    if seen is not None:
        rows.append(("blocks", f"{seen.model} {seen.blocks}"))
        rows += [("at", f"{address}: {text}") for address, text in seen.reach[:4]]
        rows += [("for more", seen.reach_fix)] if seen.reach_fix else []
        rows += [("ask", f"{in_words(seen.ask)} a token and block")] if seen.ask else []
        rows += [("", seen.ask_note)] if seen.ask_note else []
    table("node", "", "", rows=rows)
    flow, reasons = (seen and seen.flow) or told.get("books", {}), seen.reasons if seen else {}
    if flow:
        out.print()
        out.print(flow_table(flow, reasons))
    rest = {stage: text for stage, text in reasons.items() if text and not flow}
    for stage, text in rest.items():
        out.print(f"why {stage}: {shown(text)}", highlight=False)
    if flow and not told["running"]:
        for line in next_steps(flow):
            out.print(shown(line), highlight=False)
    out.print()
    table("chain", "", "", rows=_chain_rows(told))


def _chain_rows(told: dict[str, Any]) -> list[tuple[str, ...]]:
    if "chain" in told:
        return [("does not answer", told["chain"]), ("", "what is above is what the node and its books know")]
    if not told["registered"]:
        return [("registered", "no: run `hivemint node register`")]
    rows = [
        ("registered", "retired: an equivocation was proved" if told["retired"] else "yes"),
        ("owner", told["owner"]),
        ("payout", told["payout"]),
        ("bonded", coins(told["bonded_wei"])),
        ("epoch", str(told["epoch"])),
    ]
    if told["unbonding_wei"]:
        rows.append(("unbonding", f"{coins(told['unbonding_wei'])} until {utc(told['unbond_end'])}"))
    if "offered_to" in told:
        rows.append(("offered to", told["offered_to"]))
    shares = ", ".join(f"{epoch}: {format_credits(s['wei'])} {s['status']}" for epoch, s in told["shares"].items())
    return [*rows, ("shares by epoch", shares), ("donated work", told["pay"])]


def _alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's: it lives
        return True
    return True
