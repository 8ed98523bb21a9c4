"""NaN and infinity on a route: a real node computes with none that comes, and sends, signs and charges none."""

import asyncio
from collections.abc import Sequence

import pytest
import torch

from hivemint.node.engine.scheduler import Lane
from hivemint.node.engine.threads import Worker
from hivemint.node.sessions.metering import ReceiptMeter
from hivemint.node.span.packing import Work
from hivemint.protocol.errors import ProtocolError
from hivemint.swarm.messages import Code, Refused
from hivemint.swarm.rows import check_finite, from_wire, to_wire
from support.node_client import RefusedError
from support.one_node import ASK, Served
from support.promises import DOMAIN, signer

pytest_plugins = ["support.one_node"]
NAN, INF = float("nan"), float("inf")
MARK = 0.123456
"""The first number of a step whose output goes wrong."""


def with_one(number: float, rows: int = 3) -> torch.Tensor:
    hidden = torch.randn(rows, 32)
    hidden[rows - 1, 31] = number
    return hidden


@pytest.mark.parametrize("number", [NAN, INF, -INF])
async def test_an_input_that_is_not_finite_is_refused_before_any_compute(served: Served, number: float) -> None:
    session = await served.open(signer(20), price=ASK)
    batches = served.node.engine.gauge.batches
    with pytest.raises(RefusedError, match="NaN or infinity") as caught:
        await session.step(with_one(number), 0)
    assert (caught.value.refused.code, caught.value.refused.owed) == (Code.INPUT, 0)
    assert served.node.engine.gauge.batches == batches
    session.total = 0
    await session.step(torch.randn(3, 32), 0)


async def test_a_gradient_that_is_not_finite_is_refused_too(served: Served) -> None:
    session = await served.open(signer(21))
    with pytest.raises(RefusedError, match="NaN or infinity"):
        await session.backward(torch.randn(3, 32), with_one(NAN))


@pytest.mark.parametrize("number", [NAN, INF])
async def test_an_output_that_is_not_finite_is_nobodys_but_its_own_sessions_loss(served: Served, number: float) -> None:
    """Of two sessions in one batch: the one fails in words, unsigned and unpaid; the other gets what it always gets."""
    run, sizes = served.span.run, []

    def spoilt(batch: Sequence[Work]) -> list[torch.Tensor]:
        sizes.append(len(batch))
        marked = [bool(torch.isclose(work.hidden[0, 0], torch.tensor(MARK))) for work in batch]
        return [output * number if bad else output for bad, output in zip(marked, run(batch), strict=True)]

    served.span.run = spoilt  # type: ignore[method-assign]
    one, other, third = [await served.open(signer(number), price=ASK) for number in (22, 23, 24)]
    bad, good = torch.randn(2, 32), torch.randn(2, 32)
    bad[0, 0] = MARK
    served.span.shut()
    await third.send(third.request(1, start=0), torch.randn(1, 32))
    await served.until(served.span.held.is_set)
    request = one.request(2, start=0, rows="all")
    await one.send(request, bad)
    taking = asyncio.create_task(other.step(good, 0))
    await served.until(lambda: served.node.engine.scheduler.waiting(Lane.PAID) == 4)
    served.span.open()
    refused, tensor = await one.answer()
    assert isinstance(refused, Refused)
    assert tensor is None
    assert (refused.code, refused.step, refused.owed) == (Code.FAILED, 1, 0)
    assert "not finite" in refused.what
    output = await taking
    assert max(sizes) == 2, "they were computed together"
    one.total, bad[0, 0] = 0, 1.0
    await one.step(good, 0)  # the same number: no receipt was signed for it
    span = served.node.kit.span
    expected = span._span.run([Work(span.new_store(1 << 20).open(64), 0, good)])[0]  # type: ignore[attr-defined]
    assert torch.allclose(output, expected, atol=1e-5)
    assert served.journal.book(signer(22).address).owed == 2 * ASK


@pytest.mark.parametrize(
    ("wire", "number"),
    [(wire, number) for wire in ("fp32", "bf16", "fp16") for number in (NAN, INF, -INF)]
    + [("fp16", 65_536.0), ("bf16", 3.4e38)],
)
@pytest.mark.parametrize("rows", [1, 200])
async def test_no_wire_form_carries_what_is_not_finite(wire: str, number: float, rows: int) -> None:
    """As it would travel: a number may be finite where it was computed, and not where it is read."""
    meter = ReceiptMeter(DOMAIN, signer(1), worker := Worker("test"))
    try:
        await meter.encode(with_one(1.0, rows), wire)
        with pytest.raises(ProtocolError, match="NaN or infinity"):
            await meter.encode(with_one(number, rows), wire)
    finally:
        worker.stop()


def test_what_does_not_fit_the_computation_is_not_computed() -> None:
    rows = from_wire(to_wire(with_one(1e5), "fp32"), 3, 32, "fp32", torch.float16)
    with pytest.raises(ProtocolError, match="NaN or infinity"):
        check_finite(rows)
