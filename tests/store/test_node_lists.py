"""Lists of extents and entries of any length: what goes in comes out, in bounded pieces."""

from concurrent.futures import Future

import pytest
from golden import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from lumina_vault.errors import Damage
from lumina_vault.model import CONTENT_REFS, INLINE_REFS, TREE_REFS, ContentNode, Entry, Ref, Tree, TreeNode, decode
from lumina_vault.store.contents import MAX_HEIGHT, ContentWriter, check_content, extents, read_node
from lumina_vault.store.session import PackSet
from lumina_vault.store.trees import TreeBuilder, below, entries, leaves, sort_key
from lumina_vault.store.uploader import Counter
from lumina_vault.testing.memory import make_keys

KEYS = make_keys(True)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


class Store:
    """Uploader and reader in one: chunks by id."""

    def __init__(self):
        self.chunks, self.reads, self.prefetched = {}, [], []

    def submit(self, chunks, type_, counter, done=None):
        for chunk in chunks:
            self.chunks[KEYS.chunk_id(chunk)] = bytes(chunk)
        future = Future()
        future.set_result([KEYS.chunk_id(chunk) for chunk in chunks])
        return future

    def get(self, chunk):
        self.reads.append(chunk)
        if chunk not in self.chunks:
            raise Damage("missing")
        return self.chunks[chunk]

    def prefetch(self, chunks):
        self.prefetched += chunks


# A few ids that end a node wherever one may end, and many that don't: long lists get every shape.
CHUNK_IDS = st.sampled_from([b"", b"\0" * 32, b"\0\2" + b"\5" * 30, *(bytes([i]) * 32 for i in range(1, 40))])
RUNS = st.lists(st.tuples(CHUNK_IDS, st.integers(1, 2000)), max_size=6)
"""(chunk, how often) of a list of refs: runs reach thousands of refs with few draws."""


def write(refs):
    store = Store()
    writer = ContentWriter(KEYS, store, Counter())
    for r in refs:
        if r.chunk:
            future = Future()
            future.set_result([r.chunk])
            writer.block(future, [r.length])
        else:
            writer.hole(r.length)
    return store, writer.finish()


@SETTINGS
@given(RUNS, st.integers(1, 1 << 40))
def test_any_list_of_extents_comes_back(runs, length):
    refs = [Ref(chunk, 0, length) for chunk, count in runs for _ in range(count)]
    store, content = write(refs)
    passed = []
    assert list(extents(store, content, passed.append)) == refs
    assert content.size == length * len(refs)
    assert len(content.refs) <= INLINE_REFS
    assert (content.height == 0) == (len(refs) <= INLINE_REFS)
    assert content.height <= 1 + max(0, len(refs) // (64 * 64))
    check_content(content, "it")
    assert set(passed) == set(store.chunks)
    expected = ref.fold_contents([[r.chunk, 0, r.length] for r in refs], KEYS.id_key)
    assert (content.height, [[r.chunk, r.offset, r.length] for r in content.refs], store.chunks) == expected
    by_height = {}
    for payload in store.chunks.values():
        node = decode(payload, ContentNode, "a node")
        assert len(node.refs) <= CONTENT_REFS
        by_height.setdefault(node.height, []).append(len(node.refs))
    assert sorted(by_height) == list(range(content.height))
    for counts in by_height.values():
        assert sum(count < 64 for count in counts) <= 1


def test_a_long_list_has_a_low_root():
    """A stream of 100 TiB in the largest chunks, without any id that ends a node."""
    _, content = write(Ref(b"\1" * 32, 0, 4 << 20) for _ in range(300_000))
    assert content.height == 2 <= MAX_HEIGHT
    assert len(content.refs) <= INLINE_REFS


def test_an_insertion_rewrites_few_nodes():
    refs = [Ref(ref.noise(f"{number}", 32), 0, 1) for number in range(20_000)]
    before, _ = write(refs)
    after, _ = write([*refs[:10_000], Ref(b"new" + bytes(29), 0, 1), *refs[10_000:]])
    assert len(before.chunks) > 30
    assert len(after.chunks.keys() - before.chunks.keys()) <= 4


@pytest.mark.parametrize(
    "node",
    [
        [1, 1, [[b"c" * 32, 0, 10]]],  # another height
        [1, 0, [[b"c" * 32, 0, 9]]],  # another length
        [1, 0, []],
        [1, 0, [[b"c" * 32, 0, 5], [b"c" * 32, 0, 6]]],
        [1, 0, [[b"c" * 32, 0, 1]] * (CONTENT_REFS + 1)],
    ],
)
def test_a_node_that_is_not_what_its_parent_says_is_damage(node):
    store = Store()
    store.chunks[b"n" * 32] = ref.canonical(node)
    with pytest.raises(Damage):
        read_node(store, b"n" * 32, 0, 10)


# --- trees ------------------------------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=6).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"1"))
PATHS = st.lists(st.lists(NAMES, max_size=4).map(b"/".join), max_size=60, unique=True)


def build(paths, **fields):
    store = Store()
    builder = TreeBuilder(KEYS, store, Counter())
    for path in sorted(paths, key=sort_key):
        builder.add(Entry(path, 0o100644, 0, 0, 0, 0, 0, 1, 1, **fields))
    return store, builder.finish()


@SETTINGS
@given(PATHS)
def test_any_tree_comes_back_in_depth_first_order(paths):
    store, tree = build(paths)
    found = [entry.path for entry in entries(store, tree)]
    assert found == sorted(paths, key=lambda path: path.split(b"/"))
    assert tree.count == len(paths)
    for path in paths:
        assert [e.path for e in entries(store, tree, path)] == found[found.index(path) :]
        inside = [other for other in found if not path or other == path or other.startswith(path + b"/")]
        assert [e.path for e in below(store, tree, path)] == inside


PATHS_OF_A_LARGE_TREE = [b"%02x/%04x" % (number % 64, number) for number in range(30_000)]


@pytest.fixture(scope="module")
def large():
    return build(PATHS_OF_A_LARGE_TREE)


def test_a_large_tree_is_cut_into_bounded_pieces(large):
    store, tree = large
    assert tree.height == 1
    assert len(tree.refs) <= INLINE_REFS
    sizes = [len(leaf) for leaf in leaves(store, tree)]
    assert sum(sizes) == tree.count == 30_000
    assert max(sizes) <= 1024
    for chunk in (r.chunk for r in tree.refs):
        node = decode(store.chunks[chunk], TreeNode, "a node")
        assert len(node.refs) <= TREE_REFS
        assert all(child.first for child in node.refs)


def test_a_path_is_found_without_reading_the_rest(large):
    store, tree = large
    ordered = sorted(PATHS_OF_A_LARGE_TREE, key=sort_key)
    for path in (ordered[0], ordered[12_345], ordered[-1]):
        store.reads.clear()
        assert next(below(store, tree, path)).path == path
        assert len(store.reads) <= 4
    assert list(below(store, tree, b"zz")) == []
    assert list(below(store, tree, b"00/")) == []


def test_one_changed_entry_rewrites_one_leaf_and_its_nodes(large):
    store, _ = large
    again = Store()
    builder = TreeBuilder(KEYS, again, Counter())
    for path in sorted(PATHS_OF_A_LARGE_TREE, key=sort_key):
        builder.add(Entry(path, 0o100644 if path != b"20/3a60" else 0o100600, 0, 0, 0, 0, 0, 1, 1))
    builder.finish()
    assert b"20/3a60" in PATHS_OF_A_LARGE_TREE
    assert len(again.chunks.keys() - store.chunks.keys()) <= 3


def test_an_empty_tree_is_a_tree():
    store, tree = build([])
    assert tree == Tree(0, 0, [])
    assert list(entries(store, tree)) == []


# --- sets of packs ----------------------------------------------------------------------------------------------------


@SETTINGS
@given(st.lists(st.integers(0, 100_000)))
def test_a_pack_set_is_a_set(numbers):
    made = PackSet()
    for number in numbers:
        made.add(number)
    assert list(made) == sorted(set(numbers))
