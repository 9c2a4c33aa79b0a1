"""Prove that what the vault holds can be restored: structure always, data as much as asked."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from blake3 import blake3

from lumina_vault import crypto, ids, process
from lumina_vault.errors import BackendError, Damage, NewerFormat, ObjectMissing, StoreFull, UsageError
from lumina_vault.index import ChunkRow, PackRow
from lumina_vault.model import Component
from lumina_vault.store.contents import extents
from lumina_vault.store.pack import open_chunk, read_table
from lumina_vault.store.rebuild import reachable
from lumina_vault.store.repository import Repository, Snapshot, open_record
from lumina_vault.store.trees import leaves

_BATCH = 4096
_MOST_LISTED = 1000


@dataclass(frozen=True)
class Affected:
    """Something that can't be restored in full: which snapshot, component and path, and why."""

    snapshot: str
    component: str
    path: bytes
    reason: str


@dataclass
class Result:
    """What was checked and what is wrong."""

    snapshots: int = 0
    packs: int = 0
    packs_read: int = 0
    bytes_read: int = 0
    chunks_read: int = 0
    problems: list[str] = field(default_factory=list)
    """Damaged objects, one line each."""
    notes: list[str] = field(default_factory=list)
    """Harmless things worth knowing: left by interrupted runs."""
    affected: list[Affected] = field(default_factory=list)
    damaged_chunks: set[bytes] = field(default_factory=set)

    @property
    def clean(self) -> bool:
        return not self.problems and not self.affected


class Verifier:
    """One verification of all snapshots or of some."""

    def __init__(
        self, repository: Repository, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        self.repository = repository
        self.result = Result()
        self._progress = progress
        self._lock = threading.Lock()
        self._damaged_rows: list[tuple[bytes, int]] = []
        self._sound: set[int] = set()
        """Row ids of packs that were read whole and are as they were written."""

    def run(self, wanted: list[Snapshot] | None, data: str) -> Result:
        """`wanted` None: everything in the vault. `data`: `none`, `all`, `N%` or a size such as `500M`."""
        choose = parse_amount(data)
        snapshots = self._records() if wanted is None else wanted
        packs = self._packs(wanted)
        missing, bad = self._check_packs(packs)
        self._read_packs(choose([pack for pack in packs if pack.id not in missing]), bad)
        self._check_snapshots(snapshots)
        index = self.repository.index
        if self.repository.backend.writable and not index.readonly:
            with contextlib.suppress(StoreFull):  # what was found is worth telling all the same
                index.mark_damaged(self._damaged_rows)
                index.mark_damaged([p for p in index.damaged_places() if p[1] in self._sound], damaged=False)
        return self.result

    # --- records ---

    def _records(self) -> list[Snapshot]:
        """Records as the store has them, which must be those that the index was told of."""
        repository, result = self.repository, self.result
        found: list[Snapshot] = []
        for row in repository.index.snapshot_rows():
            name = ids.snapshot_path(row.id)
            try:
                stored = repository.backend.read(name)
                found.append(Snapshot(row.id, open_record(repository.keys, row.id, stored)))
            except (Damage, ObjectMissing) as error:
                result.problems.append(str(error))
                try:
                    found.append(Snapshot(row.id, open_record(repository.keys, row.id, row.record)))
                except Damage:
                    result.affected.append(Affected(row.id.hex()[: ids.SHORT], "", b"", "its record is lost"))
        there = {bytes.fromhex(info.name.rsplit("/", 1)[1]) for info in repository.backend.list("snapshots/")}
        lone = len(there - repository.index.snapshot_ids())  # read last: one may be committed meanwhile
        if lone:
            result.notes.append(f"{lone} snapshot records were never committed: an interrupted run left them")
        return found

    # --- packs ---

    def _packs(self, wanted: list[Snapshot] | None) -> list[PackRow]:
        index = self.repository.index
        if wanted is not None:
            rows = {row.id: row for snapshot in wanted for row in index.snapshot_pack_rows(snapshot.id)}
            return sorted(rows.values())
        packs: list[PackRow] = []
        while page := index.live_packs(packs[-1].id if packs else 0):
            packs.extend(page)
        return packs

    def _check_packs(self, packs: list[PackRow]) -> tuple[set[int], set[int]]:
        """Presence and length of each pack. Returns row ids of those that are missing, and of a wrong length."""
        sizes = {info.name: info.size for info in self.repository.backend.list("packs/")}
        missing: set[int] = set()
        bad: set[int] = set()
        for pack in packs:
            path = ids.pack_path(pack.name)
            size = sizes.get(path)
            if size == pack.size:
                continue
            (missing if size is None else bad).add(pack.id)
            self.result.problems.append(
                f"pack {path} is missing" if size is None else f"pack {path} has {size} bytes instead of {pack.size}"
            )
            self._lose_unreadable(pack, size)
        self.result.packs = len(packs)
        return missing, bad

    def _lose_unreadable(self, pack: PackRow, size: int | None) -> None:
        """Chunks of a missing or cut pack that can't be read any more, found by the index."""
        for row in self.repository.index.pack_chunks(pack.id):
            if size is None or row.offset + row.stored > size:
                self._damaged_rows.append((row.chunk, pack.id))

    def _read_packs(self, packs: list[PackRow], bad: set[int]) -> None:
        total = sum(pack.size for pack in packs)
        running: deque[Future[None]] = deque()
        with ThreadPoolExecutor(process.workers(), "verify") as pool:
            for pack in packs:
                running.append(pool.submit(self._read_pack, pack, pack.id in bad))
                while len(running) > process.workers() * 2:
                    running.popleft().result()
                    self._progress(self.result.bytes_read, total)
            while running:
                running.popleft().result()
                self._progress(self.result.bytes_read, total)

    def _read_pack(self, pack: PackRow, known_bad: bool) -> None:
        """Every byte against the pack's name, every chunk against its id; the pack is never held whole.

        Where a range can't be read its chunks are tried one by one, so that a cut or a bad sector costs no more than
        what it hit.
        """
        keys, backend, path = self.repository.keys, self.repository.backend, ids.pack_path(pack.name)
        rows, newer = self._rows(pack, known_bad)
        cipher = keys.cipher(crypto.Header(pack.type, keys.encrypted, pack.epoch, keys.vault, pack.salt))
        hasher = blake3()
        whole = True
        lost: list[bytes] = []
        for start, length, group in _groups(rows, pack.size):
            data: memoryview | None = None
            try:
                data = memoryview(backend.read(path, start, length))
                hasher.update(data)
            except (Damage, BackendError) as error:
                whole = False
                if not known_bad:
                    self._problem(path, str(error))
            for row in group:
                at = row.offset - start
                try:
                    stored = backend.read(path, row.offset, row.stored) if data is None else data[at : at + row.stored]
                    if keys.chunk_id(open_chunk(cipher, pack.type, row, stored)) != row.chunk:
                        raise Damage("not what its id says")
                except (Damage, BackendError):
                    lost.append(row.chunk)
        whole = whole and hasher.digest() == pack.name
        if newer is not None and whole:  # no flipped bit: it was written so
            raise newer
        if lost:
            self._problem(path, f"{len(lost)} of {len(rows)} chunks are damaged")
        elif not whole and not known_bad:
            self._problem(path, "its bytes are not what its name says, though every chunk can be read")
        with self._lock:
            self._damaged_rows += [(chunk, pack.id) for chunk in lost]
            if whole:
                self._sound.add(pack.id)
            self.result.packs_read += 1
            self.result.bytes_read += pack.size
            self.result.chunks_read += len(rows) - len(lost)

    def _rows(self, pack: PackRow, known_bad: bool) -> tuple[list[ChunkRow], NewerFormat | None]:
        """Chunks of a pack as its table has them, or else as the index does."""
        path = ids.pack_path(pack.name)
        newer: NewerFormat | None = None
        if not known_bad:
            try:
                return read_table(self.repository.backend, self.repository.keys, path, pack.size).rows, None
            except NewerFormat as error:
                newer = error
            except (Damage, BackendError) as error:
                self._problem(path, str(error))
        return self.repository.index.pack_chunks(pack.id), newer

    def _problem(self, path: str, text: str) -> None:
        with self._lock:
            self.result.problems.append(text if path in text else f"pack {path}: {text}")

    # --- snapshots ---

    def _check_snapshots(self, snapshots: list[Snapshot]) -> None:
        """Walk trees and contents: every chunk they name must be in a pack that is there and not known as damaged."""
        lost = self._lost()
        self.result.damaged_chunks = lost
        checked: set[bytes] = set()
        for snapshot in snapshots:
            self.result.snapshots += 1
            for component in snapshot.record.components:
                if component.status != "done":
                    continue
                try:
                    if not lost and self._all_known(snapshot, component, checked):
                        continue
                    for path, reason in self._lost_below(component, lost):
                        self._affected(snapshot, component, path, reason)
                except (Damage, ObjectMissing) as error:
                    self._affected(snapshot, component, b"", str(error))

    def _affected(self, snapshot: Snapshot, component: Component, path: bytes, reason: str) -> None:
        if len(self.result.affected) < _MOST_LISTED:
            self.result.affected.append(Affected(snapshot.short, component.id, path, reason))

    def _lost(self) -> set[bytes]:
        """Chunks found damaged now or earlier, of which no other pack holds a good copy."""
        damaged: dict[bytes, set[int]] = {}
        for chunk, pack in self._damaged_rows:
            damaged.setdefault(chunk, set()).add(pack)
        for chunk, pack in self.repository.index.damaged_places():
            if pack not in self._sound:
                damaged.setdefault(chunk, set()).add(pack)
        places = self.repository.index.locate(list(damaged))
        return {chunk for chunk, packs in damaged.items() if not {row.pack for row in places.get(chunk, [])} - packs}

    def _all_known(self, snapshot: Snapshot, component: Component, checked: set[bytes]) -> bool:
        """The quick way when no damage is known: is every chunk in the index? Leaves seen before are not read again."""
        index, reader = self.repository.index, self.repository.reader
        record = snapshot.record
        single = type(record)(vault=record.vault, time=0, end=0, host="", user="", program="", components=[component])
        batch: set[bytes] = set()

        def complete() -> bool:
            found = index.locate(list(batch))
            whole = len(found) == len(batch)
            checked.update(batch if len(checked) < 1_000_000 else ())
            batch.clear()
            return whole

        for chunk in reachable(reader, single):
            if chunk not in checked:
                batch.add(chunk)
                if len(batch) >= _BATCH and not complete():
                    return False
        return complete()

    def _lost_below(self, component: Component, lost: set[bytes]) -> Iterator[tuple[bytes, str]]:
        """Paths whose bytes can't all be had, with the reason."""
        reader, index = self.repository.reader, self.repository.index

        def why(chunks: Iterable[bytes]) -> str | None:
            wanted = list(dict.fromkeys(chunks))
            if any(chunk in lost for chunk in wanted):
                return "a chunk of it is damaged"
            if len(index.locate(wanted)) != len(wanted):
                return "a chunk of it is in no pack"
            return None

        for content in [*component.digests.values(), *([component.content] if component.content else [])]:
            if reason := why(ref.chunk for ref in extents(reader, content) if ref.chunk):
                yield b"", reason
        if component.tree is None:
            return
        for leaf in leaves(reader, component.tree):
            inline = why(ref.chunk for entry in leaf if entry.height == 0 for ref in entry.refs if ref.chunk)
            for entry in leaf:
                if entry.height or inline is not None:
                    try:
                        reason = why(ref.chunk for ref in extents(reader, entry.content) if ref.chunk)
                    except (Damage, ObjectMissing) as error:
                        reason = str(error)
                    if reason:
                        yield entry.path, reason


def _groups(rows: list[ChunkRow], size: int) -> Iterator[tuple[int, int, list[ChunkRow]]]:
    """(start, length, rows) of reads of a few megabytes that cover every byte of a pack once, in order."""
    start, group = 0, list[ChunkRow]()
    for row in rows:
        end = row.offset + row.stored
        group.append(row)
        if end - start >= 4 << 20:
            yield start, end - start, group
            start, group = end, []
    if start < size:
        yield start, size - start, group


def parse_amount(text: str) -> Callable[[list[PackRow]], list[PackRow]]:
    """How many packs to read: `none`, `all`, `N%` of them or a size in bytes (K, M, G, T). Raises `UsageError`."""
    lowered = text.strip().lower()
    if lowered == "none":
        return lambda _packs: []
    if lowered == "all":
        return lambda packs: packs
    try:
        if lowered.endswith("%"):
            share = float(lowered[:-1]) / 100
            if not 0 < share <= 1:
                raise ValueError
            return lambda packs: sorted(
                random.SystemRandom().sample(packs, max(1, round(len(packs) * share)) if packs else 0)
            )
        factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}.get(lowered[-1:], 1)
        limit = int(float(lowered.rstrip("kmgt")) * factor)
        if limit <= 0:
            raise ValueError
    except ValueError:
        raise UsageError(f"--data {text}: give none, all, a share such as 10% or a size such as 500M") from None

    def some(packs: list[PackRow]) -> list[PackRow]:
        chosen, left = [], limit
        for pack in random.SystemRandom().sample(packs, len(packs)):
            if left <= 0:
                break
            chosen.append(pack)
            left -= pack.size
        return sorted(chosen)

    return some
