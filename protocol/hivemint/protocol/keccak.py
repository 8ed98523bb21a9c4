"""keccak-256, the chain's hash, from the C extension that the token loop can afford (2 us a call)."""

import sha3


def keccak(*parts: bytes) -> bytes:
    """keccak-256 over the concatenation of `parts`, 32 bytes."""
    state = sha3.keccak_256()
    for part in parts:
        state.update(part)
    return bytes(state.digest())
