"""Until when a client's account may be closed by a release that the node has signed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("accounts", sa.Column("released_until", sa.BigInteger(), nullable=False, server_default="0"))
