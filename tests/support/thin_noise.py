"""Noise XX with X25519, ChaCha20-Poly1305 and SHA-256, as libp2p has it: the dialler's half, for `thin_peer`."""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

_NOISE = b"Noise_XX_25519_ChaChaPoly_SHA256"


class Cipher:
    """ChaCha20-Poly1305 with Noise's counter."""

    def __init__(self, key: bytes) -> None:
        self._aead, self._count = ChaCha20Poly1305(key), 0

    def _nonce(self) -> bytes:
        self._count += 1
        return bytes(4) + (self._count - 1).to_bytes(8, "little")

    def seal(self, data: bytes, also: bytes = b"") -> bytes:
        return self._aead.encrypt(self._nonce(), data, also)

    def open(self, data: bytes, also: bytes = b"") -> bytes:
        return self._aead.decrypt(self._nonce(), data, also)


class Handshake:
    """Noise's symmetric state."""

    def __init__(self) -> None:
        self._hash = self._chain = _NOISE
        self._cipher = Cipher(bytes(32))

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chain, key = _derive(self._chain, secret)
        self._cipher = Cipher(key)

    def seal(self, data: bytes) -> bytes:
        sealed = self._cipher.seal(data, self._hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        data = self._cipher.open(sealed, self._hash)
        self.mix_hash(sealed)
        return data

    def split(self) -> tuple[Cipher, Cipher]:
        """The initiator's: to send, to receive."""
        first, second = _derive(self._chain, b"")
        return Cipher(first), Cipher(second)


def _derive(chain: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """HKDF with two outputs."""
    base = hmac.digest(chain, secret, "sha256")
    first = hmac.digest(base, b"\x01", "sha256")
    return first, hmac.digest(base, first + b"\x02", "sha256")


def public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def agree(key: X25519PrivateKey, other: bytes) -> bytes:
    return key.exchange(X25519PublicKey.from_public_bytes(other))
