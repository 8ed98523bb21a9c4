"""The live view and the last panel of a node: readable at every width, a reason beside every zero."""

import io
from dataclasses import replace

import pytest
import structlog
from rich.console import Console, RenderableType
from rich.live import Live

from hivemint.cli import console as shared
from hivemint.cli.node.live_view import over, view
from hivemint.ledger.books.flow import CreditFlow
from hivemint.ledger.settlement.outlook import Outlook
from hivemint.node.reach import best_fix, reaches
from hivemint.node.status import Snapshot, reasons
from hivemint.protocol.node_name import node_name

OPERATOR = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
PEER = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
FRESH = Outlook(100, 1000, registered=True, bonded=10**18)
NOTHING = CreditFlow(0, 0, 0, 0, 0, 0, 0, 0, 0)


def snapshot(flow: CreditFlow, outlook: Outlook | None = FRESH, **changes: object) -> Snapshot:
    reached = reaches([f"/ip4/127.0.0.1/tcp/40123/p2p/{PEER}"])
    made = Snapshot(
        at=1.0,
        peer=PEER,
        addresses=[],
        operator=OPERATOR,
        model="SmolLM2-135M",
        blocks="0:15",
        numerics="fp32/fp32/fp32",
        sessions={"paid": 1, "donated": 2},
        tokens={"paid": 1234, "donated": 56789},
        tokens_per_s=41.2,
        wait_s={"paid": 0.003, "donated": 0.25},
        kv_free=100_000,
        kv_total=200_000,
        refusals={"price": 3},
        receipts={},
        credits={},
        reasons=reasons(flow, {}, outlook),
        trouble={"record": "the DHT \x1b[31m did not take it"},
        flow=flow.document(),
        ask=10**11,
        ask_note="your ask is 5 times the cheapest for these blocks",
        reach=[(one.address, one.text) for one in reached],
        reach_fix=best_fix(reached),
        network="testnet",
        started=1.0,
        stopped=400.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def drawn(what: RenderableType, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None, file=None)
    with console.capture() as caught:
        console.print(what)
    return caught.get().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_line_fits_and_nothing_is_cut(width: int) -> None:
    flow = CreditFlow(123_456 * 10**12, 120_000 * 10**12, 120_000 * 10**12, 0, 0, 1234, 56789, 50000, 0)
    for what in (view(snapshot(flow)), over(snapshot(flow))):
        lines = drawn(what, width)
        assert all(len(line) == width for line in lines)
        text = " ".join(" ".join(line.strip("│╭╮╰╯─ ").split()) for line in lines)
        for part in ("signed 123.456", "mHMC", "served 56,789", "earned in all", "unpaid: the stake counts"):
            assert part in text
        assert "…" not in text
        assert "\x1b" not in text
    assert f"operator {OPERATOR}" in " ".join(drawn(view(snapshot(flow)), width))


def test_the_last_panel_says_that_it_is_over_and_what_is_left() -> None:
    flow = CreditFlow(10**18, 10**18, 10**18, 0, 0, 1, 5, 5, 0)
    text = " ".join(" ".join(drawn(over(snapshot(flow)), 120)).split())
    assert "hivemint node: over" in text
    assert "are not served any more" in text
    assert "served 58,023 tokens in 6 min 39 s" in text
    assert "1 HMC are promised and not settled: `hivemint node claim`" in text
    assert "nothing is left to collect" in " ".join(drawn(over(snapshot(NOTHING)), 120))


def test_a_zero_always_has_its_reason() -> None:
    for outlook in (None, FRESH, replace(FRESH, counting=10**18), replace(FRESH, registered=False)):
        found = reasons(NOTHING, {}, outlook)
        for stage in ("signed", "settled", "minted", "served", "donated"):
            assert found[stage], (stage, outlook)


def test_donated_work_before_the_stake_counts_is_told_as_unpaid_while_it_happens() -> None:
    working = replace(NOTHING, served_tokens=500, bound_tokens=400)
    told = {"claimed": "no donated session of the last epoch has countersigned work", "minted": "nothing was claimed"}
    assert reasons(working, told, FRESH)["donated"].startswith("unpaid: the stake counts from the next epoch")
    counting = reasons(working, told, replace(FRESH, counting=10**18))["donated"]
    assert "its credits come about" in counting
    assert "unpaid" not in counting


def test_paid_and_donated_make_one_sum() -> None:
    flow = replace(NOTHING, minted=3 * 10**18, donated_minted=2 * 10**18)
    assert flow.earned == 5 * 10**18
    text = " ".join(" ".join(drawn(view(snapshot(flow)), 100)).split())
    assert "earned in all 5.000" in text


def test_log_lines_stand_above_a_live_view_and_never_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=70, force_terminal=True, color_system=None)
    monkeypatch.setattr(shared, "out", console)
    before = structlog.get_config()
    shared.log_above_live()
    try:
        with Live(view(snapshot(NOTHING)), console=console, auto_refresh=False) as live:
            structlog.get_logger().warning("settlement waits", reason="the chain \x1b[2J\x07 is away")
            live.refresh()
    finally:
        structlog.configure(**before)
    shown = screen.getvalue()
    (line,) = [one for one in shown.split("\n") if "settlement waits" in one]
    assert "│" not in line
    assert "\x1b[2J" not in line
    assert "\x07" not in line
    assert shown.count("earned in all") > 1, "it was drawn again below the line"


def test_of_a_low_terminal_the_earnings_stay_on_the_screen() -> None:
    flow = CreditFlow(123_456 * 10**12, 120_000 * 10**12, 120_000 * 10**12, 0, 0, 1234, 56789, 50000, 0)
    lines = drawn(view(snapshot(flow)), 80)
    last = max(at for at, line in enumerate(lines) if "your ask is" in line)
    assert last <= 22, "the title and 23 rows are all that 24 rows show"


def test_view_and_last_panel_say_the_name_that_others_see() -> None:
    for panel in (view, over):
        lines = drawn(panel(snapshot(NOTHING)), 100)
        assert any(f"name {node_name(OPERATOR)}" in line for line in lines)
        assert any(f"operator {OPERATOR}" in line for line in lines)
