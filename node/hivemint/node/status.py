"""What a node says of itself, from one source: for the live view, `hivemint node status` and `/metrics`."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemint.ledger.books.flow import CreditFlow
from hivemint.node.engine.scheduler import Lane
from hivemint.node.reach import best_fix, reaches
from hivemint.swarm.addresses import is_public

if TYPE_CHECKING:
    from hivemint.ledger.settlement.outlook import Outlook
    from hivemint.node.running import Running


@dataclass(frozen=True)
class Snapshot:
    """A node at one moment. Amounts in wei, times in seconds; `reasons`: why a stage stands where it stands; `trouble`:
    background task -> what is wrong with it.
    """

    at: float
    peer: str
    addresses: list[str]
    operator: str
    model: str
    blocks: str
    numerics: str
    sessions: dict[str, int]
    tokens: dict[str, int]
    tokens_per_s: float
    wait_s: dict[str, float]
    kv_free: int
    kv_total: int
    refusals: dict[str, int]
    receipts: dict[str, int]
    credits: dict[str, int]
    reasons: dict[str, str]
    trouble: dict[str, str]
    flow: dict[str, int] = field(default_factory=dict)
    """`CreditFlow`, with `earned` and `unsettled`."""
    pay: str = ""
    """Whether donated work is paid, and when its first credits come."""
    ask: int = 0
    ask_note: str = ""
    reach: list[tuple[str, str]] = field(default_factory=list)
    """Address -> who can use it."""
    reach_fix: str = ""
    network: str = ""
    started: float = 0.0
    stopped: float = 0.0
    """0: it serves."""


class Watcher:
    """Takes snapshots; the speed is that since the last one."""

    def __init__(self, running: "Running") -> None:
        self.running = running
        self._before = (time.monotonic(), 0)
        self._started = time.time()
        self._outside = ""

    def look(self, *, stopped: bool = False) -> Snapshot:
        """`stopped`: the node has been closed; what came of its last steps is in."""
        from hivemint.swarm.identity import peer_text

        running, node = self.running, self.running.node
        gauge, plan = node.engine.gauge, running.plan
        totals, flow = running.journal.totals, running.flow()
        capacity = node.engine.capacity()
        now, rows = time.monotonic(), sum(gauge.rows_done.values())
        (then, before), self._before = self._before, (now, rows)
        outlook, market = running.outlook, running.market
        told = _told(running.settler.reasons)
        self._outside = self._outside or _from_outside(node.registry.occupants)
        reached = reaches(running.host.addresses, self._outside)
        return Snapshot(
            at=time.time(),
            peer=peer_text(running.host.peer_id),
            addresses=list(running.host.addresses),
            operator=plan.signer.address,
            model=plan.model.name,
            blocks=f"{plan.first}:{plan.end}",
            numerics=", ".join(node.offer.numerics),
            sessions={lane.value: node.registry.count(lane) for lane in Lane},
            tokens={lane.value: gauge.rows_done[lane] for lane in Lane},
            tokens_per_s=0.0 if stopped else (rows - before) / max(now - then, 1e-3),
            wait_s={lane.value: gauge.wait_s[lane] for lane in Lane},
            kv_free=capacity.kv_free,
            kv_total=capacity.kv_total,
            refusals=dict(node.counts.refusals),
            receipts={
                "signed": totals.paid.tokens_signed + totals.donated.tokens_signed,
                "countersigned": totals.paid.tokens_countersigned + totals.donated.tokens_countersigned,
            },
            credits={
                "signed": flow.signed,
                "countersigned": flow.bound,
                "settled": flow.settled,
                "minted": flow.minted,
                "donated_minted": flow.donated_minted,
            },
            reasons=reasons(flow, told, outlook.last),
            trouble=dict(node.supervisor.trouble),
            flow=flow.document(),
            pay=outlook.last.text() if outlook.last else "",
            ask=int(node.offer.ask),
            ask_note=market.note,
            reach=[(one.address, one.text) for one in reached],
            reach_fix=best_fix(reached),
            network=plan.network.name,
            started=self._started,
            stopped=time.time() if stopped else 0.0,
        )


def reasons(flow: CreditFlow, told: dict[str, str], outlook: "Outlook | None") -> dict[str, str]:
    """Why a stage stands where it stands; one that is zero always has a reason. `told`: the settlement's own."""
    found = {stage: text for stage, text in told.items() if stage not in ("minted", "claimed")}
    if not flow.signed:
        found["signed"] = "no paid session has had a step yet"
        found["countersigned"] = "nothing that a voucher could bind is signed yet"
    elif not flow.bound:
        found["countersigned"] = "the clients have not yet signed a voucher for a receipt"
    if not flow.settled:
        found.setdefault("settled", "no account owes anything yet")
    if not flow.minted:
        found["minted"] = "paid work is minted when it settles"
    if not flow.served_tokens:
        found["served"] = "no donated session has had a step yet"
    if outlook is not None and not outlook.pays:
        found["donated"] = outlook.text()
    elif not flow.donated_minted or told.get("minted"):
        parts = [told.get("minted", ""), told.get("claimed", ""), outlook.text() if outlook else ""]
        found["donated"] = "; ".join(filter(None, parts)) or "the chain has not been asked yet"
    elif outlook is not None:
        found["donated"] = outlook.text()
    if told.get("claimed"):
        found["claimed"] = told["claimed"]
    return found


def _from_outside(occupants: Any) -> str:
    """The public network of a client that has a session here: who came in proves that the door is open."""
    for occupant in occupants:
        if isinstance(occupant.prefix, str) and is_public(f"/ip{6 if ':' in occupant.prefix else 4}/{occupant.prefix}"):
            return occupant.prefix
    return ""


def _told(reasons: dict[str, str]) -> dict[str, str]:
    return {stage: text for stage, text in reasons.items() if text}


def write_status(folder: Path, snapshot: Snapshot) -> str:
    """`status.json` in the node's folder, whole or not at all. Gives why it can't be written; nothing depends on it."""
    temporary = folder / ".status.json.new"
    try:
        temporary.write_text(json.dumps({**asdict(snapshot), "pid": os.getpid()}))
        temporary.replace(folder / "status.json")
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return f"status.json cannot be written: {error.strerror or error}"
    return ""
