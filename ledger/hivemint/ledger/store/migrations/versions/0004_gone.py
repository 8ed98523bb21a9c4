"""What the rows that a journal keeps no more added up to, and since when an account is worth nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COUNTS = ("sessions", "tokens_signed", "tokens_countersigned")
_SUMS = ("promised", "settled", "minted")


def upgrade() -> None:
    op.add_column("accounts", sa.Column("worthless_since", sa.BigInteger(), nullable=False, server_default="0"))
    counts = [
        sa.Column(f"{lane}_{name}", sa.BigInteger(), nullable=False) for lane in ("paid", "free") for name in _COUNTS
    ]
    sums = [sa.Column(name, sa.String(78), nullable=False) for name in ("paid_signed", "paid_countersigned", *_SUMS)]
    op.create_table(
        "gone",
        sa.Column("owner", sa.Integer(), nullable=False),
        *counts,
        *sums,
        sa.ForeignKeyConstraint(["owner"], ["nodes.id"], name=op.f("fk_gone_owner")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_gone")),
    )
