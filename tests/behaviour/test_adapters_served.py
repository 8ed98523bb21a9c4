"""Adapters at a real node: loaded before the first step, bound to every one, seen by nobody else, gone at the end."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from hivemint.client.sessions.peft import LoraAdapter
from hivemint.model.anatomy import Anatomy
from hivemint.node.kv.cache import Tally
from hivemint.node.kv.pages import PAGE
from hivemint.node.span.packing import Work
from hivemint.protocol.ids import Step
from hivemint.swarm.lora import digest
from hivemint.swarm.messages import Code, Load, Loaded, Refused, StepReceipt
from hivemint.swarm.rows import row_hashes, tensor_hash, to_wire
from support.lora import write_lora
from support.node_client import NodeSession, RefusedError, routed
from support.node_pair import ASK, Pair
from support.promises import signer

pytest_plugins = ["support.node_pair"]


@pytest.fixture(scope="module")
def blobs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two adapters' parts for block 0."""
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [write_lora(tiny_folder, folder / str(n), ["q_proj", "down_proj"], seed=n) for n in (1, 2)]
    return [LoraAdapter.load(one, Anatomy.read(tiny_folder)).blob(0, 1) for one in adapters]


async def load(session: NodeSession, blob: bytes) -> Any:
    await session.link.send(Load(blob))
    answer, _ = await session.answer()
    if isinstance(answer, Loaded):
        assert answer.digest == digest(blob)
        session.more = answer.digest
    return answer


def alone(pair: Pair, blob: bytes | None, hidden: torch.Tensor) -> torch.Tensor:
    span = pair.first.node.kit.span
    adapter = None if blob is None else span.new_adapters(1 << 20, 64).read(blob)
    return span.run([Work(span.new_store(1 << 20).open(64), 0, hidden, adapter)])[0]


async def test_two_wallets_with_adapters_and_one_without_share_batches(pair: Pair, blobs: list[bytes]) -> None:
    sessions = [await pair.open(pair.first, signer(n), price=ASK) for n in (1, 2, 3)]
    for session, blob in zip(sessions, blobs, strict=False):
        assert isinstance(await load(session, blob), Loaded)
    hidden = torch.randn(8, 32)

    async def talk(session: NodeSession) -> torch.Tensor:
        outputs = [await session.step(hidden[:3], 0)]
        return torch.cat(outputs + [await session.step(hidden[n : n + 1], n) for n in range(3, 8)])

    outputs = await asyncio.gather(*map(talk, sessions))
    for output, own in zip(outputs, [*blobs, None], strict=True):
        torch.testing.assert_close(output, alone(pair, own, hidden), rtol=1e-4, atol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert pair.first.journal.book(signer(1).address).owed == 8 * ASK, "an adapter costs no more"


async def test_the_digest_is_in_every_head(pair: Pair, blobs: list[bytes]) -> None:
    """A client that thinks of another adapter, or of none, finds the receipt wrong."""
    session = await pair.open(pair.first, signer(4))
    await load(session, blobs[0])
    rows = torch.randn(2, 32)
    request = session.request(2, start=0)
    await session.send(request, rows)
    answer, _ = await session.answer()
    hashes = row_hashes(to_wire(rows, "fp32"), 128)
    for other in (b"", digest(blobs[1])):
        with pytest.raises(Exception, match="not the expected one"):
            session.check(request, tensor_hash(hashes + other), answer)
    session.check(request, tensor_hash(hashes + digest(blobs[0])), answer)


async def test_a_pushed_step_is_bound_to_the_next_nodes_adapter_too(
    pair: Pair, tiny_folder: Path, tmp_path: Path
) -> None:
    lora = LoraAdapter.load(write_lora(tiny_folder, tmp_path / "a", ["v_proj"]), Anatomy.read(tiny_folder))
    last, first = await pair.open(pair.second, signer(5)), await pair.open(pair.first, signer(5))
    assert routed(await last.route(previous=first))
    assert routed(await first.route(to=(pair.second.host.peer_id, pair.second.host.addresses)))
    for session, block in ((first, 0), (last, 1)):
        assert isinstance(await load(session, lora.blob(block, block + 1)), Loaded)
    rows = torch.randn(3, 32)
    there, here = last.request(3, start=0, source=Step(1), rows="all"), first.request(3, start=0, push=True)
    await last.send(there)
    await first.send(here, rows)
    answer, _ = await first.answer()
    assert isinstance(answer, StepReceipt), answer
    first.check(here, tensor_hash(row_hashes(to_wire(rows, "fp32"), 128) + first.more), answer)
    final, _ = await last.answer()
    assert isinstance(final, StepReceipt), final
    last.check(there, tensor_hash(answer.rows + last.more), final)


async def test_backward_steps_use_the_adapter(pair: Pair, blobs: list[bytes]) -> None:
    session = await pair.open(pair.first, signer(6))
    await load(session, blobs[0])
    hidden, gradient = torch.randn(2, 5, 32)
    span = pair.first.node.kit.span
    adapter = span.new_adapters(1 << 20, 64).read(blobs[0])
    ours = await session.backward(hidden, gradient)
    torch.testing.assert_close(ours, span.backward(hidden[None], gradient[None], adapter=adapter)[0])
    assert not torch.allclose(ours, span.backward(hidden[None], gradient[None])[0], atol=1e-4)


async def test_a_session_begins_with_anothers_keys_only_under_the_same_adapter(pair: Pair, blobs: list[bytes]) -> None:
    """Keys and values depend on it: a child of another adapter, or of none, finds nothing to begin with."""
    rows = torch.randn(5, 32)
    parent = await pair.open(pair.first, signer(13))
    await load(parent, blobs[0])
    whole = await parent.step(rows, 0)
    for blob in (None, blobs[1]):
        child = await pair.open(pair.first, signer(13))
        if blob is not None:
            await load(child, blob)
        with pytest.raises(RefusedError) as caught:
            await child.fork(parent, 4)
        assert caught.value.refused.code is Code.GAP
    child = await pair.open(pair.first, signer(13))
    await load(child, blobs[0])
    await child.fork(parent, 4)
    torch.testing.assert_close(await child.step(rows[4:], 4), whole[4:], rtol=1e-4, atol=1e-5)


async def test_the_same_request_again_gives_the_stored_answer(pair: Pair, blobs: list[bytes]) -> None:
    session = await pair.open(pair.first, signer(7))
    await load(session, blobs[0])
    rows = torch.randn(2, 32)
    request = session.request(2, start=0, rows="all")
    await session.send(request, rows)
    once, _ = await session.answer()
    await session.send(request, rows)
    again, _ = await session.answer()
    assert isinstance(once, StepReceipt)
    assert once == again


async def test_an_adapter_comes_before_the_first_step_and_once(pair: Pair, blobs: list[bytes]) -> None:
    session = await pair.open(pair.first, signer(8))
    assert isinstance(await load(session, blobs[0]), Loaded)
    again = await load(session, blobs[0])
    assert isinstance(again, Refused)
    assert again.code is Code.PROTOCOL
    late = await pair.open(pair.first, signer(8))
    await late.step(torch.randn(2, 32), 0)
    answer = await load(late, blobs[0])
    assert isinstance(answer, Refused)
    assert answer.code is Code.PROTOCOL
    await late.step(torch.randn(1, 32), 2)  # and the session goes on as it was


@pytest.mark.parametrize(
    ("blob", "code"),
    [
        (b"\x80\x04\x95" + bytes(200), Code.PROTOCOL),  # a pickle's beginning
        (b"", Code.PROTOCOL),
        (save({"0.self_attn.q_proj.A": torch.ones(65, 32), "0.self_attn.q_proj.B": torch.ones(32, 65)}), Code.LIMIT),
        (save({"0.self_attn.q_proj.A": torch.ones(2, 31), "0.self_attn.q_proj.B": torch.ones(32, 2)}), Code.LIMIT),
        (save({"1.self_attn.q_proj.A": torch.ones(2, 32), "1.self_attn.q_proj.B": torch.ones(32, 2)}), Code.LIMIT),
        (bytes((1 << 25) + 1), Code.LIMIT),
    ],
    ids=["pickle", "empty", "rank", "shape", "block", "size"],
)
async def test_what_cannot_be_loaded_leaves_the_session_without(pair: Pair, blob: bytes, code: Code) -> None:
    session, store = await pair.open(pair.first, signer(9)), pair.first.node.engine.room.store
    free = store.tokens_free
    answer = await load(session, blob)
    assert isinstance(answer, Refused)
    assert (answer.code, answer.step) == (code, 0)
    assert store.tokens_free == free
    hidden = torch.randn(3, 32)
    assert torch.allclose(await session.step(hidden, 0), alone(pair, None, hidden), atol=1e-6)


async def test_room_is_taken_and_given_back_with_the_session(pair: Pair, blobs: list[bytes]) -> None:
    room = pair.first.node.engine.room
    free = room.store.tokens_free
    session = await pair.open(pair.first, signer(10))
    await load(session, blobs[0])
    assert room.store.tokens_free < free
    (seat,) = room.seats
    assert seat.pages
    await session.link.close("gone")
    async with asyncio.timeout(10):
        while room.seats:  # noqa: ASYNC110 - the node tells nobody
            await asyncio.sleep(0.01)
    assert room.store.tokens_free == free
    assert seat.loan is None


async def test_without_room_the_answer_is_busy(pair: Pair, blobs: list[bytes]) -> None:
    room = pair.first.node.engine.room
    session = await pair.open(pair.first, signer(11))
    pages, tally = room.store.tokens_free // PAGE, Tally()
    table = room.store.lend(pages, tally)
    answer = await load(session, blobs[0])
    assert isinstance(answer, Refused)
    assert (answer.code, answer.retry_after) == (Code.BUSY, 1.0)
    room.store.take_back(pages, table, tally)
    assert isinstance(await load(session, blobs[0]), Loaded)


async def test_a_session_that_lost_its_adapter_computes_nothing_without_it(pair: Pair, blobs: list[bytes]) -> None:
    session = await pair.open(pair.first, signer(12), price=ASK)
    await load(session, blobs[0])
    hidden = torch.randn(3, 32)
    await session.step(hidden, 0)
    room, owed = pair.first.node.engine.room, pair.first.journal.book(signer(12).address).owed
    room._idle = 0.0
    assert room._evict_one(room.seats[0].lane, room._clock())
    with pytest.raises(RefusedError) as caught:
        await session.step(hidden, 0)
    assert (caught.value.refused.code, caught.value.refused.owed) == (Code.GAP, owed)
    assert "adapter" in caught.value.refused.why
