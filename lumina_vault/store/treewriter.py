"""What an exporter of files writes into: small files bundled, large ones cut, unchanged ones kept unread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Protocol

from lumina_vault.crypto import DATA, Keys
from lumina_vault.errors import Damage, SourceError
from lumina_vault.model import BUNDLE, BUNDLE_BELOW, LARGE, Entry, Ref, Tree
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

_BLOCK = 2 << 20
"""Bytes of complete bundles that are worth a unit of work."""
_MOST_LARGE = 64
"""Large files open at once."""
_MOST_WAITING = 32768
"""Entries that may wait for the ids of their chunks; then the open bundle is cut short."""


class LargeFile(Protocol):
    """The part of `components.base.LargeFile` that is used here."""

    def segments(self) -> Iterator[Reader | int]: ...
    def ended(self, size: int) -> None: ...
    def settled(self, entry: Entry) -> None: ...


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
    """Small files joined into one chunk; its id is result `number` of `future`, once that is done."""

    __slots__ = ("data", "future", "number")

    def __init__(self) -> None:
        self.data = bytearray()
        self.future: Future[list[bytes]] | None = None
        self.number = 0


class _Large:
    """A large file on its way: `read` is set once its last byte was read."""

    __slots__ = ("error", "file", "profile", "progress", "read", "writer")

    def __init__(
        self, file: LargeFile, profile: int, progress: Callable[[int], None] | None, writer: ContentWriter
    ) -> None:
        self.file, self.profile, self.progress, self.writer = file, profile, progress, writer
        self.read = threading.Event()
        self.error: BaseException | None = None


class _Background:
    """Reads and cuts large files in order in a thread of its own, so that there is always something to compress while
    the walk reads small files."""

    def __init__(self, blocks: BlockReader) -> None:
        self._blocks = blocks
        self._jobs: SimpleQueue[_Large | None] = SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(self, job: _Large) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="large", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def stop(self) -> None:
        """Give up what was not read yet, and wait for the thread."""
        self._stopped = True
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._read(job)
            except BaseException as error:  # noqa: BLE001 (raised again in the walk's thread)
                job.error = error
            job.read.set()

    def _read(self, job: _Large) -> None:
        def passed(got: int) -> None:
            if self._stopped:
                raise SourceError("the snapshot was given up")
            if job.progress is not None:
                job.progress(got)

        for segment in job.file.segments():
            if isinstance(segment, int):
                job.writer.hole(segment)
            else:
                self._blocks.read(segment, job.profile, job.writer, passed)
        job.file.ended(job.writer.size)


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
        self._background = _Background(BlockReader(uploader, buffers, counter))
        self._queue: deque[tuple[Entry, _Bundle | _Large | None, int]] = deque()
        self._large = 0
        self._bundle = _Bundle()
        self._complete: list[_Bundle] = []
        self._packs: set[int] = set()

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error the large files still waiting are let go."""
        self._background.stop()
        for entry, waits, _ in self._queue:
            if isinstance(waits, _Large):
                waits.file.settled(entry)
        self._queue.clear()

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
        self, entry: Entry, file: LargeFile, profile: int = LARGE, progress: Callable[[int], None] | None = None
    ) -> None:
        """A larger file, read and cut in the background while the walk goes on."""
        entry.profile = profile
        job = _Large(file, profile, progress, ContentWriter(self._keys, self._uploader, self._counter))
        self._background.submit(job)
        self._large += 1
        self._push(entry, job, 0)

    def _cut_bundle(self) -> None:
        """The open bundle is complete; several go to the pipeline as one block, which costs less than one by one."""
        bundle, self._bundle = self._bundle, _Bundle()
        if bundle.data:
            self._complete.append(bundle)
            if sum(len(b.data) for b in self._complete) >= _BLOCK:
                self._submit_bundles()

    def _submit_bundles(self) -> None:
        complete, self._complete = self._complete, []
        if complete:
            future = self._uploader.submit([memoryview(b.data) for b in complete], DATA, self._counter)
            for number, bundle in enumerate(complete):
                bundle.future, bundle.number = future, number

    def _push(self, entry: Entry, waits: _Bundle | _Large | None, offset: int) -> None:
        if waits is None and not self._queue:
            self._builder.add(entry)
            return
        self._queue.append((entry, waits, offset))
        if len(self._queue) >= _MOST_WAITING or self._large >= _MOST_LARGE:
            self._cut_bundle()
            self._submit_bundles()
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
                entry.refs = [Ref(waits.future.result()[waits.number], offset, entry.size)]
                waits.data = bytearray()
            elif waits is not None:
                if not (wait or (waits.read.is_set() and (waits.error or waits.writer.ready))):
                    return
                self._settle(entry, waits)
            queue.popleft()
            self._builder.add(entry)

    def _settle(self, entry: Entry, large: _Large) -> None:
        """Wait for a large file and complete its entry. Raises what reading or storing it raised."""
        large.read.wait()
        if large.error is not None:
            raise large.error
        content = large.writer.finish()
        entry.size, entry.height, entry.refs = content.size, content.height, content.refs
        if content.size:
            entry.digest = content_digest(self._keys, entry.profile, content)
        check_content(content, "a file just read")
        self._large -= 1
        large.file.settled(entry)

    def finish(self) -> Tree:
        """Everything added is in the tree; chunks may still be on their way to the store."""
        self._cut_bundle()
        self._submit_bundles()
        self._drain(0)
        self._session.use(self._packs)
        return self._builder.finish()
