"""A client's bid for one call: the same nodes, links and books under another price."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivemint.client.sessions.swarm_client import SwarmClient, _offered_alike
from hivemint.client.settings import Bid, ClientSettings
from hivemint.protocol.errors import ConfigError, SwarmError, WalletError
from support.client_world import ASK, WALLET, World, decode
from support.fake_swarm import FakeNode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK))
    yield made
    await made.client.close()


async def test_a_bid_of_one_call_changes_its_price_alone(world: World) -> None:
    dear = world.client.offering(bid="3x")
    assert (await dear.plan(60)).cost == 3 * (await world.client.plan(60)).cost
    pipeline = await dear.open(60)
    await decode(pipeline, 3)
    assert pipeline.spent == 3 * 3 * 30 * ASK
    await pipeline.close()
    assert world.client.settings.bid == Bid("times")
    assert (await world.client.offering(bid="free").plan(60)).lane == "donated"
    assert world.client.offering() is world.client


async def test_what_a_call_has_open_is_reserved_for_all(world: World) -> None:
    pipeline = await world.client.offering(bid="2x").open(60)
    reserved = world.client._reserved()
    assert sum(reserved.values()) == sum(one.unspent for one in pipeline.sessions) > 0
    await world.client.close()
    assert not pipeline.open, "who closes one closes all"


async def test_a_ceiling_of_one_call_holds(world: World) -> None:
    with pytest.raises(SwarmError, match="No route costs at most"):
        await world.client.offering(max_price="1 wei").plan(60)
    assert (await world.client.plan(60)).lane == "paid"
    for wrong in ({"bid": "lots"}, {"max_price": "much"}):
        with pytest.raises(ConfigError, match="cannot be used"):
            world.client.offering(**wrong)


async def test_sessions_of_another_bid_are_not_gone_on_with(world: World) -> None:
    pipeline = await world.client.open(60)
    await decode(pipeline, 20)
    assert await world.client.offering(bid="2x").fork(pipeline, 60, 16) is None
    assert not world.nodes[0].refused, "no node was asked"
    assert _offered_alike(pipeline.settings, world.client.offering(bid="ask").settings)
    await pipeline.close()


async def test_who_has_no_wallet_is_told_that_nobody_could_pay(world: World) -> None:
    settings = ClientSettings(bid=Bid("free"))
    client = SwarmClient(
        world.client._host, world.client._target, world.client.payer, settings, network="dev", throw_away=True
    )
    with pytest.raises(WalletError, match="the bid is 2x"):
        client.offering(bid="2x")
    assert client.offering(bid="auto").settings.bid == Bid("free")
    assert client.description == "network dev, without a wallet, donated work only, bid free"
    assert WALLET.address in world.client.description
    assert WALLET.address not in client.description


async def test_missing_blocks_say_whether_this_machines_clock_may_be_why(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK))
    with pytest.raises(SwarmError, match="No node serves blocks 15:30") as alone:
        await world.client.plan(60)
    assert "clock" not in str(alone.value)
    world.swarm.clock.hear([("a", 300.0), ("b", 300.0)])
    with pytest.raises(SwarmError, match=r"No node serves blocks 15:30.*your clock differs from that of 2 networks"):
        await world.client.open(60)
