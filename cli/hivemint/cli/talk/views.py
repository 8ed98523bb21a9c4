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
    from hivemint.client.pipeline import Plan


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


def show_plan(plan: "Plan", as_json: bool) -> None:
    from hivemint.client.generation.bill import hops

    if as_json:
        emit(
            {
                "lane": plan.lane,
                "unpaid": plain(plan.unpaid),
                "notes": [plain(note) for note in plan.notes],
                "nodes": hops(plan.hops),
                "price_wei": sum(hop.price for hop in plan.hops),
                "tokens": plan.tokens,
                "cost_wei": int(plan.cost),
                "reserved_wei": int(plan.reserved),
            }
        )
        return
    lines = [(hop.name, f"{hop.first}:{hop.end}", exact_credits(hop.price), f"{hop.wait_ms:.0f}") for hop in plan.hops]
    table("Route", "node", "blocks", ">credits a token", ">wait ms", rows=lines)
    out.print(
        f"{plan.lane} lane, {plan.tokens} tokens: {format_credits(plan.cost)} "
        f"(sessions for at most {format_credits(plan.reserved)}). {plain('; '.join(plan.notes))}",
        highlight=False,
        markup=False,
    )
