"""A node moves to where it helps more while a client's text goes on through it: real nodes, links, receipts."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hivemint.client.generation.sequences import Sequence
from hivemint.ledger.books.journal import Journal
from hivemint.node.placement.rule import Placed
from hivemint.node.placement.watch import PlacementWatch
from hivemint.node.server import Kit, Node
from hivemint.node.settings import NodeSettings
from hivemint.node.span.span import Span
from hivemint.protocol.ids import BlockIndex
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host, HostSettings
from support.node_client import FakeFunds
from support.promises import DOMAIN
from support.real_nodes import ASK, MODEL, NETWORK, RealNodes, emptied, real_nodes
from support.tiny import tiny_model

BLOCKS = 4
CROWDED = ((0, 2), (0, 2), (0, 2), (2, 4))
PROMPT, TOKENS = list(range(3, 9)), 40


def words(whole: Any) -> Any:
    """The ends of the model, as a text needs them."""
    return SimpleNamespace(embed=lambda ids, start: whole.get_input_embeddings()(ids).detach())


def next_word(whole: Any, hidden: torch.Tensor) -> int:
    with torch.no_grad():
        return int(whole.lm_head(whole.model.norm(hidden))[-1].argmax())


def by_the_library(whole: Any) -> list[int]:
    ids = list(PROMPT)
    for _ in range(TOKENS):
        with torch.no_grad():
            ids.append(int(whole(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


class Talk:
    """A greedy text, a token after the other."""

    def __init__(self, nodes: RealNodes) -> None:
        self.nodes, self.ids = nodes, list(PROMPT)
        self.text = Sequence(nodes.client, words(nodes.whole), len(PROMPT) + TOKENS)

    async def go_on(self, tokens: int) -> None:
        for _ in range(tokens):
            hidden = await self.text.advance(torch.tensor(self.ids))
            self.ids.append(next_word(self.nodes.whole, hidden))

    @property
    def first_node(self) -> Node:
        """The one that its first blocks are at now."""
        pipeline: Any = self.text._pipeline
        peer = pipeline.sessions[0].leg.peer
        return next(node for node in self.nodes.nodes if node.kit.host.peer_id == peer)


def watch_of(node: Node) -> PlacementWatch:
    own = Placed(node.kit.span.first, node.kit.span.end, 2 * node.engine.gauge.rows_per_s)
    return PlacementWatch(node.kit.host, MODEL, BLOCKS, node.kit.signer.address, own, 2, 0.05)


async def level(*nodes: Node) -> None:
    """They publish the same speed: what a busy machine measures of a tiny model says nothing."""
    for node in nodes:
        node.engine.gauge.rows_per_s = 100.0
        await node._publish()


async def begin_at(span: tuple[int, int], folder: Path, home: Path, boot: tuple[str, ...], who: Signer) -> Node:
    """As `start.running` does after a move, with the same operator."""
    host = await Host.start(HostSettings("test", bootstrap=boot))
    journal = Journal.open(f"sqlite:///{home / 'moved.db'}", DOMAIN, who.address)
    loaded = Span.load(folder, BlockIndex(span[0]), BlockIndex(span[1]))
    kit = Kit(NETWORK, MODEL, loaded, who, host, journal, FakeFunds())
    return await Node.start(kit, NodeSettings.load(ask=ASK, kv_bytes=1 << 22, max_rows=16))


async def test_a_text_goes_on_through_a_move(tmp_path: Path) -> None:
    """Its node takes nobody in, waits, sends it away, and serves elsewhere; the text is the library's, to the token."""
    folder = tiny_model(tmp_path / "tiny", num_hidden_layers=BLOCKS)
    async with real_nodes(folder, tmp_path, spans=CROWDED) as nodes:
        talk = Talk(nodes)
        await talk.go_on(5)
        mover = talk.first_node
        await level(*nodes.nodes)
        watch = watch_of(mover)
        looking = asyncio.create_task(watch.run())
        async with asyncio.timeout(60):
            chosen = await watch.chosen
        looking.cancel()
        assert chosen.span == (2, 4)
        assert chosen.after > chosen.before

        handing = asyncio.create_task(mover.hand_over(0.5))
        await talk.go_on(5)
        assert await handing == 1, "it stayed for the session that it had, to the end of its time"
        going_on = asyncio.create_task(talk.go_on(TOKENS - 10))
        await mover.close()
        others = [node for node in nodes.nodes if node is not mover]
        boot = others[0].kit.host.addresses
        moved = await begin_at(chosen.span, folder, tmp_path, boot, mover.kit.signer)
        await going_on
        assert talk.ids == by_the_library(nodes.whole)
        assert talk.first_node is not mover
        await talk.text.close()

        served = [one.record for one in await nodes.host.find(MODEL, range(BLOCKS))]
        mine = {(one.first_block, one.end_block) for one in served if one.operator == mover.kit.signer.address}
        assert mine == {(2, 4)}, "what it served before is out of the directory"
        await level(moved, *others)
        assert await watch_of(moved).look() is None, "nobody moves again"
        await moved.close()
        await moved.kit.journal.close()
        await moved.kit.host.close()


async def test_a_node_that_moves_waits_for_sessions_to_end_by_themselves(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", num_hidden_layers=BLOCKS)
    async with real_nodes(folder, tmp_path, spans=CROWDED) as nodes:
        talk = Talk(nodes)
        await talk.go_on(3)
        mover = talk.first_node
        handing = asyncio.create_task(mover.hand_over(60))
        await talk.go_on(TOKENS - 3)
        assert not handing.done()
        assert talk.first_node is mover, "the text has ended where it began"
        await talk.text.close()
        assert await handing == 0
        await emptied(mover)
        other = Talk(nodes)
        nodes.client.nodes.forget()
        await other.go_on(1)
        assert other.first_node is not mover, "it takes nobody in any more"
        await other.text.close()
        assert talk.ids == by_the_library(nodes.whole)
