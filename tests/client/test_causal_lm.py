"""`SwarmModelForCausalLM` against plain transformers, over the same blocks in this process."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hivemint.client.generation.bill import Bill
from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.client.pipeline import SessionLimit
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput, SwarmError
from support.local_pipeline import LocalPipeline, LocalSwarm

pytest_plugins = ["support.models"]

TEXTS = ["The capital of France is", "Once upon a time, in a village by the sea, there lived", "def fibonacci(n):"]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def plain(smollm2: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(smollm2: LocalModel) -> Any:
    return AutoTokenizer.from_pretrained(smollm2.folder, padding_side="left")


@pytest.fixture(scope="module")
def shared(smollm2: LocalModel) -> tuple[Ends, LocalSwarm]:
    return Ends.load(smollm2), LocalSwarm(smollm2)


@pytest.fixture
def swarm(shared: tuple[Ends, LocalSwarm]) -> LocalSwarm:
    swarm = shared[1]
    swarm.pipelines, swarm.asked, swarm.forks, swarm.forgets = [], [], [], False
    swarm.room = swarm.before_step = None
    return swarm


@pytest.fixture
def model(smollm2: LocalModel, shared: tuple[Ends, LocalSwarm], swarm: LocalSwarm) -> Iterator[SwarmModelForCausalLM]:
    with SwarmModelForCausalLM(smollm2, shared[0], swarm, LoopThread()) as model:
        yield model


def ids_of(tokenizer: Any, text: str) -> torch.Tensor:
    ids: torch.Tensor = tokenizer(text, return_tensors="pt").input_ids
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_text_is_that_of_transformers(text: str, model: Any, plain: Any, tokenizer: Any, swarm: Any) -> None:
    ids = ids_of(tokenizer, text)
    expected = plain.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, **GREEDY), expected)
    (pipeline,) = swarm.pipelines
    assert pipeline.sent == [ids.shape[1]] + [1] * (expected.shape[1] - ids.shape[1] - 1)  # each position once
    assert swarm.asked == [ids.shape[1] + 12 - 1]
    assert pipeline.closed
    assert not pipeline.cancelled


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.8}, {"top_k": 5}, {"top_p": 0.7, "repetition_penalty": 1.2}, {"num_return_sequences": 2}],
)
def test_sampled_text_is_that_of_transformers(settings: Any, model: Any, plain: Any, tokenizer: Any) -> None:
    ids = ids_of(tokenizer, TEXTS[1])
    torch.manual_seed(11)
    expected = plain.generate(ids, do_sample=True, max_new_tokens=10, **settings)
    torch.manual_seed(11)
    assert torch.equal(model.generate(ids, do_sample=True, max_new_tokens=10, **settings), expected)


def test_a_batch_is_that_many_sequences_without_padding(model: Any, plain: Any, tokenizer: Any, swarm: Any) -> None:
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    answers = model.generate(**batch, **GREEDY)
    lengths = batch.attention_mask.sum(1).tolist()
    assert sorted(pipeline.sent[0] for pipeline in swarm.pipelines) == sorted(lengths)
    for text, row, length in zip(TEXTS, answers, lengths, strict=True):
        alone = plain.generate(ids_of(tokenizer, text), **GREEDY)[0]
        mine = row[len(row) - 12 - length :][: len(alone)]
        assert tokenizer.decode(mine) == tokenizer.decode(alone)


LONG = "In the year of the great storm the harbour master wrote into his book, each evening, what the sea had brought."


@pytest.mark.parametrize("forgets", [False, True], ids=["shared", "forgotten"])
def test_answers_to_one_prompt_compute_it_once(
    forgets: bool, model: Any, plain: Any, tokenizer: Any, swarm: LocalSwarm
) -> None:
    swarm.forgets = forgets
    ids = ids_of(tokenizer, LONG)
    length = ids.shape[1]
    settings = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 3}
    torch.manual_seed(5)
    expected = plain.generate(ids, **settings)
    torch.manual_seed(5)
    assert torch.equal(model.generate(ids, **settings), expected)
    sent = sorted(pipeline.sent[:2] for pipeline in swarm.pipelines)
    own = [length, 1] if forgets else [1, 1]
    assert sent == sorted([[length - 1, 1], own, own])
    assert swarm.forks == [length - 1] * 2
    assert all(pipeline.closed for pipeline in swarm.pipelines)


def test_a_batch_with_a_common_beginning_computes_it_once(
    model: Any, plain: Any, tokenizer: Any, swarm: LocalSwarm
) -> None:
    """Two that begin alike, behind padding of different length, and one of its own."""
    texts = [LONG + " At dawn", LONG + " But on Sundays he wrote nothing, for", TEXTS[1]]
    alone = [plain.generate(ids_of(tokenizer, text), **GREEDY)[0] for text in texts]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    answers = model.generate(**batch, **GREEDY)
    (count,) = swarm.forks
    assert count >= ids_of(tokenizer, LONG).shape[1] - 1
    lengths = [ids_of(tokenizer, text).shape[1] for text in texts]
    assert sum(sum(pipeline.sent) for pipeline in swarm.pipelines) <= sum(lengths) - count + 3 * 11
    for row, expected in zip(answers, alone, strict=True):
        mine = row[len(row) - 12 :]
        assert tokenizer.decode(mine) == tokenizer.decode(expected[len(expected) - 12 :])
    plan = model.dry_run(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=12)
    assert plan.tokens == sum(lengths) + 3 * 11 - count


def test_a_talk_computes_only_what_is_new(model: Any, plain: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    ids = ids_of(tokenizer, LONG)
    with model.conversation() as talk:
        first = model.generate(ids, conversation=talk, **GREEDY)
        assert torch.equal(first, plain.generate(ids, **GREEDY))
        (one,) = swarm.pipelines
        assert not one.closed
        longer = torch.cat([first, ids_of(tokenizer, " And then")], dim=1)
        second = model.generate(longer, conversation=talk, **GREEDY)
        assert torch.equal(second, plain.generate(longer, **GREEDY))
        assert one.closed
        assert swarm.pipelines[1].sent[0] == longer.shape[1] - (first.shape[1] - 1)
        other = ids_of(tokenizer, TEXTS[1])
        assert torch.equal(model.generate(other, conversation=talk, **GREEDY), plain.generate(other, **GREEDY))
        assert swarm.pipelines[2].sent[0] == other.shape[1], "another text begins anew"
        assert swarm.pipelines[1].closed
    assert swarm.pipelines[2].closed
    talk.close()


def test_a_talk_that_the_nodes_have_forgotten_goes_on(
    model: Any, plain: Any, tokenizer: Any, swarm: LocalSwarm
) -> None:
    ids = ids_of(tokenizer, LONG)
    with model.conversation() as talk:
        first = model.generate(ids, conversation=talk, **GREEDY)
        swarm.forgets = True
        second = model.generate(first, conversation=talk, **GREEDY)
    assert torch.equal(second, plain.generate(first, **GREEDY))
    assert all(pipeline.closed for pipeline in swarm.pipelines)


def test_a_row_that_has_ended_costs_nothing_more(model: Any, tokenizer: Any, swarm: Any, plain: Any) -> None:
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    stop = int(plain.generate(ids_of(tokenizer, TEXTS[0]), **GREEDY)[0, -10])  # the third token of the first answer
    answers = model.generate(**batch, **GREEDY, eos_token_id=stop, pad_token_id=2)
    ended = min(swarm.pipelines, key=lambda pipeline: len(pipeline.sent))
    assert len(ended.sent) == 3  # the prompt and two tokens; the third ends it
    assert answers[0, -9:].tolist() == [2] * 9
    assert max(len(pipeline.sent) for pipeline in swarm.pipelines) > 3


def test_stop_strings_end_a_text(model: Any, plain: Any, tokenizer: Any) -> None:
    ids = ids_of(tokenizer, TEXTS[0])
    settings = {**GREEDY, "stop_strings": [" Paris"], "tokenizer": tokenizer}
    answer = model.generate(ids, **settings)
    assert torch.equal(answer, plain.generate(ids, **settings))
    assert tokenizer.decode(answer[0]).endswith("Paris")


def test_tokens_stream_one_by_one(model: Any, tokenizer: Any) -> None:
    class Seen:
        def __init__(self) -> None:
            self.counts: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.counts.append(value.numel())

        def end(self) -> None:
            self.ended = True

    seen, ids = Seen(), ids_of(tokenizer, TEXTS[0])
    answer = model.generate(ids, **GREEDY, streamer=seen)
    assert seen.counts == [ids.shape[1]] + [1] * (answer.shape[1] - ids.shape[1])
    assert seen.ended


def test_a_session_at_its_limit_goes_on_in_a_new_one(model: Any, plain: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    ids = ids_of(tokenizer, TEXTS[1])
    length = ids.shape[1]

    async def grow(pipeline: LocalPipeline) -> None:
        swarm.room = 100

    swarm.room, swarm.before_step = length + 4, grow  # the first session is short, the next is not
    assert torch.equal(model.generate(ids, **GREEDY), plain.generate(ids, **GREEDY))
    first, second = swarm.pipelines
    assert first.sent == [length, 1, 1, 1, 1]
    assert first.closed
    assert second.sent == [length + 5] + [1] * 6  # the text so far in one piece, then on


def test_a_swarm_without_room_is_an_error_and_not_a_loop(model: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    swarm.room = 3
    with pytest.raises(SwarmError, match="a new session cannot hold the 5 tokens"):
        model.generate(ids_of(tokenizer, TEXTS[0]), **GREEDY)
    assert len(swarm.pipelines) == 1
    assert swarm.pipelines[0].closed


@pytest.mark.parametrize("rows", [1, 3])
def test_a_failing_node_ends_all_rows_with_its_error(rows: int, model: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    async def fail(pipeline: LocalPipeline) -> None:
        if pipeline is swarm.pipelines[-1] and len(pipeline.sent) == 4:
            raise SwarmError("node carol is gone")

    swarm.before_step = fail
    batch = tokenizer(TEXTS[:rows], padding=True, return_tensors="pt")
    with pytest.raises(SwarmError, match="carol is gone"):
        model.generate(**batch, **GREEDY)
    assert len(swarm.pipelines) == rows
    assert all(pipeline.closed for pipeline in swarm.pipelines)


def test_ctrl_c_cancels_and_closes(model: Any, plain: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    stopped: list[str] = []

    async def interrupt(pipeline: LocalPipeline) -> None:
        if len(pipeline.sent) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                stopped.append("step")
                raise

    swarm.before_step = interrupt
    ids = ids_of(tokenizer, TEXTS[0])
    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, **GREEDY)
    assert stopped == ["step"]
    assert swarm.pipelines[0].cancelled
    assert swarm.pipelines[0].closed
    swarm.before_step = None
    assert torch.equal(model.generate(ids, **GREEDY), plain.generate(ids, **GREEDY))  # the model is still of use


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 3}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "hidden states"),
        ({"inputs_embeds": torch.zeros(1, 2, 576)}, "token ids only"),
    ],
)
def test_what_the_swarm_cannot_do_is_refused(
    settings: Any, message: str, model: Any, tokenizer: Any, swarm: Any
) -> None:
    ids = None if "inputs_embeds" in settings else ids_of(tokenizer, TEXTS[0])
    with pytest.raises(BadInput, match=message):
        model.generate(ids, max_new_tokens=4, **settings)
    assert swarm.pipelines == []


def test_a_prompt_beyond_the_context_is_refused(model: Any, swarm: Any) -> None:
    with pytest.raises(BadInput, match="the prompt has 8192 tokens"):
        model.generate(torch.full((1, 8192), 5), max_new_tokens=4)
    assert swarm.pipelines == []


@pytest.mark.parametrize("mask", [[[1, 0, 1]], [[1, 1, 0]], [[0, 0, 0]], [[0, 1]]])
def test_a_mask_with_holes_is_refused(mask: Any, model: Any, swarm: Any) -> None:
    with pytest.raises(BadInput, match="attention_mask"):
        model.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.tensor(mask), max_new_tokens=4)
    assert swarm.pipelines == []


def test_a_dry_run_prices_what_generate_asks_for(model: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    plan = model.dry_run(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=12)
    assert swarm.pipelines == []
    model.generate(**batch, **GREEDY)
    assert plan.tokens == sum(swarm.asked)
    assert plan.cost == 3 * plan.tokens


def test_logits_and_scores_come_as_in_transformers(model: Any, plain: Any, tokenizer: Any) -> None:
    ids = ids_of(tokenizer, TEXTS[2])
    settings = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = model.generate(ids, **settings).logits, plain.generate(ids, **settings).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # another order of the same fp32 sums


def test_a_closed_model_says_so(smollm2: LocalModel, shared: Any, swarm: LocalSwarm) -> None:
    model = SwarmModelForCausalLM(smollm2, shared[0], swarm, LoopThread())
    model.close()
    model.close()
    assert swarm.closed
    with pytest.raises(SwarmError, match="closed"):
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)


def test_a_bill_holds_what_the_call_itself_has_cost(model: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    """All rows, of shared beginnings once, of replays each; and what a call that fails has cost until then."""
    bill = Bill()
    model.generate(ids_of(tokenizer, TEXTS[1]), bill=bill, num_return_sequences=3, **{**GREEDY, "do_sample": True})
    assert bill.spent == sum(pipeline.spent for pipeline in swarm.pipelines) > 0
    before, swarm.pipelines = bill.spent, []
    ids = ids_of(tokenizer, TEXTS[0])

    async def fail(pipeline: LocalPipeline) -> None:
        await asyncio.sleep(0)
        if pipeline.position > ids.shape[1]:
            raise SwarmError("the node went away")

    swarm.before_step = fail
    with pytest.raises(SwarmError, match="went away"):
        model.generate(ids, bill=bill, **GREEDY)
    assert bill.spent - before == sum(pipeline.spent for pipeline in swarm.pipelines) > 0


def test_a_talk_bills_each_answer_alone(model: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    bills, ids = [Bill(), Bill()], ids_of(tokenizer, TEXTS[1])
    with model.conversation() as talk:
        for bill in bills:
            before = ids.shape[1]
            ids = model.generate(ids, bill=bill, conversation=talk, **GREEDY)
            assert (bill.prompt_tokens, bill.tokens) == (before, ids.shape[1] - before)
            assert bill.seconds > 0
            assert bill.plan is not None
    assert [bill.spent for bill in bills] == [pipeline.spent for pipeline in swarm.pipelines]
    assert bills[1].spent < bills[0].spent, "only what was new"


def test_a_text_that_nodes_make_dearer_and_dearer_ends(model: Any, tokenizer: Any, swarm: LocalSwarm) -> None:
    """A node says "no room" after each token, so that all is computed and paid again each time."""
    ids = ids_of(tokenizer, TEXTS[1])

    async def no_room(pipeline: LocalPipeline) -> None:
        await asyncio.sleep(0)
        if pipeline.position:
            pipeline.sent.pop()
            raise SessionLimit("no room")

    swarm.before_step, bill = no_room, Bill()
    with pytest.raises(SwarmError, match="2 times its plan") as caught:
        model.generate(ids, bill=bill, **GREEDY)
    plan = 3 * (ids.shape[1] + 11)
    assert plan < bill.spent <= 2 * plan
    assert str(len(swarm.pipelines) - 1) in caught.value.why
    assert "replay_margin" in caught.value.next_step
