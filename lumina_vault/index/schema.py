"""Tables of the index. `migrations/` makes the same ones step by step; a test holds the two together."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table

REVISION: Final = "0001"
"""The migration that this code expects."""

# States of packs: a pack is written, then live, then condemned; look-ups see live ones only.
WRITING, LIVE, CONDEMNED = 0, 1, 2
# States of sessions.
ACTIVE, CLOSED, FENCED = 0, 1, 2
# States of snapshots.
PRESENT, FORGOTTEN = 0, 1

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")

info = Table("info", metadata, Column("key", String, primary_key=True), Column("value", String, nullable=False))

sessions = Table(
    "sessions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("token", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("state", Integer, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("lease", BigInteger),
)

packs = Table(
    "packs",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("name", LargeBinary, nullable=False, unique=True),
    Column("type", Integer, nullable=False),
    Column("state", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("salt", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

chunks = Table(
    "chunks",
    metadata,
    Column("chunk", LargeBinary, primary_key=True),
    Column("pack", _Id, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("stored", Integer, nullable=False),
    Column("plain", Integer, nullable=False),
    Column("codec", Integer, nullable=False),
    Column("damaged", Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)

session_packs = Table(
    "session_packs",
    metadata,
    Column("session", _Id, ForeignKey("sessions.id"), primary_key=True),
    Column("pack", _Id, ForeignKey("packs.id"), primary_key=True),
    Index("session_packs_pack", "pack"),
    sqlite_with_rowid=False,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("seq", _Id, primary_key=True, autoincrement=True),
    Column("id", LargeBinary, nullable=False, unique=True),
    Column("state", Integer, nullable=False),
    Column("record", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

snapshot_packs = Table(
    "snapshot_packs",
    metadata,
    Column("snapshot", _Id, ForeignKey("snapshots.seq"), primary_key=True),
    Column("pack", _Id, ForeignKey("packs.id"), primary_key=True),
    Index("snapshot_packs_pack", "pack"),
    sqlite_with_rowid=False,
)

notes = Table(
    "annotations",
    metadata,
    Column("name", String, primary_key=True),
    Column("target", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
