"""What a wallet orders by its signature (EIP-712), so that anyone may send it and the wallet needs no coin.

Each carries the wallet's next nonce at `Settlement` and is good once, until `deadline` (seconds since 1970, by the
chain's time).
"""

from typing import Annotated, ClassVar

import msgspec

from hivemint.protocol.eip712 import Typed, Uint63
from hivemint.protocol.ids import Address, Credits

MOST_DEPOSITS = 1_000
"""In one order; a block holds fewer."""


class Fund(Typed, frozen=True, forbid_unknown_fields=True):
    """Deposit the wallet's own credits: `amounts` in wei, one for each of `nodes`."""

    TYPE: ClassVar[str] = "Fund(address client,address[] nodes,uint96[] amounts,uint256 nonce,uint64 deadline)"
    client: Address
    nodes: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MOST_DEPOSITS)]
    amounts: Annotated[tuple[Credits, ...], msgspec.Meta(max_length=MOST_DEPOSITS)]
    nonce: Uint63
    deadline: Uint63


class Thaw(Typed, frozen=True, forbid_unknown_fields=True):
    """Close the account at `node` for new work."""

    TYPE: ClassVar[str] = "Thaw(address client,address node,uint256 nonce,uint64 deadline)"
    client: Address
    node: Address
    nonce: Uint63
    deadline: Uint63


class CancelThaw(Typed, frozen=True, forbid_unknown_fields=True):
    """Open the account at `node` again."""

    TYPE: ClassVar[str] = "CancelThaw(address client,address node,uint256 nonce,uint64 deadline)"
    client: Address
    node: Address
    nonce: Uint63
    deadline: Uint63


class Withdraw(Typed, frozen=True, forbid_unknown_fields=True):
    """Pay all that is left at `node` back to the wallet, after the thaw."""

    TYPE: ClassVar[str] = "Withdraw(address client,address node,uint256 nonce,uint64 deadline)"
    client: Address
    node: Address
    nonce: Uint63
    deadline: Uint63


class Revoke(Typed, frozen=True, forbid_unknown_fields=True):
    """End a session key."""

    TYPE: ClassVar[str] = "Revoke(address client,address sessionKey,uint256 nonce,uint64 deadline)"
    client: Address
    session_key: Address
    nonce: Uint63
    deadline: Uint63


class Close(Typed, frozen=True, forbid_unknown_fields=True):
    """Close the account at `node` at once, with the node's `Release`."""

    TYPE: ClassVar[str] = "Close(address client,address node,uint256 nonce,uint64 deadline)"
    client: Address
    node: Address
    nonce: Uint63
    deadline: Uint63


Order = Thaw | CancelThaw | Withdraw | Revoke
"""Those that need nothing beside them."""
