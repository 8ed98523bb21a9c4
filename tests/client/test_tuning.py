"""Training through blocks that are elsewhere, over the same blocks in this process: gradients, lanes, lost routes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.client.pipeline import SessionLimit
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput, SwarmError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from support.local_pipeline import LocalSwarm
from support.tiny import tiny_model


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("tuning")
    home = Home(folder / "home")
    return LocalModel("tiny", tiny_model(folder / "tiny", num_hidden_layers=3, initializer_range=0.3), home)


@pytest.fixture(scope="module")
def whole(local: LocalModel) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(local.folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture
def swarm(local: LocalModel) -> LocalSwarm:
    return LocalSwarm(local)


@pytest.fixture
def model(local: LocalModel, swarm: LocalSwarm) -> Iterator[Any]:
    with SwarmModelForCausalLM(local, Ends.load(local), swarm, LoopThread()) as model:
        yield model


def both(model: Any, blocks: Any, whole: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of one loss, through the swarm and through the library's whole model."""
    found = []
    runs: list[Any] = [lambda x: model.logits(blocks(x)), lambda x: whole(inputs_embeds=x).logits]
    for run in runs:
        x = hidden.clone().requires_grad_(True)
        found.append(torch.autograd.grad((run(x) ** 2).mean(), x)[0])
    return found[0], found[1]


@pytest.mark.parametrize("cuts", [[], [1], [1, 2]])
@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (5, 2), (2, 4)])
def test_the_gradient_is_that_of_the_whole_model(
    cuts: list[int], batch: int, lanes: int, model: Any, whole: Any, swarm: LocalSwarm
) -> None:
    swarm.cuts = cuts
    with model.blocks(tokens=9, sequences=lanes) as blocks:
        ours, expected = both(model, blocks, whole, torch.randn(batch, 9, 32))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
        assert len(swarm.lanes) == min(batch, lanes)
    assert all(lane.closed for lane in swarm.lanes)


def test_without_a_gradient_no_backward_is_asked_for(model: Any, swarm: LocalSwarm) -> None:
    with model.blocks(tokens=9) as blocks:
        with torch.no_grad():
            blocks(torch.randn(9, 32, requires_grad=True))
        assert not blocks(torch.randn(2, 4, 32)).requires_grad
    assert {kind for kind, _ in swarm.lanes[0].steps} == {"forward"}


def test_a_prompt_and_a_head_are_trained_by_an_ordinary_optimizer(model: Any) -> None:
    torch.manual_seed(3)
    ids, labels = torch.randint(3, 60, (4, 6)), torch.tensor([0, 1, 1, 0])
    prompt, head = torch.nn.Parameter(0.1 * torch.randn(3, 32)), torch.nn.Linear(32, 2)
    optimizer = torch.optim.Adam([prompt, *head.parameters()], lr=0.03)
    losses = []
    with model.blocks(tokens=9, sequences=2) as blocks:
        for _ in range(12):
            hidden = blocks(torch.cat([prompt.expand(4, -1, -1), model.embed(ids)], dim=1))
            loss: Any = torch.nn.functional.cross_entropy(head(hidden[:, -1]), labels)
            optimizer.zero_grad()
            loss.backward()
            assert prompt.grad is not None
            assert prompt.grad.abs().sum() > 0
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_session_that_is_used_up_is_followed_by_the_next(model: Any, whole: Any, swarm: LocalSwarm) -> None:
    with model.blocks(tokens=6, rounds=1) as blocks:
        for _ in range(3):
            ours, expected = both(model, blocks, whole, torch.randn(1, 6, 32))
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    assert len(swarm.lanes) == 3


def test_a_node_lost_between_forward_and_backward_costs_one_pass(model: Any, whole: Any, swarm: LocalSwarm) -> None:
    """The next route has other cuts: the states are computed anew on it."""
    left = [1]

    async def fail_once(lane: Any) -> None:
        await asyncio.sleep(0)
        if left and any(kind == "backward" for kind, _ in lane.steps):
            left.pop()
            swarm.cuts = [2]
            raise SwarmError("a node went away")

    swarm.cuts, swarm.before_step = [1], fail_once
    with model.blocks(tokens=6) as blocks:
        ours, expected = both(model, blocks, whole, torch.randn(1, 6, 32))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    first, second = swarm.lanes
    assert first.closed
    assert [kind for kind, _ in second.steps] == ["forward", "backward", "backward"], "the result is known already"


@pytest.mark.parametrize("when", ["forward", "backward"])
@pytest.mark.parametrize("cuts", [[1, 2], [2], []])
def test_a_pass_goes_on_where_it_broke_off_once_the_lane_is_mended(
    when: str, cuts: list[int], model: Any, whole: Any, swarm: LocalSwarm
) -> None:
    """Whatever the cuts are then: what is known at one of them is not asked for again."""
    left = [1]

    async def fail_once(lane: Any) -> None:
        await asyncio.sleep(0)
        if left and any(kind == when for kind, _ in lane.steps):
            left.pop()
            swarm.mended = cuts
            raise SwarmError("a node went away")

    swarm.cuts, swarm.before_step = [1, 2], fail_once
    with model.blocks(tokens=6) as blocks:
        ours, expected = both(model, blocks, whole, torch.randn(1, 6, 32))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    (lane,) = swarm.lanes
    assert not left
    steps = [kind for kind, _ in lane.steps]
    if cuts == [1, 2]:
        assert steps == ["forward"] * 3 + ["backward"] * 3, "nothing twice"


def test_what_fails_for_ever_is_told_in_its_own_words(model: Any, swarm: LocalSwarm) -> None:
    async def fail(lane: Any) -> None:
        await asyncio.sleep(0)
        raise SwarmError("nobody is there")

    swarm.before_step = fail
    with model.blocks(tokens=6) as blocks, pytest.raises(SwarmError, match="nobody is there"):
        blocks(torch.randn(1, 6, 32))
    assert len(swarm.lanes) == 4

    async def full(lane: Any) -> None:
        await asyncio.sleep(0)
        raise SessionLimit("no memory")

    swarm.before_step = full
    with model.blocks(tokens=6) as blocks, pytest.raises(SessionLimit, match="no memory"):
        blocks(torch.randn(1, 6, 32))
    assert len(swarm.lanes) == 5, "a fresh session that can't do it is no reason to ask for another one"


def test_a_training_stops_at_its_ceiling(model: Any, swarm: LocalSwarm) -> None:
    """All lanes together, before the pass that would be too much; what was learned until then stays."""
    a_pass = 3 * 3 * 6  # wei: price, forward and backward, positions
    with model.blocks(tokens=6, sequences=2, max_amount=Credits(4 * a_pass + 5)) as blocks:
        for _ in range(2):
            x = torch.randn(2, 6, 32, requires_grad=True)
            torch.autograd.grad(blocks(x).sum(), x)
        with pytest.raises(SwarmError, match="max_amount") as caught:
            blocks(torch.randn(2, 6, 32))
    assert "raise max_amount" in caught.value.next_step
    assert sum(lane.signed for lane in swarm.lanes) == 4 * a_pass


@pytest.mark.parametrize("lanes", [1, 3])
def test_no_pass_is_begun_that_the_ceiling_does_not_cover(model: Any, swarm: LocalSwarm, lanes: int) -> None:
    """Passes of several lanes at once: none counts on what another has begun."""
    most = 5 * 3 * 6

    begun: list[Any] = []

    async def begin(lane: Any) -> None:
        begun.append(lane)
        await asyncio.sleep(0.01)

    swarm.before_step = begin
    with model.blocks(tokens=6, sequences=lanes, max_amount=Credits(most)) as blocks, pytest.raises(SwarmError):
        blocks(torch.randn(9, 6, 32))
    assert len(begun) <= most // 18, "each is worth 18 wei"
    assert sum(lane.signed for lane in swarm.lanes) <= most


def test_passes_that_fail_again_and_again_cost_no_more_than_the_plan_allows(model: Any, swarm: LocalSwarm) -> None:
    """Nodes take what a pass costs and give nothing for it: what is asked anew has a cap of its own."""

    async def paid_in_vain(lane: Any) -> None:
        await asyncio.sleep(0)
        lane.steps += [("forward", 6)] * 3
        raise SwarmError("a node went away")

    swarm.cuts = [1, 2]
    with model.blocks(tokens=6, rounds=1) as blocks:
        swarm.before_step = paid_in_vain
        for _ in range(20):
            with pytest.raises(SwarmError) as caught:
                blocks(torch.randn(1, 6, 32))
        assert "times its plan" in caught.value.what
    # what the caller asked for counts as plan, whether it came or not: 20 passes forward
    assert sum(lane.signed for lane in swarm.lanes) <= 2 * 3 * 3 * 20 * 6


def test_a_slow_node_is_left_between_two_passes(model: Any, swarm: LocalSwarm) -> None:
    swarm.others = True
    with model.blocks(tokens=6) as blocks:
        blocks(torch.randn(1, 6, 32))
        slow = swarm.lanes[0].slow = SwarmError("far slower than it publishes")
        blocks(torch.randn(1, 6, 32))
    assert swarm.named == [slow]
    assert len(swarm.lanes) == 2


@pytest.mark.parametrize("shape", [(9,), (2, 4, 31), (1, 10, 32), (0, 4, 32), (1, 0, 32), (1, 1, 4, 32)])
def test_shapes_that_cannot_be_run(shape: tuple[int, ...], model: Any, swarm: LocalSwarm) -> None:
    with model.blocks(tokens=9) as blocks, pytest.raises(BadInput):
        blocks(torch.randn(shape))
    assert swarm.lanes == []
    with pytest.raises(BadInput, match="at least 1"):
        model.blocks(tokens=0)


def test_second_derivatives_are_refused(model: Any) -> None:
    with model.blocks(tokens=9) as blocks:
        x = torch.randn(1, 4, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad((blocks(x) ** 2).sum(), x, create_graph=True)
        summed: Any = gradient.sum()
        with pytest.raises(RuntimeError, match="once_differentiable"):
            summed.backward()
