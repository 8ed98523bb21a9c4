"""The HTTP side: documents, paging, bad input, metrics, the page; over a small index and a real journal."""

import html
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.entries import Entry
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.explorer.api import create_app
from hivemint.ledger.explorer.documents import Epoch, ShareRow
from hivemint.ledger.explorer.indexer import Indexer
from hivemint.ledger.explorer.page import PARTS, _colour, _next_pay
from hivemint.ledger.explorer.queries import Explorer
from hivemint.ledger.explorer.statements import Statements
from hivemint.ledger.store.database import StoreError, database_url, writing
from hivemint.protocol.credits import mintable
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.ids import ONE_CREDIT, Credits
from support.logchain import EPOCH, NETWORK, LogChain
from support.promises import Work, signer

NODE, ALICE, BOB = signer(1), signer(2), signer(3)
HOSTILE = "<script>alert(1)</script>"


@dataclass
class Served:
    client: httpx.AsyncClient
    explorer: Explorer

    async def json(self, path: str, status: int = 200) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()


async def chain_of_events() -> LogChain:
    chain, zero = LogChain(), "0x" + "00" * 20
    node, alice = NODE.address, ALICE.address
    chain.mine(
        (
            "NodeRegistry",
            "Registered",
            {"node": node, "owner": BOB.address, "payout": BOB.address, "peerIdHash": b"p" * 32},
        )
    )
    chain.mine(("NodeRegistry", "Bonded", {"node": node, "amount": 5, "bonded": 5 * ONE_CREDIT}))
    chain.mine(
        ("Emission", "Claimed", {"node": node, "epoch": 9, "counted": 2, "units": 70, "weight": 60}),
        ("Emission", "Minted", {"node": node, "epoch": 9, "payout": BOB.address, "amount": 10 * ONE_CREDIT}),
        ("CreditToken", "Transfer", {"from": zero, "to": alice, "value": 10 * ONE_CREDIT}),
    )
    escrow = NETWORK.contracts.settlement
    chain.mine(
        (
            "Settlement",
            "Funded",
            {"client": alice, "node": node, "amount": 4 * ONE_CREDIT, "payer": alice, "balance": 0},
        ),
        ("CreditToken", "Transfer", {"from": alice, "to": escrow, "value": 4 * ONE_CREDIT}),
    )
    for step in range(3):
        burned, minted = ONE_CREDIT, mintable((step + 1) * ONE_CREDIT) - mintable(step * ONE_CREDIT)
        settled = {
            "client": alice,
            "node": node,
            "sessionId": bytes([step]) * 32,
            "step": step,
            "tokens": 7,
            "total": 0,
        }
        chain.mine(
            ("Settlement", "Settled", settled | {"burned": burned, "minted": minted}),
            ("CreditToken", "Transfer", {"from": escrow, "to": zero, "value": burned}),
            ("CreditToken", "Transfer", {"from": zero, "to": BOB.address, "value": minted}),
        )
    return chain


async def write_journal(path: Path) -> None:
    domain = Domain(NETWORK.chain_id, NETWORK.contracts.settlement)
    journal = Journal.open(database_url(path), domain, NODE.address)
    for price, tokens, total in ((2, 50, 102), (0, 30, 0)):
        work = Work(ALICE, NODE, price=price, domain=domain)
        await journal.open_session(work.session, work.signature)
        work.step(tokens)
        newest = work.countersign(total)
        work.step(1)
        receipt = work.receipt.body
        owed = Credits(total)
        await journal.record(Entry(ALICE.address, work.id, owed, newest, receipt.step, receipt.tokens))
    journal.observe(ALICE.address, Credits(0), "the account is empty")
    await journal.close()


async def block_map() -> list[dict[str, Any]]:
    node = {
        "peer": "12D3KooW",
        "operator": NODE.address,
        "first": 0,
        "end": 2,
        "tokens_per_s": 20.5,
        "new": "field",
        "numerics": "int8/bf16/bf16",
    }
    return [{"model": HOSTILE, "blocks": 4, "nodes": [node], "missing": ["2:4"]}]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    indexer = await Indexer.open(database_url(tmp_path / "index.db"), cast(Bindings, await chain_of_events()), NETWORK)
    await indexer.follow()
    await write_journal(tmp_path / "journal.db")
    statements = Statements(database_url(tmp_path / "journal.db"), NETWORK)
    explorer = Explorer(indexer, NETWORK, [statements], block_map)
    transport = httpx.ASGITransport(create_app(explorer))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield Served(client, explorer)
    statements.close()
    await indexer.close()


async def test_status_and_supply(served: Served) -> None:
    status = await served.json("/api/status")
    assert (status["indexed"], status["head"], status["trouble"]) == (7, 7, "")
    totals = status["totals"]
    minted = mintable(3 * ONE_CREDIT)
    assert totals["supply_ok"] is True
    assert int(totals["supply"]) == 10 * ONE_CREDIT - 3 * ONE_CREDIT + minted
    assert (int(totals["fee"]), int(totals["escrow"])) == (3 * ONE_CREDIT - minted, ONE_CREDIT)


async def test_pages_join_to_the_whole(served: Served) -> None:
    whole = (await served.json("/api/settlements"))["items"]
    assert [one["step"] for one in whole] == [2, 1, 0]
    joined: list[Any] = []
    offset = 0
    while offset is not None:
        page = await served.json(f"/api/settlements?limit=2&offset={offset}")
        joined, offset = joined + page["items"], page["next"]
    assert joined == whole
    assert sum(int(one["burned"]) for one in whole) == 3 * ONE_CREDIT
    balances = await served.json("/api/balances?limit=1")
    assert (balances["items"][0]["holder"], balances["next"]) == (ALICE.address, 1)


async def test_filters(served: Served) -> None:
    lower = NODE.address.lower()
    assert len((await served.json(f"/api/settlements?node={lower}&client={ALICE.address}"))["items"]) == 3
    assert (await served.json(f"/api/settlements?node={ALICE.address}"))["items"] == []
    assert (await served.json("/api/withdrawals")) == {"items": [], "next": None}
    assert (await served.json(f"/api/balances/{ALICE.address.lower()}"))["amount"] == str(6 * ONE_CREDIT)
    assert (await served.json(f"/api/balances/{NODE.address}"))["amount"] == "0"
    (escrow,) = (await served.json(f"/api/escrows?node={lower}"))["items"]
    assert (escrow["balance"], escrow["collected"]) == (str(ONE_CREDIT), str(3 * ONE_CREDIT))
    node = await served.json(f"/api/nodes/{lower}")
    assert (node["payout"], node["donated"]) == (BOB.address, str(10 * ONE_CREDIT))
    assert (await served.json("/api/nodes"))["items"] == [node]
    newest, *_, claimed = (await served.json("/api/epochs"))["items"]
    assert (newest["epoch"], newest["begins"]) == (12, 12 * EPOCH)
    (share,) = claimed["shares"]
    assert (claimed["epoch"], share["weight"], share["minted"]) == (9, "60", str(10 * ONE_CREDIT))


@pytest.mark.parametrize(
    "path",
    [
        "/api/balances?limit=0",
        "/api/balances?limit=201",
        "/api/balances?offset=-1",
        "/api/balances?offset=99999999999999999999",
        "/api/balances/0x12",
        "/api/settlements?node=' OR 1=1",
        "/api/own/nobody/sessions",
        "/api/settlements?transaction=0x12",
        "/parts/../../etc/passwd",
        "/parts/unknown",
    ],
)
async def test_bad_input_is_refused(served: Served, path: str) -> None:
    assert (await served.client.get(path)).status_code in (404, 422)


async def test_unknown_nodes_are_not_found(served: Served) -> None:
    assert "not registered" in (await served.json(f"/api/nodes/{ALICE.address}", 404))["detail"]


async def test_own_nodes(served: Served) -> None:
    (own,) = await served.json("/api/own")
    assert (own["paid"]["tokens_signed"], own["paid"]["tokens_countersigned"]) == (51, 50)
    assert (own["paid"]["signed"], own["paid"]["countersigned"], own["promised"]) == ("102", "100", "102")
    assert (own["donated"]["tokens_signed"], own["donated"]["tokens_countersigned"]) == (31, 30)
    assert own["collected"] == str(3 * ONE_CREDIT)  # the chain's word before the journal's
    assert own["reasons"] == ["the account is empty"]
    sessions = await served.json(f"/api/own/{NODE.address}/sessions?limit=1")
    assert (len(sessions["items"]), sessions["next"]) == (1, 1)
    assert (await served.json(f"/api/own/{ALICE.address}/sessions"))["items"] == []


async def test_metrics(served: Served) -> None:
    text = (await served.client.get("/metrics")).text
    assert "hivemint_settled_credits_total 3.0" in text
    assert f'hivemint_own_tokens_signed_total{{lane="paid",node="{NODE.address}"}} 51.0' in text


async def test_the_page_shows_it_all_and_runs_nothing_foreign(served: Served) -> None:
    answer = await served.client.get("/")
    page = answer.text
    for part in (
        "Countersigned",
        "51 paid tokens, 31 donated",
        "nobody serves 2:4",
        "20.5",
        "int8/bf16/bf16",
        "2.85",
        "the account is empty",
    ):
        assert part in page, part
    assert HOSTILE not in page
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "://" not in "".join(line for line in page.splitlines() if "src=" in line or "href=" in line)
    for part in PARTS:
        assert (await served.client.get(f"/parts/{part}")).text in page
    for name in ("htmx.min.js", "page.js", "style.css", "hive.svg", "htmx.LICENSE.txt"):
        assert (await served.client.get(f"/static/{name}")).status_code == 200


async def test_the_page_says_how_to_get_credits(served: Served) -> None:
    page = (await served.client.get("/")).text
    assert "How to get credits" in page
    assert "hivemint node start" in page


async def test_who_and_what_can_be_copied_whole_and_followed(served: Served) -> None:
    page = (await served.client.get("/")).text
    mined = (await served.json("/api/settlements"))["items"][0]["transaction"]
    for whole in (NODE.address, ALICE.address, mined):
        assert f'data-copy="{whole}"' in page
    links = sorted(set(re.findall(r'href="(/api/[^"]+)"', page)))
    assert {link.partition("?")[0].split("/")[2] for link in links} == {"nodes", "escrows", "settlements", "status"}
    for link in links:
        assert (await served.client.get(link)).status_code == 200, link
    (one,) = (await served.json(f"/api/settlements?transaction={mined}"))["items"]
    assert one["transaction"] == mined
    assert (await served.json(f"/api/settlements?transaction=0x{'00' * 32}"))["items"] == []


async def test_nothing_of_a_table_is_without_its_name_where_there_is_no_head(served: Served) -> None:
    """On a narrow screen rows are cards: a cell that has no label of its own would be a bare figure there."""
    page = (await served.client.get("/")).text
    cells = re.findall(r"<td[^>]*>", page)
    assert len(cells) > 30
    assert [cell for cell in cells if "data-label=" not in cell and "colspan=" not in cell] == []
    reasons = page.index("the account is empty")
    assert '<tr class="reasons">' in page[reasons - 120 : reasons]  # a row of its own, as wide as all


def test_a_nodes_colour_is_its_own() -> None:
    colours = {address: _colour(address) for address in (NODE.address, ALICE.address, BOB.address)}
    assert len(set(colours.values())) == 3
    assert _colour(NODE.address.lower()) == colours[NODE.address]


@pytest.mark.parametrize(
    ("minted", "now", "told"),
    [
        (None, 10 * EPOCH, "1 node for epoch 9, from "),
        (None, 11 * EPOCH, "1 node for epoch 9, now"),
        (5, 11 * EPOCH, ""),
    ],
)
def test_the_next_pay_is_said(minted: int | None, now: int, told: str) -> None:
    share = ShareRow(node=NODE.address, sessions=1, units=1, weight=1, minted=minted)
    epoch = Epoch(epoch=9, begins=9 * EPOCH, settled=0, minted=0, fee=0, donated=0, shares=[share])
    line = _next_pay([epoch], EPOCH, now)
    assert told in line
    assert bool(line) == bool(told)


async def test_a_broken_index_is_told_plainly(served: Served) -> None:
    with writing(served.explorer.indexer.engine) as connection:
        connection.exec_driver_sql("DROP TABLE balances")
    answer = await served.json("/api/balances", 503)
    assert "cannot be used" in answer["detail"]


async def test_other_host_names_are_refused(served: Served) -> None:
    answer = await served.client.get("/api/status", headers={"host": "evil.example"})
    assert answer.status_code == 400


async def test_without_journals_and_swarm_the_page_says_so(served: Served) -> None:
    bare = Explorer(served.explorer.indexer, NETWORK)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(bare)), base_url="http://localhost"
    ) as client:
        page = (await client.get("/")).text
        assert "In escrow" in page
        assert "without a view of the swarm" in page
        assert (await client.get("/api/own")).json() == []


async def test_a_swarm_that_cannot_be_asked_keeps_the_last_map(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(await served.explorer.swarm()) == 1
    monkeypatch.setattr("hivemint.ledger.explorer.queries._SWARM_FRESH", -1.0)

    async def away() -> list[dict[str, Any]]:
        raise SwarmError("No peer answers")

    served.explorer._swarm_map = away
    assert len(await served.explorer.swarm()) == 1
    assert "No peer answers" in (await served.client.get("/parts/swarm")).text


def test_a_journal_must_exist_and_be_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database"):
        Statements(database_url(tmp_path / "none.db"), NETWORK)
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="no current ledger"):
        Statements(database_url(tmp_path / "empty.db"), NETWORK)


async def test_the_interface_describes_itself_without_any_other_server(served: Served) -> None:
    """Every route and every field of its answers, from the same document that programs read; the page leads there."""
    assert 'href="/api"' in (await served.client.get("/")).text
    answer = await served.client.get("/api")
    assert answer.status_code == 200
    told = await served.json("/api/openapi.json")
    for path, methods in told["paths"].items():
        assert methods["get"]["summary"], path
        assert path in answer.text
        assert html.escape(methods["get"]["summary"]) in answer.text.replace("&#39;", "&#x27;")
    for kind in ("SettlementRow", "OwnNode", "ServedModel"):
        assert f'id="{kind}"' in answer.text
        for field in told["components"]["schemas"][kind]["properties"]:
            assert f"<code>{field}</code>" in answer.text
    assert "<script" not in answer.text
    assert "//" not in answer.text.replace("<!doctype html>", ""), "nothing is fetched from elsewhere"
