"""Two real nodes over real links: the life of a step, and every way in which it may go wrong."""

import asyncio
import sqlite3
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch

from hivemint.node.kv.pages import PAGE
from hivemint.node.span.packing import Work
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import BlockIndex, Credits, ModelId, Step
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.messages import (
    Cancel,
    Cancelled,
    Close,
    Closed,
    Code,
    Refused,
    StepReceipt,
    Tensor,
    TensorHead,
)
from hivemint.swarm.rows import to_wire
from support.node_client import FakeFunds, NodeSession, RefusedError, View, hash_of, random_head, routed
from support.node_pair import ASK, MODEL, Pair, start
from support.promises import DOMAIN, signer

pytest_plugins = ["support.node_pair"]


async def test_a_node_serves_steps_that_equal_its_span(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(1), price=ASK)
    rows = torch.randn(6, 32)
    outputs = [await session.step(rows[:4], 0), await session.step(rows[4:5], 4), await session.step(rows[5:], 5)]
    span = pair.first.node.kit.span
    cache = span.new_store(1 << 20).open(64)
    assert torch.allclose(torch.cat(outputs), span.run([Work(cache, 0, rows)])[0], atol=1e-5)
    assert session.receipt.tokens == 6
    assert pair.first.journal.book(signer(1).address).owed == 6 * ASK
    await session.link.send(Close(session.request(start=6, total=6 * ASK).voucher))
    assert await session.link.receive() == Closed()
    assert pair.first.journal.book(signer(1).address).earned == 6 * ASK
    await pair.first.journal.close()


async def test_what_is_published_is_the_room_that_is_there(pair: Pair) -> None:
    node = pair.first.node
    store, whole = node.engine.room.store, node.record().free_tokens
    assert whole == store.tokens_total
    session = await pair.open(pair.first, signer(1), price=ASK)
    await session.step(torch.randn(4, 32), 0)
    assert node.record().free_tokens == whole - PAGE
    assert store.bytes_used == PAGE * store.bytes_per_token
    await session.link.send(Close(session.request(start=4, total=4 * ASK).voucher))
    assert await session.link.receive() == Closed()
    while node.record().free_tokens != whole:  # noqa: ASYNC110  # the seat is closed behind the answer
        await asyncio.sleep(0.01)


async def test_a_node_may_compute_in_one_form_and_speak_another(tiny_folder: Path, tmp_path: Path) -> None:
    """bf16 inside, fp32 on the wire: what is declared, what is signed for, and what the rows are."""
    async with AsyncExitStack() as stack:
        host = await Host.start(HostSettings("test"))
        stack.push_async_callback(host.close)
        client = await Host.start(HostSettings("test", listen=(), bootstrap=host.addresses))
        stack.push_async_callback(client.close)
        folder = tmp_path / "tiny"
        folder.symlink_to(tiny_folder)
        running = await start(folder, 0, FakeFunds(), "half", host, signer(1003), "bf16", wire="fp32")
        stack.push_async_callback(running.journal.close)
        stack.push_async_callback(running.node.close)
        assert running.node.offer.numerics == running.node.record().numerics == ("bf16/bf16/fp32",)
        link = await client.dial(host.peer_id, host.addresses, CONTROL)
        session = await NodeSession.open(link, DOMAIN, signer(1), price=ASK)
        rows = torch.randn(3, 32)
        output = await session.step(rows, 0)
        span = running.node.kit.span
        cache = span.new_store(1 << 20).open(64)
        assert torch.equal(output, span.run([Work(cache, 0, rows.bfloat16())])[0].float())


async def test_the_first_ask_of_one_that_follows_others_is_within_its_bounds(tiny_folder: Path, tmp_path: Path) -> None:
    """What is published before anybody else has been seen."""
    async with AsyncExitStack() as stack:
        host = await Host.start(HostSettings("test"))
        stack.push_async_callback(host.close)
        (folder := tmp_path / "tiny").symlink_to(tiny_folder)
        bounds: dict[str, Any] = {"ask_auto": True, "ask_floor": 7 * ASK, "ask_ceiling": 9 * ASK}
        running = await start(folder, 0, FakeFunds(), "floor", host, signer(1003), **bounds)
        stack.push_async_callback(running.journal.close)
        stack.push_async_callback(running.node.close)
        assert running.node.record().ask == running.node.offer.ask == 7 * ASK


async def test_pushed_steps_pass_both_nodes_and_every_head_fits(pair: Pair) -> None:
    client = signer(2)
    last = await pair.open(pair.second, client)
    first = await pair.open(pair.first, client)
    assert routed(await last.route(previous=first))
    assert routed(await first.route(to=(pair.second.host.peer_id, pair.second.host.addresses)))
    length = 0
    for count in (5, 1, 1):
        rows = torch.randn(count, 32)
        there, here = last.request(count, start=length, source=Step(first.receipt.step + 1), rows="last"), None
        here = first.request(count, start=length, push=True)
        await last.send(there)
        await first.send(here, rows)
        answer, tensor = await first.answer()
        assert isinstance(answer, StepReceipt)
        assert tensor is None, "the tensor goes to the next node alone"
        receipt = first.check(here, hash_of(rows), answer)
        middle = _leaf_output(answer)
        answer, tensor = await last.answer()
        assert isinstance(answer, StepReceipt), answer
        assert tensor is not None
        assert len(tensor.data) == 32 * 4
        last.check(there, middle, answer)
        assert receipt.step == first.receipt.step
        length += count


def _leaf_output(answer: StepReceipt) -> Any:
    from hivemint.swarm.rows import tensor_hash

    return tensor_hash(answer.rows)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node": signer(9).address}, Code.NODE),
        ({"peer_id_hash": b"\x01" * 32}, Code.NODE),
        ({"model_id": ModelId(b"\x01" * 32)}, Code.MODEL),
        ({"numerics": b"\x01" * 32}, Code.NUMERICS),
        ({"first_block": BlockIndex(1), "end_block": BlockIndex(2)}, Code.SPAN),
        ({"price": ASK - 1}, Code.PRICE),
        ({"expiry": 1}, Code.EXPIRY),
        ({"max_tokens": 10**6}, Code.LIMIT),
        ({"signer": signer(8)}, Code.KEY),
        ({"key": signer(7), "price": ASK}, Code.KEY),
        ({"key": signer(7)}, Code.KEY),
        ({"nonce": b"\x05" * 32}, Code.NONCE),
        ({"price": ASK, "max_amount": Credits(10**25)}, Code.FUNDS),
    ],
)
async def test_a_wrong_session_is_refused_with_its_reason(pair: Pair, changes: dict[str, Any], code: Code) -> None:
    with pytest.raises(RefusedError) as caught:
        await pair.open(pair.first, signer(1), **changes)
    assert caught.value.refused.code is code
    assert pair.first.node.registry.occupants == []
    assert (pair.first.journal.books(), len(pair.first.journal._open), pair.first.node.registry._accounts) == (
        {},
        0,
        {},
    )


async def test_steps_that_break_the_rules_are_refused_before_any_compute(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(3), price=ASK)
    rows = torch.randn(4, 32)
    await session.step(rows, 0)
    batches = pair.first.node.engine.gauge.batches
    owed = pair.first.journal.book(signer(3).address).owed
    old_total = session.total
    wrong = {
        Code.VOUCHER: [
            session.request(4, start=4, total=old_total),  # does not cover
            session.request(4, start=4, total=old_total + 40, signer=signer(4)),  # forged
        ],
        Code.STEP: [session.request(4, start=4, step=3, total=old_total + 40)],
        Code.GAP: [session.request(4, start=start, total=old_total + 40) for start in (5, 64, 2**63 - 1)],
        Code.LIMIT: [session.request(17, start=4, total=10**6)],
        Code.PROTOCOL: [session.request(4, start=4, kind=1, total=10**6)],
        Code.INPUT: [session.request(4, start=4, source=Step(1), total=10**6)],
        Code.MISSING: [session.request(4, start=4, push=True, total=10**6)],
        Code.CONFLICT: [session.request(4, start=2, step=1, total=10**6)],
    }
    for code, requests in wrong.items():
        for request in requests:
            await session.send(request, rows)
            answer, _ = await session.answer()
            assert isinstance(answer, Refused)
            assert answer.code is code, answer
            assert answer.owed == owed
    assert pair.first.node.engine.gauge.batches == batches
    session.total = old_total
    await session.step(rows, 4)  # and the session goes on


async def test_a_lower_start_crops_and_is_paid_like_any_step(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(31), price=ASK)
    rows, other = torch.randn(8, 32), torch.randn(3, 32)
    await session.step(rows, 0)
    again = await session.step(other, 5)
    span = pair.first.node.kit.span
    whole = span.run([Work(span.new_store(1 << 20).open(64), 0, torch.cat([rows[:5], other]))])[0]
    assert torch.allclose(again, whole[5:], atol=1e-5)
    assert session.receipt.tokens == 11
    assert pair.first.journal.book(signer(31).address).owed == 11 * ASK
    session.total = 11 * ASK
    await session.step(rows, 0)  # and back to the beginning
    assert session.receipt.tokens == 19


async def test_a_negative_start_is_no_request(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(32))
    await session.step(torch.randn(4, 32), 0)
    await session.send(session.request(1, start=-1), torch.randn(1, 32))
    with pytest.raises(LinkClosed, match="malformed StepRequest"):
        await session.answer()


async def test_a_step_dropped_before_it_began_costs_no_cache(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(33), price=ASK)
    rows = torch.randn(8, 32)
    await session.step(rows[:6], 0)
    await session.send(session.request(2, start=1))  # a crop whose input never comes
    await session.link.send(Cancel(Step(2)))
    answer, _ = await session.answer()
    assert isinstance(answer, Cancelled)
    session.total = 6 * ASK
    got = await session.step(rows[6:], 6)
    span = pair.first.node.kit.span
    whole = span.run([Work(span.new_store(1 << 20).open(64), 0, rows)])[0]
    assert torch.allclose(got, whole[6:], atol=1e-5)


async def whole(pair: Pair, rows: torch.Tensor) -> torch.Tensor:
    """What the first node's span makes of `rows`, alone."""
    span = pair.first.node.kit.span
    return span.run([Work(span.new_store(1 << 20).open(64), 0, rows)])[0]


async def test_a_fork_begins_with_what_another_session_computed(pair: Pair) -> None:
    """Nothing is computed, receipted or owed for it, and what becomes of the parent is no matter."""
    wallet = signer(41)
    parent = await pair.open(pair.first, wallet, price=ASK)
    rows = torch.randn(12, 32)
    await parent.step(rows[:8], 0)
    batches = pair.first.node.engine.gauge.batches
    child, other = [await pair.open(pair.first, wallet, price=ASK) for _ in range(2)]
    child.total = other.total = parent.total
    await child.fork(parent, 6)
    await other.fork(parent, 8)
    assert pair.first.node.engine.gauge.batches == batches
    assert (child.receipt.step, child.receipt.tokens) == (1, 0)
    await parent.step(torch.randn(5, 32), 2)  # the parent goes another way
    child.total = parent.total
    assert torch.allclose(await child.step(rows[6:], 6), (await whole(pair, rows))[6:], atol=1e-5)
    await parent.link.close()
    assert child.receipt.tokens == 6
    other.total = child.total
    mine = torch.cat([rows[:8], torch.randn(2, 32)])
    assert torch.allclose(await other.step(mine[8:], 8), (await whole(pair, mine))[8:], atol=1e-5)
    assert pair.first.journal.book(wallet.address).owed == (8 + 5 + 6 + 2) * ASK


async def test_a_fork_and_the_step_behind_it_go_out_together(pair: Pair) -> None:
    parent, child = await pair.open(pair.first, signer(42)), await pair.open(pair.first, signer(42))
    rows = torch.randn(9, 32)
    await parent.step(rows[:7], 0)
    fork = child.fork_request(parent, 7)
    behind = child.request(2, start=7, step=2, rows="all")
    await child.send(fork)
    await child.send(behind, rows[7:])
    first, _ = await child.answer()
    second, tensor = await child.answer()
    assert isinstance(first, StepReceipt)
    assert isinstance(second, StepReceipt)
    assert [first.receipt.step, second.receipt.step] == [1, 2]
    assert tensor is not None
    got = torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).view(2, -1)
    assert torch.allclose(got, (await whole(pair, rows))[7:], atol=1e-5)
    await child.send(fork)  # asked again: the stored answer
    again, _ = await child.answer()
    assert isinstance(again, Refused | StepReceipt)
    assert again == first


async def test_no_fork_tells_of_sessions_that_are_not_the_keys_own(pair: Pair) -> None:
    """Another wallet, another key of this one, the other lane and a head made up: one answer, nothing computed."""
    wallet = signer(43)
    parent = await pair.open(pair.first, wallet, price=ASK)
    await parent.step(torch.randn(8, 32), 0)
    batches, room = pair.first.node.engine.gauge.batches, pair.first.node.engine.room.store.bytes_used
    pair.first.chain.keys[(wallet.address, signer(45).address)] = 2**40
    strangers = [
        await pair.open(pair.first, signer(44), price=ASK),
        await pair.open(pair.first, wallet, key=signer(45), price=ASK),
        await pair.open(pair.first, wallet),
    ]
    said = set()
    for stranger in strangers:
        for head in (parent.receipt.head, random_head()):
            await stranger.send(stranger.fork_request(parent, 4, head=head))
            refused, _ = await stranger.answer()
            assert isinstance(refused, Refused)
            assert (refused.code, refused.cached) == (Code.GAP, 0)
            said.add((refused.what, refused.why))
    assert len(said) == 1
    assert pair.first.node.engine.gauge.batches == batches
    assert pair.first.node.engine.room.store.bytes_used == room


async def test_forks_that_cannot_be_are_refused_with_their_reason(pair: Pair) -> None:
    wallet = signer(46)
    parent, child = [await pair.open(pair.first, wallet, price=ASK) for _ in range(2)]
    await parent.step(torch.randn(8, 32), 0)
    child.total = parent.total
    small = await pair.open(pair.first, wallet, price=ASK, max_tokens=4)
    wrong: list[tuple[NodeSession, Code, dict[str, Any]]] = [
        (child, Code.GAP, {"count": 9}),
        (child, Code.GAP, {"head": parent.kept[0].head}),  # an old head
        (child, Code.GAP, {"head": child.receipt.head}),  # itself
        (child, Code.GAP, {"head": None}),
        (child, Code.GAP, {"start": 1}),
        (child, Code.PROTOCOL, {"rows": "last"}),
        (child, Code.PROTOCOL, {"kind": 0}),
        (child, Code.STEP, {"step": 2}),
        (child, Code.VOUCHER, {"signer": signer(4)}),
        (small, Code.LIMIT, {"total": parent.total}),
    ]
    for session, code, changes in wrong:
        await session.send(session.fork_request(parent, changes.pop("count", 8), **changes))
        refused, _ = await session.answer()
        assert isinstance(refused, Refused)
        assert refused.code is code, refused
        assert refused.cached == (8 if code is Code.GAP and not changes else 0)
        assert refused.owed == 8 * ASK
    await child.step(torch.randn(2, 32), 0)
    late = child.fork_request(parent, 4)
    await child.send(late)
    refused, _ = await child.answer()
    assert isinstance(refused, Refused)
    assert refused.code is Code.PROTOCOL, "only a first step forks"


async def test_a_parent_with_steps_in_flight_is_no_parent_yet(pair: Pair) -> None:
    parent, child = await pair.open(pair.first, signer(47)), await pair.open(pair.first, signer(47))
    await parent.step(torch.randn(8, 32), 0)
    await parent.send(parent.request(2, start=3))  # its input never comes
    async with asyncio.timeout(10):  # both came on links of their own
        while True:
            await child.send(child.fork_request(parent, 4))
            refused, _ = await child.answer()
            if isinstance(refused, Refused):
                break
            child = await pair.open(pair.first, signer(47))
    assert refused.code is Code.STEP
    await parent.link.send(Cancel(Step(2)))
    await parent.answer()
    await child.fork(parent, 8)


async def test_a_fork_without_room_owes_nothing_and_the_session_goes_on(pair: Pair) -> None:
    parent, child = await pair.open(pair.first, signer(48)), await pair.open(pair.first, signer(48))
    rows = torch.randn(8, 32)
    await parent.step(rows, 0)
    store = pair.first.node.engine.room.store
    taken, store._pages_taken = store._pages_taken, store._pages_total
    with pytest.raises(RefusedError) as caught:
        await child.fork(parent, 8)
    assert caught.value.refused.code is Code.BUSY
    store._pages_taken = taken
    await child.step(rows, 0)
    assert child.receipt.step == 1


async def test_an_evicted_parent_is_a_gap(pair: Pair) -> None:
    parent, child = await pair.open(pair.first, signer(49)), await pair.open(pair.first, signer(49))
    await parent.step(torch.randn(8, 32), 0)
    room = pair.first.node.engine.room
    victim = room.seats[0]
    victim.cache.evict()
    assert victim.on_evicted
    victim.on_evicted()
    with pytest.raises(RefusedError) as caught:
        await child.fork(parent, 8)
    assert (caught.value.refused.code, caught.value.refused.cached) == (Code.GAP, 0)


async def test_the_same_request_again_gives_the_stored_answer(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(5))
    rows = torch.randn(2, 32)
    request = session.request(2, start=0, rows="all")
    await session.send(request, rows)
    once = await session.answer()
    batches = pair.first.node.engine.gauge.batches
    await session.send(request, rows)
    again = await session.answer()
    assert once[0] == again[0]
    assert bytes(once[1].data) == bytes(again[1].data)
    await session.send(request, rows + 1)
    other, _ = await session.answer()
    assert isinstance(other, Refused)
    assert other.code is Code.CONFLICT
    assert pair.first.node.engine.gauge.batches == batches


async def test_cancel_drops_what_has_not_begun_and_owes_nothing_for_it(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(6), price=ASK)
    rows = torch.randn(2, 32)
    await session.step(rows, 0)
    request = session.request(2, start=2)
    await session.send(request)  # its input never comes
    await session.link.send(Cancel(Step(2)))
    answer, _ = await session.answer()
    assert isinstance(answer, Cancelled)
    assert (answer.last, answer.owed) == (1, 2 * ASK)
    session.total = 2 * ASK
    await session.step(rows, 2)


async def test_a_small_step_does_not_overtake_a_large_one(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large is put into wire form by a thread, what is small at once."""
    meter: Any = pair.first.node._services.meter
    encode = meter.encode

    async def late(output: torch.Tensor, wire: str) -> bytes:
        if len(output) > 1:
            await asyncio.sleep(0.2)
        encoded: bytes = await encode(output, wire)
        return encoded

    monkeypatch.setattr(meter, "encode", late)
    session = await pair.open(pair.first, signer(33), price=ASK)
    large, small = session.request(8, start=0), session.request(1, start=8, step=2)
    await session.send(large, torch.randn(8, 32))
    await session.send(small, torch.randn(1, 32))
    receipts = [(await session.answer())[0] for _ in range(2)]
    assert [one.receipt.step for one in receipts if isinstance(one, StepReceipt)] == [1, 2]


async def test_a_step_that_was_cancelled_is_asked_for_again_at_once(pair: Pair) -> None:
    """In one write, before the node has put away what the first request waited with."""
    session = await pair.open(pair.first, signer(16), price=ASK)
    rows, request = torch.randn(2, 32), session.request(2, start=0)
    for _ in range(3):
        await session.link.send(request, Cancel(Step(1)))
    await session.link.send(request, Tensor(TensorHead(Step(1)), to_wire(rows, "fp32")))
    for _ in range(3):
        answer, _ = await session.answer()
        assert isinstance(answer, Cancelled)
    answer, _ = await session.answer()
    assert isinstance(answer, StepReceipt), answer
    session.check(request, hash_of(rows), answer)


async def test_a_pushed_step_that_was_cancelled_is_asked_for_again_at_once(pair: Pair) -> None:
    client, rows = signer(17), torch.randn(2, 32)
    last, first = await pair.open(pair.second, client), await pair.open(pair.first, client)
    await last.route(previous=first)
    await first.route(to=(pair.second.host.peer_id, pair.second.host.addresses))
    there = last.request(2, start=0, source=Step(1), rows="last")
    await last.link.send(there, Cancel(Step(1)), there)
    await first.send(first.request(2, start=0, push=True), rows)
    answer, _ = await last.answer()
    assert isinstance(answer, Cancelled)
    answer, tensor = await last.answer()
    assert isinstance(answer, StepReceipt), answer
    assert tensor is not None


async def test_a_doctored_tensor_is_refused_by_the_next_node(pair: Pair) -> None:
    """P17: the node after the lie stops with `input`, nothing is owed for the step there."""
    client = signer(11)
    last, first = await pair.open(pair.second, client, price=ASK), await pair.open(pair.first, client, price=ASK)
    await last.route(previous=first)
    await first.route(to=(pair.second.host.peer_id, pair.second.host.addresses))
    outlets, put = pair.first.node.outlets, pair.first.node.outlets.put

    def doctored(to: Any, *messages: Any) -> bool:
        changed = [
            Tensor(m.head, bytes([m.data[0] ^ 1]) + bytes(m.data[1:])) if isinstance(m, Tensor) else m for m in messages
        ]
        return put(to, *changed)

    outlets.put = doctored  # type: ignore[method-assign]
    rows = torch.randn(2, 32)
    await last.send(last.request(2, start=0, source=Step(1), rows="last"))
    await first.send(first.request(2, start=0, push=True), rows)
    answer, _ = await last.answer()
    assert isinstance(answer, Refused)
    assert answer.code is Code.INPUT
    assert answer.owed == 0
    assert answer.evidence is not None, "the client can compare it with the receipt that it got itself"
    signed = answer.evidence.body
    assert (signed.node, signed.session_id, signed.step) == (signer(1001).address, first.session_id, 1)


async def test_a_node_that_closes_leaves_nothing_of_its_sessions_to_the_next_start(pair: Pair) -> None:
    """However slow the disk: a donated session that no voucher binds is gone from the books once its node has ended."""
    node, journal = pair.first.node, pair.first.journal
    write = journal._writer._write

    def slow(batch: Any) -> None:
        time.sleep(0.3)
        write(batch)

    session = await pair.open(pair.first, signer(1), price=0)
    request = session.request(3, start=0)
    rows = torch.randn(3, 32)
    await session.send(request, rows)
    await session.answer()
    journal._writer._write = slow  # type: ignore[method-assign]
    await node.close()
    await pair.first.host.close()
    await journal.close()
    with closing(sqlite3.connect(pair.first.url.removeprefix("sqlite:///"))) as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (0,)


async def test_a_node_that_goes_down_takes_its_record_back(pair: Pair) -> None:
    """At once: nobody plans a route over a node that is going down, for as long as its record would have lived."""

    async def found() -> list[int]:
        return sorted(one.record.first_block for one in await pair.client.find(MODEL, range(2)))

    async with asyncio.timeout(20):
        while await found() != [0, 1]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    node = pair.second.node
    await node.close()
    assert await found() == [0]
    assert node.record().leaving, "whatever is published from now on"


async def test_a_thaw_closes_the_session_with_that_reason(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(12), price=ASK)
    await session.step(torch.randn(2, 32), 0)
    pair.first.chain.accounts[signer(12).address] = View(Credits(0), thawing=True)
    async with asyncio.timeout(10):
        closed, _ = await session.answer()
    assert isinstance(closed, Closed)
    assert closed.code is Code.THAWING


async def test_sixteen_sessions_share_batches(pair: Pair) -> None:
    sessions = [await pair.open(pair.first, signer(100 + n), price=ASK) for n in range(16)]
    rows = torch.randn(16, 4, 32)

    async def talk(session: NodeSession, mine: torch.Tensor) -> torch.Tensor:
        return torch.cat([await session.step(mine[n : n + 1], n) for n in range(4)])

    outputs = await asyncio.gather(*(talk(s, r) for s, r in zip(sessions, rows, strict=True)))
    assert all(output.shape == (4, 32) for output in outputs)
    assert pair.first.node.engine.gauge.batches < 64
