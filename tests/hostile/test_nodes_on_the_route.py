"""Nodes on a client's route that stall, drip, or send what is no number: each is named, and the text goes on.

Real nodes of a tiny model over real links; each scene has one node more for the blocks of the hostile one.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
import torch

from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.pipeline import Trail
from hivemint.client.sessions.errors import NodeGone
from hivemint.client.sessions.pipelines import faults
from hivemint.client.sessions.speeds import Allowance, Speeds
from hivemint.model.local_models import LocalModel
from hivemint.node.server import Node
from hivemint.node.sessions.steps import inputs
from hivemint.protocol.errors import BadInput, HivemintError, ModelError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import PeerId
from support.lies import drips, keeps_outputs, sends_no_numbers, stalls, waits
from support.localnet import At, exactly
from support.own_loop import Here
from support.real_nodes import ASK, RealNodes, real_nodes
from support.tiny import tiny_model

T = TypeVar("T")
PROMPT, TOKENS = torch.arange(5, 13)[None], 8


class Scene:
    """Three hops; `spare` of them have a second node. The client calls what it sets aside by number."""

    def __init__(self, net: RealNodes, home: Path) -> None:
        self.net, self.client = net, net.client
        local = LocalModel("tiny", net.folder, Home(home))
        self.model: Any = SwarmModelForCausalLM(local, Ends.load(local), net.client, Here())  # type: ignore[arg-type]
        self.named: list[HivemintError] = []
        another_way = net.client.another_way

        def watched(error: HivemintError) -> bool:
            self.named.append(error)
            return another_way(error)

        net.client.another_way = watched  # type: ignore[method-assign]

    def hop(self, number: int) -> Node:
        """The node that serves this hop of the pipeline that is open."""
        (pipeline,) = (one for one in self.client._pipelines if one.open)
        return self.node(pipeline.sessions[number].leg.peer)

    def node(self, peer: PeerId) -> Node:
        return next(node for node in self.net.nodes if node.offer.peer == peer)

    def settings(self, **changes: Any) -> None:
        self.client.settings = self.client.settings.model_copy(update=changes)

    async def answer(self, after: int, act: Callable[[], object], **how: Any) -> torch.Tensor:
        """An answer of `TOKENS` tokens; after some of them something happens."""
        how = {**exactly(TOKENS), **how, "streamer": At(after, act)}
        answer: torch.Tensor = await asyncio.to_thread(lambda: self.model.generate(PROMPT, **how))
        return answer

    def expected(self) -> torch.Tensor:
        """The library's own answer."""
        answer: torch.Tensor = self.net.whole.generate(PROMPT, **exactly(TOKENS))
        return answer

    def aside(self, node: Node) -> bool:
        return node.offer.peer in self.client.nodes._left_out()

    def paid(self, node: Node) -> int:
        """Positions that this node has been promised pay for."""
        return int(self.client.payer.book.total(node.kit.signer.address)) // ASK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "tiny"
    return tiny_model(made, num_hidden_layers=3, initializer_range=0.3, eos_token_id=63)


@pytest_asyncio.fixture
async def scene(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> AsyncIterator[Scene]:
    """`request.param`: hops that have a second node."""
    spans = [(0, 1), (1, 2), (2, 3), *((hop, hop + 1) for hop in request.param)]
    async with real_nodes(folder, tmp_path, spans=spans) as net:
        scene = Scene(net, tmp_path / "home")
        scene.settings(step_timeout=60.0)  # the machine may be busy; only who is made hostile is late
        yield scene


def spare(*hops: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [hops], indirect=True, ids=["spare" + "".join(map(str, hops))])


# --- what is no number


@spare(2)
@pytest.mark.parametrize("sampled", [False, True])
async def test_numbers_that_are_none_set_their_node_aside(scene: Scene, sampled: bool) -> None:
    """Signed honestly, they pass every check of a receipt; greedy search made token 0 of them."""
    hostile: list[Node] = []

    def begin() -> None:
        hostile.append(scene.hop(2))
        sends_no_numbers(hostile[0])

    answer = await scene.answer(2, begin, do_sample=sampled)
    assert answer.shape[1] == PROMPT.shape[1] + TOKENS
    if not sampled:
        assert torch.equal(answer, scene.expected())
    (error,) = scene.named
    assert isinstance(error, NodeGone)
    assert hostile[0].kit.signer.address in str(error)
    assert "not finite" in error.what
    assert "32 of 32" in error.why
    assert error.next_step
    assert scene.aside(hostile[0])
    assert scene.paid(hostile[0]) <= PROMPT.shape[1] + 2 + 1, "two tokens were sent, and the one in flight"


@spare()
@pytest.mark.parametrize("sampled", [False, True])
async def test_without_another_node_the_error_names_it(scene: Scene, sampled: bool) -> None:
    node = scene.net.nodes[2]
    sends_no_numbers(node)
    with pytest.raises(NodeGone, match=f"{node.kit.signer.address}.* not finite"):
        await scene.answer(1, lambda: None, do_sample=sampled)


@spare(1)
async def test_no_gradient_is_made_of_what_is_none(scene: Scene) -> None:
    """The client carries every tensor here: whichever node sends it, in whichever direction."""
    hidden = torch.randn(1, 4, 32)

    def train(act: Callable[[], object]) -> torch.Tensor:
        x = hidden.clone().requires_grad_(True)
        with scene.model.blocks(tokens=4) as blocks:
            loss = (scene.model.logits(blocks(x)) ** 2).mean()
            act()
            return torch.autograd.grad(loss, x)[0]

    hostile: list[Node] = []

    def begin() -> None:
        hostile.append(scene.hop(1))
        sends_no_numbers(hostile[0])

    found = await asyncio.to_thread(train, begin)
    x = hidden.clone().requires_grad_(True)
    expected = torch.autograd.grad((scene.net.whole(inputs_embeds=x).logits ** 2).mean(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert scene.aside(hostile[0])
    for node in scene.net.nodes:
        if node.offer.peer != hostile[0].offer.peer:
            assert not scene.aside(node)


@spare()
async def test_the_clients_own_numbers_are_looked_at_before_they_cost(scene: Scene) -> None:
    """Nodes refuse them, and would be named for it."""
    pipeline = await scene.client.open(20)
    rows = torch.randn(3, 32)
    rows[1, 4] = torch.inf
    with pytest.raises(BadInput, match="can't be computed"):
        await pipeline.forward(rows)
    await pipeline.close()
    relay = await scene.client.relay(4, 48)
    trail = Trail({0: torch.randn(4, 32)})
    await relay.forward(trail)
    with pytest.raises(BadInput, match="can't be computed"):
        await relay.backward(Trail(trail.states, {trail.end: torch.full((4, 32), torch.nan)}))
    await relay.close()
    assert {scene.paid(node) for node in scene.net.nodes} == {4}
    assert not any(scene.aside(node) for node in scene.net.nodes)


@spare()
async def test_a_head_that_makes_no_numbers_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite states in, NaN out: that is the model on this machine, and no node's fault."""
    logits = scene.model._ends.logits
    monkeypatch.setattr(scene.model._ends, "logits", lambda hidden: logits(hidden) * torch.nan)
    with pytest.raises(ModelError, match="head of this model"):
        await scene.answer(1, lambda: None, do_sample=True)
    assert scene.named == []


# --- stalls


@spare(1)
async def test_the_hop_without_a_receipt_is_named_and_not_who_misses_its_input(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staller answers pings and nothing else; the node behind it says that its input is missing."""
    monkeypatch.setattr(inputs, "INPUT_LIMIT", 1.0)
    monkeypatch.setattr(faults, "INPUT_LIMIT", 1.0)
    hostile: list[Node] = []
    let_go: list[Callable[[], None]] = []

    def begin() -> None:
        hostile.append(scene.hop(1))
        let_go.append(stalls(hostile[0]))

    answer = await scene.answer(3, begin)
    let_go[0]()
    assert torch.equal(answer, scene.expected())
    (error,) = scene.named
    assert hostile[0].kit.signer.address in error.what
    assert "input did not come" in error.why
    assert [node for node in scene.net.nodes if scene.aside(node)] == hostile
    assert scene.paid(hostile[0]) <= PROMPT.shape[1] + 3 + 1


@spare(0)
async def test_who_sends_receipts_and_no_output_is_named_with_who_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either may lie: both ends of that link are set aside, and the one that no other can replace serves on."""
    monkeypatch.setattr(inputs, "INPUT_LIMIT", 1.0)
    hostile: list[Node] = []

    def begin() -> None:
        hostile.append(scene.hop(0))
        keeps_outputs(hostile[0])

    answer = await scene.answer(3, begin)
    assert torch.equal(answer, scene.expected())
    (error,) = scene.named
    assert set(getattr(error, "peers", ())) == {hostile[0].offer.peer, scene.net.nodes[1].offer.peer}
    assert scene.aside(hostile[0])
    assert scene.paid(hostile[0]) <= PROMPT.shape[1] + 3 + 1


@spare(2)
async def test_a_tensor_a_byte_at_a_time_has_the_steps_own_limit(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is news on the link, and no frame is late by the link's measure."""
    scene.settings(step_timeout=2.0)
    hostile: list[Node] = []

    def begin() -> None:
        hostile.append(scene.hop(2))
        drips(monkeypatch, scene.client.host.peer_id, 0.5)
        scene.client.another_way = honest_again  # type: ignore[method-assign]

    another_way = scene.client.another_way

    def honest_again(error: HivemintError) -> bool:
        monkeypatch.undo()
        return another_way(error)

    answer = await scene.answer(3, begin)
    assert torch.equal(answer, scene.expected())
    assert [node for node in scene.net.nodes if scene.aside(node)] == hostile
    assert scene.paid(hostile[0]) <= PROMPT.shape[1] + 3 + 1


# --- just under each limit


@spare(1)
async def test_a_token_just_under_each_limit_is_seen_against_what_its_node_publishes(scene: Scene) -> None:
    """No limit is passed, each token comes; and yet the text goes on elsewhere."""
    scene.client.speeds = Speeds(Allowance(times=1.0, floor=1.0))
    hostile: list[Node] = []

    def begin() -> None:
        hostile.append(scene.hop(1))
        waits(hostile[0], 3.0)

    answer = await scene.answer(1, begin)
    assert torch.equal(answer, scene.expected())
    assert hostile[0].offer.peer in getattr(scene.named[0], "peers", ())
    assert "far slower than it publishes" in str(scene.named[0])
    assert scene.aside(hostile[0])


@spare()
async def test_a_slow_node_that_nobody_can_replace_serves_on(scene: Scene) -> None:
    scene.client.speeds = Speeds(Allowance(times=1.0, floor=0.05))
    waits(scene.net.nodes[1], 0.5)
    answer = await scene.answer(1, lambda: None)
    assert torch.equal(answer, scene.expected())
    assert not any(scene.aside(node) for node in scene.net.nodes)


@spare(0, 1, 2)
async def test_honest_nodes_under_load_raise_no_alarm(scene: Scene) -> None:
    """As many texts at once as would make each step several times longer than a step alone."""

    async def one() -> None:
        pipeline = await scene.client.open(24)
        await pipeline.forward(torch.randn(8, 32))
        for _ in range(12):
            await pipeline.forward(torch.randn(1, 32))
            assert pipeline.slow is None
        await pipeline.close()

    await asyncio.gather(*(one() for _ in range(8)))
    assert not any(scene.aside(node) for node in scene.net.nodes)
