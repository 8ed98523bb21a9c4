"""The swarm's directory: node records in hivemind's DHT, which runs in this event loop.

Key = hash of (network, modelId, block), keyed with the swarm's key where there is one; subkey = the node's peer id;
value = the signed record. Every DHT peer checks a record before it stores or returns it, so nobody can write under
another's peer id, under a block that its record does not name, or past the record's own expiry.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from hashlib import blake2b, sha1
from typing import Any

import msgspec

from hivemint.contracts.errors import ProofError, SwarmError
from hivemint.contracts.ids import ModelId, PeerId
from hivemint.swarm.daemon import Daemon, split_address
from hivemint.swarm.records import CheckedRecord, NodeRecord, SignedRecord, check_record

CALL_LIMIT = 12.0
RPC_LIMIT = 3.0
CONNECT_LIMIT = 5.0
REJOIN_EVERY = 10.0
EXPIRY_SLACK = 1.0


class Directory:
    """Made by `join`; `keep_joined` runs beside it. Every call has a time limit and raises SwarmError."""

    def __init__(self, daemon: Daemon, node: Any, keys: "Keys", bootstrap: tuple[str, ...]) -> None:
        self._daemon, self._node, self._keys, self._bootstrap = daemon, node, keys, bootstrap

    @classmethod
    async def join(cls, daemon: Daemon, keys: "Keys", bootstrap: tuple[str, ...], *, client_only: bool) -> "Directory":
        """Raises SwarmError if bootstrap peers are named and none answers."""
        from hivemind.dht.node import DHTNode

        problems = await asyncio.gather(*(_reach(daemon, address) for address in bootstrap))
        reached = [address for address, problem in zip(bootstrap, problems, strict=True) if problem is None]
        if bootstrap and not reached:
            raise SwarmError(
                "No bootstrap peer answers",
                why="; ".join(f"{address}: {problem}" for address, problem in zip(bootstrap, problems, strict=True)),
                next_step="check the addresses in the network file, and that a bootstrap peer runs",
            )
        async with _limited("Joining the DHT"):
            node = await DHTNode.create(
                p2p=daemon.p2p,
                initial_peers=reached or None,
                client_mode=client_only,
                record_validator=_validator(keys),
                ensure_bootstrap_success=False,
                strict=False,
                wait_timeout=RPC_LIMIT,
                cache_locally=False,
                cache_on_store=False,
                cache_nearest=0,
            )
        return cls(daemon, node, keys, bootstrap)

    async def publish(self, signed: SignedRecord) -> None:
        """Store the record under every block of its span. Raises ProofError for a record that others would refuse."""
        record = check_record(signed.to_bytes()).record
        self._keys.check_network(record)
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
                next_step="check this machine's clock and the bootstrap peers",
            )

    async def _has(self, record: NodeRecord) -> bool:
        found = await self.find(ModelId(record.model_id), range(record.first_block, record.first_block + 1))
        return any(one.record == record for one in found)

    async def find(self, model_id: ModelId, blocks: range) -> list[CheckedRecord]:
        """Checked records of this network that name one of `blocks`: the newest of each peer, in no order."""
        names = [self._keys.name(model_id, block) for block in blocks]
        async with _limited("Asking the DHT"):
            found = await self._node.get_many(names, sufficient_expiration_time=float("inf"))
        texts: set[tuple[bytes, bytes]] = set()
        for answer in found.values():
            entries = answer.value if answer is not None and isinstance(answer.value, dict) else {}
            texts.update((peer, entry.value) for peer, entry in entries.items() if _is_bytes(peer, entry.value))
        checked = await asyncio.to_thread(_checked, texts)
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

    async def keep_joined(self) -> None:
        """For ever: bring back bootstrap peers that went away and returned."""
        from hivemind.p2p import PeerID

        while True:
            await asyncio.sleep(REJOIN_EVERY)
            for address in self._bootstrap:
                peer = PeerID(bytes(split_address(address)[0]))
                if (
                    self._node.protocol.routing_table.get(peer_id=peer) is None
                    and await _reach(self._daemon, address) is None
                ):
                    with contextlib.suppress(SwarmError):
                        async with _limited("Asking a bootstrap peer"):
                            await self._node.protocol.call_ping(peer)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._node.shutdown()


class Keys:
    """Where records of a network lie. With a swarm key the places can't be guessed from outside."""

    def __init__(self, network: str, swarm_key: bytes | None) -> None:
        self.network = network
        self._secret = blake2b(swarm_key or b"", digest_size=32).digest()

    def name(self, model_id: ModelId, block: int) -> bytes:
        """20 bytes."""
        text = msgspec.msgpack.encode((self.network, bytes(model_id), block))
        return blake2b(text, key=self._secret, digest_size=20).digest()

    def check_network(self, record: NodeRecord) -> None:
        if record.network != self.network:
            raise ProofError("A node record is of another network", why=f"{record.network!r}, not {self.network!r}")

    def check_place(self, record: NodeRecord, place: bytes, subkey: bytes, expires: float) -> None:
        """`place` is the DHT's hash of a name. Raises ProofError if the record does not belong there."""
        self.check_network(record)
        if subkey != bytes(record.peer):
            raise ProofError("A node record lies under another peer's id")
        if expires > record.expires + EXPIRY_SLACK:
            raise ProofError("A node record is stored beyond its own expiry")
        model_id = ModelId(record.model_id)
        if not any(
            sha1(self.name(model_id, block), usedforsecurity=False).digest() == place for block in record.blocks
        ):
            raise ProofError("A node record lies under a block that it does not name")


def _validator(keys: Keys) -> Any:
    from hivemind.dht.validation import DHTRecord, RecordValidatorBase

    class NodeRecords(RecordValidatorBase):  # type: ignore[misc]
        """The DHT asks before it stores a value for others, and before it believes one."""

        def validate(self, record: DHTRecord) -> bool:
            try:
                value = msgspec.msgpack.decode(record.value, type=bytes)
                subkey = msgspec.msgpack.decode(record.subkey, type=bytes)
                keys.check_place(check_record(value).record, bytes(record.key), subkey, record.expiration_time)
            except (ProofError, msgspec.MsgspecError, UnicodeDecodeError):
                return False
            return True

    return NodeRecords()


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


def _checked(texts: set[tuple[bytes, bytes]]) -> list[CheckedRecord]:
    good = []
    for peer, text in texts:
        with contextlib.suppress(ProofError):
            one = check_record(text)
            if one.peer == peer:
                good.append(one)
    return good
