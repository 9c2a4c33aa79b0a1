"""Byte streams as lists of extents, cut into nodes when they grow long (format.md section 6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import msgspec

from lumina_vault.crypto import DATA, META, Keys
from lumina_vault.errors import Damage
from lumina_vault.model import INLINE_REFS, Content, ContentNode, Ref, decode, encode
from lumina_vault.store.profiles import Cutter, Reader, node_ends
from lumina_vault.store.reader import ChunkReader
from lumina_vault.store.uploader import Counter, Uploader

MAX_HEIGHT = 8
BLOCK_BYTES = 8 << 20
"""One read buffer: twice the largest chunk."""

_MOST_BLOCKS = 64
"""Blocks and holes of one file whose place in the list of extents is still open."""

R = TypeVar("R")


class NodeList(Generic[R]):
    """Refs in order, folded into nodes level by level; at most one open node a level is held in memory."""

    def __init__(self, most: int, chunk_of: Callable[[R], bytes], make_node: Callable[[int, list[R]], R]) -> None:
        self._most, self._chunk_of, self._make_node = most, chunk_of, make_node
        self._levels: list[list[R]] = [[]]
        self._folded = [False]
        self._complete = [False]

    def add(self, ref: R, height: int = 0) -> None:
        if height == len(self._levels):
            self._levels.append([])
            self._folded.append(False)
            self._complete.append(False)
        if self._complete[height]:  # fold only when something follows: 64 refs and no more stay inline
            self._fold(height)
        level = self._levels[height]
        level.append(ref)
        self._complete[height] = node_ends(self._chunk_of(ref), len(level), self._most)

    def _fold(self, height: int) -> None:
        refs, self._levels[height] = self._levels[height], []
        self._folded[height], self._complete[height] = True, False
        self.add(self._make_node(height, refs), height + 1)

    def finish(self) -> tuple[int, list[R]]:
        """(height, refs) of the root: at most `INLINE_REFS` refs."""
        height = 0
        while self._folded[height] or len(self._levels[height]) > INLINE_REFS:
            if self._levels[height]:
                self._fold(height)
            height += 1
        return height, self._levels[height]


class ContentWriter:
    """Builds one `Content` from blocks whose chunk ids come later, and holes."""

    def __init__(self, keys: Keys, uploader: Uploader, counter: Counter) -> None:
        self._keys, self._uploader, self._counter = keys, uploader, counter
        self._nodes: NodeList[Ref] = NodeList(1024, lambda ref: ref.chunk, self._node)
        self._blocks: deque[tuple[Future[list[bytes]] | None, list[int]]] = deque()
        self.size = 0

    def _node(self, height: int, refs: list[Ref]) -> Ref:
        payload = encode(ContentNode(1, height, refs))
        self._uploader.submit([payload], META, self._counter)
        return Ref(self._keys.chunk_id(payload), 0, sum(ref.length for ref in refs))

    def block(self, future: Future[list[bytes]], lengths: list[int]) -> None:
        """Chunks of these lengths follow; their ids are the future's result."""
        self.size += sum(lengths)
        self._blocks.append((future, lengths))
        self._settle_done()

    def hole(self, length: int) -> None:
        self.size += length
        self._blocks.append((None, [length]))
        self._settle_done()

    def _settle_done(self) -> None:
        while self._blocks:
            future = self._blocks[0][0]
            if future is not None and not future.done() and len(self._blocks) <= _MOST_BLOCKS:
                return
            self._settle()

    def _settle(self) -> None:
        future, lengths = self._blocks.popleft()
        if future is None:
            self._nodes.add(Ref(b"", 0, lengths[0]))
            return
        for chunk, length in zip(future.result(), lengths, strict=True):
            self._nodes.add(Ref(chunk, 0, length))

    @property
    def ready(self) -> bool:
        return all(future is None or future.done() for future, _ in self._blocks)

    def finish(self) -> Content:
        """Waits for the ids still missing. Raises what storing a block raised."""
        while self._blocks:
            self._settle()
        height, refs = self._nodes.finish()
        return Content(self.size, height, refs)


class BlockReader:
    """Reads a stream into pooled buffers, cuts it and submits block after block."""

    def __init__(self, uploader: Uploader, buffers: BufferPool, counter: Counter) -> None:
        self._uploader, self._buffers, self._counter = uploader, buffers, counter
        self._cutters: dict[int, Cutter] = {}

    def read(
        self,
        source: Reader,
        profile: int,
        writer: ContentWriter,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Store `source` to its end; returns its length in bytes."""
        cutter = self._cutters.get(profile)
        if cutter is None:
            cutter = self._cutters[profile] = Cutter(profile)
        total = 0
        buffer = self._buffers.take()
        held = 0
        try:
            ended = False
            while not ended:
                view = memoryview(buffer)
                while held < len(view):
                    got = source.readinto(view[held:])
                    if not got:
                        ended = True
                        break
                    held += got
                    total += got
                    if progress is not None:
                        progress(got)
                chunks = list(cutter.cut(view[:held], ended))
                used = sum(map(len, chunks))
                following = None
                if not ended:
                    following = self._buffers.take()
                    following[: held - used] = view[used:held]
                if chunks:
                    lengths = [len(chunk) for chunk in chunks]
                    taken, buffer = buffer, bytearray()
                    future = self._uploader.submit(chunks, DATA, self._counter, lambda b=taken: self._buffers.give(b))  # type: ignore[misc]
                    writer.block(future, lengths)
                if following is not None:
                    if buffer:
                        self._buffers.give(buffer)
                    buffer, held = following, held - used
        finally:
            if buffer:
                self._buffers.give(buffer)
        return total


class BufferPool:
    """A fixed number of read buffers: taking one waits until the pipeline is done with another."""

    def __init__(self, count: int, size: int = BLOCK_BYTES) -> None:
        from queue import SimpleQueue

        self._size = size
        self._unmade = count
        self._free: SimpleQueue[bytearray] = SimpleQueue()

    def take(self) -> bytearray:
        if self._unmade and self._free.empty():
            self._unmade -= 1
            return bytearray(self._size)
        return self._free.get()

    def give(self, buffer: bytearray) -> None:
        self._free.put(buffer)


def content_digest(keys: Keys, profile: int, content: Content) -> bytes:
    """Digest of a large file's contents: of its refs, which are keyed hashes already (ADR 1)."""
    refs: list[Any] = [profile, content.size, content.height, content.refs]
    return keys.chunk_id(msgspec.msgpack.encode(refs))


def check_content(content: Content, what: str) -> None:
    """Raises `Damage` unless the refs add up to the size and nothing in them is out of range."""
    if content.height > MAX_HEIGHT or len(content.refs) > INLINE_REFS:
        raise Damage(f"{what}: its list of extents has an impossible shape")
    if content.size < 0 or sum(ref.length for ref in content.refs) != content.size:
        raise Damage(f"{what}: its extents do not add up to its size")
    if any(ref.length < 0 or ref.offset < 0 or len(ref.chunk) not in (0, 32) for ref in content.refs):
        raise Damage(f"{what}: an extent is out of range")


def read_node(reader: ChunkReader, chunk: bytes, height: int, length: int) -> list[Ref]:
    """Refs of a content node, checked against what its parent says of it."""
    node = decode(reader.get(chunk), ContentNode, "a node of contents")
    if (
        node.height != height
        or sum(ref.length for ref in node.refs) != length
        or any(ref.length < 0 or ref.offset < 0 for ref in node.refs)
    ):
        raise Damage("a node of contents is not what its parent says")
    return node.refs


def extents(reader: ChunkReader, content: Content, nodes: Callable[[bytes], None] | None = None) -> Iterator[Ref]:
    """Extents and holes of a content, in order, in bounded memory. `nodes` is told the id of each node passed."""

    def walk(refs: list[Ref], height: int) -> Iterator[Ref]:
        if height == 0:
            yield from refs
            return
        for ref in refs:
            if nodes is not None:
                nodes(ref.chunk)
            yield from walk(read_node(reader, ref.chunk, height - 1, ref.length), height - 1)

    return walk(content.refs, content.height)
