"""Signing and recovering with secp256k1, signatures in the compact form (r, vs) of EIP-2098.

coincurve (libsecp256k1) signs in about 40 us; it always yields the low s, which EIP-2098 and the contracts demand.
"""

from functools import lru_cache

from coincurve import PrivateKey, PublicKey
from eth_utils.address import to_checksum_address

from hivemint.protocol.errors import ProofError, WalletError
from hivemint.protocol.ids import Address, Digest, Signature
from hivemint.protocol.keccak import keccak

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_PARITY_BIT = 0x80


class Signer:
    """A private key in use. It never prints or pickles itself; `address` is all that it shows."""

    def __init__(self, key: bytes) -> None:
        try:
            if len(key) != 32:  # coincurve would pad a shorter one
                raise ValueError
            self._key = PrivateKey(key)
        except ValueError:
            raise WalletError("This is not a private key", why="it must be 32 bytes within the curve's order") from None
        self.address = _address(self._key.public_key)

    def sign(self, digest: Digest) -> Signature:
        """(r, vs) over a full EIP-712 digest, 64 bytes."""
        recoverable = self._key.sign_recoverable(digest, hasher=None)
        r, s, parity = recoverable[:32], bytearray(recoverable[32:64]), recoverable[64]
        if parity:
            s[0] |= _PARITY_BIT
        return Signature(r + bytes(s))

    def secret(self) -> bytes:
        """The key itself, for the keystore and for signing transactions. Never log it."""
        return self._key.secret

    def __repr__(self) -> str:
        return f"Signer({self.address})"

    def __reduce__(self) -> str:
        raise TypeError("a Signer is never serialised; use a keystore")


def recover(digest: Digest, signature: Signature) -> Address:
    """Who signed. Raises ProofError for anything that is not a canonical (r, vs) signature."""
    if len(signature) != 64:
        raise ProofError("A signature has the wrong length", why=f"expected 64 bytes (r, vs), got {len(signature)}")
    parity, s = signature[32] >> 7, bytes([signature[32] & 0x7F]) + signature[33:]
    if int.from_bytes(s, "big") > _HALF_ORDER:
        raise ProofError("A signature is not canonical", why="its s lies in the upper half of the curve's order")
    try:
        public = PublicKey.from_signature_and_message(signature[:32] + s + bytes([parity]), digest, hasher=None)
    except Exception as error:  # noqa: BLE001 - libsecp256k1's binding raises bare Exception
        raise ProofError("A signature recovers to no key", why=str(error)) from None
    return _address(public)


def _address(public: PublicKey) -> Address:
    return _checksummed(keccak(public.format(compressed=False)[1:])[-20:])


@lru_cache(maxsize=4096)  # the same few keys sign every token: 10 us a signature
def _checksummed(address: bytes) -> Address:
    return Address(to_checksum_address(address))
