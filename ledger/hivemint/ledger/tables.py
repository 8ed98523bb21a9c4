"""Every table of the ledger, in one schema: a database file holds all of them and uses what it needs.

    journal   nodes, accounts, sessions            a node's own promises and work      (`journal.py`)
    client    promises                             what a wallet has promised           (`vouchers.py`)
    index     blocks, events, and what they add up to                                   (`indexer.py`)

Amounts are text of a fixed width: 96 bits do not fit an SQL integer, and equal widths compare like the numbers.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from hivemint.contracts.ids import Credits

REVISION = "0001"
"""The newest migration: what this version reads and writes."""
_WIDTH = 29  # digits of 2^96 - 1
_WIDE = 78  # digits of 2^256 - 1


class Wei(TypeDecorator[Credits]):
    """An amount in wei as decimal text, padded with zeros."""

    impl = String
    cache_ok = True

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__(width)
        self.width = width

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        text = f"{value:0{self.width}d}"
        if value < 0 or len(text) > self.width:
            raise ValueError(f"{value} is no amount of {self.width} digits")
        return text

    def process_result_value(self, value: Any, dialect: Dialect) -> Credits | None:
        return None if value is None else Credits(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)


def _address(name: str, **options: Any) -> Column[str]:
    return Column(name, String(42), **{"nullable": False} | options)


def _hash(name: str, **options: Any) -> Column[bytes]:
    return Column(name, LargeBinary(32), **options)


def _wei(name: str) -> Column[Credits]:
    return Column(name, Wei(), nullable=False, default=Credits(0))


def _number(name: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, **{"nullable": False, "default": 0} | options)


nodes = Table(
    "nodes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("chain_id", BigInteger, nullable=False),
    _address("settlement"),
    _address("node"),
    UniqueConstraint("chain_id", "settlement", "node"),
)
"""Whose journal this is: an operator on one `Settlement` contract."""

accounts = Table(
    "accounts",
    metadata,
    Column("owner", ForeignKey("nodes.id"), primary_key=True),
    _address("client", primary_key=True),
    _wei("highest"),
    _wei("owed"),
    _wei("collected"),
    Column("reason", Text, nullable=False, default=""),
    # The highest voucher and the receipt that it binds: NULL until a client has promised anything.
    _hash("session"),
    Column("step", BigInteger),
    Column("tokens", BigInteger),
    _hash("head"),
    Column("receipt_signature", LargeBinary(64)),
    Column("voucher_signature", LargeBinary(64)),
    _address("voucher_key", nullable=True),
)
"""One client's standing with the node. `collected` is what the chain was last seen to have paid out."""

sessions = Table(
    "sessions",
    metadata,
    Column("owner", ForeignKey("nodes.id"), primary_key=True),
    _hash("id", primary_key=True),
    _address("client"),
    _address("session_key"),
    _hash("peer_id_hash", nullable=False),
    _hash("model_id", nullable=False),
    _hash("numerics", nullable=False),
    _number("first_block"),
    _number("end_block"),
    _wei("price"),
    _wei("max_amount"),
    _number("max_tokens"),
    _number("expiry", index=True),
    _hash("nonce", nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
    _number("delegation_until", nullable=True, default=None),
    Column("delegation_signature", LargeBinary),
    _number("signed_step"),
    _number("signed_tokens"),
    # The newest countersigned receipt: NULL until the client has bound one.
    Column("step", BigInteger),
    _number("tokens"),
    _hash("head"),
    Column("receipt_signature", LargeBinary(64)),
    Column("voucher_signature", LargeBinary(64)),
    Column("voucher_total", Wei()),
    _address("voucher_key", nullable=True),
    Column("claim", String(80), nullable=False, default=""),
)
"""`claim`: what became of a free session on the chain; empty while nothing did."""

promises = Table(
    "promises",
    metadata,
    Column("chain_id", BigInteger, primary_key=True, autoincrement=False),
    _address("settlement", primary_key=True),
    _address("client", primary_key=True),
    _address("node", primary_key=True),
    _wei("total"),
    _wei("owed"),
)
"""What a wallet has promised each node: the highest total that it signed, and what it owes of that."""

cursors = Table(
    "cursors",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("chain_id", BigInteger, nullable=False),
    _address("settlement"),
    UniqueConstraint("chain_id", "settlement"),
)
"""One indexed deployment."""

blocks = Table(
    "blocks",
    metadata,
    Column("cursor", ForeignKey("cursors.id"), primary_key=True),
    _number("number", primary_key=True, autoincrement=False),
    _hash("hash", nullable=False),
    _hash("parent", nullable=False),
    _number("time"),
)
"""Indexed blocks: the newest ones, and those with events."""

events = Table(
    "events",
    metadata,
    Column("cursor", ForeignKey("cursors.id"), primary_key=True),
    _number("block", primary_key=True, autoincrement=False),
    _number("position", primary_key=True, autoincrement=False),
    _hash("transaction", nullable=False),
    _number("time"),
    Column("contract", String(16), nullable=False),
    Column("name", String(40), nullable=False),
    _address("node", nullable=True),
    _address("client", nullable=True),
    _number("epoch", nullable=True, default=None),
    Column("amount", Wei(_WIDE)),
    Column("second", Wei(_WIDE)),
    Column("details", Text, nullable=False, default="{}"),
    Index("ix_events_name_block", "cursor", "name", "block"),
    Index("ix_events_node", "cursor", "node", "block"),
)
"""Every event of the contracts, decoded; all else is derived from these. `position` is the log's index in its block."""

balances = Table(
    "balances",
    metadata,
    Column("cursor", ForeignKey("cursors.id"), primary_key=True),
    _address("holder", primary_key=True),
    Column("amount", Wei(_WIDE), nullable=False),
)
"""HMC by holder, from the token's transfers."""

registered = Table(
    "registered",
    metadata,
    Column("cursor", ForeignKey("cursors.id"), primary_key=True),
    _address("operator", primary_key=True),
    _address("owner"),
    _address("payout"),
    Column("stake", Wei(_WIDE), nullable=False),
    Column("bonded", Boolean, nullable=False),
    Column("settled", Wei(_WIDE), nullable=False),
    Column("minted", Wei(_WIDE), nullable=False),
    Column("donated", Wei(_WIDE), nullable=False),
)
"""Nodes of the registry: stake in the coin's wei; `settled`, `minted` (lane A) and `donated` (lane B) in HMC's."""
