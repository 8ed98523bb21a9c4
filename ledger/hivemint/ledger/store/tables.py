"""Every table of the ledger, in one schema: a database file holds all of them and uses what it needs.

    journal   nodes, accounts, sessions, gone   a node's own promises and work   (`books/journal.py`)
    client    promises                       what a wallet has promised       (`books/voucher_book.py`)
    index     chains, blocks, events, and the tables that events add up to   (`explorer/indexer.py`, `explorer/fold.py`)

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

from hivemint.protocol.ids import Credits

REVISION = "0006"
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


def _wide(name: str) -> Column[Credits]:
    return Column(name, Wei(_WIDE), nullable=False, default=Credits(0))


def _chain() -> Column[int]:
    return Column("chain", ForeignKey("chains.id"), primary_key=True)


nodes = Table(
    "nodes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("chain_id", BigInteger, nullable=False),
    _address("settlement"),
    _address("node"),
    _hash("genesis", nullable=False),
    UniqueConstraint("chain_id", "settlement", "node", "genesis"),
)
"""Whose journal this is: an operator on one `Settlement` contract of one chain. `genesis`: the hash of that chain's
first block; empty where an older version wrote the row, until a chain takes it over."""

accounts = Table(
    "accounts",
    metadata,
    Column("owner", ForeignKey("nodes.id"), primary_key=True),
    _address("client", primary_key=True),
    _wei("owed"),
    _wei("collected"),
    Column("reason", Text, nullable=False, default=""),
    _number("worthless_since"),
    _number("released_until"),
)
"""One client's standing with the node. `collected` is what the chain was last seen to have paid out;
`worthless_since`: the chain's time since which nothing more could be claimed at any look, 0 = something can;
`released_until`: the deadline of the newest release that was signed, seconds since 1970, 0 for none."""

gone = Table(
    "gone",
    metadata,
    Column("owner", ForeignKey("nodes.id"), primary_key=True),
    _number("paid_sessions"),
    _number("paid_tokens_signed"),
    _number("paid_tokens_countersigned"),
    _wide("paid_signed"),
    _wide("paid_countersigned"),
    _number("donated_sessions"),
    _number("donated_tokens_signed"),
    _number("donated_tokens_countersigned"),
    _wide("promised"),
    _wide("settled"),
    _wide("minted"),
)
"""What the rows that a node keeps no more added up to (`keeping.py`)."""

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
    # The proof: of a paid session the voucher with the highest total that is not above the account's `owed`, of a free
    # one the newest. NULL until there is one.
    Column("step", BigInteger),
    _number("tokens"),
    _hash("head"),
    Column("receipt_signature", LargeBinary(64)),
    Column("voucher_signature", LargeBinary(64)),
    Column("voucher_total", Wei()),
    _address("voucher_key", nullable=True),
    Column("claim", String(80), nullable=False, default=""),
)
"""`claim`: what became of a donated session on the chain; empty while nothing did."""

promises = Table(
    "promises",
    metadata,
    Column("chain_id", BigInteger, primary_key=True, autoincrement=False),
    _address("settlement", primary_key=True),
    _address("client", primary_key=True),
    _address("node", primary_key=True),
    Column("genesis", LargeBinary(32), primary_key=True),
    _wei("total"),
    _wei("owed"),
    _wei("incurred"),
    _wei("floor"),
    Column("signed", LargeBinary, nullable=False, default=b""),
)
"""What a wallet has promised each node, by `promised.Standing`: the highest total that it signed, what it owes of that,
what it may owe at most, and its newest vouchers. `genesis`: the hash of the chain's first block."""

chains = Table(
    "chains",
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
    _chain(),
    _number("number", primary_key=True, autoincrement=False),
    _hash("hash", nullable=False),
    _number("time"),
)
"""Where the index has been: blocks with events, and the newest ones. Their hashes show a reorganisation."""

events = Table(
    "events",
    metadata,
    _chain(),
    _number("block", primary_key=True, autoincrement=False),
    _number("position", primary_key=True, autoincrement=False),
    _hash("transaction", nullable=False),
    _number("time"),
    Column("contract", String(16), nullable=False),
    Column("name", String(40), nullable=False),
    _address("node", nullable=True),
    _address("client", nullable=True),
    Column("arguments", Text, nullable=False),
    Index("ix_events_name", "chain", "name", "block"),
    Index("ix_events_node", "chain", "node", "block"),
    Index("ix_events_client", "chain", "client", "block"),
)
"""Every event of the contracts, decoded: `arguments` is JSON. `position` is the log's index in its block.

The tables below are what the events add up to (`fold.py`), and can be made from them again.
"""

balances = Table(
    "balances",
    metadata,
    _chain(),
    _address("holder", primary_key=True),
    _wide("amount"),
)
"""HMC by holder, from the token's transfers."""

escrows = Table(
    "escrows",
    metadata,
    _chain(),
    _address("client", primary_key=True),
    _address("node", primary_key=True),
    _wide("balance"),
    _wide("collected"),
    _number("thaw_end"),
)
"""The account of each (client, node) pair."""

registrations = Table(
    "registrations",
    metadata,
    _chain(),
    _address("node", primary_key=True),
    _address("owner"),
    _address("payout"),
    _hash("peer_id_hash", nullable=False),
    _wide("bonded"),
    _wide("unbonding"),
    Column("retired", Boolean, nullable=False),
    _wide("settled"),
    _wide("minted"),
    _wide("donated"),
)
"""Nodes: `bonded`, `unbonding` in wei of the coin; `settled`, `minted`, `donated` (minted for donated work) of HMC."""

epochs = Table(
    "epochs",
    metadata,
    _chain(),
    _number("epoch", primary_key=True, autoincrement=False),
    _wide("settled"),
    _wide("minted"),
    _wide("donated"),
)
"""Per epoch: what paid work burned and minted in it, and what donated work minted for it."""

shares = Table(
    "shares",
    metadata,
    _chain(),
    _number("epoch", primary_key=True, autoincrement=False),
    _address("node", primary_key=True),
    _number("sessions"),
    _wide("units"),
    _wide("weight"),
    Column("minted", Wei(_WIDE)),
)
"""What each node claimed for an epoch; `minted` is NULL until it was."""
