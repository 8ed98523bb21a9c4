"""The swarm's directory: node records in hivemind's DHT, which runs in this event loop, behind a desk (`desk`).

Key = hash of (network, modelId, block), keyed with the swarm's key where there is one; subkey = the node's peer id;
value = the signed record. Every DHT peer checks a record before it stores or returns it, so nobody can write under
another's peer id, under a block that its record does not name, or past the record's own expiry.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from hivemint.protocol.errors import ProofError, SwarmError
from hivemint.protocol.ids import ModelId, PeerId
from hivemint.swarm.daemon import Daemon, split_address
from hivemint.swarm.dht.asker import Asker
from hivemint.swarm.dht.clock import SwarmClock
from hivemint.swarm.dht.desk import Desk, node_id
from hivemint.swarm.dht.keys import Keys
from hivemint.swarm.dht.known import KnownPeers
from hivemint.swarm.dht.pings import Pings
from hivemint.swarm.identity import peer_text
from hivemint.swarm.records import CheckedRecord, NodeRecord, SignedRecord

CALL_LIMIT = 12.0
RPC_LIMIT = 3.0
CONNECT_LIMIT = 5.0
REJOIN_EVERY = 10.0
MEASURE_EVERY = 6
"""Rounds of rejoining between looks at what time it is for others; a clock that was set is looked at in the next."""
MEET_EVERY = 30
"""Rounds of rejoining between looks for peers to remember."""
MOST_TRIED, MOST_REMEMBERED, ADDRESSES_A_PEER = 16, 32, 2
MOST_UNREGISTERED = 64
"""Records without stake that a look-up gives, where a registry tells."""


class Directory:
    """Made by `join`; `keep_joined` runs beside it. Every call has a time limit and raises SwarmError."""

    def __init__(
        self, daemon: Daemon, node: Any, keys: Keys, bootstrap: tuple[str, ...], desk: Desk, known: KnownPeers
    ) -> None:
        self.standing, self.clock = desk.standing, desk.clock
        self.pings = Pings(daemon, node, desk)
        self._known = known
        self._published: NodeRecord | None = None
        self._daemon, self._node, self._keys, self._bootstrap = daemon, node, keys, bootstrap

    @classmethod
    async def join(
        cls, daemon: Daemon, keys: Keys, bootstrap: tuple[str, ...], desk: Desk, known: KnownPeers, *, client_only: bool
    ) -> "Directory":
        """Raises SwarmError if bootstrap peers are named and neither they nor `known` ones answer.

        `desk` stands before what others ask.
        """
        from hivemind.dht.node import DHTNode
        from hivemind.dht.routing import DHTID

        reached = await _enter(daemon, bootstrap, known)
        async with _limited("Joining the DHT"):
            daemon.desk = desk
            node = await DHTNode.create(
                p2p=daemon.p2p,
                node_id=DHTID.from_bytes(node_id(PeerId(daemon.p2p.peer_id.to_bytes()))),
                initial_peers=reached or None,
                client_mode=client_only,
                record_validator=_validator(keys, desk.clock),
                ensure_bootstrap_success=False,
                strict=False,
                wait_timeout=RPC_LIMIT,
                cache_locally=False,
                cache_on_store=False,
                cache_nearest=0,
            )
        node.protocol.storage = desk.places
        node.protocol.call_find = Asker(node.protocol, keys, desk.standing, desk.clock)
        directory = cls(daemon, node, keys, bootstrap, desk, known)
        await directory._measure()
        return directory

    async def publish(self, signed: SignedRecord) -> None:
        """Store the record under every block of its span. Raises ProofError for a record that others would refuse."""
        record = self.clock.check(signed.to_bytes()).record
        self._keys.check_network(record)
        self._published = self._published if record.leaving else record
        names = [self._keys.name(ModelId(record.model_id), block) for block in record.blocks]
        async with _limited("Publishing the node's record"):
            stored = await self._node.store_many(
                names, [signed.to_bytes()] * len(names), record.expires, subkeys=[bytes(record.peer)] * len(names)
            )
        # A key's answer is that of the last replica asked, be it hostile: so look for the record itself.
        if not any(stored.values()) and not await self._has(record):
            raise SwarmError(
                "The DHT did not take the node's record",
                why="no peer stored it, or a newer one is there",
                next_step=self.clock.trouble() or "check this machine's clock and the bootstrap peers",
            )

    async def _has(self, record: NodeRecord) -> bool:
        found = await self._newest(ModelId(record.model_id), range(record.first_block, record.first_block + 1))
        return any(one.record == record for one in found)

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        """Checked records of this network that name one of `blocks`: the newest of each peer, the most stake first,
        without the nodes that are leaving.

        Where a registry tells who is registered, at most 64 of those that are not.
        """
        return self._best([one for one in await self._newest(model_id, blocks) if not one.record.leaving])

    async def _newest(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        names = [self._keys.name(model_id, block) for block in blocks]
        async with _limited("Asking the DHT"):
            found = await self._node.get_many(names, sufficient_expiration_time=float("inf"))
        texts: set[tuple[bytes, bytes]] = set()
        for answer in found.values():
            entries = answer.value if answer is not None and isinstance(answer.value, dict) else {}
            texts.update((peer, entry.value) for peer, entry in entries.items() if _is_bytes(peer, entry.value))
        checked = await asyncio.to_thread(_checked, texts, self.clock)
        newest: dict[PeerId, CheckedRecord] = {}
        for one in checked:
            record = one.record
            if record.network != self._keys.network or record.model_id != model_id:
                continue
            if record.first_block >= blocks.stop or record.end_block <= blocks.start:
                continue
            known = newest.get(one.peer)
            if known is None or known.record.expires < record.expires:
                newest[one.peer] = one
        return list(newest.values())

    def _best(self, found: list[CheckedRecord]) -> list[CheckedRecord]:
        ranked = sorted(found, key=lambda one: self.standing.stake(one.record), reverse=True)
        if self.standing.registry is not None:
            registered = sum(self.standing.stake(one.record) > 0 for one in ranked)
            ranked = ranked[: registered + MOST_UNREGISTERED]
        for one in ranked[:MOST_REMEMBERED]:
            end = f"/p2p/{peer_text(one.peer)}"
            self._known.remember([text for text in one.record.addresses if text.endswith(end)][:ADDRESSES_A_PEER])
        return ranked

    async def keep_joined(self) -> None:
        """For ever: bring back bootstrap peers that went away and returned, and remember who else is there."""
        rounds = 0
        while True:
            await asyncio.sleep(REJOIN_EVERY)
            table = self._node.protocol.routing_table
            alone = not table.peer_id_to_uid
            for address in (*self._bootstrap, *(self._known.addresses()[:MOST_TRIED] if alone else ())):
                await self._bring_back(address)
            rounds += 1
            if rounds % MEASURE_EVERY == 0 or self.clock.stepped or not self.clock.votes:
                await self._measure()
            if rounds % MEET_EVERY == 1:
                await self._meet()
            await asyncio.to_thread(self._known.save)

    async def _bring_back(self, address: str) -> None:
        from hivemind.p2p import PeerID

        peer = PeerID(bytes(split_address(address)[0]))
        if self._node.protocol.routing_table.get(peer_id=peer) is None and await _reach(self._daemon, address) is None:
            with contextlib.suppress(SwarmError):
                async with _limited("Asking a bootstrap peer"):
                    await self._node.protocol.call_ping(peer)

    async def _measure(self) -> None:
        """Bootstrap peers that are there are asked for their time first: the network's file names them."""
        from hivemind.p2p import PeerID

        table = self._node.protocol.routing_table
        named = [split_address(address)[0] for address in self._bootstrap]
        await self.pings.measure([peer for peer in named if table.get(peer_id=PeerID(bytes(peer))) is not None])

    async def _meet(self) -> None:
        """A node looks up its own model now and then: these are the peers to return to."""
        record = self._published
        if record is not None:
            with contextlib.suppress(SwarmError):
                await self.find(ModelId(record.model_id), range(record.end_block + 1))

    async def close(self) -> None:
        self._known.save()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._node.shutdown()


def _validator(keys: Keys, clock: SwarmClock) -> Any:
    from hivemind.dht.validation import DHTRecord, RecordValidatorBase

    class NodeRecords(RecordValidatorBase):  # type: ignore[misc]
        """The DHT asks before it stores a value for others, and before it believes one."""

        def validate(self, record: DHTRecord) -> bool:
            try:
                value = msgspec.msgpack.decode(record.value, type=bytes)
                subkey = msgspec.msgpack.decode(record.subkey, type=bytes)
                keys.check_place(clock.check(value).record, bytes(record.key), subkey, record.expiration_time)
            except (ProofError, msgspec.MsgspecError, UnicodeDecodeError):
                return False
            return True

    return NodeRecords()


async def _enter(daemon: Daemon, bootstrap: tuple[str, ...], known: KnownPeers) -> list[str]:
    """The addresses that answer: of the bootstrap peers, else of those that were met before. Raises SwarmError."""
    problems = await asyncio.gather(*(_reach(daemon, address) for address in bootstrap))
    reached = [address for address, problem in zip(bootstrap, problems, strict=True) if problem is None]
    if reached or not bootstrap:
        return reached
    tried = [address for address in known.addresses() if address not in bootstrap][:MOST_TRIED]
    answers = await asyncio.gather(*(_reach(daemon, address) for address in tried))
    reached = [address for address, problem in zip(tried, answers, strict=True) if problem is None]
    if not reached:
        before = [f"nor does any of {len(tried)} peers that were met before"] if tried else []
        named = [f"{address}: {problem}" for address, problem in zip(bootstrap, problems, strict=True)]
        raise SwarmError(
            "No bootstrap peer answers",
            why="; ".join(named + before),
            next_step="check the addresses in the network file, and that a bootstrap peer runs",
        )
    return reached


async def _reach(daemon: Daemon, address: str) -> str | None:
    """None, or what is wrong with this bootstrap peer."""
    try:
        peer, place = split_address(address)
        async with asyncio.timeout(CONNECT_LIMIT):
            await daemon.connect(peer, (place,))
    except TimeoutError:
        return f"no answer within {CONNECT_LIMIT:.0f} s"
    except SwarmError as error:
        return error.why or error.what
    return None


@contextlib.asynccontextmanager
async def _limited(what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(CALL_LIMIT):
            yield
    except TimeoutError:
        raise SwarmError(f"{what} took too long", why=f"waited {CALL_LIMIT:.0f} s") from None


def _is_bytes(*values: object) -> bool:
    return all(isinstance(value, bytes) for value in values)


def _checked(texts: set[tuple[bytes, bytes]], clock: SwarmClock) -> list[CheckedRecord]:
    good = []
    for peer, text in texts:
        with contextlib.suppress(ProofError):
            one = clock.check(text)
            if one.peer == peer:
                good.append(one)
    return good
