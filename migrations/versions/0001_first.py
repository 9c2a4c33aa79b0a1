"""The first tables: sessions, packs, chunks, snapshots, annotations."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "info", sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False)
    )
    op.create_table(
        "sessions",
        sa.Column("id", _Id, primary_key=True, autoincrement=True),
        sa.Column("token", sa.String, nullable=False, unique=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("started", sa.BigInteger, nullable=False),
        sa.Column("lease", sa.BigInteger),
    )
    op.create_table(
        "packs",
        sa.Column("id", _Id, primary_key=True, autoincrement=True),
        sa.Column("name", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("type", sa.Integer, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "chunks",
        sa.Column("chunk", sa.LargeBinary, primary_key=True),
        sa.Column("pack", _Id, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("stored", sa.Integer, nullable=False),
        sa.Column("plain", sa.Integer, nullable=False),
        sa.Column("codec", sa.Integer, nullable=False),
        sa.Column("damaged", sa.Integer, nullable=False, server_default="0"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "session_packs",
        sa.Column("session", _Id, sa.ForeignKey("sessions.id"), primary_key=True),
        sa.Column("pack", _Id, sa.ForeignKey("packs.id"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("session_packs_pack", "session_packs", ["pack"])
    op.create_table(
        "snapshots",
        sa.Column("seq", _Id, primary_key=True, autoincrement=True),
        sa.Column("id", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "snapshot_packs",
        sa.Column("snapshot", _Id, sa.ForeignKey("snapshots.seq"), primary_key=True),
        sa.Column("pack", _Id, sa.ForeignKey("packs.id"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_index("snapshot_packs_pack", "snapshot_packs", ["pack"])
    op.create_table(
        "annotations",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("target", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
