"""What a call was and has cost, as its model tells it."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.home import Home
from support.local_pipeline import LocalPipeline, LocalSwarm
from support.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("call")
    return LocalModel("tiny", tiny_model(folder / "tiny"), Home(folder / "home"))


@pytest.fixture
def swarm(local: LocalModel) -> LocalSwarm:
    return LocalSwarm(local)


@pytest.fixture
def model(local: LocalModel, swarm: LocalSwarm) -> Iterator[Any]:
    with SwarmModelForCausalLM(local, Ends.load(local), swarm, LoopThread()) as model:
        yield model


def test_a_call_tells_its_tokens_lane_and_cost_and_the_model_the_sum(model: Any, swarm: LocalSwarm) -> None:
    assert (model.last_call, model.spent) == (None, 0)
    model.generate(IDS, **GREEDY)
    first = model.last_call
    assert (first.prompt_tokens, first.tokens, first.lane, first.why) == (6, 4, "paid", "")
    assert first.spent == swarm.pipelines[0].spent == 3 * 9
    model.generate(IDS, **GREEDY)
    assert model.last_call is not first
    assert model.last_call.spent == first.spent, "this call's, not the model's life"
    assert model.spent == 2 * first.spent
    assert str(first).startswith("4 tokens, 0.00000")
    assert "0.000000000 HMC" not in str(first), "a small sum is not told as nothing"


def test_rows_that_end_early_count_as_far_as_they_came(model: Any) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    ids = torch.cat([IDS, IDS.flip(1)])
    answer = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=1)
    stop = int(answer[0, -1])
    answer = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=3, eos_token_id=stop)
    ended = sum(1 + row.index(stop) if stop in row else 3 for row in answer[:, 6:].tolist())
    assert model.last_call.prompt_tokens == 11, "padding is no prompt"
    assert model.last_call.tokens == ended < 6


def test_a_call_that_fails_or_is_donated_says_so(model: Any, swarm: LocalSwarm) -> None:
    swarm.price = 0
    model.generate(IDS, **GREEDY)
    assert (model.last_call.lane, model.last_call.spent) == ("donated", 0)
    swarm.price = 3

    async def fail(pipeline: LocalPipeline) -> None:
        await asyncio.sleep(0)
        if pipeline.position > IDS.shape[1]:
            raise SwarmError("the node went away")

    swarm.before_step = fail
    with pytest.raises(SwarmError, match="went away"):
        model.generate(IDS, **GREEDY)
    assert (model.last_call.tokens, model.last_call.lane) == (2, "paid")
    assert model.last_call.spent == swarm.pipelines[-1].spent > 0


def test_a_bid_and_a_ceiling_are_of_one_call(model: Any, swarm: LocalSwarm) -> None:
    model.generate(IDS, bid="2x", max_price="0.001", **GREEDY)
    model.generate(IDS, **GREEDY)
    model.dry_run(IDS, bid="ask")
    assert swarm.offers == [("2x", "0.001"), ("ask", None)]


def test_training_counts_in_what_the_model_has_spent(model: Any, swarm: LocalSwarm) -> None:
    with model.blocks(tokens=6, bid="2x") as blocks:
        blocks(model.embed(IDS))
        assert model.spent == blocks.spent == swarm.lanes[0].signed > 0
    assert model.spent == blocks.spent
    assert swarm.offers == [("2x", None)]


def test_calls_of_several_threads_add_up(model: Any) -> None:
    threads = [threading.Thread(target=model.generate, args=(IDS,), kwargs=GREEDY) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert model.spent == 4 * model.last_call.spent > 0
