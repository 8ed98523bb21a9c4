"""Sessions of one wallet at one node, at the same moment: what one of them signs or takes counts for the others."""

import asyncio
from typing import Any

import pytest
import torch

from hivemint.node.sessions.metering import ReceiptMeter
from hivemint.protocol.ids import Credits
from hivemint.protocol.receipt import sign_voucher
from hivemint.swarm.messages import Close, Closed, Code, Refused, StepReceipt
from support.one_node import ASK, Served
from support.promises import DOMAIN, signer

pytest_plugins = ["support.one_node"]
WALLET = signer(60)


async def test_a_last_voucher_of_any_total_is_not_kept(served: Served) -> None:
    """Else a session that ends would cover all that the others ever ask for, by a voucher that is never claimed."""
    ending, going = await served.open(WALLET, price=ASK), await served.open(WALLET, price=ASK)
    await ending.step(torch.randn(1, 32), 0)
    last = sign_voucher(DOMAIN, ending.receipt, Credits(10**9), WALLET).signed
    await ending.link.send(Close(last))
    async with asyncio.timeout(20):
        message, _ = await ending.answer()
        assert isinstance(message, Closed)
        await going.send(going.request(1, start=0, total=ASK), torch.randn(1, 32))
        refused, _ = await going.answer()
    assert isinstance(refused, Refused), refused
    assert (refused.code, refused.owed) == (Code.VOUCHER, ASK)


async def test_two_requests_at_once_are_not_both_covered_by_one_voucher(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature of one is still looked at while the other one's step is taken."""
    slow, quick = await served.open(WALLET, price=ASK), await served.open(WALLET, price=ASK)
    reached, go_on = asyncio.Event(), asyncio.Event()
    check: Any = ReceiptMeter.check_voucher

    async def held(meter: ReceiptMeter, voucher: Any, receipt: Any, key: Any) -> Any:
        if receipt == slow.receipt.digest:
            reached.set()
            await go_on.wait()
        return await check(meter, voucher, receipt, key)

    monkeypatch.setattr(ReceiptMeter, "check_voucher", held)
    async with asyncio.timeout(20):
        await slow.send(slow.request(1, start=0, total=ASK), torch.randn(1, 32))
        await reached.wait()
        await quick.send(quick.request(1, start=0, total=ASK), torch.randn(1, 32))
        done, _ = await quick.answer()
        assert isinstance(done, StepReceipt)
        go_on.set()
        refused, _ = await slow.answer()
    assert isinstance(refused, Refused), refused
    assert (refused.code, refused.owed) == (Code.VOUCHER, ASK)
