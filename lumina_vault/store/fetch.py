"""The engine's side of a restore: extents in, verified bytes out, in the order of the packs and in parallel."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Protocol

from lumina_vault import process
from lumina_vault.errors import Damage
from lumina_vault.model import LINKED, Content, Entry, Ref, Tree
from lumina_vault.store.contents import check_content, extents
from lumina_vault.store.reader import ChunkReader, Plain, Span
from lumina_vault.store.trees import below, check_path, entries

_WINDOW: Final = 16 << 20
"""Plaintext bytes fetched ahead of a reader that wants them in order."""


class _Target(Protocol):
    def write(self, position: int, data: Plain) -> None: ...
    def fail(self, position: int, reason: str) -> None: ...


class _Piece(Protocol):
    @property
    def target(self) -> _Target: ...
    @property
    def position(self) -> int: ...
    @property
    def ref(self) -> Ref: ...


class Fetcher:
    """A pool that fetches, verifies and hands over chunks. A context manager; bounded in flight."""

    def __init__(self, reader: ChunkReader) -> None:
        self.reader = reader
        workers = process.workers()
        self._pool = ThreadPoolExecutor(workers, "fetch")
        self._slots = threading.Semaphore(workers * 3)
        self._running: deque[Future[None]] = deque()
        self.damaged: set[bytes] = set()
        """Chunks that could not be had."""

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def deliver(self, pieces: Iterable[_Piece]) -> None:
        """Begin to fetch these pieces and write them to their targets. Raises what an earlier one raised."""
        wanted: dict[bytes, list[_Piece]] = {}
        for piece in pieces:
            wanted.setdefault(piece.ref.chunk, []).append(piece)
        spans, missing = self.reader.plan(wanted)
        for chunk in missing:
            self.damaged.add(chunk)
            for piece in wanted[chunk]:
                piece.target.fail(piece.position, "its chunk is in no pack that the index knows")
        for span in spans:
            self._slots.acquire()
            future = self._pool.submit(self._span, span, wanted)
            future.add_done_callback(lambda _done: self._slots.release())
            self._running.append(future)
        while self._running and self._running[0].done():
            self._running.popleft().result()

    def wait(self) -> None:
        """Until everything delivered so far is written. Raises what writing raised."""
        while self._running:
            self._running.popleft().result()

    def _span(self, span: Span, wanted: dict[bytes, list[_Piece]]) -> None:
        for row, plain in self.reader.fetch(span):
            for piece in wanted[row.chunk]:
                ref = piece.ref
                if isinstance(plain, Damage):
                    self.damaged.add(row.chunk)
                    piece.target.fail(piece.position, str(plain))
                elif ref.offset + ref.length > len(plain):
                    piece.target.fail(piece.position, "its extent reaches beyond its chunk")
                elif ref.length == len(plain):
                    piece.target.write(piece.position, plain)
                else:
                    piece.target.write(piece.position, memoryview(plain)[ref.offset : ref.offset + ref.length])

    def stream(self, content: Content, what: str) -> Iterator[Plain]:
        """The bytes of a content in order; one window is read while another is used. Raises `Damage`."""
        check_content(content, what)
        ahead: deque[tuple[list[Ref], list[Future[dict[bytes, Plain | Damage]]]]] = deque()
        for window in _windows(extents(self.reader, content)):
            spans, missing = self.reader.plan(ref.chunk for ref in window if ref.chunk)
            if missing:
                self.damaged.update(missing)
                raise Damage(
                    f"{what}: {len(missing)} chunks are in no pack that the index knows; run: vault index rebuild"
                )
            ahead.append((window, [self._pool.submit(self._collect, span) for span in spans]))
            if len(ahead) > 1:
                yield from self._in_order(*ahead.popleft(), what)
        while ahead:
            yield from self._in_order(*ahead.popleft(), what)

    def _collect(self, span: Span) -> dict[bytes, Plain | Damage]:
        return {row.chunk: plain for row, plain in self.reader.fetch(span)}

    def _in_order(
        self, window: list[Ref], parts: list[Future[dict[bytes, Plain | Damage]]], what: str
    ) -> Iterator[Plain]:
        got: dict[bytes, Plain | Damage] = {}
        for part in parts:
            got.update(part.result())
        for ref in window:
            if not ref.chunk:
                yield from _zeros(ref.length)
                continue
            plain = got[ref.chunk]
            if isinstance(plain, Damage):
                self.damaged.add(ref.chunk)
                raise Damage(f"{what}: {plain}")
            if ref.offset + ref.length > len(plain):
                raise Damage(f"{what}: an extent reaches beyond its chunk")
            yield memoryview(plain)[ref.offset : ref.offset + ref.length]


def _windows(refs: Iterator[Ref]) -> Iterator[list[Ref]]:
    window: list[Ref] = []
    size = 0
    for ref in refs:
        window.append(ref)
        size += ref.length if ref.chunk else 0
        if size >= _WINDOW or len(window) >= 4096:
            yield window
            window, size = [], 0
    if window:
        yield window


def _zeros(length: int) -> Iterator[bytes]:
    block = bytes(min(length, 1 << 20))
    while length > 0:
        yield block[:length]
        length -= len(block)


def _checked(entry: Entry) -> Entry:
    check_path(entry.path)
    if entry.link and entry.flags & LINKED:
        check_path(entry.link)
    check_content(entry.content, "an entry")
    return entry


class StoredTree:
    """Implements `components.base.TreeSource` for one tree of a snapshot."""

    def __init__(self, fetcher: Fetcher, tree: Tree) -> None:
        self._fetcher, self._tree = fetcher, tree
        self._reader = fetcher.reader

    def entries(self) -> Iterator[Entry]:
        return map(_checked, entries(self._reader, self._tree))

    def find(self, path: bytes) -> Entry | None:
        entry = next(below(self._reader, self._tree, path), None)
        return _checked(entry) if entry is not None and entry.path == path else None

    def extents(self, entry: Entry) -> Iterator[Ref]:
        return extents(self._reader, entry.content)

    def deliver(self, pieces: Iterable[_Piece]) -> None:
        self._fetcher.deliver(pieces)

    def wait(self) -> None:
        self._fetcher.wait()

    def digest_matches(self, entry: Entry, data: Plain) -> bool:
        return self._reader.chunk_id(data) == entry.digest

    def chunk_matches(self, ref: Ref, data: Plain) -> bool:
        return ref.offset == 0 and self._reader.chunk_id(data) == ref.chunk
