"""The figures of a live node, scraped over HTTP, against what was done to it."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from hivemint.ledger.books.earnings import Earnings
from hivemint.node.metrics import MetricsServer
from hivemint.protocol.errors import Refusal
from hivemint.protocol.ids import ONE_CREDIT
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.messages import Code
from support.node_client import RefusedError
from support.one_node import ASK, Served, one_node
from support.promises import signer

pytest_plugins = ["support.tiny"]


class Scrape:
    """All samples of one scrape: `name` or `name, label` -> value."""

    def __init__(self, text: str) -> None:
        self._samples = {
            (sample.name.removeprefix("hivemint_node_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __getitem__(self, key: str | tuple[str, ...]) -> float:
        return self._samples[key if isinstance(key, tuple) else (key,)]

    def by(self, name: str) -> dict[str, float]:
        return {key[1]: value for key, value in self._samples.items() if key[0] == name}


async def test_figures_of_a_live_node(tiny_folder: Path, tmp_path: Path) -> None:
    async with one_node(tiny_folder, tmp_path, batch_rows=32) as served:
        server = MetricsServer(0)
        running: Any = SimpleNamespace(
            node=served.node,
            journal=served.journal,
            host=served.host,
            settler=SimpleNamespace(minted_epochs={7: ONE_CREDIT}, minted_here={7}),
            earnings=Earnings(None, "books"),
        )
        server.show(running)

        async def scrape() -> Scrape:
            async with httpx.AsyncClient(trust_env=False) as http:
                return Scrape((await http.get(server.url)).raise_for_status().text)

        try:
            await tell(served, scrape)
        finally:
            await asyncio.to_thread(server.close)


async def tell(served: Served, scrape: Any) -> None:
    start = await scrape()
    assert start.by("tokens_total") == {"paid": 0, "donated": 0}
    assert start["batch_budget_tokens"] == 32
    assert start.by("credits")["earned"] == start.by("credits")["donated_minted"] == 1, "what an epoch's share minted"
    assert start.by("earned_credits") == {"hour": 1, "day": 1, "start": 1}

    paid, free = await served.open(signer(1), price=ASK), await served.open(signer(2))
    await paid.step(torch.randn(5, 32), 0)
    await paid.step(torch.randn(1, 32), 5)
    await free.step(torch.randn(3, 32), 0)
    stranger = await Host.start(HostSettings("another network", listen=(), bootstrap=served.host.addresses))
    with pytest.raises(Refusal, match="network"):
        await stranger.dial(served.host.peer_id, served.host.addresses, CONTROL)
    await stranger.close()
    for code, changes in ((Code.PRICE, {"price": ASK - 1}), (Code.EXPIRY, {"expiry": 1})):
        with pytest.raises(RefusedError):
            await served.open(signer(3), **changes)
        assert (await scrape())["refusals_total", code.value] == 1
    await paid.send(paid.request(1, start=40, total=paid.total), torch.randn(1, 32))
    await paid.answer()
    done = await scrape()
    assert done.by("tokens_total") == {"paid": 6, "donated": 3}
    assert done.by("sessions") == {"paid": 1, "donated": 1}
    assert done.by("refusals_total") == {"network": 1, "price": 1, "expiry": 1, "gap": 1}
    assert done["batches_total"] == done["batch_size_count"] == 3
    assert done["batch_size_sum"] == 9
    assert done.by("batch_size_bucket") == {
        "1.0": 1,
        "2.0": 1,
        "4.0": 2,
        "8.0": 3,
        "16.0": 3,
        "32.0": 3,
        "+Inf": 3,
    }
    assert 1 <= done["batch_tokens"] <= 5
    assert done["tokens_per_second"] > 0
    assert done["compute_seconds_total"] > 0
    used = done.by("kv_used_tokens")
    assert used["paid"] >= 6
    assert used["donated"] >= 3
    assert done["kv_free_tokens"] + sum(used.values()) == done["kv_total_tokens"]
    assert done.by("outputs_sent_total") == {"client": 3}

    served.span.shut()
    await free.send(free.request(2, start=3), torch.randn(2, 32))
    await asyncio.to_thread(served.span.held.wait)
    sessions = [await served.open(signer(4), price=ASK), await served.open(signer(5))]
    for session, rows in zip(sessions, (7, 4), strict=True):
        await session.send(session.request(rows, start=0), torch.randn(rows, 32))
    while sum((held := await scrape()).by("queued_tokens").values()) < 11:
        pass  # each look is a round trip
    assert held.by("queued_tokens") == {"paid": 7, "donated": 4}
    served.span.open()
    for session in (free, *sessions):
        await session.answer()
    after = await scrape()
    assert after.by("queued_tokens") == {"paid": 0, "donated": 0}
    assert after.by("wait_seconds")["paid"] > 0

    for session in (paid, free, *sessions):
        await session.link.close()
    while sum((gone := await scrape()).by("sessions").values()):
        pass
    assert gone.by("kv_used_tokens") == {"paid": 0, "donated": 0}
    assert gone["kv_free_tokens"] == gone["kv_total_tokens"]
