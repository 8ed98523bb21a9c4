"""The first schema: journal, promises, index."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "chains",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("settlement", sa.String(length=42), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chains")),
        sa.UniqueConstraint("chain_id", "settlement", name=op.f("uq_chains_chain_id")),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("settlement", sa.String(length=42), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("chain_id", "settlement", "node", name=op.f("uq_nodes_chain_id")),
    )
    op.create_table(
        "promises",
        sa.Column("chain_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("settlement", sa.String(length=42), nullable=False),
        sa.Column("client", sa.String(length=42), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.Column("total", sa.String(29), nullable=False),
        sa.Column("owed", sa.String(29), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "settlement", "client", "node", name=op.f("pk_promises")),
    )
    op.create_table(
        "accounts",
        sa.Column("owner", sa.Integer(), nullable=False),
        sa.Column("client", sa.String(length=42), nullable=False),
        sa.Column("highest", sa.String(29), nullable=False),
        sa.Column("owed", sa.String(29), nullable=False),
        sa.Column("collected", sa.String(29), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("session", sa.LargeBinary(length=32), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=True),
        sa.Column("head", sa.LargeBinary(length=32), nullable=True),
        sa.Column("receipt_signature", sa.LargeBinary(length=64), nullable=True),
        sa.Column("voucher_signature", sa.LargeBinary(length=64), nullable=True),
        sa.Column("voucher_key", sa.String(length=42), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["nodes.id"], name=op.f("fk_accounts_owner")),
        sa.PrimaryKeyConstraint("owner", "client", name=op.f("pk_accounts")),
    )
    op.create_table(
        "balances",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=42), nullable=False),
        sa.Column("amount", sa.String(78), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_balances_chain")),
        sa.PrimaryKeyConstraint("chain", "holder", name=op.f("pk_balances")),
    )
    op.create_table(
        "blocks",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_blocks_chain")),
        sa.PrimaryKeyConstraint("chain", "number", name=op.f("pk_blocks")),
    )
    op.create_table(
        "epochs",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("settled", sa.String(78), nullable=False),
        sa.Column("minted", sa.String(78), nullable=False),
        sa.Column("donated", sa.String(78), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_epochs_chain")),
        sa.PrimaryKeyConstraint("chain", "epoch", name=op.f("pk_epochs")),
    )
    op.create_table(
        "escrows",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("client", sa.String(length=42), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.Column("balance", sa.String(78), nullable=False),
        sa.Column("collected", sa.String(78), nullable=False),
        sa.Column("thaw_end", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_escrows_chain")),
        sa.PrimaryKeyConstraint("chain", "client", "node", name=op.f("pk_escrows")),
    )
    op.create_table(
        "events",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("block", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("transaction", sa.LargeBinary(length=32), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("contract", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=True),
        sa.Column("client", sa.String(length=42), nullable=True),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_events_chain")),
        sa.PrimaryKeyConstraint("chain", "block", "position", name=op.f("pk_events")),
    )
    op.create_index("ix_events_client", "events", ["chain", "client", "block"], unique=False)
    op.create_index("ix_events_name", "events", ["chain", "name", "block"], unique=False)
    op.create_index("ix_events_node", "events", ["chain", "node", "block"], unique=False)
    op.create_table(
        "registrations",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.Column("owner", sa.String(length=42), nullable=False),
        sa.Column("payout", sa.String(length=42), nullable=False),
        sa.Column("peer_id_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("bonded", sa.String(78), nullable=False),
        sa.Column("unbonding", sa.String(78), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("settled", sa.String(78), nullable=False),
        sa.Column("minted", sa.String(78), nullable=False),
        sa.Column("donated", sa.String(78), nullable=False),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_registrations_chain")),
        sa.PrimaryKeyConstraint("chain", "node", name=op.f("pk_registrations")),
    )
    op.create_table(
        "sessions",
        sa.Column("owner", sa.Integer(), nullable=False),
        sa.Column("id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("client", sa.String(length=42), nullable=False),
        sa.Column("session_key", sa.String(length=42), nullable=False),
        sa.Column("peer_id_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("model_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("numerics", sa.LargeBinary(length=32), nullable=False),
        sa.Column("first_block", sa.BigInteger(), nullable=False),
        sa.Column("end_block", sa.BigInteger(), nullable=False),
        sa.Column("price", sa.String(29), nullable=False),
        sa.Column("max_amount", sa.String(29), nullable=False),
        sa.Column("max_tokens", sa.BigInteger(), nullable=False),
        sa.Column("expiry", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.LargeBinary(length=32), nullable=False),
        sa.Column("signature", sa.LargeBinary(length=64), nullable=False),
        sa.Column("delegation_until", sa.BigInteger(), nullable=True),
        sa.Column("delegation_signature", sa.LargeBinary(), nullable=True),
        sa.Column("signed_step", sa.BigInteger(), nullable=False),
        sa.Column("signed_tokens", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(length=32), nullable=True),
        sa.Column("receipt_signature", sa.LargeBinary(length=64), nullable=True),
        sa.Column("voucher_signature", sa.LargeBinary(length=64), nullable=True),
        sa.Column("voucher_total", sa.String(29), nullable=True),
        sa.Column("voucher_key", sa.String(length=42), nullable=True),
        sa.Column("claim", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["nodes.id"], name=op.f("fk_sessions_owner")),
        sa.PrimaryKeyConstraint("owner", "id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_expiry"), "sessions", ["expiry"], unique=False)
    op.create_table(
        "shares",
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.Column("sessions", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.String(78), nullable=False),
        sa.Column("weight", sa.String(78), nullable=False),
        sa.Column("minted", sa.String(78), nullable=True),
        sa.ForeignKeyConstraint(["chain"], ["chains.id"], name=op.f("fk_shares_chain")),
        sa.PrimaryKeyConstraint("chain", "epoch", "node", name=op.f("pk_shares")),
    )
