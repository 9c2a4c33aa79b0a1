"""Every SQL statement of the engine, each step of the deletion protocol one transaction (design, section 9).

SQLite: the driver's implicit begin is off; writers begin with BEGIN IMMEDIATE; `synchronous=FULL`. One connection
reads and one writes, each behind a lock, so that a look-up never waits for a commit's fsync.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, OperationalError

from lumina_vault.errors import BackendError, Damage, NewerFormat, SessionFenced, StoreFull, VaultLocked
from lumina_vault.index import locks
from lumina_vault.index.schema import (
    ACTIVE,
    CLOSED,
    CONDEMNED,
    FENCED,
    LIVE,
    PRESENT,
    REVISION,
    WRITING,
    chunks,
    info,
    metadata,
    notes,
    packs,
    session_packs,
    sessions,
    snapshot_packs,
    snapshots,
)  # fmt: skip

BATCH = 500
"""Ids in one IN list."""

MIN_ROOM = 1 << 20
"""Bytes free below which a disk is full: SQLite takes 32 KiB to open, and some pages for each transaction."""


class ChunkRow(NamedTuple):
    """Where a chunk lies: the pack's row id, its entry number, byte range and codec."""

    chunk: bytes
    pack: int
    number: int
    offset: int
    stored: int
    plain: int
    codec: int


class PackRow(NamedTuple):
    id: int
    name: bytes
    type: int
    state: int
    size: int
    epoch: int
    salt: bytes


class SnapshotRow(NamedTuple):
    seq: int
    id: bytes
    state: int
    record: bytes


_CHUNK_COLUMNS = (
    chunks.c.chunk,
    chunks.c.pack,
    chunks.c.number,
    chunks.c.offset,
    chunks.c.stored,
    chunks.c.plain,
    chunks.c.codec,
)
_PACK_COLUMNS = (
    packs.c.id,
    packs.c.name,
    packs.c.type,
    packs.c.state,
    packs.c.size,
    packs.c.epoch,
    packs.c.salt,
)
_SNAPSHOT_COLUMNS = (snapshots.c.seq, snapshots.c.id, snapshots.c.state, snapshots.c.record)

# The two statements that every block of chunks runs, built once: making one takes longer than running it.
_held = session_packs.alias()
_FIND = (
    sa.select(chunks.c.chunk, chunks.c.pack, _held.c.session)
    .join(packs, packs.c.id == chunks.c.pack)
    .outerjoin(_held, sa.and_(_held.c.pack == chunks.c.pack, _held.c.session == sa.bindparam("session")))
    .where(chunks.c.chunk.in_(sa.bindparam("ids", expanding=True)), packs.c.state == LIVE, chunks.c.damaged == 0)
)
_LOCATE = (
    sa.select(*_CHUNK_COLUMNS)
    .join(packs, packs.c.id == chunks.c.pack)
    .where(chunks.c.chunk.in_(sa.bindparam("ids", expanding=True)), packs.c.state == LIVE)
    .order_by(chunks.c.damaged, chunks.c.pack)
)


def _batches(items: Sequence[Any], size: int = BATCH) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def has_room(path: str) -> bool:
    """False if the file system of the index at `path` is as good as full: then readers do without a session."""
    status = os.statvfs(os.path.dirname(os.path.abspath(path)))
    return status.f_bavail * status.f_frsize >= MIN_ROOM


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[None]:
    """Driver errors as errors of ours, at the edge."""
    try:
        yield
    except OperationalError as error:
        text = str(error.orig)
        if "locked" in text or "busy" in text:
            raise VaultLocked(f"the index {path} is locked by another process; run again when it is done") from None
        if "full" in text or ("disk I/O error" in text and not has_room(path)):
            raise StoreFull(
                f"no space left for the index {path}; nothing older is harmed, free some space and run again"
            ) from None
        if "no such table" in text or "no such column" in text:
            raise Damage(f"the index {path} is incomplete; no data is lost, run: vault index rebuild") from None
        raise BackendError(f"the index {path} can't be used: {text}") from None
    except DatabaseError as error:
        raise Damage(f"the index {path} is damaged ({error.orig}); run: vault index rebuild") from None


class Index:
    """One open index database."""

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        """Open an existing index; `Index.create` makes one. Raises `Damage` or `NewerFormat` if it can't be used."""
        self.path = path
        self.readonly = readonly
        self._exclusive = False
        self.lock_directory = os.path.join(os.path.dirname(path), "sessions")
        self.observer: Callable[[str], None] | None = None
        """Called with `before <step>` and `after <step>` around each transaction; tests crash here."""
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=sa.pool.NullPool)
        sa.event.listen(self._engine, "begin", _begin)
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        with contextlib.ExitStack() as stack:
            if not readonly:
                stack.callback(locks.IndexLock(self.lock_directory).release)
            stack.callback(self._engine.dispose)
            with _mapped(path):
                self._reader = stack.enter_context(self._engine.connect())
                self._writer = None
                if not readonly:
                    self._writer = stack.enter_context(self._engine.connect().execution_options(vault_write=True))
                self._check_revision()
            self._resources = stack.pop_all()

    @classmethod
    def create(cls, path: str, vault: bytes, generation: int) -> Index:
        """A new, empty index for a vault (its id: 16 bytes). Migrations make the tables."""
        from lumina_vault.index.migrate import upgrade

        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with _mapped(path):
            upgrade(path)
        return cls._initialised(path, vault, generation)

    @classmethod
    def create_temporary(cls, path: str, vault: bytes, generation: int) -> Index:
        """The same tables without migrations, which take half a second to load: for an index that is thrown away."""
        engine = sa.create_engine(f"sqlite:///{path}")
        metadata.create_all(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (REVISION,))
        engine.dispose()
        return cls._initialised(path, vault, generation)

    @classmethod
    def _initialised(cls, path: str, vault: bytes, generation: int) -> Index:
        index = cls(path)
        try:
            with index.transaction("initialise") as tx:
                tx.execute(
                    info.insert(),
                    [{"key": "vault", "value": vault.hex()}, {"key": "generation", "value": str(generation)}],
                )
        except BaseException:
            index.close()
            raise
        return index

    def _connect(self) -> sqlite3.Connection:
        connection = self._open(self._reading_options() if self.readonly else "mode=rw")
        try:
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        connection.isolation_level = None
        if not self.readonly:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        elif self._exclusive:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cache_size=-8192")
        connection.execute("PRAGMA temp_store=MEMORY")

    def _open(self, options: str) -> sqlite3.Connection:
        uri = f"file:{quote(os.path.abspath(self.path))}?{options}"
        return sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)

    def _reading_options(self) -> str:
        """How to open an index for reading so that it takes no room and changes nothing, wherever it lies."""
        if not os.access(os.path.dirname(os.path.abspath(self.path)), os.W_OK):
            # SQLite can't open a WAL database on read-only media unless told that nobody writes it; but then it passes
            # over a log, which holds the last commits if the last writer was killed.
            log = f"{self.path}-wal"
            empty = not os.path.exists(log) or not os.path.getsize(log)
            return "mode=ro&immutable=1" if empty else "mode=ro"
        connection = self._open("mode=ro")
        try:
            connection.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError:
            # No room for the memory that users of a WAL database share: one who is alone needs none.
            self._exclusive = True
            return "mode=rw"
        finally:
            connection.close()
        return "mode=ro"

    def _check_revision(self) -> None:
        with self._read() as rx:
            found = rx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if found == REVISION:
            return
        if found is None:
            raise Damage(f"the index {self.path} is incomplete; no data is lost, run: vault index rebuild")
        from lumina_vault.index.migrate import known, upgrade

        if found not in known():
            raise NewerFormat(
                f"the index {self.path} was made by a later version ({found}); upgrade, or run: vault index rebuild"
            )
        upgrade(self.path)

    def close(self) -> None:
        self._resources.close()

    @contextlib.contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._read_lock, _mapped(self.path), self._reader.begin():
            yield self._reader

    @contextlib.contextmanager
    def transaction(self, step: str) -> Iterator[sa.Connection]:
        """One write transaction. `step` names it for the observer."""
        if self._writer is None:
            raise BackendError(f"the index {self.path} is open for reading only")
        with self._write_lock, _mapped(self.path):
            if self.observer:
                self.observer(f"before {step}")
            with self._writer.begin():
                yield self._writer
            if self.observer:
                self.observer(f"after {step}")

    def get_info(self, key: str) -> str | None:
        with self._read() as rx:
            value: str | None = rx.execute(sa.select(info.c.value).where(info.c.key == key)).scalar()
        return value

    # --- sessions ---

    def open_session(self, kind: str) -> tuple[int, locks.SessionLock]:
        """Step 1: a session's row, `active`, and the lock that proves it lives."""
        token = secrets.token_hex(16)
        lock = locks.SessionLock(self.lock_directory, token)
        try:
            with self.transaction("open session") as tx:
                result = tx.execute(
                    sessions.insert().values(token=token, kind=kind, state=ACTIVE, started=time.time_ns())
                )
                return _key(result), lock
        except BaseException:
            lock.release()
            raise

    def close_session(self, session: int) -> None:
        """End a session that commits nothing (a reader, or a writer that gave up)."""
        with self.transaction("close session") as tx:
            tx.execute(
                sessions.update().where(sessions.c.id == session, sessions.c.state == ACTIVE).values(state=CLOSED)
            )
            self._drop_session_packs(tx, session)

    def _drop_session_packs(self, tx: sa.Connection, session: int) -> None:
        """A closed session relies on nothing; packs it left `writing` keep their row, for the next one to adopt."""
        tx.execute(session_packs.delete().where(session_packs.c.session == session))

    def active_sessions(self) -> list[tuple[int, str, str]]:
        """(id, token, kind) of sessions marked active, dead or alive."""
        with self._read() as rx:
            rows = rx.execute(
                sa.select(sessions.c.id, sessions.c.token, sessions.c.kind).where(sessions.c.state == ACTIVE)
            )
            return [(row.id, row.token, row.kind) for row in rows]

    def fence_dead_sessions(self) -> int:
        """Step 7: fence every session whose death is proved. Returns how many."""
        dead = [i for i, token, _ in self.active_sessions() if locks.is_dead(self.lock_directory, token)]
        if dead:
            with self.transaction("fence") as tx:
                for i in dead:
                    tx.execute(
                        sessions.update().where(sessions.c.id == i, sessions.c.state == ACTIVE).values(state=FENCED)
                    )
                    self._drop_session_packs(tx, i)
        locks.sweep(self.lock_directory)
        return len(dead)

    def _is_active(self, session: int) -> sa.ColumnElement[bool]:
        return sa.exists().where(sessions.c.id == session, sessions.c.state == ACTIVE)

    def _require_active(self, tx: sa.Connection, session: int) -> None:
        if not tx.execute(sa.select(self._is_active(session))).scalar():
            raise SessionFenced("another process found this one dead and fenced it; nothing was lost, run again")

    # --- packs and chunks ---

    def register(self, session: int, wanted: Sequence[int]) -> set[int]:
        """Step 2: register live packs (row ids) to an active session. Returns those that it may now rely on."""
        with self.transaction("register") as tx:
            self._require_active(tx, session)
            for batch in _batches(wanted):
                taken = sa.exists().where(session_packs.c.session == session, session_packs.c.pack == packs.c.id)
                tx.execute(
                    session_packs.insert().from_select(
                        ["session", "pack"],
                        sa.select(sa.literal(session), packs.c.id).where(
                            packs.c.id.in_(batch), packs.c.state == LIVE, ~taken
                        ),
                    )
                )
            held: set[int] = set()
            for batch in _batches(wanted):
                held.update(
                    tx.execute(
                        sa.select(session_packs.c.pack).where(
                            session_packs.c.session == session, session_packs.c.pack.in_(batch)
                        )
                    ).scalars()
                )
        return held

    def register_snapshot(self, session: int, snapshot: bytes) -> bool:
        """Register every live pack that a snapshot needs. True if none of them was missing."""
        with self.transaction("register snapshot") as tx:
            self._require_active(tx, session)
            needed = (
                sa.select(snapshot_packs.c.pack)
                .join(snapshots, snapshots.c.seq == snapshot_packs.c.snapshot)
                .where(snapshots.c.id == snapshot)
            )
            taken = sa.exists().where(session_packs.c.session == session, session_packs.c.pack == packs.c.id)
            tx.execute(
                session_packs.insert().from_select(
                    ["session", "pack"],
                    sa.select(sa.literal(session), packs.c.id).where(
                        packs.c.id.in_(needed), packs.c.state == LIVE, ~taken
                    ),
                )
            )
            gone = tx.execute(
                sa.select(sa.func.count()).select_from(packs).where(packs.c.id.in_(needed), packs.c.state != LIVE)
            ).scalar()
        return not gone

    def find(self, ids: Sequence[bytes], session: int) -> dict[bytes, tuple[int, bool]]:
        """ChunkId -> (a live pack that holds it undamaged, whether the session has registered that pack)."""
        found: dict[bytes, tuple[int, bool]] = {}
        with self._read() as rx:
            for batch in _batches(ids):
                for chunk, pack, holder in rx.execute(_FIND, {"ids": batch, "session": session}):
                    if holder is not None or chunk not in found:
                        found[chunk] = (pack, holder is not None)
        return found

    def locate(self, ids: Sequence[bytes]) -> dict[bytes, list[ChunkRow]]:
        """ChunkId -> every place in live packs, undamaged ones first. Missing chunks are not in the result."""
        found: dict[bytes, list[ChunkRow]] = {}
        with self._read() as rx:
            for batch in _batches(ids):
                for row in rx.execute(_LOCATE, {"ids": batch}):
                    found.setdefault(row[0], []).append(ChunkRow._make(row))
        return found

    def declare(self, session: int, name: bytes, type_: int, size: int, epoch: int, salt: bytes) -> int:
        """Step 3, first half: a pack's row as `writing`, registered to the session, before its object is put."""
        with self.transaction("declare") as tx:
            self._require_active(tx, session)
            result = tx.execute(
                packs.insert().values(name=name, type=type_, state=WRITING, size=size, epoch=epoch, salt=salt)
            )
            pack = _key(result)
            tx.execute(session_packs.insert().values(session=session, pack=pack))
        return pack

    def make_live(self, session: int, pack: int, rows: Sequence[ChunkRow]) -> None:
        """Step 3, second half: chunk rows and `live`, if the session is still active and the pack still `writing`."""
        with self.transaction("make live") as tx:
            self._require_active(tx, session)
            changed = tx.execute(
                packs.update().where(packs.c.id == pack, packs.c.state == WRITING).values(state=LIVE)
            ).rowcount
            if changed != 1:
                raise SessionFenced(
                    "a pack of this session was condemned by another process; nothing was lost, run again"
                )
            insert_chunks(tx, rows)

    def adoptable(self) -> list[PackRow]:
        """Packs left `writing` by sessions that are no longer active."""
        live_holder = (
            sa.exists()
            .where(session_packs.c.pack == packs.c.id)
            .where(sessions.c.id == session_packs.c.session, sessions.c.state == ACTIVE)
        )  # fmt: skip
        with self._read() as rx:
            return [
                PackRow._make(row)
                for row in rx.execute(sa.select(*_PACK_COLUMNS).where(packs.c.state == WRITING, ~live_holder))
            ]

    def adopt(self, session: int, pack: int) -> bool:
        """Register a `writing` pack that no active session holds. False if somebody else was faster."""
        with self.transaction("adopt") as tx:
            self._require_active(tx, session)
            holder = sa.exists().where(
                session_packs.c.pack == pack,
                sessions.c.id == session_packs.c.session,
                sessions.c.state == ACTIVE,
            )
            free = tx.execute(
                sa.select(packs.c.id).where(packs.c.id == pack, packs.c.state == WRITING, ~holder)
            ).scalar()
            if free is None:
                return False
            tx.execute(session_packs.delete().where(session_packs.c.pack == pack))
            tx.execute(session_packs.insert().values(session=session, pack=pack))
        return True

    def mark_damaged(self, places: Iterable[tuple[bytes, int]], damaged: bool = True) -> None:
        """Chunks found damaged in a pack (row id) count as unknown from now on, so that they are stored again."""
        rows = [{"c": chunk, "p": pack} for chunk, pack in places]
        if rows:
            with self.transaction("mark damaged") as tx:
                tx.execute(
                    chunks.update()
                    .where(chunks.c.chunk == sa.bindparam("c"), chunks.c.pack == sa.bindparam("p"))
                    .values(damaged=int(damaged)),
                    rows,
                )

    def damaged_places(self) -> list[tuple[bytes, int]]:
        """(chunk, pack row id) of everything in live packs that is known as damaged. Scans the table."""
        with self._read() as rx:
            query = sa.select(chunks.c.chunk, chunks.c.pack).join(packs, packs.c.id == chunks.c.pack)
            return [(row[0], row[1]) for row in rx.execute(query.where(chunks.c.damaged != 0, packs.c.state == LIVE))]

    def packs_by_id(self, wanted: Sequence[int]) -> dict[int, PackRow]:
        found: dict[int, PackRow] = {}
        with self._read() as rx:
            for batch in _batches(wanted):
                for row in rx.execute(sa.select(*_PACK_COLUMNS).where(packs.c.id.in_(batch))):
                    found[row[0]] = PackRow._make(row)
        return found

    def pack_chunks(self, pack: int) -> list[ChunkRow]:
        """Chunks of one pack by offset. Scans the table, since nothing but repairs asks this way round."""
        with self._read() as rx:
            query = sa.select(*_CHUNK_COLUMNS).where(chunks.c.pack == pack).order_by(chunks.c.offset)
            return [ChunkRow._make(row) for row in rx.execute(query)]

    def live_packs(self, after: int = 0, limit: int = 1000) -> list[PackRow]:
        """Live packs with row ids above `after`, in order: a page at a time."""
        with self._read() as rx:
            query = (
                sa.select(*_PACK_COLUMNS)
                .where(packs.c.state == LIVE, packs.c.id > after)
                .order_by(packs.c.id)
                .limit(limit)
            )
            return [PackRow._make(row) for row in rx.execute(query)]

    def snapshot_pack_rows(self, snapshot: bytes) -> list[PackRow]:
        with self._read() as rx:
            query = (
                sa.select(*_PACK_COLUMNS)
                .join(snapshot_packs, snapshot_packs.c.pack == packs.c.id)
                .join(snapshots, snapshots.c.seq == snapshot_packs.c.snapshot)
                .where(snapshots.c.id == snapshot)
                .order_by(packs.c.id)
            )
            return [PackRow._make(row) for row in rx.execute(query)]

    # --- snapshots ---

    def commit(self, session: int, snapshot: bytes, record: bytes, used: Iterable[int]) -> None:
        """Step 4: the snapshot, and its packs from the session's registered set; the session is closed.

        `used` (row ids) are the registered packs that the snapshot refers to. Raises `SessionFenced` if the session
        may not commit any more, or relies on a pack that it never registered.
        """
        with self.transaction("commit") as tx:
            self._require_active(tx, session)
            result = tx.execute(snapshots.insert().values(id=snapshot, state=PRESENT, record=record))
            seq = _key(result)
            wanted = sorted(set(used))
            kept = 0
            for batch in _batches(wanted):
                kept += tx.execute(
                    snapshot_packs.insert().from_select(
                        ["snapshot", "pack"],
                        sa.select(sa.literal(seq), session_packs.c.pack)
                        .join(packs, packs.c.id == session_packs.c.pack)
                        .where(
                            session_packs.c.session == session,
                            session_packs.c.pack.in_(batch),
                            packs.c.state == LIVE,
                        ),
                    )
                ).rowcount
            if kept != len(wanted):
                raise SessionFenced(
                    "a pack that this snapshot needs is no longer registered; nothing was lost, run again"
                )
            tx.execute(sessions.update().where(sessions.c.id == session).values(state=CLOSED))
            self._drop_session_packs(tx, session)

    def snapshot_rows(self) -> Iterator[SnapshotRow]:
        """Snapshots that are present, in the order of their commits."""
        last = 0
        while True:
            with self._read() as rx:
                query = (
                    sa.select(*_SNAPSHOT_COLUMNS)
                    .where(snapshots.c.state == PRESENT, snapshots.c.seq > last)
                    .order_by(snapshots.c.seq)
                    .limit(200)
                )
                rows = [SnapshotRow._make(row) for row in rx.execute(query)]
            yield from rows
            if len(rows) < 200:
                return
            last = rows[-1].seq

    def newest_snapshots(self) -> Iterator[SnapshotRow]:
        """Snapshots that are present, the latest commit first; read a few at a time."""
        last: int | None = None
        while True:
            with self._read() as rx:
                query = sa.select(*_SNAPSHOT_COLUMNS).where(snapshots.c.state == PRESENT)
                if last is not None:
                    query = query.where(snapshots.c.seq < last)
                rows = rx.execute(query.order_by(snapshots.c.seq.desc()).limit(8)).all()
            yield from (SnapshotRow._make(row) for row in rows)
            if len(rows) < 8:
                return
            last = rows[-1][0]

    def snapshot_ids(self) -> set[bytes]:
        """Ids of all snapshots that were committed, forgotten ones as well."""
        with self._read() as rx:
            return set(rx.execute(sa.select(snapshots.c.id)).scalars())

    def add_annotation(self, name: str, target: bytes, sealed: bytes) -> None:
        with self.transaction("annotate") as tx:
            tx.execute(notes.insert().values(name=name, target=target, sealed=sealed))

    def totals(self) -> dict[str, int]:
        """Counts and bytes over live packs: packs, pack_bytes, chunks, plain_bytes, stored_bytes."""
        with self._read() as rx:
            n, size = rx.execute(
                sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(packs.c.size), 0)).where(packs.c.state == LIVE)
            ).one()
            count, plain, stored = rx.execute(
                sa.select(
                    sa.func.count(),
                    sa.func.coalesce(sa.func.sum(chunks.c.plain), 0),
                    sa.func.coalesce(sa.func.sum(chunks.c.stored), 0),
                )
                .join(packs, packs.c.id == chunks.c.pack)
                .where(packs.c.state == LIVE)
            ).one()  # fmt: skip
        return {"packs": n, "pack_bytes": size, "chunks": count, "plain_bytes": plain, "stored_bytes": stored}

    # --- rebuild ---

    def add_rebuilt_pack(
        self,
        name: bytes,
        type_: int,
        size: int,
        epoch: int,
        salt: bytes,
        rows: Sequence[ChunkRow],
        condemned: bool,
    ) -> None:
        """A pack found in the store; only for an index that is being rebuilt."""
        with self.transaction("rebuild pack") as tx:
            state = CONDEMNED if condemned else LIVE
            result = tx.execute(
                packs.insert().values(name=name, type=type_, state=state, size=size, epoch=epoch, salt=salt)
            )
            if not condemned:
                pack = _key(result)
                insert_chunks(tx, [row._replace(pack=pack) for row in rows])


def _key(result: sa.CursorResult[Any]) -> int:
    """The row id that an insert made."""
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def insert_chunks(tx: sa.Connection, rows: Sequence[ChunkRow]) -> None:
    if rows:
        tx.execute(chunks.insert(), [row._asdict() for row in sorted(rows)])


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("vault_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
