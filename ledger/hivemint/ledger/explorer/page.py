"""The page: the swarm's block map and the credit flow, server-rendered; htmx asks for the parts again every 2 s."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import anyio
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hivemint.ledger.explorer.documents import CreditTotals, Epoch, OwnLane, OwnNode, ServedModel
from hivemint.ledger.explorer.queries import Explorer
from hivemint.protocol.credits import format_credits, in_unit, in_words, unit_of
from hivemint.protocol.ids import ONE_CREDIT
from hivemint.protocol.keccak import keccak
from hivemint.protocol.node_name import node_name

_PAGES = Path(__file__).parent / "pages"
_ROWS = 12
_HUES = 24
NO_LANE = OwnLane(sessions=0, tokens_signed=0, tokens_countersigned=0, signed=0, countersigned=0)
Part = Literal["flow", "swarm", "nodes", "settlements", "epochs", "head"]
PARTS: tuple[Part, ...] = ("flow", "swarm", "nodes", "settlements", "epochs")


def page_router(explorer: Explorer) -> APIRouter:
    """Routes `/` and `/parts/NAME`."""
    router, environment = APIRouter(include_in_schema=False), templates()

    async def render(part: Part) -> str:
        values = await _values(explorer, part)
        return environment.get_template(f"_{part}.html").render(values)

    @router.get("/")
    async def index(request: Request) -> Response:
        parts = {part: await render(part) for part in ("head", *PARTS)}
        return HTMLResponse(environment.get_template("index.html").render(network=explorer.network, parts=parts))

    @router.get("/parts/{part}")
    async def one(part: Part) -> Response:
        return HTMLResponse(await render(part))

    return router


async def _values(explorer: Explorer, part: Part) -> dict[str, Any]:
    """What a part's template needs."""
    if part == "swarm":
        models = await explorer.swarm()
        return {"models": [_map(model) for model in models], "trouble": explorer.swarm_trouble}
    return await anyio.to_thread.run_sync(_from_index, explorer, part)


def _from_index(explorer: Explorer, part: Part) -> dict[str, Any]:
    if part == "flow":
        own, totals = explorer.own_nodes(), explorer.totals()
        stages = _own_stages(own) if explorer.has_own_nodes else _chain_stages(totals)
        unit = unit_of(stage["amount"] for stage in stages)
        stages = [stage | {"figure": in_unit(stage["amount"], unit), "unit": unit} for stage in stages]
        return {"stages": stages, "own": own, "totals": totals, "has_own": explorer.has_own_nodes}
    if part == "nodes":
        return {"page": explorer.nodes(_ROWS, 0)}
    if part == "settlements":
        return {"page": explorer.settlements(_ROWS, 0)}
    if part == "epochs":
        page = explorer.epochs(_ROWS, 0)
        now = max(time.time(), *(epoch.begins for epoch in page.items), 0.0)  # a local chain's clock may run ahead
        return {"page": page, "next_pay": _next_pay(page.items, explorer.indexer.epoch, now)}
    return {"status": explorer.status()}


def _own_stages(own: Sequence[OwnNode]) -> list[dict[str, Any]]:
    """The four stages of own nodes' credits; each has a figure, a line under it, and why it is zero."""

    def tokens(attribute: str) -> str:
        paid, donated = (sum(getattr(lane, attribute) for lane in lanes) for lanes in zip(*pairs, strict=True))
        return f"{paid:,} paid tokens, {donated:,} donated"

    pairs = [(node.paid, node.donated) for node in own] or [(NO_LANE, NO_LANE)]
    minted, donated = sum(node.minted for node in own), sum(node.donated_minted for node in own)
    reasons = "; ".join(sorted({reason for node in own for reason in node.reasons}))
    signed, bound = sum(node.paid.signed for node in own), sum(node.paid.countersigned for node in own)
    collected = sum(node.collected for node in own)
    settling = reasons or ("vouchers wait to be worth their gas" if bound else "nothing is countersigned")
    lately = f"{in_words(sum(node.earned_hour for node in own))} in the last hour, "
    lately += f"{in_words(sum(node.earned_day for node in own))} in the last day"
    for_donated = f"and {in_words(donated)} for donated work" if donated else "nothing yet for donated work"
    for_donated += f"; {in_words(sum(node.earned for node in own))} earned in all, {lately}"
    return [
        _stage("Signed", signed, tokens("tokens_signed"), "no paid work yet"),
        _stage("Countersigned", bound, tokens("tokens_countersigned"), "no client has bound a paid receipt yet"),
        _stage("Settled", collected, "burned from clients' escrow", settling),
        _stage("Minted", minted, for_donated, "paid work is minted when it settles"),
    ]


def _chain_stages(totals: CreditTotals) -> list[dict[str, Any]]:
    """Without journals: what the chain alone knows."""
    return [
        _stage("In escrow", totals.escrow, "deposited at nodes, not collected", "no client has funded an account"),
        _stage("Settled", totals.settled, "burned for paid work", "no node has settled a voucher yet"),
        _stage("Minted for work", totals.minted, f"the rest, {format_credits(totals.fee)}, is the fee", "see Settled"),
        _stage("Minted for donated work", totals.donated, "by epoch", "shares can be minted two epochs later"),
    ]


def _stage(name: str, amount: int, below: str, if_zero: str) -> dict[str, Any]:
    return {"name": name, "amount": amount, "below": below, "reason": "" if amount else if_zero}


def _map(model: ServedModel) -> dict[str, Any]:
    """A model's block map: for every block how many nodes serve it."""
    counts = [sum(node.first <= block < node.end for node in model.nodes) for block in range(model.blocks)]
    return {"model": model, "counts": counts, "nodes": model.nodes}


def _next_pay(epochs: Sequence[Epoch], length: int, now: float) -> str:
    """What was claimed and not minted yet, and when it can be: two epochs after the work (`docs/protocol.md`)."""
    waiting = [(epoch.epoch, sum(share.minted is None for share in epoch.shares)) for epoch in epochs]
    told = []
    for epoch, nodes in sorted((epoch, nodes) for epoch, nodes in waiting if nodes):
        begins = (epoch + 2) * length
        when = "now" if begins <= now else f"from {_day(begins)} UTC on"
        told.append(f"{nodes} node{'s' if nodes > 1 else ''} for epoch {epoch}, {when}")
    return f"Claimed and not minted yet: {'; '.join(told)}." if told else ""


def templates() -> Environment:
    """Those of all pages, with the filters that they use."""
    environment = Environment(
        loader=FileSystemLoader(_PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"hmc": _amount, "fixed": _fixed, "short": _short, "clock": _clock, "day": _day, "ms": _wait}
    environment.filters |= {"named": node_name, "colour": _colour, "hex": lambda raw: "0x" + bytes(raw).hex()}
    return environment


def _amount(amount: int, digits: int = 4) -> str:
    return format_credits(amount, digits, symbol=False)


def _fixed(amount: int, digits: int = 6) -> str:
    """Every row with the same number of decimals, so that columns line up; dust that would show as zero says so."""
    unit = ONE_CREDIT // 10**digits
    if 0 < amount < unit:
        return f"<{10**-digits:.{digits}f}"
    whole, rest = divmod(amount // unit, 10**digits)
    return f"{whole:,}.{rest:0{digits}d}"


def _colour(address: str) -> str:
    """Of an address, the same wherever and whenever it is shown: by its hash, not by who else is there."""
    digest = keccak(bytes.fromhex(address.removeprefix("0x")) if address.startswith("0x") else address.encode())
    return f"hsl({digest[0] % _HUES * (360 // _HUES)} {(58, 78)[digest[1] & 1]}% {(42, 56)[digest[2] & 1]}%)"


def _short(text: str) -> str:
    return f"{text[:6]}…{text[-4:]}"


def _clock(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _day(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _wait(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"
