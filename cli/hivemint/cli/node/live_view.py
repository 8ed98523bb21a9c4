"""The live view of a node, and the panel that stays when it is over: readable from 60 columns on."""

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hivemint.cli.node.amounts import in_unit, in_words, unit_of
from hivemint.protocol.node_name import node_name
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hivemint.node.status import Snapshot

STAGES = ("signed", "bound", "settled", "minted")
_AMOUNTS = (*STAGES, "donated_minted", "earned", "hour", "day", "since_start")
_REASON = {"bound": "countersigned"}


def view(snapshot: "Snapshot") -> "RenderableType":
    """Blocks and speed, the credit flow with its reasons, lanes, reachability.

    What an operator looks for stands first: of a low terminal `Live` leaves out what is below its edge.
    """
    speed = f"{snapshot.tokens_per_s:.1f} tokens/s"
    parts: list[Any] = [
        Text.assemble(
            (plain(snapshot.model), "bold"), f" blocks {snapshot.blocks}  {plain(snapshot.numerics)}  ", (speed, "bold")
        ),
        *_trouble(snapshot),
        flow_table(snapshot.flow, snapshot.reasons),
        *_price(snapshot),
        _lanes(snapshot),
    ]
    if snapshot.refusals:
        refused = ", ".join(f"{code} {count}" for code, count in sorted(snapshot.refusals.items()))
        parts.append(_dim(f"refused: {refused}"))
    parts += [
        *_reachable(snapshot),
        _dim(f"network {snapshot.network}  K/V {snapshot.kv_free:,} of {snapshot.kv_total:,} tokens free"),
        *_who(snapshot),
        _dim(f"peer {snapshot.peer}"),
    ]
    return Panel(Group(*parts), title="hivemint node", title_align="left", border_style="dim")


def over(snapshot: "Snapshot") -> "RenderableType":
    """The last panel: that it is over, and what came of it."""
    tokens = sum(snapshot.tokens.values())
    seconds = max(0, round(snapshot.stopped - snapshot.started))
    parts: list[Any] = [
        Text.assemble((plain(snapshot.model), "bold"), f" blocks {snapshot.blocks} are not served any more"),
        _dim(f"served {tokens:,} tokens in {_time(seconds)}; sessions are closed, the record is taken back"),
        *_who(snapshot),
        "",
        flow_table(snapshot.flow, snapshot.reasons),
        "",
        *(Text(plain(line)) for line in next_steps(snapshot.flow)),
        *_trouble(snapshot),
    ]
    return Panel(Group(*parts), title="hivemint node: over", title_align="left", border_style="dim")


def _who(snapshot: "Snapshot") -> list[Text]:
    """The name that others see, and the address that it stands for."""
    return [_dim(f"name {node_name(snapshot.operator)}"), _dim(f"operator {snapshot.operator}")]


def next_steps(flow: dict[str, int]) -> list[str]:
    """What a node that has stopped still has to come, and how it comes."""
    lines = []
    if flow.get("unsettled"):
        lines.append(
            f"{in_words(flow['unsettled'])} are promised and not settled: `hivemint node claim`, or at the next start"
        )
    if flow.get("bound_tokens"):
        lines.append("donated work is claimed and minted by a node that runs, or by `hivemint node claim`")
    return lines or ["nothing is left to collect"]


def flow_table(flow: dict[str, int], reasons: dict[str, str]) -> Table:
    """Two flows, one sum; all amounts in one unit, a reason beside every zero."""
    unit = unit_of(flow.get(name, 0) for name in _AMOUNTS)
    found = Table(box=None, pad_edge=False, show_header=False)
    found.add_column(no_wrap=True)
    found.add_column(no_wrap=True, justify="right")
    found.add_column(overflow="fold")

    def amount(name: str) -> str:
        return in_unit(flow.get(name, 0), unit)

    found.add_row(Text("paid", style="bold"), Text(unit, style="dim"), "")
    for stage in STAGES:
        found.add_row(f"  {stage}", amount(stage), _dim(reasons.get(_REASON.get(stage, stage), "")))
    found.add_row(Text("donated", style="bold"), "", "")
    found.add_row("  served", f"{flow.get('served_tokens', 0):,}", _dim(f"tokens  {reasons.get('served', '')}"))
    found.add_row("  bound", f"{flow.get('bound_tokens', 0):,}", _dim("tokens, by vouchers"))
    found.add_row("  minted", amount("donated_minted"), _dim(reasons.get("donated", "")))
    late = ", ".join(f"{words} {amount(name)}" for name, words in _LATE.items())
    found.add_row(Text("earned in all", style="bold"), Text(amount("earned"), style="bold"), _dim(late))
    return found


_LATE = {"hour": "last hour", "day": "last day", "since_start": "since start"}


def _lanes(snapshot: "Snapshot") -> Table:
    lanes = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("lane", "sessions", "tokens", "wait"):
        lanes.add_column(column, justify="left" if column == "lane" else "right")
    for name, count in snapshot.sessions.items():
        wait = f"{snapshot.wait_s[name] * 1000:.0f} ms"
        lanes.add_row(name, str(count), f"{snapshot.tokens[name]:,}", wait)
    return lanes


def _reachable(snapshot: "Snapshot") -> list[Text]:
    lines = [_dim(f"at {address}: {text}") for address, text in snapshot.reach[:4]]
    if len(snapshot.reach) > 4:
        lines.append(_dim(f"and at {len(snapshot.reach) - 4} more"))
    if snapshot.reach_fix:
        lines.append(Text(plain(f"for more: {snapshot.reach_fix}"), style="yellow"))
    return lines


def _trouble(snapshot: "Snapshot") -> list[Text]:
    """Near the top: a low terminal shows no more than that."""
    return [Text(plain(f"{task}: {reason}"), style="yellow") for task, reason in snapshot.trouble.items()]


def _price(snapshot: "Snapshot") -> list[Text]:
    lines = [_dim(f"ask {in_words(snapshot.ask)} a token and block")]
    return [*lines, Text(plain(snapshot.ask_note), style="yellow")] if snapshot.ask_note else lines


def _dim(text: str) -> Text:
    """A text that may be a stranger's: an endpoint's, a model's."""
    return Text(plain(text), style="dim")


def _time(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
