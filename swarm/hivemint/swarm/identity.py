"""A peer's own key (Ed25519), and peer ids that carry their public key.

The file is libp2p's private key format (protobuf `PrivateKey`, type Ed25519, 64 bytes: seed and public key), so the
libp2p daemon reads it as it is. A peer id of such a key is the identity multihash of the protobuf `PublicKey`: 38
bytes from which anyone can check that peer's signatures (libp2p's "peer ids" specification).
"""

from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hivemint.protocol.errors import ConfigError, ProofError, ProtocolError
from hivemint.protocol.home import write_private
from hivemint.protocol.ids import PeerId

_FILE_HEAD = b"\x08\x01\x12\x40"  # type = Ed25519, data = 64 bytes
_ID_HEAD = b"\x00\x24\x08\x01\x12\x20"  # identity multihash of 36 bytes: type = Ed25519, data = 32 bytes
_MAX_ID = 128


class PeerKey:
    """A peer's private key. It never prints or pickles itself; `peer_id` is all that it shows."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()
        self.peer_id = PeerId(_ID_HEAD + self._public)

    @classmethod
    def generate(cls) -> "PeerKey":
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path, *, create: bool = True) -> "PeerKey":
        """Read `path`, or make it (0600) if it is absent and `create`. Raises ConfigError for any other content."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            if not create:
                raise ConfigError(f"There is no peer key at {path}", next_step="start the node once") from None
            key = cls.generate()
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                key.save(path)
            except OSError as error:
                raise ConfigError(f"The peer key {path} cannot be written", why=error.strerror or str(error)) from None
            return key
        except OSError as error:
            raise ConfigError(f"The peer key {path} cannot be read", why=error.strerror or str(error)) from None
        if len(data) != 68 or not data.startswith(_FILE_HEAD):
            raise _damaged(path)
        key = cls(data[4:36])
        if key._public != data[36:]:
            raise _damaged(path)
        return key

    def save(self, path: Path) -> None:
        """Write the libp2p key file, 0600. Raises FileExistsError rather than replace one."""
        write_private(path, _FILE_HEAD + self._key.private_bytes_raw() + self._public)

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"PeerKey({peer_text(self.peer_id)})"

    def __reduce__(self) -> str:
        raise TypeError("a PeerKey is never serialised; use its file")


def verify(peer: PeerId, data: bytes, signature: bytes) -> None:
    """Raises ProofError unless `peer`'s key signed `data`; a peer id that carries no Ed25519 key proves nothing."""
    if len(peer) != len(_ID_HEAD) + 32 or not peer.startswith(_ID_HEAD):
        raise ProofError("A peer id carries no Ed25519 key", why=f"got {bytes(peer).hex()[:24]}")
    try:
        Ed25519PublicKey.from_public_bytes(peer[len(_ID_HEAD) :]).verify(signature, data)
    except (InvalidSignature, ValueError):
        raise ProofError("A peer's signature does not hold", why=f"not signed by {peer_text(peer)}") from None


def peer_text(peer: PeerId) -> str:
    """The usual spelling, base58: 12D3Koo..."""
    return base58.b58encode(peer).decode("ascii")


def parse_peer(text: str) -> PeerId:
    """Raises ProtocolError for text that is not a peer id."""
    try:
        data = base58.b58decode(text) if len(text) <= 2 * _MAX_ID else b""
    except ValueError:
        data = b""
    if not 2 < len(data) <= _MAX_ID:
        raise ProtocolError("This is not a peer id", why=f"got {text[:80]!r}", next_step="it looks like 12D3KooW...")
    return PeerId(data)


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is not an Ed25519 peer key",
        why="it should be 68 bytes in libp2p's private key format",
        next_step="restore it from a backup, or remove it to get a new peer id",
    )
