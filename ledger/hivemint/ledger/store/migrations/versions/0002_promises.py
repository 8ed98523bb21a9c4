"""Promises know their chain by its first block, how much of them may be owed at most, and their newest vouchers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNKNOWN = b""
"""The genesis of rows that an older version wrote: whoever opens them first says which chain they are of."""

_NEW = ("genesis", "incurred", "floor", "signed")


def upgrade() -> None:
    op.rename_table("promises", "old_promises")
    op.create_table(
        "promises",
        sa.Column("chain_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("settlement", sa.String(length=42), nullable=False),
        sa.Column("client", sa.String(length=42), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.Column("genesis", sa.LargeBinary(length=32), nullable=False),
        sa.Column("total", sa.String(29), nullable=False),
        sa.Column("owed", sa.String(29), nullable=False),
        sa.Column("incurred", sa.String(29), nullable=False),
        sa.Column("floor", sa.String(29), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "settlement", "client", "node", "genesis", name="pk_promises_of_chain"),
    )
    columns = ["chain_id", "settlement", "client", "node", "total", "owed"]
    old = sa.table("old_promises", *(sa.column(name) for name in columns))
    new = sa.table("promises", *(sa.column(name) for name in [*columns, *_NEW]))
    nothing = sa.literal(b"", sa.LargeBinary())  # all that was signed counts as signed here
    kept = sa.select(*old.c, sa.literal(_UNKNOWN, sa.LargeBinary()), old.c.total, old.c.total, nothing)
    op.execute(new.insert().from_select([*columns, *_NEW], kept))
    op.drop_table("old_promises")
