"""Names for ids and units, so that a type checker tells them apart.

Sizes: an `Address` is a checksummed 0x string; ids and hashes are raw bytes. Credits and coins are in wei (1e-18).
"""

from typing import NewType

Address = NewType("Address", str)
"""An account on the chain: checksummed 0x string (EIP-55)."""

PeerId = NewType("PeerId", bytes)
"""A libp2p peer id: the bytes of its multihash."""

SessionId = NewType("SessionId", bytes)
"""EIP-712 digest of a `Session`, 32 bytes."""

ModelId = NewType("ModelId", bytes)
"""keccak256 of a model's manifest, 32 bytes."""

Digest = NewType("Digest", bytes)
"""A full EIP-712 digest, domain included, 32 bytes."""

Head = NewType("Head", bytes)
"""The chained hash of all steps of a session so far, 32 bytes."""

TensorHash = NewType("TensorHash", bytes)
"""BLAKE2b-256 over the row hashes of a tensor, 32 bytes."""

Signature = NewType("Signature", bytes)
"""EIP-2098 compact signature (r, vs), 64 bytes."""


class Credits(int):
    """HMC in wei. A class, not a NewType, so that the wire can carry 96 bits (msgpack's integers end at 64).

    Arithmetic gives a plain int: wrap it again.
    """


BlockIndex = NewType("BlockIndex", int)
"""A decoder layer's position in the whole model, from 0."""

Step = NewType("Step", int)
"""A step's number in its session, from 1; 0 is the opening receipt."""

Tokens = NewType("Tokens", int)
"""Token positions computed, prefill, decode and rejected drafts alike."""

ONE_CREDIT = 10**18
FORWARD, BACKWARD, FORK = 0, 1, 2
"""`kind` of a step."""
