"""Attacks that need no session: passing identities, the directory, unfinished frames, a thousand ids."""

import asyncio
import contextlib
import secrets
import time
from typing import cast

from hivemint.protocol.ids import BlockIndex, Credits, ModelId, Step
from hivemint.swarm.daemon import split_address
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.link import Link
from hivemint.swarm.messages import (
    MIB,
    Cancel,
    Open,
    StepReceipt,
)
from hivemint.swarm.records import NodeRecord, sign_record
from support.gang import ANSWER, TROUBLE, Pace, Target, Told, each, gang, wallet
from support.node_client import NodeSession, RefusedError
from support.thin_peer import ThinLink


async def identities(at: Target, told: Told) -> None:
    """A new id 40 times a second: pings, a session by a forged signature, gone. 40 more use up every free budget."""
    async with gang(at, told) as mine:
        pace = Pace(40)

        async def passer_by(number: int) -> None:
            await pace.turn()
            try:
                peer = await mine.peer()
                link = await mine.link(peer)
                for _ in range(40):
                    link.ping()
                with contextlib.suppress(RefusedError):
                    async with asyncio.timeout(ANSWER):
                        await NodeSession.open(cast(Link, link), at.domain, wallet(), signer=wallet(), expiry=at.expiry)
                told["forged"] += 1
                await mine.drop(peer)
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.2)

        async def nuisance(number: int) -> None:
            try:
                session = await mine.session()
                cast(ThinLink, session.link).deaf = True
                for _ in range(10_000):
                    await asyncio.sleep(0.06)
                    await session.link.send(Cancel(Step(1)))
                    told["cancels"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.5)

        await asyncio.gather(each(8, passer_by), each(40, nuisance))


async def directory(at: Target, told: Told) -> None:
    """400 requests a second for keys, now and then 20,000 of them at once; records of 300 free keys, and damaged ones.

    One libp2p id by a real daemon; the 300 ids are those that the records name.
    """
    import msgspec
    from hivemind.p2p import P2PDaemonError, P2PHandlerError, PeerID
    from hivemind.proto import dht_pb2

    host = await Host.start(HostSettings(at.network, listen=(), bootstrap=at.bootstrap))
    try:
        node = split_address(at.addresses[0])[0]
        await host._daemon.connect(node, at.addresses)
        client, pace, pack = host._daemon.p2p._client, Pace(400), msgspec.msgpack.encode
        place = Keys(at.network, None).place(ModelId(at.model_id), BlockIndex(at.blocks.start))
        junk = await asyncio.to_thread(_records, at, 300)
        huge = dht_pb2.FindRequest(keys=[number.to_bytes(20, "big") for number in range(20_000)]).SerializeToString()
        many = dht_pb2.FindRequest(keys=[number.to_bytes(20, "big") for number in range(16)]).SerializeToString()

        def store(number: int) -> bytes:
            peer, data = junk[number % len(junk)]
            if number % 2:
                data = data[:50] + secrets.token_bytes(4) + data[54:]
            request = dht_pb2.StoreRequest(
                keys=[place],
                subkeys=[pack(peer)],
                values=[pack(data)],
                expiration_time=[time.time() + 50],
                in_cache=[False],
            )
            return bytes(request.SerializeToString())

        async def one(number: int) -> None:
            await pace.turn()
            told["asked"] += 1
            turn = told["asked"]
            find = huge if turn % 200 == 1 else many
            method, raw = ("rpc_store", store(turn)) if turn % 4 == 0 else ("rpc_find", find)
            try:
                async with asyncio.timeout(ANSWER):
                    await client.call_unary_handler(PeerID(bytes(node)), f"DHTProtocol.{method}", raw)
                told["answered"] += 1
            except (P2PHandlerError, P2PDaemonError):
                told["declined"] += 1
            except TimeoutError:
                told["unanswered"] += 1

        await each(32, one)
    finally:
        await host.close()


def _records(at: Target, count: int) -> list[tuple[bytes, bytes]]:
    """(peer id, record) of nodes that are not there."""
    made = []
    for _ in range(count):
        operator, key = wallet(), PeerKey.generate()
        record = NodeRecord(
            network=at.network,
            model_id=at.model_id,
            first_block=BlockIndex(at.blocks.start),
            end_block=BlockIndex(at.blocks.stop),
            peer=bytes(key.peer_id),
            operator=operator.address,
            numerics=("fp32/fp32/fp32",),
            ask=Credits(1),
            addresses=("/ip4/127.0.0.1/tcp/9",),
            tokens_per_s=1e6,
            expires=time.time() + 250,
        )
        made.append((bytes(key.peer_id), sign_record(record, operator, key).to_bytes()))
    return made


async def half_frames(at: Target, told: Told) -> None:
    """200 frames that never end, a byte each quarter of a second; every fifth is of the largest type there is."""
    async with gang(at, told) as mine:
        ids = [await mine.peer() for _ in range(10)]

        async def one(number: int) -> None:
            try:
                link = await mine.link(ids[number % len(ids)])
                mine.links.discard(link)  # a ping in the middle of a frame would be part of it
                link.deaf = True
                kind, size = (StepReceipt, MIB - 10) if number % 5 == 0 else (Open, Open.LIMIT - 10)
                await link.pour((size + 1).to_bytes(4, "big") + bytes((kind.NUMBER,)) + bytes(size - 1000))
                for _ in range(999):
                    await asyncio.sleep(0.25)
                    link.write(b"\0")
                    told["bytes"] += 1
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(0.5)

        await each(200, one)


async def sybils(at: Target, told: Told) -> None:
    """1,000 ids at once, each with a connection, a link that it keeps, and a try for a donated session every 20 s."""
    async with gang(at, told) as mine:
        pace = Pace(60)

        async def one(number: int) -> None:
            await pace.turn()
            peer = await mine.peer()
            try:
                link = await mine.link(peer)
                link.deaf = True
                while not link.closed:
                    with contextlib.suppress(RefusedError):
                        session = await mine.session(peer=peer)
                        cast(ThinLink, session.link).deaf = True
                    await asyncio.sleep(20)
            except TROUBLE as error:
                mine.no(error)
                await asyncio.sleep(2)
            await mine.drop(peer)

        await each(1000, one)
