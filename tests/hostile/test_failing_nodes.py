"""What a node gains by failing in the middle of a text, and whom it takes with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from hivemint.client.pipeline import Misled
from hivemint.client.sessions.speeds import Allowance, Speeds
from hivemint.node.server import Node
from hivemint.protocol.errors import ProtocolError
from hivemint.swarm.messages import AnyMessage, Code, Refused, StepReceipt, Tensor
from hivemint.swarm.rows import to_wire
from support.lies import waits
from support.patient import Patient
from support.real_nodes import ASK, RealNodes, real_nodes
from support.tiny import tiny_model


def node_of(net: RealNodes, pipeline: Any, hop: int) -> Node:
    return next(one for one in net.nodes if one.offer.peer == pipeline.sessions[hop].leg.peer)


def aside(net: RealNodes, *nodes: Node) -> int:
    return sum(one.offer.peer in net.client.nodes._left_out() for one in nodes)


async def test_a_node_that_takes_no_neighbours_is_left_whoever_complains_of_it(tmp_path: Path) -> None:
    """Of the two ends of a link that does not come about, the one that can be replaced is."""
    folder = tiny_model(tmp_path / "tiny")
    async with real_nodes(folder, tmp_path, spans=[*[(0, 1)] * 3, *[(1, 2)] * 2]) as net:
        *firsts, evil, good = net.nodes
        record = evil.record
        evil.record = lambda: msgspec.structs.replace(record(), tokens_per_s=1e5)  # type: ignore[method-assign]
        await evil._publish()
        gate: Any = evil.kit.host._gate
        check, neighbours = gate.check, {one.offer.peer for one in firsts}

        def refuse(peer: Any, now: float, prefix: Any = None) -> None:
            if peer in neighbours:
                raise ProtocolError("not you")
            check(peer, now, prefix)

        gate.check = refuse
        pipeline = await net.client.open(20)
        assert node_of(net, pipeline, 1) is good
        assert (aside(net, evil), aside(net, *firsts)) == (1, 1)
        await pipeline.forward(torch.randn(4, 32))
        await pipeline.close()


async def test_a_receipt_that_is_withheld_costs_the_hops_behind_it_no_more_than_its_step(tmp_path: Path) -> None:
    """They have signed for an input that nobody knows, and begin again where they stood before it."""
    layers, length = 4, 40
    folder = tiny_model(tmp_path / "tiny", num_hidden_layers=layers)
    spans = [(0, 1), (0, 1), *((at, at + 1) for at in range(1, layers))]
    async with real_nodes(folder, tmp_path, spans=spans, wrap=Patient) as net:
        net.client.settings = net.client.settings.model_copy(update={"step_floor": 0.5})
        pipeline, rows, asked = await net.client.open(60), torch.randn(length + 4, 32), list[int]()
        wanted = net.expected(rows)
        await pipeline.forward(rows[:length])
        await pipeline.settle()
        pipeline.admit = asked.append
        net.host.peer = pipeline.sessions[0].leg.peer
        net.host.treat = lambda message: None if isinstance(message, StepReceipt) else message
        before = pipeline.signed
        for at in range(length, length + 4):
            got = await pipeline.forward(rows[at : at + 1])
            assert torch.allclose(got, wanted[at : at + 1], atol=1e-5)
        assert pipeline.paid_again <= length + 1 + layers - 1
        assert pipeline.signed - before <= sum(asked) + 4 * layers * ASK, "the cap was asked for all of it"
        for node in net.nodes[2:]:
            assert net.client.payer.book.total(node.kit.signer.address) <= (length + 6) * ASK
        await pipeline.close()


@pytest.mark.parametrize("dies", [False, True])
async def test_while_a_slow_node_is_left_the_one_behind_it_fails(tmp_path: Path, dies: bool) -> None:
    folder = tiny_model(tmp_path / "tiny", num_hidden_layers=3)
    async with real_nodes(folder, tmp_path, spans=[(at, at + 1) for at in range(3) for _ in range(2)]) as net:
        net.client.speeds = Speeds(Allowance(times=1.0, floor=0.2))
        pipeline, rows = await net.client.open(60), torch.randn(30, 32)
        wanted = net.expected(rows)
        await pipeline.forward(rows[:10])
        await pipeline.settle()
        slow, behind = node_of(net, pipeline, 1), node_of(net, pipeline, 2)
        occupant: Any
        (occupant,) = behind.registry.occupants

        async def fails(steps: Any, neighbours: Any) -> None:
            if dies:
                occupant._link.abort("gone")
            else:
                await occupant._refuse(Refused(Code.CONFLICT, "no"))

        occupant._on_route = fails  # its client is about to give it another neighbour
        let_go = waits(slow, 0.6)
        for at in range(10, 30):
            got = await pipeline.forward(rows[at : at + 1])
            assert torch.allclose(got, wanted[at : at + 1], atol=1e-5)
        let_go()
        assert aside(net, slow, behind) == 2
        await pipeline.close()


def no_rows(message: AnyMessage) -> AnyMessage:
    return msgspec.structs.replace(message, rows=b"") if isinstance(message, StepReceipt) else message


def other_tokens(message: AnyMessage) -> AnyMessage:
    if not isinstance(message, StepReceipt):
        return message
    body = msgspec.structs.replace(message.receipt.body, tokens=message.receipt.body.tokens + 1)
    return msgspec.structs.replace(message, receipt=msgspec.structs.replace(message.receipt, body=body))


def other_head(message: AnyMessage) -> AnyMessage:
    if not isinstance(message, StepReceipt):
        return message
    body = msgspec.structs.replace(message.receipt.body, head=bytes(32))
    return msgspec.structs.replace(message, receipt=msgspec.structs.replace(message.receipt, body=body))


@pytest.mark.parametrize(("treat", "both"), [(no_rows, False), (other_tokens, False), (other_head, True)])
async def test_what_is_wrong_by_itself_is_laid_on_nobody_else(
    tmp_path: Path, treat: Callable[[AnyMessage], AnyMessage], both: bool
) -> None:
    folder = tiny_model(tmp_path / "tiny", num_hidden_layers=3)
    spans = [(0, 1), (0, 1), (2, 3), (1, 2), (1, 2)]
    async with real_nodes(folder, tmp_path, spans=spans, wrap=Patient) as net:
        pipeline, rows = await net.client.open(50), torch.randn(30, 32)
        await pipeline.forward(rows[:20])
        before, evil = node_of(net, pipeline, 0), node_of(net, pipeline, 1)
        net.host.peer, net.host.treat = evil.offer.peer, treat
        for at in range(20, 24):
            await pipeline.forward(rows[at : at + 1])
        assert (aside(net, evil), aside(net, before)) == (1, int(both))
        assert before.offer.peer not in net.client.nodes._aside.liars()
        await pipeline.close()


def garbage(message: AnyMessage) -> AnyMessage | None:
    if isinstance(message, StepReceipt):
        return None
    return Tensor(message.head, to_wire(torch.full((1, 32), 3.0), "fp32")) if isinstance(message, Tensor) else message


def unsigned(message: AnyMessage) -> AnyMessage | None:
    return None if isinstance(message, StepReceipt) else message


@pytest.mark.parametrize(("treat", "honest"), [(garbage, False), (unsigned, True)])
async def test_a_last_state_without_a_signature_is_compared_with_what_another_computes(
    tmp_path: Path, treat: Callable[[AnyMessage], AnyMessage | None], honest: bool
) -> None:
    folder = tiny_model(tmp_path / "tiny")
    async with real_nodes(folder, tmp_path, spans=[(0, 1), (1, 2), (1, 2)], wrap=Patient) as net:
        pipeline, rows = await net.client.open(50), torch.randn(30, 32)
        wanted = net.expected(rows)
        await pipeline.forward(rows[:20])
        await pipeline.settle()
        evil = node_of(net, pipeline, 1)
        net.host.peer, net.host.treat = evil.offer.peer, treat
        await pipeline.forward(rows[20:21])
        occupant: Any
        for occupant in list(evil.registry.occupants):
            occupant._link.abort("gone")
        if honest:
            got = await pipeline.forward(rows[21:22])
            assert torch.allclose(got, wanted[21:22], atol=1e-5)
        else:
            with pytest.raises(Misled):
                await pipeline.forward(rows[21:22])
        assert aside(net, evil) == 1
        await pipeline.close()
