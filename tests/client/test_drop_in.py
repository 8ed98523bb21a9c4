"""What programs do with any model of transformers, done with one whose blocks are in a swarm."""

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextIteratorStreamer, pipeline

from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.drop_in import place_of
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput
from support.local_pipeline import LocalSwarm

pytest_plugins = ["support.models"]

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def plain(smollm2: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2.folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(smollm2: LocalModel) -> Any:
    return AutoTokenizer.from_pretrained(smollm2.folder)


@pytest.fixture(scope="module")
def swarm(smollm2: LocalModel) -> LocalSwarm:
    return LocalSwarm(smollm2)


@pytest.fixture
def model(smollm2: LocalModel, swarm: LocalSwarm) -> Iterator[Any]:
    with SwarmModelForCausalLM(smollm2, Ends.load(smollm2), swarm, LoopThread()) as model:
        yield model


def test_the_lines_that_people_copy_run_as_they_are(model: Any, plain: Any, tokenizer: Any) -> None:
    model = model.eval().to("cpu")
    inputs = tokenizer(TEXT, return_tensors="pt").to(model.device)
    length = inputs.input_ids.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = model.generate(**inputs, max_new_tokens=8, pad_token_id=tokenizer.eos_token_id, do_sample=False)
    assert torch.equal(answer, plain.generate(**inputs, max_new_tokens=8, do_sample=False))
    assert torch.equal(model.generate(**inputs, max_length=length + 8, do_sample=False), answer)
    made: Any = GenerationConfig
    config = made(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
    assert torch.equal(model.generate(**inputs, generation_config=config), answer)
    model.generation_config.max_new_tokens = 3
    assert model.generate(**inputs, do_sample=False).shape[1] == length + 3


def test_a_pipeline_of_transformers_takes_the_model(model: Any, plain: Any, tokenizer: Any, caplog: Any) -> None:
    asked = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    expected = pipeline("text-generation", model=plain, tokenizer=tokenizer, device="cpu")
    given = {"max_new_tokens": 6, "do_sample": False}
    assert asked(TEXT, **given) == expected(TEXT, **given)
    chat = [{"role": "user", "content": "Say yes."}]
    assert asked(chat, **given) == expected(chat, **given)
    assert [one[0]["generated_text"] for one in asked([TEXT, TEXT], **given)] == [
        one[0]["generated_text"] for one in expected([TEXT, TEXT], **given)
    ]
    assert "not supported" not in caplog.text
    assert "SwarmModelForCausalLM" in repr(asked)


def test_text_streams_into_another_thread(model: Any, tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    inputs = tokenizer(TEXT, return_tensors="pt")
    given = {**inputs, "max_new_tokens": 5, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=given)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.startswith(" Paris")
    assert model.last_call.tokens == 5


def test_what_a_model_is_asked_about_itself(model: Any, plain: Any) -> None:
    assert model.num_parameters() == plain.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == plain.num_parameters(exclude_embeddings=True)
    assert model.num_parameters(only_trainable=True) == 0
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert next(model.parameters()).device.type == "cpu"
    assert "lm_head.weight" not in dict(model.named_parameters()), "the head is the embedding"
    here = sum(one.numel() for one in model.parameters())
    assert here < model.num_parameters() / 3
    assert model.get_memory_footprint() == 4 * here
    assert model.config.num_hidden_layers == 30
    assert model.can_generate()
    assert model.get_input_embeddings().weight.shape == plain.get_input_embeddings().weight.shape
    assert model.get_output_embeddings()(torch.zeros(1, 576)).shape == (1, plain.config.vocab_size)


def test_it_is_shown_without_asking_anybody_and_without_secrets(model: Any, swarm: LocalSwarm) -> None:
    shown = repr(model)
    for word in (
        "SwarmModelForCausalLM(SmolLM2-135M-Instruct",
        "30 blocks",
        "network here",
        "bid auto",
        "cpu, float32",
    ):
        assert word in shown
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
    assert "last call: 2 tokens, " in repr(model)
    model.close()
    assert "closed" in repr(model)


def test_completion_offers_what_is_meant_for_people(model: Any) -> None:
    offered = [name for name in dir(model) if not name.startswith("_")]
    wanted = {"generate", "forward", "blocks", "conversation", "dry_run", "last_call", "spent", "close", "folder", "to"}
    assert wanted <= set(offered)
    assert {"config", "generation_config", "device", "swarm"} <= set(offered)
    for inner in ("prepare_inputs_for_generation", "adjust_generation_fn", "heal_tokens", "base_model_prefix"):
        assert inner not in offered
        assert hasattr(model, inner)
    assert len(offered) < 50


def test_training_is_refused_with_the_way_that_there_is(model: Any) -> None:
    assert model.train(False) is model.eval() is model.requires_grad_(False) is model
    assert not model.training
    for refused in (model.train, model.requires_grad_):
        with pytest.raises(BadInput, match=r"nothing to train.*model\.blocks"):
            refused()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_ends_compute_in_another_precision(dtype: torch.dtype, model: Any, plain: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    exact = model(ids).logits
    before = model.get_memory_footprint()
    assert model.to(dtype) is model
    assert model.dtype == dtype
    assert model.get_memory_footprint() == before // 2, "head and embedding are one still"
    rough = model(ids).logits
    assert rough.dtype == dtype
    assert (rough.float() - exact).abs().max() < 0.03 * exact.abs().max()
    answer = tokenizer.decode(model.generate(ids, max_new_tokens=1, do_sample=False)[0])
    assert answer.endswith("Paris")
    assert model.embed(ids).dtype == dtype
    with model.blocks(tokens=5) as blocks:
        assert blocks(model.embed(ids)).dtype == dtype
    model.float()
    assert model.dtype == torch.float32
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False)[0, :5], ids[0])


def test_they_are_no_integers(model: Any) -> None:
    with pytest.raises(BadInput, match=r"cannot be torch\.int8"):
        model.to(torch.int8)


def test_a_model_at_an_accelerator_sends_and_takes_as_before(model: Any, tokenizer: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    model.to("cuda")
    assert model(ids).logits.device.type == "cuda"
    assert torch.equal(model.generate(ids.cuda(), max_new_tokens=4, do_sample=False).cpu(), expected)
    assert torch.equal(model.cpu().generate(ids, max_new_tokens=4, do_sample=False), expected)


def test_where_to_and_how_exact_may_be_said_as_to_transformers() -> None:
    given: dict[str, Any] = {"torch_dtype": "bfloat16", "device_map": "auto", "bid": "2x"}
    assert place_of(given) == (None, torch.bfloat16)
    assert given == {"bid": "2x"}
    assert place_of({"dtype": "auto", "device_map": {"": "cpu"}}) == (torch.device("cpu"), None)
    with pytest.raises(BadInput, match="is no precision"):
        place_of({"dtype": "4bit"})
    with pytest.raises(BadInput, match="is no device"):
        place_of({"device_map": "sequential"})
