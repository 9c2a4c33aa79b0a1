"""Chunks back from packs: looked up, fetched in coalesced ranges, opened and checked by id."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lumina_vault import ids
from lumina_vault.backends import Backend
from lumina_vault.crypto import Header, Keys
from lumina_vault.errors import Damage, ObjectMissing, VaultError
from lumina_vault.index import ChunkRow, Index, PackRow
from lumina_vault.store.pack import open_chunk

SPAN_BYTES: Final = 4 << 20
"""Most bytes fetched by one read."""
_GAP: Final = 128 << 10
"""Bytes worth reading and dropping rather than asking twice."""
_CACHE_BYTES: Final = 8 << 20
_PACKS: Final = 4096

Plain = bytes | memoryview


class Span(NamedTuple):
    """A byte range of one pack and the chunks wanted from it, by offset."""

    pack: PackRow
    offset: int
    length: int
    rows: list[ChunkRow]


class ChunkReader:
    """Reads chunks of one vault. Safe to use from several threads."""

    def __init__(self, backend: Backend, keys: Keys, index: Index) -> None:
        self._backend, self._keys, self._index = backend, keys, index
        self._cache: OrderedDict[bytes, Plain] = OrderedDict()
        self._cached = 0
        self._packs: OrderedDict[int, tuple[PackRow, AESGCM | None]] = OrderedDict()
        self._lock = threading.Lock()

    def chunk_id(self, plain: Plain) -> bytes:
        return self._keys.chunk_id(plain)

    def get(self, chunk: bytes) -> Plain:
        """One chunk, through a small cache: for nodes and leaves. Raises `Damage`."""
        with self._lock:
            plain = self._cache.get(chunk)
            if plain is not None:
                self._cache.move_to_end(chunk)
                return plain
        bad: list[ChunkRow] = []
        try:
            plain = self._read(chunk, self._index.locate([chunk]).get(chunk, []), bad)
        finally:
            self._mark(bad)
        self._remember(chunk, plain)
        return plain

    def prefetch(self, chunks: Sequence[bytes]) -> None:
        """Bring chunks into the cache with few reads; errors are left to `get`."""
        with self._lock:
            wanted = [chunk for chunk in dict.fromkeys(chunks) if chunk not in self._cache]
        if len(wanted) < 2:
            return
        spans, _ = self.plan(wanted)
        for span in spans:
            for row, plain in self.fetch(span):
                if not isinstance(plain, Damage):
                    self._remember(row.chunk, plain)

    def _remember(self, chunk: bytes, plain: Plain) -> None:
        with self._lock:
            if chunk not in self._cache and len(plain) <= _CACHE_BYTES // 4:
                self._cache[chunk] = plain
                self._cached += len(plain)
                while self._cached > _CACHE_BYTES:
                    self._cached -= len(self._cache.popitem(last=False)[1])

    def plan(self, chunks: Iterable[bytes]) -> tuple[list[Span], list[bytes]]:
        """Ranges that cover these chunks once each, ordered by pack and offset; and chunks that no live pack holds."""
        wanted = list(dict.fromkeys(chunks))
        places = self._index.locate(wanted)
        first = sorted((places[c][0] for c in wanted if c in places), key=lambda row: (row.pack, row.offset))
        self._load_packs({row.pack for row in first})
        spans: list[Span] = []
        rows: list[ChunkRow] = []
        for row in first:
            if rows and (
                row.pack != rows[0].pack
                or row.offset - (rows[-1].offset + rows[-1].stored) > _GAP
                or row.offset + row.stored - rows[0].offset > SPAN_BYTES
            ):
                spans.append(self._span(rows))
                rows = []
            rows.append(row)
        if rows:
            spans.append(self._span(rows))
        return spans, [c for c in wanted if c not in places]

    def _span(self, rows: list[ChunkRow]) -> Span:
        start = rows[0].offset
        return Span(self._pack(rows[0].pack)[0], start, rows[-1].offset + rows[-1].stored - start, rows)

    def fetch(self, span: Span) -> Iterator[tuple[ChunkRow, Plain | Damage]]:
        """The chunks of a range one by one, each checked by its id; one damaged everywhere comes as its `Damage`."""
        bad: list[ChunkRow] = []
        try:
            data = memoryview(self._backend.read(ids.pack_path(span.pack.name), span.offset, span.length))
        except (Damage, ObjectMissing):
            data = memoryview(b"")
        try:
            for row in span.rows:
                at = row.offset - span.offset
                plain: Plain | Damage
                try:
                    plain = self._open(row, data[at : at + row.stored])
                except Damage:
                    plain = self._elsewhere(row, bad)
                yield row, plain
        finally:
            self._mark(bad)

    def _elsewhere(self, row: ChunkRow, bad: list[ChunkRow]) -> Plain | Damage:
        """Another copy of a chunk, or why there is none."""
        try:
            return self._read(row.chunk, self._index.locate([row.chunk]).get(row.chunk, []), bad)
        except Damage as error:
            return error

    def _mark(self, bad: list[ChunkRow]) -> None:
        """Damage makes a chunk unknown, whoever finds it: the next snapshot that reads those bytes stores them again,
        and so does the one that found it in an earlier tree."""
        if bad and not self._index.readonly:
            with contextlib.suppress(VaultError):  # a full disk must not stop a restore
                self._index.mark_damaged({(row.chunk, row.pack) for row in bad})

    def _read(self, chunk: bytes, places: list[ChunkRow], bad: list[ChunkRow]) -> Plain:
        """The first copy that is what it should be; copies that are not are added to `bad`."""
        problem: Damage | None = None
        self._load_packs({row.pack for row in places})
        for row in places:
            name = ids.pack_path(self._pack(row.pack)[0].name)
            try:
                return self._open(row, self._backend.read(name, row.offset, row.stored))
            except ObjectMissing:
                problem = Damage(f"pack {name} is missing from the store")
                bad.append(row)
            except Damage as error:
                problem = Damage(f"{error} (pack {name})") if name not in str(error) else error
                bad.append(row)
        raise problem or Damage(
            f"chunk {chunk.hex()[: ids.SHORT]} is in no pack that the index knows; run: vault index rebuild"
        )

    def _open(self, row: ChunkRow, stored: bytes | memoryview) -> Plain:
        pack, cipher = self._pack(row.pack)
        plain = open_chunk(cipher, pack.type, row, stored)
        if self._keys.chunk_id(plain) != row.chunk:
            raise Damage(f"chunk {row.chunk.hex()[: ids.SHORT]} is not what its id says")
        return plain

    def _load_packs(self, wanted: set[int]) -> None:
        with self._lock:
            missing = [pack for pack in wanted if pack not in self._packs]
        if not missing:
            return
        for number, row in self._index.packs_by_id(missing).items():
            cipher = self._keys.cipher(Header(row.type, self._keys.encrypted, row.epoch, self._keys.vault, row.salt))
            with self._lock:
                self._packs[number] = (row, cipher)
                while len(self._packs) > _PACKS:
                    self._packs.popitem(last=False)

    def _pack(self, number: int) -> tuple[PackRow, AESGCM | None]:
        with self._lock:
            known = self._packs.get(number)
        if known is None:
            self._load_packs({number})
            with self._lock:
                known = self._packs[number]
        return known
