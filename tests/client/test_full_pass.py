"""`model(ids)`: logits of whole texts through the swarm, as transformers' own model tells them."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.full_pass import check_ids
from hivemint.client.generation.loop import LoopThread
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput, SwarmError
from hivemint.protocol.home import Home
from support.local_pipeline import LocalPipeline, LocalSwarm
from support.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("full")
    return LocalModel("tiny", tiny_model(folder / "tiny"), Home(folder / "home"))


@pytest.fixture
def swarm(local: LocalModel) -> LocalSwarm:
    return LocalSwarm(local)


@pytest.fixture
def model(local: LocalModel, swarm: LocalSwarm) -> Iterator[Any]:
    with SwarmModelForCausalLM(local, Ends.load(local), swarm, LoopThread()) as model:
        yield model


@pytest.fixture(scope="module")
def plain(local: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(local.folder, dtype=torch.float32)


def near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_logits_and_loss_are_those_of_transformers(model: Any, plain: Any, swarm: LocalSwarm) -> None:
    labels = IDS.clone()
    labels[0, 2] = -100
    ours, theirs = model(IDS, labels=labels), plain(IDS, labels=labels)
    near(ours.logits, theirs.logits)
    near(ours.loss, theirs.loss)
    assert [one.sent for one in swarm.pipelines] == [[6], [6]], "each position once, for all logits"
    assert all(one.closed for one in swarm.pipelines)
    call = model.last_call
    assert (call.prompt_tokens, call.tokens, call.lane) == (12, 0, "paid")
    assert call.spent == model.spent == 3 * 12


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_neither_sent_nor_paid(side: str, model: Any, plain: Any, swarm: LocalSwarm) -> None:
    mask = torch.ones_like(IDS)
    text = slice(2, 6) if side == "left" else slice(0, 4)
    mask[0] = 0
    mask[0, text] = 1
    logits = model(input_ids=IDS, attention_mask=mask).logits
    near(logits[0, text], plain(IDS[:1, text]).logits[0])
    near(logits[1], plain(IDS[1:]).logits[0])
    assert not logits[0][mask[0] == 0].any()
    assert sorted(one.sent for one in swarm.pipelines) == [[4], [6]]


def test_the_last_positions_alone_can_be_asked_for(model: Any, plain: Any) -> None:
    assert model(IDS, logits_to_keep=2).logits.shape == (2, 2, 64)
    near(model(IDS, logits_to_keep=2).logits, plain(IDS, logits_to_keep=2).logits)
    near(model(IDS, return_dict=False)[0], plain(IDS, return_dict=False)[0])


def test_a_node_that_fails_is_replaced_and_all_is_computed_again(model: Any, plain: Any, swarm: LocalSwarm) -> None:
    async def fail(pipeline: LocalPipeline) -> None:
        swarm.before_step = None
        raise SwarmError("carol is gone")

    swarm.before_step, swarm.others = fail, True
    near(model(IDS[:1]).logits, plain(IDS[:1]).logits)
    assert len(swarm.pipelines) == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, r"inputs_embeds.*model\.blocks"),
        ({"input_ids": IDS, "past_key_values": 1}, r"past_key_values.*conversation"),
        ({"input_ids": IDS, "output_hidden_states": True}, r"output_hidden_states.*model\.embed"),
        ({"input_ids": IDS, "attention_mak": IDS}, "takes no attention_mak"),
        ({}, "No input_ids"),
        ({"input_ids": IDS[0]}, "shape"),
        ({"input_ids": IDS.float()}, "token ids"),
        ({"input_ids": IDS, "attention_mask": IDS[:1]}, "attention_mask has the shape"),
        ({"input_ids": IDS[:1], "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]])}, "inside a text"),
        ({"input_ids": IDS, "labels": IDS[:1]}, "labels"),
        ({"input_ids": torch.ones(1, 65, dtype=torch.long)}, "made for 64"),
    ],
)
def test_what_cannot_be_passed_is_refused_with_the_way_that_there_is(given: Any, told: str, model: Any) -> None:
    with pytest.raises(BadInput, match=told):
        model(**given)


def test_a_bid_counts_for_a_pass_too(model: Any, swarm: LocalSwarm) -> None:
    model(IDS[:1], bid="2x")
    assert swarm.offers == [("2x", None)]


GOOD = torch.tensor([[1, 5]])


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (GOOD.float(), "are torch.float32"),
        (GOOD.bool(), "are torch.bool"),
        (GOOD[0], "have the shape (2,)"),
        (GOOD[None], "have the shape (1, 1, 2)"),
        (GOOD[:, :0], "have the shape (1, 0)"),
        (GOOD[:0], "have the shape (0, 2)"),
        (torch.tensor([[-1, 5]]), "are from -1 to 5"),
        (torch.tensor([[1, 10]]), "are from 1 to 10"),
        ([[1, 5]], "are a list"),
        ("hello", "are a str"),
        (GOOD.numpy(), "are a ndarray"),
    ],
)
def test_what_is_no_prompt(ids: Any, told: str) -> None:
    with pytest.raises(BadInput, match=re.escape(told)):
        check_ids(ids, 10)


@pytest.mark.parametrize("ids", [None, GOOD, GOOD.int(), torch.tensor([[0, 9]])])
def test_what_is_one(ids: Any) -> None:
    check_ids(ids, 10)
