"""Rebuild the index from packs, snapshot records and annotations alone (law 2)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lumina_vault import crypto, ids
from lumina_vault.backends import Backend
from lumina_vault.backends.base import ObjectInfo
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, NewerFormat, ObjectMissing, VaultError
from lumina_vault.index import Index, locks
from lumina_vault.model import Annotation, Config, GcState, Record, decode
from lumina_vault.store.contents import extents
from lumina_vault.store.pack import Table, check_pack, read_table
from lumina_vault.store.reader import ChunkReader
from lumina_vault.store.repository import open_record, raise_generation, read_gc
from lumina_vault.store.session import Session
from lumina_vault.store.trees import leaves

_BATCH = 4096


@dataclass
class Rebuilt:
    """What a rebuild found, and what it could not use."""

    packs: int = 0
    chunks: int = 0
    snapshots: int = 0
    annotations: int = 0
    problems: list[str] = field(default_factory=list)


def rebuild_in_place(
    backend: Backend, config: Config, keys: Keys, path: str, progress: Callable[[str, int], None]
) -> Rebuilt:
    """Replace the index at `path`. The old one is untouched until the new one is complete.

    Raises `VaultLocked` while another process has the vault open: it works with the old index.
    """
    vault = os.path.dirname(path)
    workshop = os.path.join(vault, "rebuild")
    sessions = os.path.join(vault, "sessions")
    lock = locks.IndexLock(sessions, exclusive=True)
    try:
        shutil.rmtree(workshop, ignore_errors=True)
        os.mkdir(workshop, 0o700)
        fresh = os.path.join(workshop, os.path.basename(path))
        rebuilt = Rebuilt()
        state = raise_generation(backend, keys, rebuilt.problems)
        index = Index.create(fresh, config.vault, state.generation)
        try:
            fill(backend, keys, index, state, progress, rebuilt)
            with _old_index(path, config) as old:
                if old is not None:
                    _save_lost_records(backend, keys, index, old, rebuilt)
        finally:
            index.close()
        _swap(fresh, path)
        locks.sweep(sessions)
        shutil.rmtree(workshop, ignore_errors=True)
    finally:
        lock.release()
    return rebuilt


@contextlib.contextmanager
def _old_index(path: str, config: Config) -> Iterator[Index | None]:
    """The index that is to be replaced, for reading; None if it can't be used."""
    index: Index | None = None
    with contextlib.suppress(VaultError):
        index = Index(path, readonly=True)
    try:
        usable = False
        if index is not None:
            with contextlib.suppress(VaultError):
                usable = index.get_info("vault") == config.vault.hex()
        yield index if usable else None
    finally:
        if index is not None:
            index.close()


def _save_lost_records(backend: Backend, keys: Keys, index: Index, old: Index, result: Rebuilt) -> None:
    """A record that was lost from the store, and of which the old index has the only copy, is written again; unless
    chunks of it are gone as well, since then it may have been deleted on purpose."""
    known = index.snapshot_ids()
    reader = ChunkReader(backend, keys, index)
    with contextlib.suppress(VaultError):  # the old index may be damaged anywhere
        for row in old.snapshot_rows():
            if row.id in known:
                continue
            what = f"snapshot {row.id.hex()[: ids.SHORT]}"
            problems: list[str] = []
            record = open_record(keys, row.id, row.record)
            with Session(index, "rebuild") as session:
                if _register_reachable(reader, session, record, what, problems) or problems:
                    result.problems.append(f"{what} is only in the old index, and not all of its chunks are there")
                    continue
                backend.put(ids.snapshot_path(row.id), row.record)
                session.commit(row.id, row.record)
            result.snapshots += 1
            result.problems.append(f"{what} was only in the old index: its record is in the store again")


def _swap(fresh: str, path: str) -> None:
    """Put the new index in place. Each step is durable before the next: a write-ahead log beside a database that it
    does not belong to would be played into it, and a database without its log has lost its last commits; an index that
    is missing, though, is only missing."""
    for name in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        _sync_directory(os.path.dirname(path))
    os.rename(fresh, path)
    _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def temporary_index(backend: Backend, config: Config, keys: Keys, path: str) -> Index:
    """An index for this process alone, when the vault has none that can be used; changes nothing in the vault."""
    try:
        state, _ = read_gc(backend, keys)
    except (Damage, ObjectMissing):  # only deleting needs it
        state = GcState(vault=config.vault, generation=0)
    index = Index.create_temporary(path, config.vault, state.generation)
    try:
        fill(backend, keys, index, state, lambda _what, _count: None, Rebuilt())
    except BaseException:
        index.close()
        raise
    return index


def fill(
    backend: Backend, keys: Keys, index: Index, state: GcState, progress: Callable[[str, int], None], result: Rebuilt
) -> None:
    """Read every pack's table, then commit every record through a session that registered all it reaches (law 1)."""
    condemned = set(state.condemned)
    for info in backend.list("packs/"):
        name = bytes.fromhex(info.name.rsplit("/", 1)[1])
        try:
            table = _table(backend, keys, name, info)
        except (Damage, ObjectMissing) as error:
            result.problems.append(str(error) if info.name in str(error) else f"{info.name}: {error}")
            continue
        header = table.header
        index.add_rebuilt_pack(
            name, header.type, table.length, header.epoch, header.salt, table.rows, name in condemned
        )
        result.packs += 1
        result.chunks += len(table.rows)
        progress("packs", result.packs)
    reader = ChunkReader(backend, keys, index)
    records: list[tuple[int, bytes, bytes]] = []
    for info in backend.list("snapshots/"):
        snapshot = bytes.fromhex(info.name.rsplit("/", 1)[1])
        try:
            sealed = backend.read(info.name)
            records.append((open_record(keys, snapshot, sealed).time, snapshot, sealed))
        except (Damage, ObjectMissing) as error:
            result.problems.append(str(error))
    for _, snapshot, sealed in sorted(records):
        record = open_record(keys, snapshot, sealed)
        with Session(index, "rebuild") as session:
            missing = _register_reachable(
                reader, session, record, f"snapshot {snapshot.hex()[: ids.SHORT]}", result.problems
            )
            if missing:
                result.problems.append(
                    f"snapshot {snapshot.hex()[: ids.SHORT]} needs {missing} chunks that no pack holds"
                )
            session.commit(snapshot, sealed)
        result.snapshots += 1
        progress("snapshots", result.snapshots)
    for info in backend.list("annotations/"):
        try:
            sealed = backend.read(info.name)
            note = decode(crypto.unseal(keys, crypto.ANNOTATION, sealed, info.name), Annotation, info.name)
        except (Damage, ObjectMissing) as error:
            result.problems.append(str(error))
            continue
        index.add_annotation(info.name.rsplit("/", 1)[1], note.id, sealed)
        result.annotations += 1


def _table(backend: Backend, keys: Keys, name: bytes, info: ObjectInfo) -> Table:
    """A pack's table; `NewerFormat` only if the pack was written so, and no bit was flipped."""
    try:
        return read_table(backend, keys, info.name, info.size)
    except NewerFormat:
        return check_pack(backend, keys, name, info.size)


def _register_reachable(reader: ChunkReader, session: Session, record: Record, what: str, problems: list[str]) -> int:
    """Register and note as used every pack that a record reaches; how many chunks are in none."""
    batch: set[bytes] = set()
    missing = 0

    def flush() -> None:
        nonlocal missing
        wanted = list(batch)
        found = session.find(wanted)
        session.use(set(found.values()))
        missing += len(wanted) - len(found)
        batch.clear()

    try:
        for chunk in reachable(reader, record):
            batch.add(chunk)
            if len(batch) >= _BATCH:
                flush()
    except Damage as error:
        problems.append(f"{what}: {error}")
    flush()
    return missing


def reachable(reader: ChunkReader, record: Record) -> Iterator[bytes]:
    """Every chunk that a record reaches, nodes before what they name; common neighbours may repeat."""
    pending: list[bytes] = []
    for component in record.components:
        contents = list(component.digests.values())
        if component.content is not None:
            contents.append(component.content)
        for content in contents:
            for ref in extents(reader, content, pending.append):
                yield from pending
                pending.clear()
                if ref.chunk:
                    yield ref.chunk
        if component.tree is not None:
            for leaf in leaves(reader, component.tree, nodes=pending.append):
                yield from pending
                pending.clear()
                for entry in leaf:
                    if entry.height == 0:
                        yield from (ref.chunk for ref in entry.refs if ref.chunk)
                        continue
                    for ref in extents(reader, entry.content, pending.append):
                        yield from pending
                        pending.clear()
                        if ref.chunk:
                            yield ref.chunk
    yield from pending
