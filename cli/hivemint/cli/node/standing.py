"""`hivemint node status`: whether the node runs, what it said of itself, and how it stands on the chain.

It works while the chain is away, and while the node is: then it tells what the books know.
"""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemint.cli.console import JsonFlag, NetworkOption, WalletOption, emit, out, run_async, shown, table
from hivemint.cli.node.live_view import flow_table, next_steps
from hivemint.cli.node.operators import NameOption, operator_wallet, standing, with_contracts
from hivemint.cli.node.registering import coins
from hivemint.cli.transact import load_network
from hivemint.protocol.credits import format_credits, in_words
from hivemint.protocol.errors import ChainError, ConfigError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Address
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.network import Network
from hivemint.protocol.node_name import node_name

if TYPE_CHECKING:
    from hivemint.contracts.bindings import Bindings

FRESH = 15.0
"""Seconds after which a node that has written nothing is not said to run: it writes every second."""


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
    if seen:
        told["last_seen"] = seen
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


def last_seen(path: Path) -> dict[str, Any]:
    """What the node wrote of itself; empty if it never did. Raises ConfigError for a damaged file."""
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged", why=str(error), next_step="remove it: a node that runs writes it anew"
        ) from None
    if not isinstance(told, dict) or not told.keys() >= {"model", "blocks", "credits", "reasons"}:
        raise ConfigError(f"{path} is not a node's status", next_step="remove it: a node that runs writes it anew")
    return told


def running(seen: dict[str, Any], now: float | None = None) -> dict[str, Any]:
    """`running`, and since when; or when it stopped, and whether it said so."""
    now = time.time() if now is None else now
    if not seen:
        return {"running": False, "since": None, "state": "never started from this folder"}
    at = float(seen.get("at", 0.0))
    if stopped := float(seen.get("stopped") or 0.0):
        return {"running": False, "since": stopped, "state": f"stopped since {_when(stopped)}"}
    if _alive(seen.get("pid")) and now - at < FRESH:
        since = float(seen.get("started") or at)
        return {"running": True, "since": since, "state": f"running since {_when(since)}"}
    return {"running": False, "since": at, "state": f"not running: it ended without a word, last seen {_when(at)}"}


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


def show(told: dict[str, Any]) -> None:
    """State first, then what it earned, then the chain."""
    seen = told.get("last_seen", {})
    rows: list[tuple[str, ...]] = [(name, told[name]) for name in ("state", "name", "operator")]
    if seen:
        rows.append(("blocks", f"{seen['model']} {seen['blocks']}"))
        rows += [("at", f"{address}: {text}") for address, text in seen.get("reach", [])[:4]]
        rows += [("for more", seen["reach_fix"])] if seen.get("reach_fix") else []
        rows += [("ask", f"{in_words(seen['ask'])} a token and block")] if seen.get("ask") else []
        rows += [("", seen["ask_note"])] if seen.get("ask_note") else []
    table("node", "", "", rows=rows)
    flow, reasons = seen.get("flow") or told.get("books", {}), seen.get("reasons", {})
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
        rows.append(("unbonding", f"{coins(told['unbonding_wei'])} until {_when(told['unbond_end'])}"))
    if "offered_to" in told:
        rows.append(("offered to", told["offered_to"]))
    shares = ", ".join(f"{epoch}: {format_credits(s['wei'])} {s['status']}" for epoch, s in told["shares"].items())
    return [*rows, ("shares by epoch", shares), ("donated work", told["pay"])]


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's: it lives
        return True
    return True


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
