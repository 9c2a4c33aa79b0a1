"""Trees that somebody who can write to the store made: walked and restored, nothing leaves its place (law 9)."""

import os
import shutil
import stat
from itertools import islice

import pytest
from fuzz_targets import Chunks, walk
from golden import reference as ref
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumina_vault import crypto
from lumina_vault.components.base import Report
from lumina_vault.components.place import Placing, TreeRestorer
from lumina_vault.errors import Damage, VaultError
from lumina_vault.model import BUNDLE, LARGE, LINKED, Content, Entry, Leaf, Ref, Tree, TreeRef, decode, encode
from lumina_vault.store.contents import check_content, extents
from lumina_vault.store.fetch import Fetcher, StoredTree
from lumina_vault.store.reader import ChunkReader
from lumina_vault.store.trees import check_path, leaves, sort_key
from lumina_vault.store.uploader import Counter, Uploader
from lumina_vault.testing.memory import memory_vault

BYTES = ref.noise("contents", 1_000)
DIRECTORY, FILE, LINK, FIFO = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600


def entry(path, mode=FILE, **fields):
    return Entry(path, mode, os.getuid(), os.getgid(), 10**18, 10**18, 0, 1, 1, **fields)


def one_leaf(entries):
    """(chunks, tree) of a tree of one leaf."""
    payload = encode(Leaf(1, entries))
    name = ref.chunk_id(payload, None)
    return {name: payload}, Tree(len(entries), 0, [TreeRef(name, len(entries), entries[0].path)])


ROOT = entry(b"", DIRECTORY)


# --- one hostile thing each -------------------------------------------------------------------------------------------

HOSTILE_PATHS = [
    b"/etc/passwd", b"..", b"../x", b"a/../../x", b"a/..", b".", b"./a", b"a/.", b"a//b", b"a/", b"//", b"/", b"a\0b",
    b"\0", b"..\0", b"a/\0",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_paths_that_would_leave_the_root_are_damage(path):
    with pytest.raises(Damage, match="leave the restore root"):
        check_path(path)
    for entries in ([ROOT, entry(path)], [ROOT, entry(b"z", flags=LINKED, link=path)]):
        with pytest.raises(Damage):
            walk(*one_leaf(entries))


@pytest.mark.parametrize("path", [b"", b"a", b"...", b"..a", b"a..", b"a/...b", b"\xff\n", b"-rf", b"a" * 5000, b" "])
def test_paths_that_stay_are_not(path):
    check_path(path)
    if path:
        walk(*one_leaf([ROOT, entry(path)]))


@pytest.mark.parametrize(
    "paths",
    [[b"b", b"a"], [b"a", b"a"], [b"a-b", b"a/b"], [b"a/b", b"a"], [b"a", b"b", b"a/x"], [b"x\0y", b"x/y"], [b""]],
)
def test_entries_out_of_order_are_damage(paths):
    with pytest.raises(Damage, match=r"not in order|leave the restore root"):
        walk(*one_leaf([ROOT, *map(entry, paths)]))


def test_order_holds_across_leaves():
    first, second = [ROOT, entry(b"m")], [entry(b"a")]
    payloads = [encode(Leaf(1, leaf)) for leaf in (first, second)]
    chunks = {ref.chunk_id(p, None): p for p in payloads}
    refs = [TreeRef(name, count, b"") for name, count in zip(chunks, (2, 1), strict=True)]
    with pytest.raises(Damage, match="not in order"):
        walk(chunks, Tree(3, 0, refs))


@pytest.mark.parametrize("count", [1, 3, 1 << 40])
def test_leaves_and_nodes_hold_what_their_parents_say(count):
    chunks, tree = one_leaf([ROOT, entry(b"a")])
    with pytest.raises(Damage):
        walk(chunks, Tree(count, 0, [TreeRef(tree.refs[0].chunk, count, b"")]))
    payload = ref.canonical([1, 0, [[tree.refs[0].chunk, 2, b""]]])
    chunks[ref.chunk_id(payload, None)] = payload
    walk(chunks, Tree(2, 1, [TreeRef(ref.chunk_id(payload, None), 2, b"")]))
    with pytest.raises(Damage):
        walk(chunks, Tree(count, 1, [TreeRef(ref.chunk_id(payload, None), count, b"")]))


@pytest.mark.parametrize("height", [-(1 << 63), -2, -1, 2, 7, 8, 9, 1000, 1 << 63])
def test_impossible_heights_end(height):
    """A node that names itself, as if it had found the chunk id that does: no loop, no deep recursion."""
    itself = {bytes(32): ref.canonical([1, height - 1 if height > -(1 << 63) else height, [[bytes(32), 1, b""]]])}
    with pytest.raises(Damage):
        walk(itself, Tree(1, height, [TreeRef(bytes(32), 1, b"")]))
    node = {bytes(32): ref.canonical([1, height - 1 if height > -(1 << 63) else height, [[bytes(32), 0, 1]]])}
    with pytest.raises(Damage):
        list(extents(Chunks(node), Content(1, height, [Ref(bytes(32), 0, 1)])))


def test_a_node_that_names_itself_at_every_height_ends():
    for height in range(9):
        payload = ref.canonical([1, height, [[bytes(32), 1, b""]]])
        for claimed in range(9):
            with pytest.raises(Damage):
                walk({bytes(32): payload}, Tree(1, claimed, [TreeRef(bytes(32), 1, b"")]))


def test_a_leaf_that_repeats_is_found_at_once():
    """Nodes full of one leaf: a billion laughs would take as many steps."""
    chunks, tree = one_leaf([entry(b"a")])
    name, count = tree.refs[0].chunk, 1
    for height in range(6):
        payload = ref.canonical([1, height, [[name, count, b"a"]] * 256])
        name, count = ref.chunk_id(payload, None), count * 256
        chunks[name] = payload
    reads = []
    reader = Chunks(chunks)
    reader.get = lambda chunk, real=reader.get: reads.append(chunk) or real(chunk)
    with pytest.raises(Damage, match="not in order"):
        list(leaves(reader, Tree(count, 6, [TreeRef(name, count, b"a")])))
    assert len(reads) < 10


@pytest.mark.parametrize(
    "payload",
    [
        ref.canonical([1, 0, [[bytes(32), 0, b""]]]),  # nothing below
        ref.canonical([1, 0, [[bytes(32), -1, b""]]]),
        ref.canonical([1, 0, [[bytes(32), 1 << 63, b""]]]),
    ],
)
def test_counts_that_no_tree_has_are_damage(payload):
    with pytest.raises(Damage):
        walk({bytes(32): payload}, Tree(1, 1, [TreeRef(bytes(32), 1, b"")]))


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, -1), (-1, 5), (0, 1 << 63), (1 << 63, 1), (0, -(1 << 63))])
def test_extents_that_no_file_has_are_damage(offset, length):
    for payload in ([1, 0, [[bytes(32), offset, length]]], [1, 0, [[bytes(32), 0, 10], [bytes(32), offset, length]]]):
        size = sum(r[2] for r in payload[2])
        node = {b"n" * 32: ref.canonical(payload)}
        with pytest.raises(Damage):
            list(extents(Chunks(node), Content(size, 1, [Ref(b"n" * 32, 0, size)])))
    leaf = ref.canonical(
        [
            1,
            [
                [b"", DIRECTORY, 0, 0, 0, 0, 0, 0, 0],
                [b"a", FILE, 0, 0, 0, 0, 10, 0, 1, b"", 1, 0, [[bytes(32), offset, length]]],
            ],
        ]
    )
    with pytest.raises(Damage):
        walk({b"l" * 32: leaf}, Tree(2, 0, [TreeRef(b"l" * 32, 2, b"")]))


@pytest.mark.parametrize("field", range(17))
@pytest.mark.parametrize("value", [-(1 << 63), (1 << 64) - 1, 1 << 63, b"", b"\0" * 33, None, "text", [], {}, [[b"a"]]])
def test_any_value_in_any_field_of_an_entry(field, value):
    values = [b"a", FILE, 0, 0, 0, 0, 5, 1, 1, bytes(32), 3, 0, [[bytes(32), 0, 5]], b"", 0, [[b"user.x", b""]], 0]
    values[field] = value
    leaf = ref.canonical([1, [[b"", DIRECTORY, 0, 0, 0, 0, 0, 0, 0], values]])
    try:
        walk({b"l" * 32: leaf}, Tree(2, 0, [TreeRef(b"l" * 32, 2, b"")]))
    except VaultError:
        return
    for found in decode(leaf, Leaf, "it").entries:  # what is let through, the system calls take
        assert 0 <= found.mode < 1 << 32
        assert 0 <= min(found.uid, found.gid) <= max(found.uid, found.gid) < 1 << 32
        assert 0 <= found.size < 1 << 63


def test_contents_that_do_not_add_up_are_damage():
    good = Ref(bytes(32), 0, 10)
    check_content(Content(10, 0, [good]), "it")
    for content in (
        Content(11, 0, [good]),
        Content(0, 0, [good]),
        Content(10, 0, []),
        Content(10, 9, [good]),
        Content(10, 0, [Ref(b"short", 0, 10)]),
        Content(650, 0, [good] * 65),
    ):
        with pytest.raises(Damage):
            check_content(content, "it")


def test_a_file_without_extents_has_no_size():
    """A file of a terabyte of which nothing is stored would come back as a hole, silently."""
    hollow = entry(b"a", digest=bytes(32), profile=LARGE)
    hollow.size = 1 << 40
    with pytest.raises(Damage):
        walk(*one_leaf([ROOT, hollow]))


# --- whole trees, restored --------------------------------------------------------------------------------------------


class Overlay(ChunkReader):
    """A vault's reader, with leaves that are not in the vault."""

    leaves: dict[bytes, bytes]

    def get(self, chunk):
        return self.leaves[chunk] if chunk in self.leaves else super().get(chunk)

    def prefetch(self, chunks):
        pass


@pytest.fixture(scope="module")
def fetcher(tmp_path_factory):
    """A fetcher over a vault that holds `BYTES` as one chunk."""
    vault = memory_vault(tmp_path_factory.mktemp("hostile"), encrypted=False)
    with vault.open() as repository:
        with (
            repository.session("writer") as session,
            Uploader(repository.backend, repository.keys, session) as uploader,
        ):
            uploader.submit([BYTES], crypto.DATA, Counter())
            uploader.finish()
        reader = Overlay(repository.backend, repository.keys, repository.index)
        with Fetcher(reader) as fetcher:
            yield fetcher


GOOD_NAMES = st.sampled_from([b"a", b"b", b"c", b"a-", b"\xff", b"n\nl", b"x" * 255])
HOSTILE_NAMES = st.sampled_from([b"..", b".", b"", b"n\0l", b"x" * 256, b"/", b"outside", b"link"])
TARGETS = st.sampled_from(
    [b"../outside", b"/etc", b"a", b"..", b"", b"/", b"b/../../outside", b"nul\0byte", b"x" * 5000]
)
REFS = st.lists(
    st.builds(
        Ref,
        st.sampled_from([ref.chunk_id(BYTES, None), b"", bytes(32)]),
        st.sampled_from([0, 1, 999, 1000, 1 << 40]),
        st.sampled_from([1, 10, 1000, 1001, 1 << 33]),
    ),
    max_size=3,
)


@st.composite
def trees(draw):
    """Entries that are mostly in order, mostly with their parents, and now and then not."""
    paths = {b""}
    for _ in range(draw(st.integers(1, 8))):
        parent = draw(st.sampled_from(sorted(paths)))
        name = draw(GOOD_NAMES if draw(st.integers(0, 7)) else HOSTILE_NAMES)
        paths.add(parent + b"/" + name if parent else name)
    entries = []
    for path in sorted(paths, key=sort_key):
        parents = any(other.startswith(path + b"/") for other in paths) or not path
        mode = (
            DIRECTORY
            if parents and draw(st.integers(0, 9))
            else draw(st.sampled_from([FILE, FILE, LINK, FIFO, DIRECTORY, 0, 0o140777]))
        )
        made = entry(path, mode)
        if stat.S_ISREG(mode):
            if draw(st.integers(0, 3)) == 0:
                made.flags, made.link = LINKED, draw(st.one_of(TARGETS, st.sampled_from(sorted(paths))))
            else:
                made.refs = draw(REFS)
                made.size = sum(r.length for r in made.refs)
                made.profile, made.digest = draw(st.sampled_from([LARGE, BUNDLE])), bytes(32)
        elif stat.S_ISLNK(mode):
            made.link = draw(TARGETS)
        made.xattrs = draw(
            st.sampled_from(
                [None, None, None, [(b"user.x", b"1")], [(b"", b"")], [(b"user.\0", b"1")], [(b"x" * 300, b"")]]
            )
        )
        entries.append(made)
    if not draw(st.integers(0, 9)):
        entries = draw(st.permutations(entries))
    return entries


def listing(place):
    found = {}
    for directory, directories, files in os.walk(os.fsencode(place)):
        for name in directories + files:
            status = os.lstat(os.path.join(directory, name))
            found[os.path.join(directory, name)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink)
    return found


@pytest.mark.parametrize("replace", [False, True])
def test_restores_of_hostile_trees_stay_in_their_place(fetcher, tmp_path, replace):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"untouched")
    (outside / "a").mkdir()
    before = listing(tmp_path)
    target = tmp_path / "target"

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(entries=trees())
    def run(entries):
        target.mkdir()
        if replace:  # what stands in the way leads outside
            (target / "a").symlink_to(outside)
            (target / "b").mkdir()
            (target / "b" / "a").symlink_to(outside / "secret")
            os.link(outside / "secret", target / "c")
        links = listing(tmp_path)
        fetcher.reader.leaves, tree = one_leaf(entries)
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            TreeRestorer(root, StoredTree(fetcher, tree), Report(), Placing(replace=replace)).restore()
        except VaultError:
            pass
        finally:
            os.close(root)
            seen = {
                path: value for path, value in listing(tmp_path).items() if not path.startswith(os.fsencode(target))
            }
            shutil.rmtree(target)
        assert {path: value[:3] for path, value in seen.items()} == {
            path: value[:3] for path, value in links.items() if not path.startswith(os.fsencode(target))
        }
        assert (outside / "secret").read_bytes() == b"untouched"

    run()
    assert listing(tmp_path) == before


def test_a_hostile_size_of_a_stream_ends(fetcher):
    """Extents beyond their chunk, chunks that are not there, and a hole that is longer than anybody waits for."""
    chunk = ref.chunk_id(BYTES, None)
    assert b"".join(fetcher.stream(Content(1000, 0, [Ref(chunk, 0, 1000)]), "it")) == BYTES
    assert b"".join(fetcher.stream(Content(3, 0, [Ref(chunk, 997, 3)]), "it")) == BYTES[997:]
    for refs in ([Ref(chunk, 0, 1001)], [Ref(chunk, 1000, 1)], [Ref(chunk, 1 << 40, 1)], [Ref(bytes(32), 0, 1)]):
        with pytest.raises(Damage):
            list(fetcher.stream(Content(sum(r.length for r in refs), 0, refs), "it"))
    endless = fetcher.stream(Content(1 << 62, 0, [Ref(b"", 0, 1 << 62)]), "it")
    assert all(not any(block) for block in islice(endless, 3))
