"""Backward steps: what they need of memory, and their life at a real node, from the request to the receipt."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hivemint.node import server
from hivemint.node.span import backward
from hivemint.node.span.backward import Need, NoMemory, fit, measure
from hivemint.node.span.packing import Work
from hivemint.node.span.span import Span
from hivemint.protocol.ids import BACKWARD, BlockIndex, Credits, Step
from hivemint.swarm.messages import Cancel, Cancelled, Code, Refused, StepReceipt
from support.node_client import NodeSession, RefusedError, hash_of
from support.node_pair import ASK, Pair
from support.promises import signer
from support.tiny import tiny_model

pytest_plugins = ["support.node_pair"]

CPU = torch.device("cpu")


@given(st.integers(0, 2**30), st.integers(0, 2**20), st.integers(0, 2**12))
def test_the_terms_are_found_again(fixed: int, row: int, square: int) -> None:
    need = Need(fixed, row, square)
    found = fit([16, 32, 64], [float(need.bytes_for(n)) for n in (16, 32, 64)])
    for rows in (1, 64, 300):
        assert found.bytes_for(rows) == pytest.approx(need.bytes_for(rows), rel=1e-6, abs=2)


@given(st.integers(0, 10**9), st.floats(0, 10**6), st.floats(0, 10**4), st.integers(0, 4096))
def test_the_longest_pass_fits_and_one_row_more_does_not(room: int, row: float, pair: float, limit: int) -> None:
    need = Need(1000, row, pair)
    rows = need.most_rows(room, limit)
    assert rows == 0 or need.bytes_for(rows) <= room
    assert rows == limit or need.bytes_for(rows + 1) > room


def test_a_spans_need_is_what_it_takes(tmp_path: Path) -> None:
    """Measured on short passes, it foretells a longer one: hardly less than it takes, and not twice as much.

    In a model as small as this the copies of weights count as much as short passes, which bends the line upwards.
    """
    span = Span.load(tiny_model(tmp_path / "m", max_position_embeddings=512), BlockIndex(0), BlockIndex(2))
    need = measure(span)
    pass_ = torch.randn(2, 1, 256, 32)
    took = backward._peak(lambda: span.backward(*pass_), CPU)
    assert took / 1.05 <= need.bytes_for(256) <= 2 * took
    assert took > 256 * 32 * 4 * 20, "what the blocks keep is counted, not the output alone"


def test_a_pass_that_does_not_fit_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "free_share", lambda device: 1 << 20)
    Need(row=1024).check(1024, CPU)
    with pytest.raises(NoMemory, match=r"1025 rows take 1 MB"):
        Need(row=1024).check(1025, CPU)


async def test_a_backward_step_gives_the_gradient_of_the_span(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(1), price=ASK)
    hidden, gradient = torch.randn(2, 9, 32)
    before = await session.step(hidden, 0)
    ours = await session.backward(hidden, gradient)
    span = pair.first.node.kit.span
    assert torch.equal(ours, span.backward(hidden[None], gradient[None])[0])
    assert session.receipt.tokens == 9 + 2 * 9
    assert pair.first.journal.book(signer(1).address).owed == 27 * ASK
    after = await session.step(torch.randn(1, 32), 9)  # the session's keys and values are as they were
    cache = span.new_store(1 << 20).open(64)
    assert torch.allclose(before, span.run([Work(cache, 0, hidden)])[0], atol=1e-6)
    assert after.shape == (1, 32)


async def test_backward_steps_that_break_the_rules_are_refused_before_any_compute(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(2), price=ASK)
    rows = torch.randn(4, 64)
    await session.step(rows[:, :32], 0)
    batches, total = pair.first.node.engine.gauge.batches, session.total
    limit = pair.first.node.offer.limits.backward_rows
    assert limit == 64, "the model's positions"

    def back(count: int = 4, start: int = 0, **changes: Any) -> Any:
        return session.request(count, start=start, kind=BACKWARD, **{"total": 10**6, **changes})

    wrong = {
        Code.VOUCHER: [back(total=total), back(total=total + 4 * ASK), back(total=total + 8 * ASK - 1)],  # one count
        Code.PROTOCOL: [back(start=4), back(source=Step(1)), back(push=True)],
        Code.LIMIT: [back(count=limit + 1)],
        Code.STEP: [back(step=3)],
        Code.INPUT: [back(source=Step(1))],
    }
    for code, requests in wrong.items():
        for request in requests:
            await session.send(request, rows)
            answer, _ = await session.answer()
            assert isinstance(answer, Refused)
            if code is not Code.PROTOCOL:
                assert answer.code is code, answer
            assert answer.owed == total
    assert pair.first.node.engine.gauge.batches == batches
    session.total = total
    await session.backward(rows[:, :32], rows[:, 32:])  # and the session goes on


@pytest.mark.parametrize("width", [32, 63, 65, 128])
async def test_rows_of_another_width_are_refused_and_cost_nothing(pair: Pair, width: int) -> None:
    session = await pair.open(pair.first, signer(3), price=ASK)
    with pytest.raises(RefusedError) as caught:
        await session.take(session.request(4, start=0, kind=BACKWARD, rows="all"), torch.randn(4, width))
    assert caught.value.refused.code is Code.INPUT
    assert caught.value.refused.owed == 0
    session.total = 0
    assert (await session.backward(*torch.randn(2, 4, 32))).shape == (4, 32)


async def test_out_of_memory_is_a_refusal(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await pair.open(pair.first, signer(4), price=ASK)
    hidden, gradient = torch.randn(2, 4, 32)
    with monkeypatch.context() as context:
        context.setattr(backward, "free_share", lambda device: 1000)
        with pytest.raises(RefusedError, match="busy: No memory") as caught:
            await session.backward(hidden, gradient)
    assert caught.value.refused.owed == 0
    session.total = 0

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as context:
        context.setattr(pair.first.node.kit.span, "backward_in_turns", full)
        with pytest.raises(RefusedError, match="busy: No memory"):
            await session.backward(hidden, gradient)
    session.total = 0
    await session.backward(hidden, gradient)


def test_a_span_that_has_no_gradient_is_served_without(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> torch.Tensor:
        raise RuntimeError("derivative is not implemented")

    span = Span.load(tiny_folder, BlockIndex(0), BlockIndex(1))
    monkeypatch.setattr(span, "backward", none)
    assert server._need(span) is None


async def test_a_node_without_backward_says_so(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(5))
    served = pair.first.node.registry.occupants[0].session
    assert served is not None
    served.limits = msgspec.structs.replace(served.limits, backward_rows=0)
    with pytest.raises(RefusedError, match="serves no backward passes") as caught:
        await session.backward(*torch.randn(2, 4, 32))
    assert caught.value.refused.code is Code.PROTOCOL


async def test_numbers_that_are_none_are_refused_and_touch_nobody_else(pair: Pair) -> None:
    """NaN is neither computed with nor owed, and no other session sees any of it."""
    sick, well = await pair.open(pair.first, signer(6), price=ASK), await pair.open(pair.first, signer(7), price=ASK)
    hidden, gradient = torch.randn(2, 4, 32)
    alone = await well.backward(hidden, gradient)
    refused, same = await asyncio.gather(
        sick.backward(hidden * torch.nan, gradient), well.backward(hidden, gradient), return_exceptions=True
    )
    assert isinstance(refused, RefusedError)
    assert (refused.refused.code, refused.refused.owed) == (Code.INPUT, 0)
    assert isinstance(same, torch.Tensor)
    assert torch.equal(same, alone)
    assert torch.equal(await well.step(hidden, 0), await well.step(hidden, 0))


async def test_the_same_backward_request_again_gives_the_stored_answer(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(8))
    rows = torch.randn(3, 64)
    request = session.request(3, start=0, kind=BACKWARD, rows="all")
    await session.send(request, rows)
    once, tensor = await session.answer()
    await session.send(request, rows)
    again, same = await session.answer()
    assert isinstance(once, StepReceipt)
    assert once == again
    assert bytes(tensor.data) == bytes(same.data)
    await session.send(request, rows + 1)
    other, _ = await session.answer()
    assert isinstance(other, Refused)
    assert other.code is Code.CONFLICT
    session.check(request, hash_of(rows), once)


async def test_backward_and_forward_steps_in_flight_together_come_in_order(pair: Pair) -> None:
    """`ahead` 2: the forward behind a long backward step waits for it, and both receipts chain."""
    session = await pair.open(pair.first, signer(9), price=ASK)
    opening = session.receipt
    rows = torch.randn(12, 64)
    back = session.request(12, start=0, kind=BACKWARD, rows="all")
    then = session.request(5, start=0, step=2, bound=opening, rows="all")
    await session.send(back, rows)
    await session.send(then, rows[:5, :32])
    for request, sent in ((back, rows), (then, rows[:5, :32])):
        answer, tensor = await session.answer()
        assert isinstance(answer, StepReceipt), answer
        assert tensor is not None
        session.check(request, hash_of(sent), answer)
    assert session.receipt.tokens == 24 + 5


async def test_cancel_takes_back_a_backward_step_that_has_no_input(pair: Pair) -> None:
    session = await pair.open(pair.first, signer(10), price=ASK)
    hidden = torch.randn(4, 32)
    await session.step(hidden, 0)
    await session.send(session.request(4, start=0, kind=BACKWARD))
    await session.link.send(Cancel(Step(2)))
    answer, _ = await session.answer()
    assert isinstance(answer, Cancelled)
    assert (answer.last, answer.owed) == (1, 4 * ASK)
    session.total = 4 * ASK
    await session.step(torch.randn(1, 32), 4)  # the cache's length is what it was


async def test_many_passes_and_steps_share_the_device(pair: Pair) -> None:
    """Eight sessions that train and eight that decode, paid and free: everybody ends, nobody's numbers mix."""
    span = pair.first.node.kit.span
    sessions = [await pair.open(pair.first, signer(100 + n), price=ASK * (n % 2)) for n in range(16)]

    async def train(session: NodeSession) -> None:
        for _ in range(3):
            hidden, gradient = torch.randn(2, 10, 32)
            ours = await session.backward(hidden, gradient)
            assert torch.allclose(ours, span.backward(hidden[None], gradient[None])[0], atol=1e-5)

    async def decode(session: NodeSession) -> None:
        rows, cache = torch.randn(6, 32), span.new_store(1 << 20).open(64)
        outputs = [await session.step(rows[n : n + 1], n) for n in range(6)]
        expected.append((torch.cat(outputs), cache, rows))

    expected: list[Any] = []
    await asyncio.gather(*(train(one) for one in sessions[:8]), *(decode(one) for one in sessions[8:]))
    for got, cache, rows in expected:
        assert torch.allclose(got, span.run([Work(cache, 0, rows)])[0], atol=1e-5)


async def test_a_session_signs_for_both_counts(pair: Pair) -> None:
    """maxAmount counts a backward pass twice as well."""
    session = await pair.open(pair.first, signer(11), price=ASK, max_tokens=4, max_amount=Credits(7 * ASK))
    with pytest.raises(RefusedError, match="maxAmount"):
        await session.backward(*torch.randn(2, 4, 32))
    session.total = 0
    await session.backward(*torch.randn(2, 3, 32))
