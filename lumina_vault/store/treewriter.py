"""What an exporter of files writes into: small files bundled, large ones cut, unchanged ones kept unread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from lumina_vault.crypto import DATA, Keys
from lumina_vault.errors import Damage
from lumina_vault.model import BUNDLE, BUNDLE_BELOW, LARGE, Content, Entry, Ref, Tree
from lumina_vault.store.contents import (
    BlockReader,
    BufferPool,
    ContentWriter,
    check_content,
    content_digest,
    read_node,
)
from lumina_vault.store.profiles import Reader, bundle_ends
from lumina_vault.store.reader import ChunkReader
from lumina_vault.store.session import Session
from lumina_vault.store.trees import TreeBuilder, leaves, sort_key
from lumina_vault.store.uploader import Counter, Uploader

_MOST_WAITING = 8192
"""Entries that may wait for the ids of their chunks; then the open bundle is cut short."""


class Previous:
    """The tree of an earlier snapshot, walked beside the source in the same order."""

    def __init__(self, reader: ChunkReader, session: Session, tree: Tree) -> None:
        self._session, self._reader = session, reader
        self._leaves = self._safely(leaves(reader, tree))
        self._entries: Iterator[Entry] = iter(())
        self._packs: dict[bytes, int] = {}
        self._next: Entry | None = None
        self._key = b""
        self._advance()

    @staticmethod
    def _safely(source: Iterator[list[Entry]]) -> Iterator[list[Entry]]:
        """An earlier tree that is damaged costs reading files again, nothing more."""
        try:
            yield from source
        except Damage:
            return

    def _advance(self) -> bool:
        """False at the end."""
        self._next = next(self._entries, None)
        while self._next is None:
            leaf = next(self._leaves, None)
            if leaf is None:
                return False
            wanted = list({ref.chunk for entry in leaf for ref in entry.refs if ref.chunk})
            self._packs = self._session.find(wanted) if wanted else {}
            self._entries = iter(leaf)
            self._next = next(self._entries, None)
        self._key = sort_key(self._next.path)
        return True

    def at(self, path: bytes) -> Entry | None:
        """The earlier entry of that path. Paths must come in order."""
        if self._next is None:
            return None
        if self._next.path == path:
            return self._next
        key = sort_key(path)
        while self._key < key:
            if not self._advance():
                return None
        return self._next if self._key == key else None

    def packs(self, entry: Entry) -> set[int] | None:
        """Registered packs that hold the contents of an entry just returned by `at`; None if one is not to be had."""
        found: set[int] = set()
        for ref in entry.refs:
            if ref.chunk:
                pack = self._packs.get(ref.chunk)
                if pack is None:
                    return None
                found.add(pack)
        if entry.height and not self._below(entry.refs, entry.height, found):
            return None
        return found

    def _below(self, refs: list[Ref], height: int, found: set[int]) -> bool:
        for ref in refs:
            try:
                children = read_node(self._reader, ref.chunk, height - 1, ref.length)
            except Damage:
                return False
            wanted = list({child.chunk for child in children if child.chunk})
            places = self._session.find(wanted)
            if len(places) != len(wanted):
                return False
            found.update(places.values())
            if height > 1 and not self._below(children, height - 1, found):
                return False
        return True


class _Bundle:
    """Small files joined into one chunk; its id is known once `future` is done."""

    __slots__ = ("data", "future")

    def __init__(self) -> None:
        self.data = bytearray()
        self.future: Future[list[bytes]] | None = None


class TreeWriter:
    """Implements `components.base.TreeSink` over the engine."""

    def __init__(
        self,
        keys: Keys,
        session: Session,
        uploader: Uploader,
        buffers: BufferPool,
        previous: Previous | None,
        counter: Counter,
    ) -> None:
        self._keys, self._session, self._uploader, self._counter = keys, session, uploader, counter
        self._previous = previous
        self._builder = TreeBuilder(keys, uploader, counter)
        self._blocks = BlockReader(uploader, buffers, counter)
        self._queue: deque[tuple[Entry, _Bundle | ContentWriter | None, int]] = deque()
        self._bundle = _Bundle()
        self._packs: set[int] = set()

    def previous(self, path: bytes) -> Entry | None:
        """The earlier snapshot's entry of that path, if there is one. Call in tree order."""
        return self._previous.at(path) if self._previous is not None else None

    def keep(self, entry: Entry) -> bool:
        """Take over an earlier entry unread. False, and nothing done, if a chunk of it can't be relied on."""
        if entry.refs:
            assert self._previous is not None
            packs = self._previous.packs(entry)
            if packs is None:
                return False
            self._packs |= packs
        if self._queue:
            self._push(entry, None, 0)
        else:
            self._builder.add(entry)
        return True

    def add(self, entry: Entry) -> None:
        """An entry without contents."""
        self._push(entry, None, 0)

    def add_small(self, entry: Entry, data: bytes, earlier: Entry | None) -> None:
        """A file of fewer than `BUNDLE_BELOW` bytes, wholly in memory."""
        entry.size = len(data)
        if not data:
            self._push(entry, None, 0)
            return
        assert len(data) < BUNDLE_BELOW
        entry.digest = digest = self._keys.chunk_id(data)
        entry.profile = BUNDLE
        if (
            earlier is not None
            and earlier.digest == digest
            and earlier.size == len(data)
            and self._previous is not None
            and (packs := self._previous.packs(earlier)) is not None
        ):
            self._packs |= packs
            entry.profile, entry.height, entry.refs = earlier.profile, earlier.height, earlier.refs
            self._push(entry, None, 0)
            return
        bundle = self._bundle
        offset = len(bundle.data)
        bundle.data += data
        self._push(entry, bundle, offset)
        if bundle_ends(len(bundle.data), digest):
            self._cut_bundle()

    def add_large(
        self,
        entry: Entry,
        segments: Iterator[Reader | int],
        profile: int = LARGE,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """A larger file: readers of its data and lengths of its holes, in order. Returns its size in bytes."""
        writer = ContentWriter(self._keys, self._uploader, self._counter)
        for segment in segments:
            if isinstance(segment, int):
                writer.hole(segment)
            else:
                self._blocks.read(segment, profile, writer, progress)
        entry.profile = profile
        entry.size = writer.size
        self._push(entry, writer, 0)
        return writer.size

    def _cut_bundle(self) -> None:
        bundle, self._bundle = self._bundle, _Bundle()
        if bundle.data:
            bundle.future = self._uploader.submit([memoryview(bundle.data)], DATA, self._counter)

    def _push(self, entry: Entry, waits: _Bundle | ContentWriter | None, offset: int) -> None:
        if waits is None and not self._queue:
            self._builder.add(entry)
            return
        self._queue.append((entry, waits, offset))
        if len(self._queue) >= _MOST_WAITING:
            self._cut_bundle()
            self._drain(len(self._queue) // 2)
        else:
            self._drain(None)

    def _drain(self, until: int | None) -> None:
        """Move entries on whose chunk ids are known; wait for ids while more than `until` are queued."""
        queue = self._queue
        while queue:
            entry, waits, offset = queue[0]
            wait = until is not None and len(queue) > until
            if isinstance(waits, _Bundle):
                if waits.future is None or not (wait or waits.future.done()):
                    return
                entry.refs = [Ref(waits.future.result()[0], offset, entry.size)]
                waits.data = bytearray()
            elif waits is not None:
                if not (wait or waits.ready):
                    return
                self._settle(entry, waits.finish())
            queue.popleft()
            self._builder.add(entry)

    def _settle(self, entry: Entry, content: Content) -> None:
        entry.height, entry.refs = content.height, content.refs
        if content.size:
            entry.digest = content_digest(self._keys, entry.profile, content)
        check_content(content, "a file just read")

    def finish(self) -> Tree:
        """Everything added is in the tree; chunks may still be on their way to the store."""
        self._cut_bundle()
        self._drain(0)
        self._session.use(self._packs)
        return self._builder.finish()
