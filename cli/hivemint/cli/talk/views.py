"""How an answer's bill and a plan look, for people and as JSON."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hivemint.cli.console import emit, err, out, table
from hivemint.cli.talk.answers import Answer
from hivemint.protocol.credits import exact_credits, format_credits
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.client.pipeline import Hop, Plan


def show(answer: Answer, as_json: bool) -> None:
    """The text is on the terminal already: what remains are its figures."""
    if as_json:
        return emit(answer.document())
    return say(str(answer))


def say(text: str) -> None:
    """Beside the answers, on stderr: broken between words on a terminal, one line elsewhere."""
    err.print(Text(text, style="dim"), highlight=False, soft_wrap=not err.is_terminal)


def two_columns(rows: Mapping[str, str]) -> Table:
    """Labels and what they mean, readable at any width."""
    view = Table.grid(padding=(0, 2))
    view.add_column(style="dim", no_wrap=True)
    view.add_column(overflow="fold")
    for label, text in rows.items():
        view.add_row(label, Text(plain(text)))
    return view


def _why(hop: "Hop") -> dict[str, object]:
    """What speaks for a node of a plan, for JSON: what a token takes there, and the best route without it."""
    other = hop.instead
    instead = None
    if other is not None:
        instead = {"way": other.way, "slower_ms": round(other.slower_ms, 1), "dearer_wei": other.dearer}
    times = {"trip_ms": hop.trip_ms, "compute_ms": hop.compute_ms, "room_ms": hop.room_ms}
    return {name: round(ms, 1) for name, ms in times.items()} | {"instead": instead}


def _instead(hop: "Hop") -> str:
    if (other := hop.instead) is None:
        return "none"
    price = f", {'+' * (other.dearer > 0)}{format_credits(other.dearer, digits=9)}" if other.dearer else ""
    return f"{other.slower_ms:+.0f} ms{price}: {other.way}"


def show_plan(plan: "Plan", as_json: bool) -> None:
    from hivemint.client.generation.bill import hops

    if as_json:
        emit(
            {
                "lane": plan.lane,
                "unpaid": plain(plan.unpaid),
                "notes": [plain(note) for note in plan.notes],
                "nodes": [told | _why(hop) for told, hop in zip(hops(plan.hops), plan.hops, strict=True)],
                "price_wei": sum(hop.price for hop in plan.hops),
                "tokens": plan.tokens,
                "cost_wei": int(plan.cost),
                "reserved_wei": int(plan.reserved),
            }
        )
        return
    lines = [
        (
            hop.name,
            f"{hop.first}:{hop.end}",
            exact_credits(hop.price),
            *(f"{ms:.0f}" for ms in (hop.wait_ms, hop.trip_ms, hop.compute_ms)),
            _instead(hop),
        )
        for hop in plan.hops
    ]
    columns = ("node", "blocks", ">credits a token", ">wait ms", ">trip ms", ">compute ms", "best without it")
    table("Route", *columns, rows=lines)
    out.print(
        f"{plan.lane} lane, {plan.tokens} tokens: {format_credits(plan.cost)} "
        f"(sessions for at most {format_credits(plan.reserved)}). {plain('; '.join(plan.notes))}",
        highlight=False,
        markup=False,
    )
