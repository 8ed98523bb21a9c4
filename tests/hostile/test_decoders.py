"""Every decoder against bytes of strangers: each raises its own error, or gives something whole; nothing else.

Valid inputs are cut, spliced, flipped and doubled. `make fuzz` runs longer and keeps what broke in `corpus/`.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivemint.model import manifest
from hivemint.protocol.errors import ConfigError, HivemintError, ModelError, ProofError, ProtocolError
from hivemint.protocol.ids import BlockIndex, Credits
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import plain
from hivemint.swarm import messages
from hivemint.swarm.addresses import is_public, prefix_of
from hivemint.swarm.daemon import split_address
from hivemint.swarm.dht import asker, known
from hivemint.swarm.frames import FrameReader, pack
from hivemint.swarm.identity import PeerKey
from hivemint.swarm.lora import read_pairs
from hivemint.swarm.records import NodeRecord, check_record, read_record, sign_record
from support.wire import EVERY_TYPE

CORPUS = Path(__file__).parent / "corpus"
SECONDS = float(os.environ.get("HIVEMINT_FUZZ_SECONDS", "0"))
"""Of each decoder; 0 = a fixed number of tries."""
EXAMPLES = 300
KEY, PEER = Signer(b"\1" * 32), PeerKey(b"\2" * 32)


@dataclass(frozen=True)
class Decoder:
    read: Callable[[bytes], object]
    errors: tuple[type[HivemintError], ...]
    seeds: tuple[bytes, ...]

    def run(self, data: bytes) -> None:
        try:
            self.read(data)
        except self.errors:
            return


def frames(data: bytes) -> None:
    """As one piece and byte by byte: the same messages, and never more held than came."""
    whole, dripped, reader = [], [], FrameReader()
    reader.narrowed = {messages.Tensor.NUMBER: 4096}
    try:
        whole = list(FrameReader().feed(data))
    finally:
        for number in range(len(data)):
            dripped += list(reader.feed(data[number : number + 1]))
            assert reader.held <= len(data)
    assert len(dripped) == len(whole)


PUBLISHED = 1.8e9
"""Seconds since 1970 at which the seeds' record was made."""


def bodies(data: bytes) -> None:
    if data:
        messages.decode(data[0], data[1:])


def record(data: bytes) -> None:
    read_record(data)
    check_record(data, now=PUBLISHED)


def digests(data: bytes) -> None:
    assert manifest.parse(data).to_bytes() == data


def network(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.toml"
        path.write_bytes(data)
        assert Network.load(path).save(path) == Network.load(path)


def peers(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peers.json"
        path.write_bytes(data)
        assert len(known.KnownPeers(path).addresses()) <= known.MOST


def address(data: bytes) -> None:
    text = data.decode(errors="replace")
    prefix_of(text, loopback=True)
    is_public(text)
    split_address(text)


def shown(data: bytes) -> None:
    text = plain(data.decode(errors="replace"))
    assert "\x1b" not in text
    assert plain(text) == text


def _record() -> bytes:
    said = NodeRecord(
        network="test",
        model_id=bytes(32),
        first_block=BlockIndex(0),
        end_block=BlockIndex(3),
        peer=PEER.peer_id,
        operator=KEY.address,
        numerics=("fp32/fp32/fp32",),
        ask=Credits(7),
        expires=PUBLISHED + 200,
        addresses=("/ip4/192.0.2.1/tcp/1",),
    )
    return sign_record(said, KEY, PEER).to_bytes()


def _list() -> bytes:
    pack_ = msgspec.msgpack.encode
    entries = [[bytes(38), pack_(_record()), 1.5], [b"", b"", 2.5]]
    return pack_(msgspec.msgpack.Ext(0x50, pack_([float("inf"), 2.5, entries])))


_MANIFEST = f"a.0.w\tF32\t2x3\t{'ab' * 32}\nb\tBF16\t\t{'cd' * 32}\nconfig.json\t\t\t{'ef' * 32}\n".encode()
_HEADER = b'{"0.q.A":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"0.q.B":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}'  # noqa: E501
_ADAPTER = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(16)
_ADDRESS = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
_NETWORK = f"""
name = "dev"
chain_id = 31337
rpc_url = "http://127.0.0.1:8545"
bootstrap = ["/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWAVHffWVwKM7yVPv4ynEV1kxNa7BdiEQsKLErG4HJtSWP"]
[contracts]
{"".join(f'{name} = "{_ADDRESS}"' + chr(10) for name in ("token", "registry", "settlement", "emission", "parameters", "disputes"))}
[[models]]
name = "m"
model_id = "0x{"ab" * 32}"
manifest = "m.manifest"
files = {{"tokenizer.json" = "0x{"cd" * 32}"}}
""".encode()  # noqa: E501
_PLACE = b"/ip4/192.0.2.1/tcp/1/p2p/12D3KooWAVHffWVwKM7yVPv4ynEV1kxNa7BdiEQsKLErG4HJtSWP"
_SMALL = tuple(one for one in EVERY_TYPE if sum(map(len, pack([one]))) < 4000)

DECODERS: dict[str, Decoder] = {
    "frames": Decoder(frames, (ProtocolError,), tuple(b"".join(pack([one])) for one in _SMALL)),
    "messages": Decoder(bodies, (ProtocolError,), tuple(b"".join(pack([one]))[4:] for one in _SMALL)),
    "records": Decoder(record, (ProofError,), (_record(),)),
    "lists": Decoder(asker._entries, (), (_list(),)),
    "manifests": Decoder(digests, (ModelError,), (_MANIFEST,)),
    "adapters": Decoder(read_pairs, (ProtocolError,), (_ADAPTER,)),
    "networks": Decoder(network, (ConfigError,), (_NETWORK,)),
    "peers": Decoder(
        peers, (), (b'{"/ip4/192.0.2.1/tcp/1/p2p/12D3KooWAVHffWVwKM7yVPv4ynEV1kxNa7BdiEQsKLErG4HJtSWP": 1.0}',)
    ),
    "addresses": Decoder(
        address, (ProtocolError,), (b"/ip4/192.0.2.1/tcp/1/p2p/12D3KooW", b"/ip6/::ffff:10.0.0.1/tcp/1")
    ),
    "texts": Decoder(shown, (), (b"\x1b[31mred[/x]\xe2\x80\xae\xf0\x9f\x98\x80\x00",)),
}


_EVIL = [b"\xff" * 4, b"\x00" * 4, b"\xdd\xff\xff\xff\xff", b"[" * 64]


def damaged(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A valid input, damaged in up to four places; or anything."""
    piece = st.one_of(
        st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\x00" * 4, b"\xdd\xff\xff\xff\xff", b"[" * 64])
    )
    change = st.tuples(st.sampled_from(["cut", "put", "set", "double"]), st.floats(0, 1), st.integers(1, 40), piece)

    def apply(seed: bytes, changes: list[tuple[str, float, int, bytes]]) -> bytes:
        for kind, where, count, new in changes:
            at = int(where * len(seed))
            rest = {"cut": b"", "put": new + seed[at : at + count], "set": new, "double": seed[at : at + count] * 2}
            seed = seed[:at] + rest[kind] + seed[at + count :]
        return seed

    return st.one_of(st.builds(apply, st.sampled_from(seeds), st.lists(change, max_size=4)), st.binary(max_size=200))


def _kept(name: str, data: bytes) -> Path:
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.parametrize("name", DECODERS)
def test_what_broke_once_breaks_no_more(name: str) -> None:
    decoder = DECODERS[name]
    for seed in decoder.seeds:
        decoder.read(seed) if name not in ("addresses", "texts") else decoder.run(seed)
    for file in sorted((CORPUS / name).glob("*")):
        decoder.run(file.read_bytes())


@pytest.mark.timeout(0 if SECONDS else 300)
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_takes_any_bytes(name: str) -> None:
    decoder = DECODERS[name]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(decoder.seeds))
    def decode(data: bytes) -> None:
        try:
            decoder.run(data)
        except BaseException:
            if SECONDS:
                _kept(name, data).write_bytes(data)
            raise

    began = time.monotonic()
    for _ in cycle([None]):
        decode()
        if time.monotonic() - began >= SECONDS:
            break
