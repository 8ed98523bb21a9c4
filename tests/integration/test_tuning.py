"""Training through two real nodes: the whole model's gradient, every pass receipted and paid, every lie noticed."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from hivemint.client.generation.causal_lm import SwarmModelForCausalLM
from hivemint.client.generation.ends import Ends
from hivemint.client.sessions.errors import NodeLied, NodeRefusal
from hivemint.client.sessions.peft import LoraAdapter
from hivemint.model.anatomy import Anatomy
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import SwarmError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from hivemint.swarm.messages import AnyMessage
from support.lies import changed_output, changed_rows, changed_signature, more_tokens
from support.lora import last_states, with_lora, write_lora
from support.own_loop import Here
from support.real_nodes import ASK, CLIENT, RealNodes, emptied

T = TypeVar("T")


pytest_plugins = ["support.two_nodes"]


def model_of(two_nodes: RealNodes, tmp_path: Path) -> Any:
    """Its nodes have delivered to this client before, so there is no small first step to pay for."""
    for node in two_nodes.nodes:
        two_nodes.client.speeds.delivered(node.kit.host.peer_id)
    local = LocalModel("tiny", two_nodes.folder, Home(tmp_path / "home"))
    return SwarmModelForCausalLM(local, Ends.load(local), two_nodes.client, Here())  # type: ignore[arg-type]


def gradient(run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    x = hidden.clone().requires_grad_(True)
    return torch.autograd.grad((run(x) ** 2).mean(), x)[0]


async def test_the_gradient_is_the_whole_models_and_every_pass_is_paid(two_nodes: RealNodes, tmp_path: Path) -> None:
    model, hidden = model_of(two_nodes, tmp_path), torch.randn(3, 7, 32)

    def train() -> torch.Tensor:
        with model.blocks(tokens=7, sequences=2) as blocks:
            return gradient(lambda x: model.logits(blocks(x)), hidden)

    ours = await asyncio.to_thread(train)
    expected = gradient(lambda x: two_nodes.whole(inputs_embeds=x).logits, hidden)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    for node in two_nodes.nodes:
        book, paid = node.kit.journal.book(CLIENT.address), node.kit.journal.totals.paid
        assert book.owed == book.earned == 3 * 7 * 3 * ASK, "forward once, backward twice"
        assert paid.tokens_countersigned == 3 * 7 * 3
        assert node.counts.refusals == {}
        assert node.counts.outputs == {"client": 6}


async def test_a_soft_prompt_learns_through_two_nodes(two_nodes: RealNodes, tmp_path: Path) -> None:
    model = model_of(two_nodes, tmp_path)
    torch.manual_seed(5)
    ids, labels = torch.randint(3, 60, (2, 5)), torch.randint(3, 60, (2,))

    def train() -> list[float]:
        prompt, losses = torch.nn.Parameter(0.1 * torch.randn(4, 32)), []
        optimizer = torch.optim.Adam([prompt], lr=0.1)
        with model.blocks(tokens=9, sequences=2, rounds=4) as blocks:
            for _ in range(6):
                hidden = blocks(torch.cat([prompt.expand(2, -1, -1), model.embed(ids)], dim=1))
                loss = torch.nn.functional.cross_entropy(model.logits(hidden[:, -1]), labels)
                optimizer.zero_grad()
                (prompt.grad,) = torch.autograd.grad(loss, prompt)
                optimizer.step()
                losses.append(loss.item())
        return losses

    losses = await asyncio.to_thread(train)
    assert losses == sorted(losses, reverse=True), losses
    for node in two_nodes.nodes:
        assert node.kit.journal.totals.paid.tokens_countersigned == 6 * 2 * 9 * 3


async def test_a_node_that_goes_away_between_the_passes_is_told(two_nodes: RealNodes, tmp_path: Path) -> None:
    """There is no other node for its blocks: the error names the one that went away."""
    model = model_of(two_nodes, tmp_path)

    def train() -> None:
        with model.blocks(tokens=4) as blocks:
            loss = blocks(torch.randn(1, 4, 32, requires_grad=True)).sum()
            two_nodes.nodes[1].kit.host._daemon.child.kill()
            loss.backward()

    with pytest.raises(SwarmError, match=two_nodes.nodes[1].kit.signer.address):
        await asyncio.to_thread(train)


async def test_sequences_beyond_a_nodes_limit_are_refused_before_any_session(
    two_nodes: RealNodes, tmp_path: Path
) -> None:
    model = model_of(two_nodes, tmp_path)
    assert two_nodes.nodes[0].offer.limits.rows == 16

    def train() -> None:
        with model.blocks(tokens=17) as blocks:
            blocks(torch.randn(1, 17, 32))

    with pytest.raises(SwarmError, match=r"17 positions.*16 positions a step"):
        await asyncio.to_thread(train)
    assert all(node.registry.occupants == [] for node in two_nodes.nodes)


async def test_a_client_whose_account_is_short_of_the_sum_it_owes_signs_on(
    two_nodes: RealNodes, tmp_path: Path
) -> None:
    """The node knows of steps that the client took for lost: the step is signed anew, and paid once."""
    model, book = model_of(two_nodes, tmp_path), two_nodes.client.payer.book
    operators = [node.offer.operator for node in two_nodes.nodes]

    def train() -> None:
        with model.blocks(tokens=5) as blocks:
            blocks(torch.randn(1, 5, 32))
            for operator in operators:
                book.learn(operator, Credits(0))
            blocks(torch.randn(1, 5, 32))

    await asyncio.to_thread(train)
    for node in two_nodes.nodes:
        assert node.kit.journal.book(CLIENT.address).owed == 10 * ASK


async def test_an_adapter_is_what_peft_makes_of_it_end_to_end(two_nodes: RealNodes, tmp_path: Path) -> None:
    """Prefill, decode, training and `generate` through two nodes, each with its part of the adapter; then without."""
    folder = write_lora(two_nodes.folder, tmp_path / "lora", ["q_proj", "v_proj", "up_proj"], lora_alpha=40)
    theirs, client = with_lora(two_nodes.folder, folder), two_nodes.client
    client._opener.adapter = LoraAdapter.load(folder, Anatomy.read(two_nodes.folder))
    rows = torch.randn(20, 32)
    pipeline = await client.open(40)
    got = [await pipeline.forward(rows[:16]), *[await pipeline.forward(rows[at : at + 1]) for at in range(16, 20)]]
    await pipeline.close()
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(got), last_states(theirs, 2, rows[None])[0, 15:], rtol=1e-4, atol=1e-5)
    model, hidden = model_of(two_nodes, tmp_path), torch.randn(2, 6, 32)
    ids = torch.tensor([[5, 9, 20, 33]])

    def use() -> tuple[torch.Tensor, torch.Tensor]:
        with model.blocks(tokens=6) as blocks:
            trained = gradient(lambda x: model.logits(blocks(x)), hidden)
        return trained, model.generate(ids, max_new_tokens=6, do_sample=False)

    trained, text = await asyncio.to_thread(use)
    expected = gradient(lambda x: theirs(inputs_embeds=x).logits, hidden)
    torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(text, theirs.generate(input_ids=ids, max_new_tokens=6, do_sample=False))
    client._opener.adapter = None
    pipeline = await client.open(40)
    plain = await pipeline.forward(rows[:16], rows="all")
    await pipeline.close()
    assert torch.allclose(plain, two_nodes.expected(rows[:16]), atol=1e-5)
    assert all(node.counts.refusals == {} for node in two_nodes.nodes)


async def test_a_lost_adapter_is_loaded_again_in_a_new_session(two_nodes: RealNodes, tmp_path: Path) -> None:
    folder = write_lora(two_nodes.folder, tmp_path / "lora", ["q_proj"])
    theirs, client = with_lora(two_nodes.folder, folder), two_nodes.client
    client._opener.adapter = LoraAdapter.load(folder, Anatomy.read(two_nodes.folder))
    model, hidden, room = model_of(two_nodes, tmp_path), torch.randn(1, 6, 32), two_nodes.nodes[1].engine.room
    room._idle = 0.0

    def use() -> torch.Tensor:
        with model.blocks(tokens=6) as blocks:
            x = hidden.clone().requires_grad_(True)
            out = blocks(x)
            assert room._evict_one(room.seats[0].lane, room._clock())
            return torch.autograd.grad((model.logits(out) ** 2).mean(), x)[0]

    expected = gradient(lambda x: theirs(inputs_embeds=x).logits, hidden)
    torch.testing.assert_close(
        await asyncio.to_thread(use), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


async def test_an_adapter_that_a_node_does_not_take_is_told(two_nodes: RealNodes, tmp_path: Path) -> None:
    folder = write_lora(two_nodes.folder, tmp_path / "lora", ["q_proj"], r=100)
    two_nodes.client._opener.adapter = LoraAdapter.load(folder, Anatomy.read(two_nodes.folder))
    with pytest.raises(NodeRefusal, match=r"too high a rank.*at most 64, got 100"):
        await two_nodes.client.open(40)
    for node in two_nodes.nodes:
        await emptied(node)


@pytest.mark.parametrize("change", [changed_output, changed_rows, changed_signature, more_tokens])
@pytest.mark.parametrize("who", [0, 1])
async def test_a_lie_about_a_backward_pass_is_never_countersigned(
    two_nodes: RealNodes, tmp_path: Path, change: Callable[[AnyMessage], AnyMessage], who: int
) -> None:
    """P13, P17: the forward was honest; the receipt of the backward gets no voucher, and no gradient is believed."""
    model, peer = model_of(two_nodes, tmp_path), two_nodes.nodes[who].offer.peer

    def train() -> None:
        with model.blocks(tokens=4) as blocks:
            loss = blocks(torch.randn(1, 4, 32, requires_grad=True)).sum()
            two_nodes.host.doctor = lambda sender, message: change(message) if sender == peer else message
            loss.backward()

    with pytest.raises(NodeLied, match=two_nodes.nodes[who].kit.signer.address):
        await asyncio.to_thread(train)
    assert two_nodes.nodes[who].kit.journal.totals.paid.tokens_countersigned <= 4
