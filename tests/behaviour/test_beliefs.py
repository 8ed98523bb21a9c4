"""What a client believes and signs, whatever a node says (`docs/protocol.md`, C1 to C9): hostile nodes, real books."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hivemint.client.pipeline import RoomLost, SessionLimit, Trail
from hivemint.client.sessions.errors import NodeEquivocated, NodeRefusal
from hivemint.client.sessions.payer import NodeUnproven
from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.client.sessions.wallet import Identity
from hivemint.protocol import evidence
from hivemint.protocol.errors import HivemintError, SwarmError
from hivemint.protocol.ids import Credits
from hivemint.protocol.receipt import SignedVoucher, sign_voucher
from hivemint.swarm.messages import Closed, Code, Refused, StepRequest
from support.client_world import ASK, FUNDS, WALLET, World, decode, rows
from support.fake_swarm import Books, FakeNode, FakeSession
from support.promises import signer

PRICE = 30 * ASK
Answer = Callable[[FakeSession, StepRequest, Books], Refused | Closed | None]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """One node for all blocks."""
    made = World(tmp_path, FakeNode(0, 30, ask=ASK))
    yield made
    await made.client.close()


def refusing(code: Code, ahead: int = 0, proof: bool = False) -> Answer:
    """Each request is refused, and the debt said to be what was just signed and `ahead` more."""

    def answer(_: FakeSession, request: StepRequest, __: Books) -> Refused:
        voucher = request.voucher
        owed = Credits(voucher.body.total + ahead)
        return Refused(code, "no", step=request.step, owed=owed, proof=voucher if proof else None)

    return answer


async def ends(pipeline: LivePipeline, count: int = 1) -> HivemintError:
    """The error that a step ends in."""
    with pytest.raises(HivemintError) as caught:
        await pipeline.forward(rows(count))
    await pipeline.close()
    return caught.value


# --- the debt


@pytest.mark.parametrize("proof", [False, True])
@pytest.mark.parametrize("ahead", [0, 1])
async def test_a_node_that_keeps_vouchers_and_refuses_steps_gets_one(world: World, ahead: int, proof: bool) -> None:
    """The attack that emptied escrows: the node claims the total that it was just shown."""
    (node,) = world.nodes
    node.refuse = refusing(Code.VOUCHER, ahead, proof)
    assert isinstance(await ends(await world.client.open(60)), NodeUnproven)
    assert node.signed == [PRICE]
    again = await world.client.open(60)  # the only node: it is tried again, and has nothing new to show
    await ends(again)
    assert set(node.signed) == {PRICE}


@pytest.mark.parametrize("proof", [False, True])
async def test_the_same_in_training(world: World, proof: bool) -> None:
    """And what a node that never delivered gets is one small step, not a whole sequence."""
    (node,) = world.nodes
    node.refuse = refusing(Code.VOUCHER, 0, proof)
    relay = await world.client.relay_along(await world.client.route(8, work=24), 8, 24)
    with pytest.raises(NodeUnproven):
        await relay.forward(Trail({0: rows(8)}))
    await relay.close()
    assert node.signed == [4 * PRICE]
    assert relay.spent == 0


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.VOUCHER])
async def test_no_other_refusal_makes_it_sign_again(world: World, code: Code) -> None:
    (node,) = world.nodes
    node.refuse = refusing(code)
    error = await ends(await world.client.open(60))
    assert isinstance(error, RoomLost if code in (Code.GAP, Code.BUSY) else NodeRefusal)
    assert node.signed == [PRICE]
    assert world.client.payer.book.totals()[node.operator.address] == (PRICE, 0), "what was refused is not owed"


async def test_a_step_is_signed_anew_once(world: World) -> None:
    """Each time the node claims a little less than before: believed, and yet there is an end to it."""
    (node,) = world.nodes
    await decode(pipeline := await world.client.open(60), 4)
    node.refuse = lambda _, request, books: Refused(
        Code.VOUCHER, "no", step=request.step, owed=Credits(max(0, books.owed - len(node.signed)))
    )
    before = len(node.signed)
    assert isinstance(await ends(pipeline), RoomLost)
    assert len(node.signed) - before == 2


async def test_a_refusal_without_a_reason_is_no_reason_to_sign(world: World) -> None:
    """The voucher did cover what the node says is owed."""
    (node,) = world.nodes
    node.refuse = lambda _, request, books: Refused(Code.VOUCHER, "no", step=request.step, owed=Credits(books.owed))
    assert isinstance(await ends(await world.client.open(60)), NodeRefusal)
    assert node.signed == [PRICE]


def choices(data: list[tuple[str, int, bool]]) -> Answer:
    """An answer a request, in turn: honest ones where the list says so."""
    rest = iter(data)
    shown: list[SignedVoucher] = []

    def answer(state: FakeSession, request: StepRequest, books: Books) -> Refused | Closed | None:
        shown.append(request.voucher)
        kind, number, proof = next(rest, ("take", 0, False))
        highest = max(shown, key=lambda one: one.body.total)
        owed = {"owed": books.owed, "total": highest.body.total, "none": 0}.get(kind, 0) + number
        if kind == "take":
            return None
        if kind == "end":
            return Closed(code=Code.BUSY, reason="no room")
        code = list(Code)[number % len(Code)] if kind == "any" else Code.VOUCHER
        return Refused(code, "no", step=request.step, owed=Credits(max(0, owed)), proof=highest if proof else None)

    return answer


_KINDS = st.sampled_from(["take", "take", "owed", "total", "none", "any", "end"])


@settings(max_examples=25, deadline=None)
@example([("take", 0, False)] * 2 + [("end", 0, False), ("owed", 1, False), ("owed", 0, False)], [5, 1, 5])
@given(
    st.lists(st.tuples(_KINDS, st.integers(-PRICE, PRICE), st.booleans()), max_size=12),
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
)
def test_whatever_a_node_answers_no_more_is_lost_than_was_in_flight(
    answers: list[tuple[str, int, bool]], sizes: list[int]
) -> None:
    """Over many sessions of one wallet at one node, its books, and what it delivered."""

    async def play(folder: Path) -> None:
        node = FakeNode(0, 30, ask=ASK)
        world = World(folder, node, step_timeout=1, patience=0)
        node.refuse = choices(answers)
        largest = max(sizes) * PRICE
        for size in sizes:
            try:
                pipeline = await world.client.open(60)
            except HivemintError:
                continue
            with contextlib.suppress(HivemintError):
                await pipeline.forward(rows(size))
            await pipeline.close()
            delivered = node.books[WALLET.address].owed
            assert max(node.signed, default=0) <= delivered + largest
            assert all(one.signed <= one.session.max_amount for one in pipeline.sessions)
            assert pipeline.spent >= 0
        await world.client.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


async def test_the_last_voucher_of_a_cancelled_session_proves_no_debt(world: World) -> None:
    """It carries the total of steps that were dropped, over a receipt that no request has bound."""
    (node,) = world.nodes
    node.max_rows, node.delay = 4, 0.1
    world.client.speeds.delivered(node.peer)
    pipeline = await world.client.open(60)
    running = asyncio.ensure_future(pipeline.forward(rows(16)))
    for _ in range(1000):
        if len(node.signed) >= 3:
            break
        await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await pipeline.cancel()
    await pipeline.close()
    (session,), books = node.sessions, node.books[WALLET.address]
    assert session.countersigned is not None
    assert books.owed < session.countersigned.voucher.total
    assert session.countersigned.receipt.step not in {receipt for _, receipt in session.bound[:-1]}
    books.owed = session.countersigned.voucher.total
    with pytest.raises(NodeUnproven):
        await world.client.open(60)


# --- limits of what is signed


async def test_nothing_is_signed_past_what_the_account_holds(world: World) -> None:
    """The account shrinks between planning and opening: the session's amount would allow more."""
    (node,) = world.nodes
    route = await world.client.route(60)
    world.chain.funded[node.operator.address] = 3 * PRICE
    pipeline = await world.client.along(route, 60)
    await decode(pipeline, 3)
    error = await ends(pipeline)
    assert isinstance(error, SessionLimit)
    assert "hivemint account fund" in error.next_step
    assert max(node.signed) == 3 * PRICE


async def test_nothing_is_signed_for_an_account_that_thaws(world: World) -> None:
    (node,) = world.nodes
    route = await world.client.route(60)
    world.chain.thawing.add(node.operator.address)
    assert isinstance(await ends(await world.client.along(route, 60)), SessionLimit)
    assert node.signed == []


async def test_a_sessions_amount_bounds_what_was_signed(world: World) -> None:
    """Steps that were cancelled count: their vouchers are with the node."""
    (node,) = world.nodes
    pipeline = await world.client.along(await world.client.route(4), 4)
    (session,) = pipeline.sessions
    room = session.room
    assert room == 5 * PRICE, "four tokens and the margin"
    await decode(pipeline, 1)
    assert (session.raised, session.room) == (PRICE, room - PRICE)
    session.raised = room - PRICE + 1  # the rest was refused, say
    with pytest.raises(SessionLimit, match="amount"):
        session.admit(1, 2)
    await pipeline._circuit.source.put_back()
    with pytest.raises(SessionLimit, match="amount"):
        await pipeline._circuit.source.take(1)
    assert isinstance(await ends(pipeline), SessionLimit)
    assert node.signed == [PRICE]


# --- other machines of the wallet


async def test_two_machines_of_one_wallet_go_on_at_an_honest_node(world: World) -> None:
    """Each has books of its own; whoever comes second is refused once, shown the other's voucher, and signs on."""
    (node,) = world.nodes
    other = world.another("-2")
    one, two = await world.client.open(200), await other.open(200)
    for _ in range(4):
        await decode(one, 2)
        await decode(two, 3)
    await one.forward(rows(20))
    await asyncio.gather(one.close(), two.close())
    assert node.books[WALLET.address].owed == 40 * PRICE
    assert node.refused, "they did not see each other's steps"
    assert all(refused.code is Code.VOUCHER for refused in node.refused)
    await other.close()


async def test_two_machines_at_the_same_moment_open_anew_at_worst(world: World) -> None:
    """A step that is overtaken twice by the other machine's ends its session, and the text goes on in another."""
    (node,), machines = world.nodes, (world.client, world.another("-2"))

    async def talk(client: SwarmClient) -> None:
        left, pipeline = 20, await client.open(200)
        while left:
            try:
                await decode(pipeline, 1)
                left -= 1
            except RoomLost:
                await pipeline.close()
                pipeline = await client.open(200)
        await pipeline.close()

    await asyncio.gather(*(talk(client) for client in machines))
    books = node.books[WALLET.address]
    assert books.owed == 40 * PRICE
    assert books.highest <= books.owed + 2 * PRICE
    await machines[1].close()


@pytest.mark.parametrize("known", [True, False])
async def test_a_voucher_of_another_key_counts_if_the_chain_knows_that_key(world: World, known: bool) -> None:
    (node,) = world.nodes
    key = signer(77)
    if known:
        world.chain.keys.add(key.address)
    other = world.another("-2", Identity.authorized(WALLET.address, key, 2**40))
    await decode(first := await other.open(60), 3)
    await first.close()
    await other.close()
    if known:
        await decode(second := await world.client.open(60), 1)
        await second.close()
        assert node.books[WALLET.address].owed == 4 * PRICE
    else:
        with pytest.raises(NodeUnproven):
            await world.client.open(60)


async def test_a_voucher_that_nobody_of_ours_signed_proves_nothing(world: World) -> None:
    (node,) = world.nodes

    def answer(state: FakeSession, request: StepRequest, _: Books) -> Refused:
        forged = sign_voucher(node_domain(world), state.receipt, Credits(9 * PRICE), signer(66)).signed
        return Refused(Code.VOUCHER, "no", step=request.step, owed=Credits(8 * PRICE), proof=forged)

    node.refuse = answer
    assert isinstance(await ends(await world.client.open(60)), NodeUnproven)
    assert node.signed == [PRICE]


def node_domain(world: World) -> Any:
    return world.client.payer.domain


# --- what a node offers


async def test_a_nodes_limits_are_cut_to_the_clients_own(tmp_path: Path) -> None:
    node = FakeNode(0, 30, ask=ASK, ahead=64)
    node.max_rows = 4096
    world = World(tmp_path, node, max_ahead=3, max_rows=8)
    node.delay = 0.02
    world.client.speeds.delivered(node.peer)
    pipeline = await world.client.open(200)
    await pipeline.forward(rows(100))
    steps = node.sessions[0].bound
    assert len(steps) == 13, "chunks of 8 rows"
    assert max(step - receipt for step, receipt in steps) == 3
    await pipeline.close()
    await world.client.close()


async def test_until_it_has_delivered_a_node_gets_one_small_chunk(world: World) -> None:
    """And loses the client one, if it never does."""
    (node,) = world.nodes
    node.faults["silent"] = 1
    world.client.settings = world.client.settings.model_copy(update={"step_timeout": 0.3})
    await ends(await world.client.open(200), 100)
    assert node.signed == [4 * PRICE]


async def test_a_busy_node_is_not_waited_for_longer_than_this_client_likes(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), max_wait=0.01, patience=5)
    world.nodes[0].faults["busy"], world.nodes[0].retry_after = 0, 3600
    await (await world.client.open(60)).close()
    assert world.nodes[0].dials == 4, "refused three times, asked again well within the hour that it names"
    await world.client.close()


async def test_a_node_that_loses_its_room_twice_is_set_aside(tmp_path: Path) -> None:
    dear = FakeNode(0, 30, ask=2 * ASK)
    world = World(tmp_path, FakeNode(0, 30, ask=ASK), dear)
    cheap = world.nodes[0]
    cheap.refuse = refusing(Code.GAP)
    for _ in range(2):
        pipeline = await world.client.open(60)
        assert pipeline.sessions[0].leg.peer == cheap.peer
        assert isinstance(await ends(pipeline), RoomLost)
    pipeline = await world.client.open(60)
    assert pipeline.sessions[0].leg.peer == dear.peer
    await pipeline.close()
    await world.client.close()


# --- prices


async def test_without_a_ceiling_a_dear_node_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=10 * ASK))
    with pytest.raises(SwarmError, match="default price ceiling") as caught:
        await world.client.plan(60)
    assert "--max-price" in caught.value.next_step
    world.client.settings = world.client.settings.model_copy(update={"max_price": Credits(FUNDS)})
    assert (await world.client.plan(60)).cost == 60 * 15 * 11 * ASK
    await world.client.close()


async def test_a_plan_tells_the_ceiling(world: World, tmp_path: Path) -> None:
    assert any("one node alone" in note for note in (await world.client.plan(60)).notes)
    two = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=2 * ASK))
    assert any("3x the median ask" in note for note in (await two.client.plan(60)).notes)
    await two.client.close()


# --- evidence


async def test_two_signed_answers_are_kept_and_their_node_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK))
    liar = world.nodes[0]
    liar.faults["two-faced"] = 3
    pipeline = await world.client.open(60)
    await decode(pipeline, 2)
    error = await ends(pipeline)
    assert isinstance(error, NodeEquivocated)
    assert error.peers == (liar.peer,)
    (file,) = (tmp_path / "evidence").iterdir()
    proof = evidence.read(file)
    assert proof.node == liar.operator.address
    assert proof.one.step == 3
    with pytest.raises(SwarmError, match="No node serves blocks 0:15"):
        await world.client.plan(60)
    await world.client.close()


@pytest.mark.parametrize("forged", [True, False])
async def test_evidence_that_proves_nothing_accuses_nobody(tmp_path: Path, forged: bool) -> None:
    """The complaining node makes the other receipt up, or shows the one that came here too."""
    world = World(tmp_path, FakeNode(0, 15, ask=ASK), FakeNode(15, 30, ask=ASK))
    first, second = world.nodes

    def answer(_: FakeSession, request: StepRequest, __: Books) -> Refused | None:
        if request.step < 3:
            return None
        shown = first.sessions[0].receipt.signed
        if forged:
            shown = msgspec.structs.replace(shown, body=msgspec.structs.replace(shown.body, tokens=99))
        return Refused(Code.INPUT, "no", step=request.step, evidence=shown)

    second.refuse = answer
    pipeline = await world.client.open(60)
    await decode(pipeline, 2)
    assert isinstance(await ends(pipeline), NodeRefusal)
    assert not (tmp_path / "evidence").exists()
    await world.client.close()


# --- what it cost


async def test_what_an_answer_cost_is_what_its_own_steps_cost(world: World) -> None:
    """Another process of the wallet pays meanwhile; and refused steps cost nothing."""
    other = world.another()
    one, two = await world.client.open(60), await other.open(60)
    await asyncio.gather(decode(one, 3), decode(two, 5))
    assert (one.spent, two.spent) == (3 * PRICE, 5 * PRICE)
    world.nodes[0].refuse = refusing(Code.LIMIT)
    await ends(one)
    assert one.spent == 3 * PRICE
    await two.close()
    await other.close()
