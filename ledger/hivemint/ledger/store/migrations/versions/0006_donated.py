"""Work without a price is *donated* in every name, that of a column too."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COUNTS = ("sessions", "tokens_signed", "tokens_countersigned")


def upgrade() -> None:
    for name in _COUNTS:
        op.execute(f"ALTER TABLE gone RENAME COLUMN free_{name} TO donated_{name}")
