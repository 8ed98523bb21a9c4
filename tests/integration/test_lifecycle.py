"""How a node's process ends: drained by the first signal, at once by the second, by itself when its device hangs."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hivemint.client.sessions.errors import NodeGone, NodeRefusal
from hivemint.contracts.bindings import Bindings
from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.signing import Signer
from hivemint.swarm.daemon import split_address
from hivemint.swarm.host import CONTROL, Host, HostSettings
from hivemint.swarm.messages import Closed, Code, Refused, StepReceipt
from hivemint.testnet.localnet import NodePlan
from support.localnet import At, RealNet, exactly, prompt
from support.node_client import NodeSession, hash_of, routed
from support.promises import signer

pytest_plugins = ["support.localnet"]

WIDTH = 576
"""Of the demo model."""


@pytest.fixture
def node(localnet: RealNet) -> NodePlan:
    return localnet.first


def ended(process: psutil.Process) -> int:
    """The exit code of a process that was started here."""
    return int(process.wait(timeout=60))


def log_of(net: RealNet, plan: NodePlan) -> list[str]:
    return Path(net.net.child(plan.operator).log).read_text().splitlines()


@asynccontextmanager
async def donated_sessions(net: RealNet, plan: NodePlan, *clients: Signer) -> AsyncIterator[list[NodeSession]]:
    """A session of each client at one node, by hand."""
    network, addresses = net.net.network, tuple(net.net.child(plan.operator).ready["addresses"])
    host = await Host.start(HostSettings(network.name, listen=(), bootstrap=network.bootstrap))
    try:
        links = [await host.dial(split_address(addresses[0])[0], addresses, CONTROL) for _ in clients]
        async with await Bindings.connect(network) as contracts:
            expiry = await contracts.chain.time() + 3600  # other tests let days pass on the chain
        yield [
            await NodeSession.open(link, network.domain, who, expiry=expiry)
            for link, who in zip(links, clients, strict=True)
        ]
    finally:
        await host.close()


async def begin(session: NodeSession) -> Any:
    """A step of three tokens that the node has taken, and whose input is still to come."""
    request = session.request(3, start=0, rows="all")
    await session.send(request)
    assert routed(await session.route())  # answered in order, so the step was taken before
    return request


async def closed(session: NodeSession) -> Closed:
    message = await session.link.receive()
    assert isinstance(message, Closed), message
    return message


async def test_the_first_signal_drains(localnet: RealNet, node: NodePlan) -> None:
    """Nobody is taken in, who has nothing under way is told at once, what was begun is finished and signed."""
    process = psutil.Process(localnet.net.child(node.operator).pid)
    async with donated_sessions(localnet, node, signer(1), signer(2)) as (idle, busy):
        request = await begin(busy)
        process.send_signal(signal.SIGTERM)
        assert (await closed(idle)).code is Code.DRAINING
        assert process.is_running()
        rows = torch.randn(3, WIDTH)
        await busy.send(request, rows)
        answer, tensor = await busy.answer()
        assert isinstance(answer, StepReceipt)
        assert len(tensor.data) == 3 * WIDTH * 4
        assert busy.check(request, hash_of(rows), answer).tokens == 3
        assert (await closed(busy)).code is Code.DRAINING
        assert await asyncio.to_thread(ended, process) == 0
    assert json.loads(log_of(localnet, node)[-1]) == {"event": "draining"}
    assert await asyncio.to_thread(localnet.sessions, node, signer(2)) == [], "no voucher binds work of it"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
async def test_the_second_signal_does_not_wait(localnet: RealNet, node: NodePlan, second: signal.Signals) -> None:
    process = psutil.Process(localnet.net.child(node.operator).pid)
    async with donated_sessions(localnet, node, signer(3), signer(4)) as (idle, busy):
        await begin(busy)  # and its input never comes
        process.send_signal(signal.SIGINT)
        assert (await closed(idle)).code is Code.DRAINING
        process.send_signal(second)
        with pytest.raises(LinkClosed) as gone:
            await busy.link.receive()
        assert "shutting down" in gone.value.why
        assert await asyncio.to_thread(ended, process) == 128 + second


def test_a_client_in_mid_answer_learns_that_its_node_goes_down(localnet: RealNet, node: NodePlan) -> None:
    process = psutil.Process(localnet.net.child(node.operator).pid)
    with localnet.client(step_timeout=600) as model:
        with pytest.raises((NodeGone, NodeRefusal), match=localnet.operator(node).address) as told:
            model.generate(prompt(8), **exactly(200), streamer=At(4, process.terminate))
        assert "the node is going down" in str(told.value)
        assert ended(process) == 0
        localnet.start(node)
        model.swarm.nodes.forget()
        assert model.generate(prompt(8), **exactly(4)).shape == (1, 12)


HANG = """
import threading
from hivemint.node.span.span import Span

run = Span.run

def hangs(self, batch):
    if any(work.count == 13 for work in batch):
        threading.Event().wait()
    return run(self, batch)

Span.run = hangs
"""
"""A module that Python imports at its start: a step of 13 tokens never comes back from the device."""


async def test_a_hung_device_ends_the_process(localnet: RealNet, node: NodePlan, tmp_path: Path) -> None:
    """Its compute thread can't be joined; the process says why and what next, and goes, and its journal is whole."""
    (tmp_path / "sitecustomize.py").write_text(HANG)
    await asyncio.to_thread(
        localnet.restart, node, PYTHONPATH=str(tmp_path), HIVEMINT_HUNG_LEAST="1", HIVEMINT_HUNG_TIMES="2"
    )
    process = psutil.Process(localnet.net.child(node.operator).pid)
    below = process.children(recursive=True)
    async with donated_sessions(localnet, node, signer(5), signer(6)) as (idle, busy):
        await busy.step(torch.randn(4, WIDTH), 0)
        await busy.send(busy.request(13, start=4), torch.randn(13, WIDTH))
        answer, _ = await busy.answer()
        assert isinstance(answer, Refused)
        assert (answer.code, answer.what) == (Code.FAILED, "The device hangs")
        for session in (idle, busy):
            last = await closed(session)
            assert last.code is Code.FAILED
            assert last.reason == "The device hangs"
        assert await asyncio.to_thread(ended, process) == 1
    _, orphans = psutil.wait_procs(below, timeout=10)
    assert not orphans  # its libp2p daemon went with it
    *_, error, why, next_step = log_of(localnet, node)
    assert error == "error The device hangs"
    assert "batch of 13 tokens" in why
    assert "start the node again" in next_step
    (signed,) = await asyncio.to_thread(localnet.sessions, node, signer(5 + 1))
    assert signed["signed_tokens"] == 4
