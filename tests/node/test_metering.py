"""Receipts: node and client derive the same head, and a neighbour's lie does not pass."""

import os
import subprocess
import sys
import threading
import time

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivemint.node.engine.threads import LOOP_BURST, LOOP_SHARE, Worker
from hivemint.node.sessions.metering import ReceiptMeter, Source
from hivemint.protocol.errors import ProofError
from hivemint.protocol.ids import Credits, SessionId, Step
from hivemint.protocol.receipt import (
    Leaf,
    SignedReceipt,
    check_receipt,
    following,
    opening,
    sign_receipt,
    sign_voucher,
)
from hivemint.swarm.messages import StepRequest
from hivemint.swarm.rows import row_bytes, row_hashes, tensor_hash, to_wire
from support.promises import DOMAIN, signer

NODE, CLIENT = signer(81), signer(82)
SESSION = SessionId(b"\x21" * 32)


def ask(step: int, count: int, start: int = 0) -> StepRequest:
    first = sign_receipt(DOMAIN, opening(NODE.address, CLIENT.address, SESSION), NODE)
    return StepRequest(Step(step), 0, start, count, sign_voucher(DOMAIN, first, Credits(0), CLIENT).signed)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from(["fp32", "bf16", "fp16"]))
async def test_the_client_derives_every_head_from_rows_alone(counts: list[int], wire: str) -> None:
    meter = ReceiptMeter(DOMAIN, NODE, worker := Worker("test"))
    mine = theirs = opening(NODE.address, CLIENT.address, SESSION)
    for number, count in enumerate(counts, 1):
        rows, output = torch.randn(count, 8), torch.randn(count, 8)
        data = to_wire(rows, wire)
        hashed = tensor_hash(await meter.hash_rows(data, row_bytes(8, wire)))
        sent = await meter.encode(output, wire)
        measured = await meter.measure(mine.head, ask(number, count), hashed, sent)
        receipt = await meter.sign(following(mine, measured.leaf))
        mine = receipt.body
        given_rows = row_hashes(data, row_bytes(8, wire))
        leaf = Leaf(theirs.head, Step(number), 0, 0, count, tensor_hash(given_rows), tensor_hash(measured.rows))
        theirs = following(theirs, leaf)
        assert check_receipt(DOMAIN, receipt.signed, theirs).body == mine
        assert sent == to_wire(output, wire)
    assert mine.tokens == sum(counts)
    worker.stop()


async def test_a_neighbours_receipt_must_be_of_the_named_operator_session_and_step() -> None:
    worker = Worker("test")
    meter = ReceiptMeter(DOMAIN, NODE, worker)
    first = opening(NODE.address, CLIENT.address, SESSION)
    data = to_wire(torch.randn(2, 8), "fp32")
    measured = await meter.measure(first.head, ask(1, 2), tensor_hash(bytes(64)), data)
    signed = (await meter.sign(following(first, measured.leaf))).signed
    good = Source(NODE.address, SESSION, Step(1))
    given = tensor_hash(row_hashes(data, row_bytes(8, "fp32")))
    await meter.check_hop(good, given, measured.leaf, signed)
    other = msgspec.structs.replace(measured.leaf, output_hash=tensor_hash(b"\x01" * 32))
    wrong = [
        (Source(CLIENT.address, SESSION, Step(1)), given, measured.leaf, signed),
        (Source(NODE.address, SessionId(b"\x22" * 32), Step(1)), given, measured.leaf, signed),
        (Source(NODE.address, SESSION, Step(2)), given, measured.leaf, signed),
        (good, other.output_hash, measured.leaf, signed),
        (good, other.output_hash, other, signed),
        (
            good,
            given,
            measured.leaf,
            SignedReceipt(signed.body, sign_receipt(DOMAIN, signed.body, CLIENT).signature),
        ),
    ]
    for source, hashed, leaf, receipt in wrong:
        with pytest.raises(ProofError):
            await meter.check_hop(source, hashed, leaf, receipt)
    worker.stop()


async def test_the_worker_keeps_the_order_and_hands_errors_on() -> None:
    worker = Worker("test")
    done: list[int] = []
    import asyncio

    await asyncio.gather(*(worker.do(done.append, number) for number in range(50)))
    assert done == list(range(50))
    with pytest.raises(ZeroDivisionError):
        await worker.do(lambda: 1 / 0)
    assert await worker.do(int, "7") == 7
    worker.stop()


async def test_a_flood_goes_to_the_thread() -> None:
    """The loop does a burst itself, and after it no more than its share of the time."""
    worker, here, spent = Worker("test"), threading.get_ident(), []

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.001:
            pass
        if threading.get_ident() == here:
            spent.append(time.thread_time() - began)

    began = time.monotonic()
    for _ in range(60):
        await worker.do(work)
    assert 0 < sum(spent) <= LOOP_BURST + max(spent) + LOOP_SHARE * (time.monotonic() - began)
    worker.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no priorities of threads")
def test_other_threads_give_way_to_the_one_that_computes() -> None:
    """In a process of its own: a priority that was given up does not come back."""
    program = """
import os, threading
from concurrent.futures import ThreadPoolExecutor
from hivemint.node.engine.threads import GIVE_WAY, give_way
computing, other = ThreadPoolExecutor(1, "compute"), ThreadPoolExecutor(1, "journal")
mine = lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
before = mine()
computing.submit(mine).result(), other.submit(mine).result()
give_way(to="compute")
assert computing.submit(mine).result() == before
assert mine() == other.submit(mine).result() == GIVE_WAY
"""
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
