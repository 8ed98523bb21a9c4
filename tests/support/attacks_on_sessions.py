"""Attacks by sessions that anybody may open: repeats, seats, tensors, routes, dust, and a chain that is away."""

import asyncio
import contextlib
import secrets
import time
from typing import Any, cast

from hivemint.protocol.errors import LinkClosed
from hivemint.protocol.ids import Credits, SessionId, Step
from hivemint.swarm.host import PUSH
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.messages import (
    MAX_TENSOR,
    MIB,
    Cancel,
    Code,
    Neighbours,
    Peer,
    Previous,
    Refused,
    Tensor,
    TensorHead,
)
from support.gang import ANSWER, TROUBLE, Pace, Target, Told, each, gang, rows, wallet
from support.node_client import NodeSession
from support.thin_peer import ThinLink, ThinPeer


async def repeats(at: Target, told: Told) -> None:
    """64 donated sessions ask again for a step that was answered, and send no tensor: 8,000 times a second."""
    async with gang(at, told) as mine:
        pace, ids = Pace(8000), [await mine.peer() for _ in range(4)]

        async def one(number: int) -> None:
            try:
                session = await mine.session(peer=ids[number % len(ids)])
                made = session.request(1, start=0, rows="all")
                async with asyncio.timeout(ANSWER):
                    await session.take(made, rows(at, 1))
                cast(ThinLink, session.link).deaf = True
                while True:
                    await pace.turn()
                    await session.send(made)
                    told["repeats"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.5)

        await each(64, one)


async def seats(at: Target, told: Told) -> None:
    """Idle sessions of 300 ids, the paid ones for as little as is taken; a cancel now and then shows life."""
    async with gang(at, told) as mine:
        price, pace = at.ask * len(at.blocks), Pace(60)

        async def one(number: int) -> None:
            await pace.turn()
            client = at.wallets[number % len(at.wallets)] if at.wallets and number % 3 else None
            try:
                peer = await mine.peer()
                if client is None:
                    session = await mine.session(peer=peer)
                elif told["dust"] < 20:
                    told["dust"] += 1
                    session = await mine.session(client, peer, price=price, max_tokens=1, max_amount=Credits(0))
                else:
                    session = await mine.session(client, peer, price=price, max_tokens=1, max_amount=Credits(price))
                cast(ThinLink, session.link).deaf = True
                while not session.link.closed:
                    await asyncio.sleep(5)
                    await session.link.send(Cancel(Step(1)))
                told["sent away"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(2)
            await mine.drop(peer)

        await each(300, one)


async def tensors(at: Target, told: Told) -> None:
    """Inputs of steps that wait for an earlier one's; outputs pushed ahead of any request; frames of 64 MiB."""
    async with gang(at, told) as mine:
        full, pace = rows(at, at.max_rows), Pace(40)

        async def waiting(number: int) -> None:
            """The first step's input never comes, the others' do."""
            try:
                session = await mine.session(max_tokens=at.max_rows + 1)
                cast(ThinLink, session.link).deaf = True
                await session.send(session.request(1, start=0))
                for step in range(2, 6):
                    await pace.turn()
                    request = session.request(at.max_rows, start=1, step=step)
                    await session.send(request, full)
                    told["behind"] += 1
                while not session.link.closed:
                    await pace.turn()
                    await session.link.send(Tensor(TensorHead(Step(9)), bytes(at.max_rows * at.hidden * 4)))
                    told["unasked"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.5)

        async def pushed(number: int) -> None:
            peer = await mine.peer()
            try:
                session, source = await mine.session(peer=peer), SessionId(secrets.token_bytes(32))
                await session.link.send(Neighbours(previous=_previous(peer, source, session)))
                out = await mine.link(peer, PUSH)
                for step in range(1, 200):
                    await pace.turn()
                    await out.send(Tensor(TensorHead(Step(step), source), bytes(at.max_rows * at.hidden * 4)))
                    told["pushed"] += 1
                head = (MAX_TENSOR - 1000).to_bytes(4, "big") + bytes((Tensor.NUMBER,))
                with contextlib.suppress(LinkClosed):
                    await out.pour(head + bytes(64 * MIB - 5000))
                told["cut at the head"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.5)
            await mine.drop(peer)

        await asyncio.gather(each(16, waiting), each(8, pushed))


def _previous(peer: ThinPeer, source: SessionId, session: NodeSession) -> Any:
    return Previous(bytes(peer.key.peer_id), session.session.node, source)


async def routes(at: Target, told: Told) -> None:
    """16 donated sessions name next nodes at places of the stranger's choice, as often as they may."""
    places = ("/ip4/127.0.0.1/tcp/9", "/ip4/10.0.0.1/tcp/22", "/ip4/169.254.169.254/tcp/80", "/dns4/localhost/tcp/9")
    async with gang(at, told) as mine:

        async def one(number: int) -> None:
            try:
                session = await mine.session()
                while True:
                    await asyncio.sleep(0.26)
                    to = Peer(bytes(PeerKey.generate().peer_id), (places[number % len(places)],))
                    await session.link.send(Neighbours(next=to))
                    async with asyncio.timeout(ANSWER):
                        answer = await session.link.receive()
                    refused = isinstance(answer, Refused) and answer.code is Code.MISSING
                    told["no such neighbour" if refused else "reached"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.5)

        await each(16, one)


async def dust(at: Target, told: Told) -> None:
    """40 sessions a second of wallets that nobody knows, or that hold a few wei: a token each, and gone."""
    async with gang(at, told) as mine:
        pace = Pace(40)
        price = at.ask  # of one block

        async def one(number: int) -> None:
            await pace.turn()
            paid = at.wallets and number % 2
            client = at.wallets[number % len(at.wallets)] if paid else wallet()
            terms: dict[str, Any] = {"end_block": at.blocks.start + 1, "max_tokens": 1, "price": price if paid else 0}
            peer = await mine.peer()
            try:
                session = await mine.session(client, peer, **terms, max_amount=Credits(price if paid else 0))
                async with asyncio.timeout(ANSWER):
                    await session.take(session.request(1, start=0, rows="all"), rows(at, 1))
                told["steps"] += 1
            except TROUBLE as error:
                mine.no(error)
            await mine.drop(peer)

        await each(16, one)


async def no_chain(at: Target, told: Told) -> None:
    """While the chain does not answer: sessions of wallets that must be looked up, 40 a second; what is said of it."""
    async with gang(at, told) as mine:
        pace, price = Pace(40), at.ask * len(at.blocks)

        async def one(number: int) -> None:
            await pace.turn()
            peer = await mine.peer()
            try:
                asked = time.monotonic()
                await mine.session(peer=peer, price=price, max_tokens=1)
            except TROUBLE as error:
                mine.no(error)
            told["slow answers"] += time.monotonic() - asked > 1.0
            await mine.drop(peer)

        await each(64, one)
