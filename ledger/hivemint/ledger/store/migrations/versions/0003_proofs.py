"""A proof is stored with its session alone, and a journal knows its chain by the first block."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UNKNOWN = b""
"""The genesis of rows that an older version wrote: whoever opens them first says which chain they are of."""
_PROOF = ("step", "tokens", "head", "receipt_signature", "voucher_signature", "voucher_key")
_KEY = ["chain_id", "settlement", "node"]


def upgrade() -> None:
    _move_proofs()
    if op.get_bind().dialect.name == "sqlite":
        _rebuild()
    else:
        _alter()


def _move_proofs() -> None:
    """An account's voucher goes to its session, unless that one has a higher one. What an older version stored was its
    claim, whatever the sum owed: so it counts as owed. Clients' books of that version allow for it (`incurred`).
    """
    account = sa.table("accounts", *(sa.column(name) for name in ("owner", "session", "highest", "owed", *_PROOF)))
    session = sa.table("sessions", *(sa.column(name) for name in ("owner", "id", "voucher_total", *_PROOF)))
    its = (account.c.owner == session.c.owner) & (account.c.session == session.c.id)
    lower = sa.func.coalesce(session.c.voucher_total, "") < account.c.highest
    moved = {name: sa.select(account.c[name]).where(its).scalar_subquery() for name in ("highest", *_PROOF)}
    moved["voucher_total"] = moved.pop("highest")
    op.execute(session.update().where(sa.exists().where(its & lower)).values(**moved))
    op.execute(account.update().where(account.c.owed < account.c.highest).values(owed=account.c.highest))


def _rebuild() -> None:
    """SQLite can't change a table's constraints, and drops none that others refer to: they follow to the new one."""
    op.rename_table("nodes", "old_nodes")
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("settlement", sa.String(length=42), nullable=False),
        sa.Column("node", sa.String(length=42), nullable=False),
        sa.Column("genesis", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint(*_KEY, "genesis", name=op.f("uq_nodes_chain_id")),
    )
    old = sa.table("old_nodes", *(sa.column(name) for name in ("id", *_KEY)))
    new = sa.table("nodes", *(sa.column(name) for name in ("id", *_KEY, "genesis")))
    kept = sa.select(*old.c, sa.literal(_UNKNOWN, sa.LargeBinary()))
    op.execute(new.insert().from_select(["id", *_KEY, "genesis"], kept))
    for table in ("accounts", "sessions"):
        with op.batch_alter_table(table, recreate="always") as batch:
            batch.drop_constraint(f"fk_{table}_owner", type_="foreignkey")
            batch.create_foreign_key(op.f(f"fk_{table}_owner"), "nodes", ["owner"], ["id"])
            if table == "accounts":
                for name in ("highest", "session", *_PROOF):
                    batch.drop_column(name)
    op.drop_table("old_nodes")


def _alter() -> None:
    op.add_column("nodes", sa.Column("genesis", sa.LargeBinary(length=32), nullable=False, server_default=""))
    op.alter_column("nodes", "genesis", server_default=None)
    op.drop_constraint("uq_nodes_chain_id", "nodes", type_="unique")
    op.create_unique_constraint("uq_nodes_chain_id", "nodes", [*_KEY, "genesis"])
    for name in ("highest", "session", *_PROOF):
        op.drop_column("accounts", name)
