"""An open vault: its store, keys, index and reader, and the snapshots in it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from lumina_vault import crypto, ids
from lumina_vault.backends import Backend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, ObjectMissing, StoreFull, UsageError, VaultError
from lumina_vault.index import Index
from lumina_vault.model import SAFETY_TAG, Config, GcState, Record, decode, encode
from lumina_vault.store.reader import ChunkReader
from lumina_vault.store.session import Session

INDEX_FILE = "index.db"


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot: its id (32 bytes) and record."""

    id: bytes
    record: Record

    @property
    def short(self) -> str:
        return self.id.hex()[: ids.SHORT]


class Repository:
    """Everything above works on this; `close` or `with` ends it."""

    def __init__(self, backend: Backend, config: Config, keys: Keys, index: Index) -> None:
        self.backend, self.config, self.keys, self.index = backend, config, keys, index
        self.reader = ChunkReader(backend, keys, index)
        self.warn: Callable[[str], None] = lambda _text: None
        """Told what a user should know though the work goes on."""
        of = index.get_info("vault")
        if of != config.vault.hex():
            problem = "belongs to another vault" if of else "is incomplete"
            index.close()
            raise Damage(f"the index {index.path} {problem}; no data is lost, run: vault index rebuild")

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.index.close()

    def session(self, kind: str) -> Session:
        return Session(self.index, kind)

    @contextlib.contextmanager
    def reading(self, *snapshots: bytes) -> Iterator[None]:
        """A reader's session that registers the packs of these snapshots, so that none is deleted meanwhile.

        Where the index can't be written - read-only media, a full disk - the reader goes on without one and says so:
        nobody else can write there either."""
        session = None
        if not self.index.readonly:
            try:
                session = self.session("reader")
                gone = sum(not session.register_snapshot(snapshot) for snapshot in snapshots)
            except StoreFull:
                self.warn("the index can't be written, the disk is full: reading without a session")
                gone = 0
            if gone:
                self.warn("a pack of this snapshot is not there any more: what needs it can't be read")
        try:
            yield
        finally:
            if session is not None:
                with contextlib.suppress(StoreFull):  # its lock goes with this process; the next one fences it
                    session.close()

    def snapshots(self) -> Iterator[Snapshot]:
        """All snapshots, in the order of their commits. Raises `Damage` for a record that does not open."""
        for row in self.index.snapshot_rows():
            yield Snapshot(row.id, open_record(self.keys, row.id, row.record))

    def newest(self) -> Iterator[Snapshot]:
        """All snapshots, the latest commit first."""
        for row in self.index.newest_snapshots():
            yield Snapshot(row.id, open_record(self.keys, row.id, row.record))

    def find(self, wanted: str) -> Snapshot:
        """The snapshot that an id, the beginning of one, or `latest` names. Raises `UsageError` for none or several."""
        if wanted == "latest":
            # A restore that is run again must not restore the safety snapshot of its first run.
            latest = next((s for s in self.newest() if SAFETY_TAG not in s.record.tags), None)
            if latest is None:
                raise UsageError("the vault holds no snapshots yet")
            return latest
        if len(wanted) < 2 or set(wanted) - set("0123456789abcdef"):
            raise UsageError(f"{wanted!r} is not a snapshot id: give two or more hex digits of one, or 'latest'")
        rows = [row for row in self.index.snapshot_rows() if row.id.hex().startswith(wanted)]
        if not rows:
            raise UsageError(f"no snapshot's id begins with {wanted}; see: vault snapshots")
        if len(rows) > 1:
            raise UsageError(f"{len(rows)} snapshots' ids begin with {wanted}; give more digits")
        return Snapshot(rows[0].id, open_record(self.keys, rows[0].id, rows[0].record))

    def store_record(self, session: Session, record: Record) -> Snapshot:
        """Law 1: packs and index rows are durable; now the record, then the commit. Only then the snapshot exists."""
        sealed = crypto.seal(self.keys, crypto.SNAPSHOT, encode(record))
        snapshot = ids.object_hash(sealed)
        self.backend.put(ids.snapshot_path(snapshot), sealed)
        session.commit(snapshot, sealed)
        return Snapshot(snapshot, record)


def open_record(keys: Keys, snapshot: bytes, sealed: bytes) -> Record:
    """A snapshot record from its sealed bytes. Raises `Damage`, `NewerFormat`."""
    what = f"snapshot {snapshot.hex()[: ids.SHORT]}"
    if ids.object_hash(sealed) != snapshot:
        raise Damage(f"{what} is damaged: its bytes are not what its name says")
    record = decode(crypto.unseal(keys, crypto.SNAPSHOT, sealed, what), Record, what)
    if record.vault != keys.vault:
        raise Damage(f"{what} belongs to another vault")
    return record


def read_gc(backend: Backend, keys: Keys) -> tuple[GcState, bytes]:
    """(deletion state, its object's bytes)."""
    raw = backend.read("gc")
    return open_gc(keys, raw), raw


def open_gc(keys: Keys, raw: bytes) -> GcState:
    """The deletion state from its sealed bytes. Raises `Damage`, `NewerFormat`."""
    state = decode(crypto.unseal(keys, crypto.GC, raw, "gc"), GcState, "gc")
    if state.vault != keys.vault:
        raise Damage("gc belongs to another vault")
    return state


def raise_generation(backend: Backend, keys: Keys, problems: list[str]) -> GcState:
    """Raise the generation, so that no deleter with an older index goes on (design, section 9, step 5).

    A state that is lost is made anew: nothing counts as condemned, which is safe, and its generation, seconds since
    1970, is higher than any that a deleter can have.
    """
    for _ in range(16):
        raw: bytes | None = None
        try:
            raw = backend.read("gc")
            state = open_gc(keys, raw)
        except (Damage, ObjectMissing) as error:
            state, problem = GcState(vault=keys.vault, generation=int(time.time())), f"{error}; it was made anew"
        else:
            state.generation, problem = state.generation + 1, ""
        if backend.compare_and_swap("gc", raw, crypto.seal(keys, crypto.GC, encode(state))):
            problems += [problem] if problem else []
            return state
    raise VaultError(
        "the deletion state keeps changing under this command; run it again when other vault commands are done"
    )


def index_path(root: str) -> str:
    return os.path.join(root, INDEX_FILE)
