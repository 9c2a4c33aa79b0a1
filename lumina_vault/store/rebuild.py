"""Rebuild the index from packs, snapshot records and annotations alone (law 2)."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lumina_vault import crypto, ids
from lumina_vault.backends import Backend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, ObjectMissing, VaultLocked
from lumina_vault.index import Index, locks
from lumina_vault.model import Annotation, Config, GcState, Record, decode
from lumina_vault.store.contents import extents
from lumina_vault.store.pack import read_table
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
    directory = os.path.join(os.path.dirname(path), "sessions")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for token in os.listdir(directory):
        if not locks.is_dead(directory, token):
            raise VaultLocked("another vault command is running on this vault; run again when it is done")
        locks.remove(directory, token)
    fresh = f"{path}.rebuild"
    _remove(fresh)
    state = raise_generation(backend, keys)
    index = Index.create(fresh, config.vault, state.generation)
    try:
        rebuilt = fill(backend, keys, index, state, progress)
    finally:
        index.close()
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
    os.replace(fresh, path)
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return rebuilt


def _remove(path: str) -> None:
    for leftover in glob.glob(glob.escape(path) + "*"):
        os.unlink(leftover)


def temporary_index(backend: Backend, config: Config, keys: Keys, path: str) -> Index:
    """An index for this process alone, when the vault has none that can be used; changes nothing in the vault."""
    state, _ = read_gc(backend, keys)
    index = Index.create_temporary(path, config.vault, state.generation)
    try:
        fill(backend, keys, index, state, lambda _what, _count: None)
    except BaseException:
        index.close()
        raise
    return index


def fill(backend: Backend, keys: Keys, index: Index, state: GcState, progress: Callable[[str, int], None]) -> Rebuilt:
    """Read every pack's table, then commit every record through a session that registered all it reaches (law 1)."""
    result = Rebuilt()
    condemned = set(state.condemned)
    for info in backend.list("packs/"):
        name = bytes.fromhex(info.name.rsplit("/", 1)[1])
        try:
            table = read_table(backend, keys, info.name, info.size)
        except (Damage, ObjectMissing) as error:
            result.problems.append(str(error))
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
    return result


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
