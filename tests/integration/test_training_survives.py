"""Training through real nodes of which one dies, hangs or lies in mid-pass: it alone is replaced, the gradient is the
whole model's, and every other node has computed each position once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch

from hivemint.client.pipeline import Trail
from hivemint.client.sessions.errors import NodeLied
from hivemint.client.sessions.pipelines.relay import Relay
from hivemint.node.server import Node
from hivemint.protocol.errors import ProofError, SwarmError
from hivemint.protocol.ids import PeerId
from hivemint.swarm.messages import AnyMessage, StepReceipt, Tensor
from support.lies import changed_output, changed_rows, changed_signature
from support.real_nodes import DoctoredHost, RealNodes, real_nodes
from support.tiny import tiny_model

COUNT = 7
SPANS = ((0, 1), (1, 3), (3, 4), (0, 1), (1, 2), (2, 3), (3, 4))
"""The first three make the route; of those behind them two take the place of the second together."""

Break = Callable[["Lane"], None]


class Lane:
    """A relay over the first three nodes, and what goes wrong with one of them."""

    def __init__(self, net: RealNodes, relay: Relay) -> None:
        self.net, self.relay = net, relay
        self.victim: Node
        self.x = torch.randn(COUNT, 32)

    def doctor(self, change: Callable[[AnyMessage], AnyMessage]) -> None:
        peer = self.victim.offer.peer
        self.net.host.doctor = lambda sender, message: change(message) if sender == peer else message

    def after(self, receipts: int, fault: Break) -> None:
        """The fault comes with so many receipts of all nodes together."""
        seen = 0

        def watch(sender: PeerId, message: AnyMessage) -> AnyMessage:
            nonlocal seen
            seen += isinstance(message, StepReceipt)
            if seen == receipts:
                seen += 1
                fault(self)
            return message

        self.net.host.doctor = watch

    async def gradient(self) -> torch.Tensor:
        """Of the sum of squares of what the blocks give, mended wherever it breaks."""
        trail = Trail({0: self.x})
        out = await self.finished(self.relay.forward, trail)
        return await self.finished(self.relay.backward, Trail(trail.states, {trail.end: 2 * out}))

    async def finished(self, run: Any, trail: Trail) -> torch.Tensor:
        while True:
            try:
                found: torch.Tensor = await run(trail)
            except (SwarmError, ProofError) as error:
                if self.victim.kit.signer.address not in str(error) or not await self.relay.mend():
                    raise
            else:
                return found

    def expected(self) -> torch.Tensor:
        x = self.x.clone().requires_grad_(True)
        hidden: list[torch.Tensor] = []
        hook = self.net.whole.model.layers[-1].register_forward_hook(lambda _, __, out: hidden.append(out))
        self.net.whole(inputs_embeds=x[None])
        hook.remove()
        out = hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]
        return torch.autograd.grad((out**2).sum(), x)[0]

    def computed(self, number: int) -> int:
        """Positions that a node was paid for, a backward step's twice."""
        return self.net.nodes[number].kit.journal.totals.paid.tokens_countersigned


def dies(lane: Lane) -> None:
    lane.victim.kit.host._daemon.child.kill()


def hangs(lane: Lane) -> None:
    psutil.Process(lane.victim.kit.host._daemon.child.pid).suspend()


def cut_short(message: AnyMessage) -> AnyMessage:
    return Tensor(message.head, message.data[:-4]) if isinstance(message, Tensor) else message


LIES = {
    "shape": cut_short,
    "output": changed_output,
    "rows": changed_rows,
    "signature": changed_signature,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "tiny"
    return tiny_model(made, num_hidden_layers=4, initializer_range=0.3)


@pytest_asyncio.fixture
async def lane(folder: Path, tmp_path: Path) -> AsyncIterator[Lane]:
    async with real_nodes(folder, tmp_path, spans=SPANS, wrap=DoctoredHost) as net:
        for node in net.nodes:  # they have delivered to this client before: there is no small first step to pay for
            net.client.speeds.delivered(node.kit.host.peer_id)
        lane = Lane(net, await opened(net))
        yield lane
        await lane.relay.close()
        for node in net.nodes:
            child = node.kit.host._daemon.child
            if child.returncode is None:
                psutil.Process(child.pid).resume()


async def opened(net: RealNodes) -> Relay:
    """A lane over the first three nodes; then all others may be asked too."""
    known = net.client.nodes
    known._aside._marks.clear()
    known.set_aside([node.offer.peer for node in net.nodes[3:]], 3600)
    relay = await net.client.relay(COUNT, 3 * COUNT * 4)
    assert [one.leg.peer for one in relay.sessions] == [node.offer.peer for node in net.nodes[:3]]
    known._aside._marks.clear()
    return relay


async def check_replaced(lane: Lane, receipts: int, hop: int, fault: Break) -> None:
    """One hop fails after so many receipts: forward, between the passes, or on the way back."""
    before = [lane.computed(number) for number in range(len(SPANS))]
    lane.victim = lane.net.nodes[hop]
    lane.after(receipts, fault)
    async with asyncio.timeout(120):
        found = await lane.gradient()
    expected = lane.expected()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    await lane.relay.close()
    lane.net.host.doctor = lambda sender, message: message
    computed = [lane.computed(number) - was for number, was in enumerate(before)]
    kept = [number for number in range(3) if number != hop]
    assert [computed[number] for number in kept] == [3 * COUNT] * 2, "each position once, forward and backward"
    back, forward = 2 * COUNT, COUNT if receipts < 3 else 0
    cuts = [one.leg.first for one in lane.relay.sessions]
    if hop == 1:  # two smaller nodes: the state between them is computed for the way back
        assert [computed[4], computed[5]] == [COUNT + back, forward + back]
        assert cuts == [0, 1, 2, 3]
    else:
        assert computed[3 if hop == 0 else 6] == forward + back
        assert cuts == [0, 1, 3]


@pytest.mark.parametrize(("receipts", "hop"), [(1, 1), (4, 1), (5, 0)])
async def test_a_node_that_dies_in_mid_pass_is_replaced_alone(lane: Lane, receipts: int, hop: int) -> None:
    await check_replaced(lane, receipts, hop, dies)


async def test_a_node_that_hangs_is_replaced_alone(lane: Lane) -> None:
    await check_replaced(lane, 3, 2, hangs)


async def test_a_node_that_breaks_its_word_is_replaced_alone(lane: Lane) -> None:
    """In the shape of its outputs, in what it signs, in how; on the way forward and back."""
    for change in LIES.values():
        for receipts, hop in ((1, 1), (4, 1)):
            await check_replaced(lane, receipts, hop, lambda lane, change=change: lane.doctor(change))  # type: ignore[misc]
            lane.relay = await opened(lane.net)
    lane.victim = lane.net.nodes[1]
    lane.after(1, lambda lane: lane.doctor(changed_output))
    with pytest.raises(NodeLied):
        await lane.relay.forward(Trail({0: lane.x}))
    await lane.relay.close()
    assert not await lane.relay.mend(), "nothing follows once it was closed"


async def test_one_after_the_other_and_the_same_hop_twice(lane: Lane) -> None:
    """The second fails on the way forward, the first on the way back, then one of those that came for the second."""
    nodes = lane.net.nodes
    trail = Trail({0: lane.x})
    lane.victim = nodes[1]
    lane.after(1, dies)
    out = await lane.finished(lane.relay.forward, trail)
    lane.victim = nodes[0]
    dies(lane)
    back = Trail(trail.states, {trail.end: 2 * out})
    found, expected = await lane.finished(lane.relay.backward, back), lane.expected()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    lane.victim = nodes[5]
    dies(lane)
    with pytest.raises(SwarmError, match=lane.victim.kit.signer.address):
        await lane.relay.forward(Trail({0: lane.x}))
    assert not await lane.relay.mend(), "nobody else serves block 2 now"
