"""What a node shows of itself: a live view at a terminal, a file for `hivemint node status`."""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemint.node.engine.scheduler import Lane
from hivemint.protocol.credits import format_credits
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

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


class Watcher:
    """Takes snapshots; the speed is that since the last one."""

    def __init__(self, running: "Running") -> None:
        self._running = running
        self._before = (time.monotonic(), 0)

    def look(self) -> Snapshot:
        from hivemint.swarm.identity import peer_text

        running, node = self._running, self._running.node
        gauge, totals, plan = node.engine.gauge, running.journal.totals, running.plan
        capacity = node.engine.capacity()
        now, rows = time.monotonic(), sum(gauge.rows_done.values())
        (then, before), self._before = self._before, (now, rows)
        credits = {
            "signed": totals.paid.signed,
            "countersigned": totals.paid.countersigned,
            "settled": totals.settled,
            "minted": totals.minted,
            "donated_minted": running.settler.donated_minted,
        }
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
            tokens_per_s=(rows - before) / max(now - then, 1e-3),
            wait_s={lane.value: gauge.wait_s[lane] for lane in Lane},
            kv_free=capacity.kv_free,
            kv_total=capacity.kv_total,
            refusals=dict(node.counts.refusals),
            receipts={
                "signed": totals.paid.tokens_signed + totals.donated.tokens_signed,
                "countersigned": totals.paid.tokens_countersigned + totals.donated.tokens_countersigned,
            },
            credits={stage: int(amount) for stage, amount in credits.items()},
            reasons={**_reasons(credits, totals.donated.tokens_countersigned), **_told(running.settler.reasons)},
            trouble=dict(node.supervisor.trouble),
        )


def _reasons(credits: dict[str, Any], donated: int) -> dict[str, str]:
    """Why a stage is zero, as far as the node itself knows."""
    if not credits["signed"]:
        return {"signed": "no paid session has had a step yet" + (f"; {donated} tokens are donated" if donated else "")}
    if not credits["countersigned"]:
        return {"countersigned": "the clients have not yet signed a voucher for a receipt"}
    return {}


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


def view(snapshot: Snapshot) -> "RenderableType":
    """The live view: blocks, lanes, speed, and the credit flow with its reasons."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table

    lanes = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("lane", "sessions", "tokens", "wait"):
        lanes.add_column(column, justify="left" if column == "lane" else "right")
    for lane in Lane:
        name = lane.value
        wait = f"{snapshot.wait_s[name] * 1000:.0f} ms"
        lanes.add_row(name, str(snapshot.sessions[name]), f"{snapshot.tokens[name]:,}", wait)
    flow = Table(box=None, pad_edge=False, show_header=False)
    for stage in ("signed", "countersigned", "settled", "minted"):
        amount = snapshot.credits[stage]
        flow.add_row(stage, format_credits(amount), f"[dim]{_shown(snapshot.reasons.get(stage, ''))}[/]")
    donated = snapshot.credits["donated_minted"]
    flow.add_row("donated", format_credits(donated), f"[dim]{_shown(snapshot.reasons.get('claimed', ''))}[/]")
    head = (
        f"[bold]{_shown(snapshot.model)}[/] blocks {snapshot.blocks}  {snapshot.numerics}  "
        f"[bold]{snapshot.tokens_per_s:.1f}[/] tokens/s  K/V {snapshot.kv_free:,} of {snapshot.kv_total:,} tokens free"
    )
    refused = ", ".join(f"{code} {count}" for code, count in sorted(snapshot.refusals.items()))
    parts: list[Any] = [head, f"[dim]{snapshot.peer}  operator {snapshot.operator}[/]", "", lanes, "", flow]
    if refused:
        parts.append(f"[dim]refused: {refused}[/]")
    parts += [f"[yellow]{task}: {_shown(reason)}[/]" for task, reason in snapshot.trouble.items()]
    return Panel(Group(*parts), title="hivemint node", title_align="left", border_style="dim")


def _shown(text: str) -> str:
    """A text that may be a stranger's (an endpoint's, a model's) inside of markup."""
    from rich.markup import escape

    return escape(plain(text))
