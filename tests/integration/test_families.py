"""Every family through the client: its ends, two nodes' spans in between, and the whole model's logits come out."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hivemint.client.generation.ends import Ends
from hivemint.model.families import FAMILIES
from hivemint.model.local_models import resolve
from hivemint.node.kv.cache import KvCache, KvStore
from hivemint.node.span.span import Span, Work
from hivemint.protocol.home import Home
from hivemint.protocol.ids import BlockIndex
from support.families import BLOCKS, TINY, Whole, ids

TOKENS = 23


class Chain:
    """What a client and two nodes compute together, without the wire in between."""

    def __init__(self, whole: Whole, home: Home) -> None:
        self.ends = Ends.load(resolve(whole.folder, home=home))
        bounds = ((0, 1), (1, BLOCKS))
        self.spans = [Span.load(whole.folder, BlockIndex(first), BlockIndex(end)) for first, end in bounds]
        self.stores: list[KvStore] = [span.new_store(1 << 22) for span in self.spans]

    def open(self) -> list[KvCache]:
        return [store.open(40) for store in self.stores]

    def run(self, steps: Sequence[tuple[list[KvCache], torch.Tensor, int, int]]) -> list[torch.Tensor]:
        """Logits `[end - start, vocabulary]` of each step (caches, text, start, end), all in one batch at each node."""
        rows = [self.ends.embed(text[start:end], start) for _, text, start, end in steps]
        for hop, span in enumerate(self.spans):
            starts = [start for _, _, start, _ in steps]
            caches = [session[hop] for session, _, _, _ in steps]
            rows = span.run([Work(*work) for work in zip(caches, starts, rows, strict=True)])
        return [self.ends.logits(hidden) for hidden in rows]


@pytest.fixture(scope="module", params=sorted(TINY), ids=str)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(*TINY[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def chain(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(whole, Home.open(tmp_path_factory.mktemp("home")))


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=5e-4, atol=1e-4 * max(1.0, float(expected.abs().max())))


def test_every_family_is_here() -> None:
    assert {family for family, _ in TINY.values()} == set(FAMILIES)


@pytest.mark.parametrize(
    "bounds",
    [[0, TOKENS], [0, 6, 9, 17, TOKENS], [0, 9, *range(10, TOKENS + 1)]],
    ids=[
        "prefill",
        "chunks",
        "decode",
    ],
)
def test_logits_are_the_whole_models(whole: Whole, chain: Chain, bounds: list[int]) -> None:
    text, session = ids(1, TOKENS), chain.open()
    logits = [chain.run([(session, text, start, end)])[0] for start, end in pairwise(bounds)]
    close(torch.cat(logits), whole.logits(text))


def test_a_rejected_guess_leaves_no_trace(whole: Whole, chain: Chain) -> None:
    """Crop: tokens are run, then others take their positions."""
    text, guess, session = ids(2, TOKENS), ids(3, TOKENS), chain.open()
    chain.run([(session, text, 0, 12)])
    chain.run([(session, guess, 12, 18)])
    logits = [chain.run([(session, text, start, end)])[0] for start, end in ((12, 15), (15, TOKENS))]
    close(torch.cat(logits), whole.logits(text)[12:])


def test_a_ragged_batch_gives_each_text_its_own_logits(whole: Whole, chain: Chain) -> None:
    """Prefill, decode, chunk and verify of five texts in one batch."""
    steps = [(0, 5), (8, 9), (22, 23), (4, 11), (13, 17)]
    texts = [ids(10 + index, TOKENS) for index in range(len(steps))]
    sessions = [chain.open() for _ in steps]
    chain.run([(s, t, 0, start) for s, t, (start, _) in zip(sessions, texts, steps, strict=True) if start])
    batch = [(s, t, start, end) for s, t, (start, end) in zip(sessions, texts, steps, strict=True)]
    for logits, text, (start, end) in zip(chain.run(batch), texts, steps, strict=True):
        close(logits, whole.logits(text)[start:end])


def _as_published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As old folders name them: without the causal model's prefix, and with masks and rotary tables as tensors."""
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for block in range(BLOCKS):
        if "wpe.weight" in named:
            named[f"h.{block}.attn.bias"] = torch.ones(1, 1, 8, 8)
        if any(name.startswith("gpt_neox.") for name in named):
            named[f"gpt_neox.layers.{block}.attention.masked_bias"] = torch.tensor(-1e9)
            named[f"gpt_neox.layers.{block}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    return named


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gpt_neox"])
def test_folders_as_they_were_published(name: str, tmp_path: Path) -> None:
    whole = Whole(*TINY[name], tmp_path / "model")
    file = whole.folder / "model.safetensors"
    save_file(_as_published(load_file(file)), file, metadata={"format": "pt"})
    chain, text = Chain(whole, Home.open(tmp_path / "home")), ids(4, 9)
    close(chain.run([(chain.open(), text, 0, 9)])[0], whole.logits(text))
