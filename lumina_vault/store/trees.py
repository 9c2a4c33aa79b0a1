"""Trees: sorted lists of entries in leaves and nodes (format.md section 6, ADR 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lumina_vault.crypto import META, Keys
from lumina_vault.errors import Damage
from lumina_vault.model import INLINE_REFS, Entry, Leaf, Tree, TreeNode, TreeRef, decode, encode
from lumina_vault.store.contents import MAX_HEIGHT, NodeList
from lumina_vault.store.profiles import leaf_ends
from lumina_vault.store.reader import ChunkReader
from lumina_vault.store.uploader import Counter, Uploader

_NODE_REFS = 256
_AHEAD = 16


def sort_key(path: bytes) -> bytes:
    """Depth-first order: `/` before every other byte (names hold no NUL)."""
    return path.replace(b"/", b"\0")


class TreeBuilder:
    """Entries in, in order; leaves and nodes out to the uploader."""

    def __init__(self, keys: Keys, uploader: Uploader, counter: Counter) -> None:
        self._keys, self._uploader, self._counter = keys, uploader, counter
        self._nodes: NodeList[TreeRef] = NodeList(_NODE_REFS, lambda ref: ref.chunk, self._node)
        self._entries: list[Entry] = []
        self._weight = 0
        self._count = 0

    def add(self, entry: Entry) -> None:
        entries = self._entries
        entries.append(entry)
        self._weight += 64 + len(entry.path) + len(entry.link) + 48 * len(entry.refs)
        if entry.xattrs:
            self._weight += sum(len(name) + len(value) for name, value in entry.xattrs)
        if leaf_ends(entry.path, len(entries), self._weight):
            self._leaf()

    def _store(self, payload: bytes) -> bytes:
        self._uploader.submit([payload], META, self._counter)
        return self._keys.chunk_id(payload)

    def _leaf(self) -> None:
        entries, self._entries, self._weight = self._entries, [], 0
        self._count += len(entries)
        self._nodes.add(TreeRef(self._store(encode(Leaf(1, entries))), len(entries), entries[0].path))

    def _node(self, height: int, refs: list[TreeRef]) -> TreeRef:
        return TreeRef(self._store(encode(TreeNode(1, height, refs))), sum(r.count for r in refs), refs[0].first)

    def finish(self) -> Tree:
        if self._entries:
            self._leaf()
        height, refs = self._nodes.finish()
        return Tree(self._count, height, refs)


def leaves(
    reader: ChunkReader, tree: Tree, start: bytes | None = None, nodes: Callable[[bytes], None] | None = None
) -> Iterator[list[Entry]]:
    """The leaves of a tree, in order, each checked; from the one that may hold the path `start` on.

    `nodes` is told the id of every leaf and node before it is read. Raises `Damage`.
    """
    if tree.height > MAX_HEIGHT or len(tree.refs) > INLINE_REFS:
        raise Damage("a tree has an impossible shape")
    key = None if start is None else sort_key(start)
    last: bytes | None = None
    for ref in _leaf_refs(reader, tree.refs, tree.height, key, nodes):
        if nodes is not None:
            nodes(ref.chunk)
        leaf = decode(reader.get(ref.chunk), Leaf, "a leaf of a tree")
        if len(leaf.entries) != ref.count:
            raise Damage("a leaf of a tree does not hold as many entries as its parent says")
        for entry in leaf.entries:
            following = sort_key(entry.path)
            if last is not None and following <= last:
                raise Damage("the entries of a tree are not in order")
            last = following
        yield leaf.entries


def _leaf_refs(
    reader: ChunkReader,
    refs: list[TreeRef],
    height: int,
    start: bytes | None,
    nodes: Callable[[bytes], None] | None,
) -> Iterator[TreeRef]:
    for position, ref in enumerate(refs):
        if start is not None and position + 1 < len(refs) and sort_key(refs[position + 1].first) <= start:
            continue  # everything below lies before the start
        if position % _AHEAD == 0:
            reader.prefetch([r.chunk for r in refs[position : position + _AHEAD]])
        if height == 0:
            yield ref
            continue
        if nodes is not None:
            nodes(ref.chunk)
        node = decode(reader.get(ref.chunk), TreeNode, "a node of a tree")
        if node.height != height - 1 or sum(r.count for r in node.refs) != ref.count:
            raise Damage("a node of a tree is not what its parent says")
        yield from _leaf_refs(reader, node.refs, height - 1, start, nodes)


def entries(reader: ChunkReader, tree: Tree, start: bytes | None = None) -> Iterator[Entry]:
    """Entries of a tree in order, from the path `start` on (inclusive)."""
    key = None if start is None else sort_key(start)
    for leaf in leaves(reader, tree, start):
        for entry in leaf:
            if key is None or sort_key(entry.path) >= key:
                yield entry


def below(reader: ChunkReader, tree: Tree, path: bytes) -> Iterator[Entry]:
    """The entry at `path` and everything below it; everything when `path` is empty."""
    if not path:
        yield from entries(reader, tree)
        return
    prefix = path + b"/"
    for entry in entries(reader, tree, path):
        if entry.path != path and not entry.path.startswith(prefix):
            return
        yield entry


def check_path(path: bytes) -> None:
    """Raises `Damage` for a path that could leave the place it is restored to (law 9)."""
    if path and (
        path.startswith(b"/") or b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/"))
    ):
        raise Damage(
            f"a tree holds the path {path!r}, which would leave the restore root: the snapshot was tampered with"
        )
