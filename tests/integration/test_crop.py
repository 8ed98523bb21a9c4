"""Going back to an earlier position, through the whole route: rejected drafts, another answer, positions made up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hivemint.client.sessions.pipelines.live_pipeline import LivePipeline
from support.real_nodes import ASK, CLIENT, RealNodes

PROMPT = [3, 17, 42, 5, 9, 23, 31]


pytest_plugins = ["support.two_nodes"]


def embed(whole: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        rows: torch.Tensor = whole.get_input_embeddings()(torch.tensor(ids))
    return rows


def choose(whole: Any, hidden: torch.Tensor) -> list[int]:
    """The likeliest next token after each row."""
    with torch.no_grad():
        tokens: list[int] = whole.lm_head(whole.model.norm(hidden)).argmax(-1).tolist()
    return tokens


def plain(whole: Any, ids: list[int], tokens: int) -> list[int]:
    """The library's own greedy answer."""
    got = whole.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
    answer: list[int] = got[0, len(ids) :].tolist()
    return answer


async def greedy(whole: Any, pipeline: LivePipeline, ids: list[int], tokens: int) -> list[int]:
    """Token by token, from wherever the pipeline stands."""
    ids, start = list(ids), len(ids)
    for _ in range(tokens):
        ids += choose(whole, await pipeline.forward(embed(whole, ids[pipeline.position :])))
    return ids[start:]


async def speculate(
    whole: Any, pipeline: LivePipeline, tokens: int, draft_after: Callable[[int], list[int]]
) -> tuple[list[int], int]:
    """Greedy by verify steps: a draft behind the last token, all rows back, what does not hold cropped.

    Gives the answer and the positions that were computed.
    """
    ids, computed = list(PROMPT), len(PROMPT)
    ids += choose(whole, await pipeline.forward(embed(whole, ids)))
    while len(ids) < len(PROMPT) + tokens:
        draft, at = draft_after(len(ids) - len(PROMPT)), pipeline.position
        chosen = choose(whole, await pipeline.forward(embed(whole, [ids[-1], *draft]), rows="all"))
        held = next((n for n, (mine, its) in enumerate(zip(draft, chosen, strict=False)) if mine != its), len(draft))
        ids += chosen[: held + 1]
        computed += 1 + len(draft)
        pipeline.crop(at + held + 1)
    return ids[len(PROMPT) : len(PROMPT) + tokens], computed


async def test_a_verify_step_and_a_crop_give_the_greedy_text(two_nodes: RealNodes) -> None:
    """Drafts that hold, hold in part, and not at all; each position that was computed is receipted and paid."""
    answer = plain(two_nodes.whole, PROMPT, 24)
    wrong = [(token + 1) % 64 for token in answer]

    asked: list[int] = []

    def draft_after(done: int) -> list[int]:
        asked.append(done)
        kinds = (wrong[done : done + 3], answer[done : done + 2] + wrong[done + 2 : done + 4], answer[done : done + 3])
        return kinds[len(asked) % 3]

    pipeline = await two_nodes.client.open(60)
    got, computed = await speculate(two_nodes.whole, pipeline, 24, draft_after)
    assert got == answer
    await pipeline.close()
    for node in two_nodes.nodes:
        book = node.kit.journal.book(CLIENT.address)
        assert book.owed == book.earned == computed * ASK
        assert node.kit.journal.totals.paid.tokens_countersigned == computed
        assert node.counts.refusals == {}


async def test_text_after_a_crop_equals_that_of_a_fresh_run(two_nodes: RealNodes) -> None:
    """Another answer to a prompt that shares its beginning; and back to nothing at all."""
    pipeline = await two_nodes.client.open(60)
    await greedy(two_nodes.whole, pipeline, PROMPT, 6)
    other = [*PROMPT[:4], 50, 51]
    pipeline.crop(4)
    assert await greedy(two_nodes.whole, pipeline, other, 8) == plain(two_nodes.whole, other, 8)
    pipeline.crop(0)
    assert await greedy(two_nodes.whole, pipeline, PROMPT, 5) == plain(two_nodes.whole, PROMPT, 5)
    await pipeline.close()
    computed = (len(PROMPT) + 5) + (2 + 7) + (len(PROMPT) + 4)
    for node in two_nodes.nodes:
        assert node.kit.journal.book(CLIENT.address).owed == computed * ASK
        assert node.kit.journal.totals.paid.tokens_signed == computed


async def test_a_crop_below_steps_whose_receipts_are_still_due(two_nodes: RealNodes) -> None:
    """The output comes before its receipts; a crop waits for neither."""
    pipeline = await two_nodes.client.open(60)
    rows = torch.randn(20, 32)
    await pipeline.forward(rows)
    pipeline.crop(3)
    other = torch.cat([rows[:3], torch.randn(9, 32)])
    got = await pipeline.forward(other[3:], rows="all")
    assert torch.allclose(got, two_nodes.expected(other)[3:], atol=1e-5)
    await pipeline.close()


@pytest.mark.parametrize("length", [-1, 8, 10**9])
async def test_a_pipeline_goes_back_only_to_where_it_was(two_nodes: RealNodes, length: int) -> None:
    pipeline = await two_nodes.client.open(60)
    await pipeline.forward(torch.randn(7, 32))
    with pytest.raises(ValueError, match="7 positions are cached"):
        pipeline.crop(length)
    assert pipeline.position == 7
    await pipeline.close()
