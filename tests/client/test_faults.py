"""Whom a fault on a route is laid on, and who takes over: nodes in this process, real books."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from hivemint.client.generation.sequences import Sequence
from hivemint.client.sessions.errors import NodeGone, NodeRefusal
from hivemint.client.sessions.pipelines import faults
from hivemint.client.sessions.speeds import Allowance, Speeds
from hivemint.protocol.errors import HivemintError, SwarmError
from hivemint.swarm.messages import Code, Refused
from support.client_world import ASK, World, decode
from support.fake_swarm import HIDDEN, FakeNode


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Three nodes of ten blocks, and one more for each span. A pipeline ends with the first fault."""
    made = World(tmp_path, *(FakeNode(at, at + 10, ask=ASK + extra) for extra in (0, 1) for at in (0, 10, 20)))
    yield made
    await made.client.close()


async def fault(world: World, steps: int = 5) -> HivemintError:
    pipeline = await world.client.open(60)
    with pytest.raises(HivemintError) as caught:
        await decode(pipeline, steps)
    await pipeline.close()
    return caught.value


def peers(world: World, *numbers: int) -> set[bytes]:
    return {world.nodes[number].peer for number in numbers}


@pytest.mark.parametrize("who", [0, 1])
async def test_a_silent_node_is_named_and_not_those_behind_it(
    world: World, who: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All behind it say that their input is missing; the first word comes from the last of them."""
    world.nodes[who].faults["silent"] = 3
    monkeypatch.setattr(faults, "INPUT_LIMIT", 0.3)
    for number, node in enumerate(world.nodes[:3]):
        node.input_limit = 0.6 - 0.1 * number
    error = await fault(world)
    assert isinstance(error, NodeGone)
    assert set(error.peers) == peers(world, who)
    assert world.client.nodes._left_out() == peers(world, who)


@pytest.mark.parametrize("who", [0, 1])
async def test_an_output_that_went_nowhere_names_both_ends(world: World, who: int) -> None:
    world.nodes[who].faults["no-push"] = 3
    for number, node in enumerate(world.nodes[:3]):
        node.input_limit = 0.6 - 0.1 * number
    error = await fault(world)
    assert isinstance(error, NodeRefusal)
    assert set(error.peers) == peers(world, who, who + 1)
    assert "can't be told" in error.why


@pytest.mark.parametrize("who", [0, 1])
async def test_an_input_that_is_no_number_names_both_ends(world: World, who: int) -> None:
    """The one that sent it must not have, the one that says so may be lying."""
    world.nodes[who].faults["nan"] = 3
    error = await fault(world)
    assert set(getattr(error, "peers", ())) == peers(world, who, who + 1)


async def test_the_last_node_alone_answers_for_what_the_client_gets(world: World) -> None:
    world.nodes[2].faults["nan"] = 3
    error = await fault(world)
    assert isinstance(error, NodeGone)
    assert set(error.peers) == peers(world, 2)
    assert not world.nodes[2].sessions[0].signed_off, "it gets no further voucher"


async def test_a_complaint_of_the_first_node_is_about_itself(world: World) -> None:
    """Its input comes from the client."""
    world.nodes[0].refuse = lambda _, request, __: Refused(Code.MISSING, "no input", step=request.step)
    assert set(getattr(await fault(world), "peers", ())) == peers(world, 0)


@pytest.mark.parametrize("who", [1, 2])
async def test_who_complains_too_soon_of_a_slow_node_is_named_too(world: World, who: int) -> None:
    """A hostile node would have an honest one before it set aside, whenever that one takes a moment."""
    world.nodes[0].delay = 3.0
    world.nodes[who].refuse = lambda _, request, __: Refused(Code.MISSING, "no input", step=request.step)
    error = await fault(world)
    assert set(getattr(error, "peers", ())) == peers(world, 0, who)


# --- the text goes on


class Ends:
    """Hidden states of token ids: rows that say which."""

    context, hidden_size = 512, HIDDEN

    def embed(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        return ids[:, None].repeat(1, HIDDEN).float()


async def text(world: World, tokens: int) -> Sequence:
    """A text whose every output is right, whoever fails on its way."""
    world.client.settings = world.client.settings.model_copy(update={"repairs": 4})
    sequence = Sequence(world.client, Ends(), 60)  # type: ignore[arg-type]
    for length in range(1, tokens + 1):
        output = await sequence.advance(torch.arange(length))
        assert torch.equal(output, Ends().embed(torch.arange(length))[-1:] + 30)
    await sequence.close()
    return sequence


@pytest.mark.parametrize("what", ["nan", "die", "forged", "rows"])
async def test_a_text_goes_on_over_another_node(world: World, what: str) -> None:
    world.nodes[2].faults[what] = 4
    await text(world, 8)
    assert peers(world, 2) <= world.client.nodes._left_out()
    assert world.nodes[5].sessions


async def test_a_text_that_fails_everywhere_ends_with_what_went_wrong(world: World) -> None:
    for node in world.nodes:
        node.faults["die"] = 1
    with pytest.raises(NodeGone):
        await text(world, 3)
    assert sum(len(node.sessions) for node in world.nodes) <= 2 * (3 + 4)


async def test_going_on_costs_no_more_than_the_plan_allows(world: World) -> None:
    """Each node fails late in the text: what was computed is paid again, up to the cap."""
    world.client.settings = world.client.settings.model_copy(update={"replay_margin": 1.0})
    world.nodes[2].faults["die"] = 40
    with pytest.raises(SwarmError, match="times its plan"):
        await text(world, 58)
    total = sum(world.client.payer.book.totals()[node.operator.address][0] for node in world.nodes if node.signed)
    assert total <= 60 * 30 * (ASK + 1), "the plan was over whichever nodes it was"


async def test_no_room_after_each_token_costs_no_more_than_the_plan_allows(tmp_path: Path) -> None:
    """Against a node that is hostile in earnest: what it is signed, over all sessions of the text."""
    node = FakeNode(0, 30, ask=ASK)
    node.refuse = lambda state, request, _: (
        Refused(Code.GAP, "no room", step=request.step) if state.position and request.count == 1 else None
    )
    world = World(tmp_path, node)
    with pytest.raises(SwarmError, match="times its plan"):
        await text(world, 60)
    assert max(node.signed) <= 2 * 60 * 30 * ASK
    await world.client.close()


async def test_a_slow_node_is_left_between_two_tokens(world: World) -> None:
    world.client.speeds = Speeds(Allowance(times=1.0, floor=0.02))
    world.nodes[1].delay = 0.4
    await text(world, 8)
    assert peers(world, 1) <= world.client.nodes._left_out()
    assert world.nodes[4].sessions
    assert len(world.nodes[1].sessions) == 1


async def test_a_slow_node_is_kept_where_what_it_has_cannot_be_sent_again(world: World) -> None:
    """A pipeline that began with an earlier process's positions has no inputs of theirs: zeros would be computed."""
    world.client.speeds = Speeds(Allowance(times=1.0, floor=0.02))
    pipeline = await world.client.open(60)
    for session in pipeline.sessions:
        session.recalled = True
    world.nodes[1].delay = 0.4
    await decode(pipeline, 8)
    assert pipeline.slow is not None
    assert not world.nodes[4].sessions
    await pipeline.close()


async def test_a_node_that_reads_nothing_has_the_steps_own_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream is full and it pings: `send` would wait for ever."""
    world.client.settings = world.client.settings.model_copy(update={"step_timeout": 0.3})
    pipeline = await world.client.open(60)
    await decode(pipeline, 1)

    async def full(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(pipeline.sessions[1].link, "send", full)
    with pytest.raises(NodeGone, match="takes nothing") as caught:
        await decode(pipeline, 1)
    assert set(caught.value.peers) == peers(world, 1)
    await pipeline.close()


# --- speeds


def test_one_pause_is_no_proof() -> None:
    peer, speeds = FakeNode(0, 1).peer, Speeds(Allowance(times=10, floor=2))
    speeds.judge(peer, 100.0, 0.05)
    assert not speeds.slow(peer)
    speeds.judge(peer, 2.1, 0.05)
    assert speeds.slow(peer)
    speeds.forgive(peer)
    assert not speeds.slow(peer)


def test_what_a_node_publishes_is_what_it_is_judged_by() -> None:
    peer, speeds = FakeNode(0, 1).peer, Speeds(Allowance(times=10, floor=2))
    for _ in range(20):
        speeds.judge(peer, 25.0, 3.0)
    assert not speeds.slow(peer), "it said so itself"
    for _ in range(8):
        speeds.judge(peer, 31.0, 3.0)
    assert speeds.slow(peer)


def test_sessions_of_one_client_share_a_node() -> None:
    peer, speeds = FakeNode(0, 1).peer, Speeds(Allowance(times=10, floor=2))
    for _ in range(4):
        speeds.opened(peer)
    for _ in range(20):
        speeds.judge(peer, 7.0, 0.05)
    assert not speeds.slow(peer)
    speeds.opened(peer, -3)
    for _ in range(8):
        speeds.judge(peer, 7.0, 0.05)
    assert speeds.slow(peer)
