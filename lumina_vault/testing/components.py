"""Conformance of exporters and restorers, and fakes of the engine to try them on.

`FakeTree` is both a `TreeSink` and a `TreeSource` over dicts. A kind that exports trees subclasses `TreeConformance`
and says how it makes a source, exports it and restores it. What stores trees subclasses `EngineConformance`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from lumina_vault.components.base import LargeFile, Piece, Readable, Report, TreeSink, TreeSource
from lumina_vault.model import BUNDLE, BUNDLE_BELOW, LARGE, Entry, Ref


class FakeTree:
    """A tree and its contents in memory, one chunk for each file or range."""

    def __init__(self, earlier: FakeTree | None = None) -> None:
        self.list: list[Entry] = []
        self.chunks: dict[bytes, bytes] = dict(earlier.chunks) if earlier else {}
        self.kept: list[bytes] = []
        self.relied_on = True
        """False: no earlier contents can be taken over."""
        self._earlier = {entry.path: entry for entry in earlier.list} if earlier else {}
        self._last: bytes | None = None

    def _append(self, entry: Entry) -> None:
        key = entry.path.replace(b"/", b"\0")
        assert self._last is None or key > self._last, f"{entry.path!r} is out of order"
        self._last = key
        self.list.append(entry)

    def _store(self, data: bytes) -> bytes:
        name = blake3(data).digest()
        self.chunks[name] = data
        return name

    def previous(self, path: bytes) -> Entry | None:
        return self._earlier.get(path)

    def keep(self, entry: Entry) -> bool:
        if entry.refs and not self.relied_on:
            return False
        self.kept.append(entry.path)
        self._append(entry)
        return True

    def add(self, entry: Entry) -> None:
        assert not entry.refs
        self._append(entry)

    def add_small(self, entry: Entry, data: bytes, earlier: Entry | None) -> None:
        assert len(data) < BUNDLE_BELOW
        assert earlier is None or earlier.path == entry.path
        entry.size, entry.profile = len(data), BUNDLE
        if data:
            entry.digest = self._store(data)
            entry.refs = [Ref(entry.digest, 0, len(data))]
        self._append(entry)

    def add_large(
        self, entry: Entry, file: LargeFile, profile: int = LARGE, progress: Callable[[int], None] | None = None
    ) -> None:
        refs: list[Ref] = []
        for segment in file.segments():
            if isinstance(segment, int):
                assert segment > 0
                refs.append(Ref(b"", 0, segment))
                continue
            data = bytearray()
            buffer = bytearray(65_536)
            while got := segment.readinto(memoryview(buffer)) or 0:
                data += buffer[:got]
                if progress is not None:
                    progress(got)
            if data:
                refs.append(Ref(self._store(bytes(data)), 0, len(data)))
        size = sum(ref.length for ref in refs)
        file.ended(size)
        entry.size, entry.profile, entry.refs = size, profile, refs
        entry.digest = blake3(b"".join(ref.chunk or b"%d" % ref.length for ref in refs)).digest()
        file.settled(entry)
        self._append(entry)

    def entries(self) -> Iterator[Entry]:
        return iter(self.list)

    def find(self, path: bytes) -> Entry | None:
        return next((entry for entry in self.entries() if entry.path == path), None)

    def extents(self, entry: Entry) -> Iterator[Ref]:
        return iter(entry.refs)

    def deliver(self, pieces: Iterable[Piece]) -> None:
        for piece in reversed(list(pieces)):  # in any order, says the protocol
            data = self.chunks.get(piece.ref.chunk)
            if data is None:
                piece.target.fail(piece.position, "gone")
            else:
                piece.target.write(piece.position, data[piece.ref.offset : piece.ref.offset + piece.ref.length])

    def wait(self) -> None:
        """Nothing is ever under way."""

    def digest_matches(self, entry: Entry, data: bytes | memoryview) -> bool:
        return blake3(data).digest() == entry.digest

    def chunk_matches(self, ref: Ref, data: bytes | memoryview) -> bool:
        return blake3(data).digest() == ref.chunk


class TreeConformance:
    """What every exporter and restorer of trees has to keep. Subclass it and give it the three methods."""

    def make(self, place: Path) -> Path:
        """A source with at least `small`, `large` (BUNDLE_BELOW or more), `empty`, `d/below`, `link` -> small."""
        raise NotImplementedError

    def export(self, source: Path, sink: TreeSink, report: Report, *, trust: bool = False) -> None:
        """Export the source; with `trust`, earlier entries that look unchanged may be taken over."""
        raise NotImplementedError

    def restore(self, target: Path, source: TreeSource, report: Report) -> None:
        """Restore into an existing empty directory."""
        raise NotImplementedError

    def test_entries_come_in_order_and_say_what_is_there(self, tmp_path: Path) -> None:
        tree, report = FakeTree(), Report()
        source = self.make(tmp_path / "source")
        self.export(source, tree, report)
        found = {entry.path: entry for entry in tree.list}
        assert tree.list[0].path == b""
        assert {b"small", b"large", b"empty", b"d", b"d/below", b"link"} <= found.keys()
        assert found[b"large"].size == (source / "large").stat().st_size
        assert found[b"link"].link == b"small"
        assert stat.S_ISDIR(found[b"d"].mode)
        assert report.files == sum(not stat.S_ISDIR(entry.mode) for entry in tree.list)
        assert report.dirs == sum(stat.S_ISDIR(entry.mode) for entry in tree.list)
        assert report.size == sum(entry.size for entry in tree.list)
        assert not report.left_out

    def test_unchanged_contents_are_taken_over(self, tmp_path: Path) -> None:
        source = self.make(tmp_path / "source")
        first = FakeTree()
        self.export(source, first, Report())
        second, report = FakeTree(first), Report()
        self.export(source, second, report, trust=True)
        assert {b"small", b"large", b"d/below"} <= set(second.kept)
        assert second.list == first.list
        third = FakeTree(first)
        third.relied_on = False
        self.export(source, third, Report(), trust=True)
        assert not {b"small", b"large"} & set(third.kept)
        assert [e.refs for e in third.list] == [e.refs for e in first.list]

    def test_what_is_restored_exports_as_the_same_tree(self, tmp_path: Path) -> None:
        tree = FakeTree()
        self.export(self.make(tmp_path / "source"), tree, Report())
        target = tmp_path / "target"
        target.mkdir()
        report = Report()
        self.restore(target, tree, report)
        assert not report.left_out, report.notes
        again = FakeTree()
        self.export(target, again, Report())
        assert [_lasting(entry) for entry in again.list] == [_lasting(entry) for entry in tree.list]

    def test_a_file_whose_bytes_are_gone_is_not_put_in_place(self, tmp_path: Path) -> None:
        tree = FakeTree()
        self.export(self.make(tmp_path / "source"), tree, Report())
        lost = next(entry for entry in tree.list if entry.path == b"large")
        del tree.chunks[lost.refs[0].chunk]
        target = tmp_path / "target"
        target.mkdir()
        report = Report()
        self.restore(target, tree, report)
        assert report.damaged == 1
        assert any("large" in note for note in report.notes)
        assert not os.path.lexists(target / "large")
        assert (target / "small").exists()


class EngineConformance:
    """What every sink of trees, and the source that gives them back, has to keep. Subclass it with the two methods."""

    def write(self, place: Path, fill: Callable[[TreeSink], None], earlier: object = None) -> object:
        """Let `fill` write a tree, compared with an earlier one that this returned, and make it lasting."""
        raise NotImplementedError

    def read(self, place: Path, stored: object) -> contextlib.AbstractContextManager[TreeSource]:
        """What `write` made lasting."""
        raise NotImplementedError

    def lose(self, stored: object) -> None:
        """Make the contents of every file unreadable, but not the entries."""
        raise NotImplementedError

    def test_entries_come_back_in_order_with_every_field(self, tmp_path: Path) -> None:
        given = [
            _entry(b"", stat.S_IFDIR | 0o755),
            _entry(b"a", stat.S_IFDIR | 0o4700, mtime=-1, ctime=1 << 62),
            _entry(b"a/deep", stat.S_IFLNK | 0o777, link=b"../\xff"),
            _entry(b"a-b", stat.S_IFREG | 0o600, xattrs=[(b"user.x", bytes(range(256)))]),
            _entry(b"a-c", stat.S_IFREG | 0o600, link=b"a-b", flags=1, nlink=2),
            _entry(b"null", stat.S_IFCHR | 0o666, rdev=1 << 32 | 3),
        ]

        def fill(sink: TreeSink) -> None:
            for entry in given:
                sink.add(entry)

        with self.read(tmp_path, self.write(tmp_path, fill)) as source:
            assert list(source.entries()) == given
            assert source.find(b"a/deep") == given[2]
            assert source.find(b"a-b") == given[3]
            assert source.find(b"a/de") is None
            assert source.find(b"zz") is None

    def test_contents_come_back_each_byte_once(self, tmp_path: Path) -> None:
        files = _files()
        with self.read(tmp_path, self.write(tmp_path, lambda sink: _fill(sink, files))) as source:
            assert _contents(source) == {path: _bytes(parts) for path, parts in files.items()}

    def test_holes_are_told_from_data(self, tmp_path: Path) -> None:
        parts: list[bytes | int] = [70_000, b"x" * 200_000, 1 << 40, b"y", 5]
        with self.read(tmp_path, self.write(tmp_path, lambda sink: _fill(sink, {b"f": parts}))) as source:
            entry = source.find(b"f")
            assert entry is not None
            refs = list(source.extents(entry))
            holes = [ref.length for ref in refs if not ref.chunk]
            assert holes == [70_000, 1 << 40, 5]
            assert entry.size == sum(ref.length for ref in refs) == (1 << 40) + 270_006

    def test_a_large_file_is_told_when_it_ended_and_settled(self, tmp_path: Path) -> None:
        file = _File([b"x" * 300_000, 100_000, b"y" * 300_000])
        entry = _entry(b"f", stat.S_IFREG | 0o600)
        passed: list[int] = []

        def fill(sink: TreeSink) -> None:
            sink.add(_entry(b"", stat.S_IFDIR | 0o755))
            sink.add_large(entry, file, progress=passed.append)

        self.write(tmp_path, fill)
        assert file.told == [700_000, (b"f", 700_000)]
        assert file.settled_in is threading.current_thread()
        assert sum(passed) == 600_000
        assert entry.refs
        assert entry.digest

    def test_what_reading_a_file_raises_ends_the_tree(self, tmp_path: Path) -> None:
        class Broken(_File):
            def readinto(self, _buffer: memoryview, /) -> int:
                raise ValueError("broken")

        def fill(sink: TreeSink) -> None:
            sink.add(_entry(b"", stat.S_IFDIR | 0o755))
            sink.add_large(_entry(b"f", stat.S_IFREG | 0o600), Broken([b"x"]))

        with pytest.raises(ValueError, match="broken"):
            self.write(tmp_path, fill)

    def test_an_earlier_tree_is_found_beside_the_new_one(self, tmp_path: Path) -> None:
        files = _files()
        first = self.write(tmp_path, lambda sink: _fill(sink, files))
        kept: list[Entry] = []

        def fill(sink: TreeSink) -> None:
            for path in [b"", b"0", *sorted(files), b"zz"]:
                earlier = sink.previous(path)
                assert (earlier is not None) == (path not in (b"0", b"zz"))
                if earlier is not None:
                    kept.append(earlier)
                    assert sink.keep(earlier)

        with self.read(tmp_path, self.write(tmp_path, fill, first)) as source:
            assert list(source.entries()) == kept
            assert _contents(source) == {path: _bytes(parts) for path, parts in files.items()}

    def test_equal_contents_are_not_stored_again(self, tmp_path: Path) -> None:
        files: dict[bytes, list[bytes | int]] = {b"f%03d" % i: [b"%d" % i * 1000] for i in range(100)}
        first = self.write(tmp_path, lambda sink: _fill(sink, files))
        second = self.write(tmp_path, lambda sink: _fill(sink, files), first)
        with self.read(tmp_path, first) as a, self.read(tmp_path, second) as b:
            assert [entry.refs for entry in a.entries()] == [entry.refs for entry in b.entries()]

    def test_bytes_that_are_there_already_are_known(self, tmp_path: Path) -> None:
        data = _noise(3_000_000)
        files: dict[bytes, list[bytes | int]] = {b"large": [data], b"small": [b"small"], b"other": [b"next to small"]}
        with self.read(tmp_path, self.write(tmp_path, lambda sink: _fill(sink, files))) as source:
            small, large = source.find(b"small"), source.find(b"large")
            assert small is not None
            assert large is not None
            assert source.digest_matches(small, b"small")
            assert not source.digest_matches(small, b"smalL")
            position = 0
            for ref in source.extents(large):
                piece = data[position : position + ref.length]
                assert source.chunk_matches(ref, piece)
                assert not source.chunk_matches(ref, piece[:-1] + bytes([piece[-1] ^ 1]))
                position += ref.length

    def test_what_a_target_raises_comes_out(self, tmp_path: Path) -> None:
        with self.read(tmp_path, self.write(tmp_path, lambda sink: _fill(sink, {b"f": [b"x"]}))) as source:
            entry = source.find(b"f")
            assert entry is not None
            target = _Target()
            target.refuses = OSError("full")
            pieces = [Piece(target, 0, ref) for ref in source.extents(entry)]
            with pytest.raises(OSError, match="full"):
                _deliver(source, pieces)

    def test_contents_that_are_lost_are_told_to_the_target(self, tmp_path: Path) -> None:
        stored = self.write(tmp_path, lambda sink: _fill(sink, {b"f": [b"x" * 200_000]}))
        self.lose(stored)
        with self.read(tmp_path, stored) as source:
            entry = source.find(b"f")
            assert entry is not None
            target = _Target()
            _deliver(source, [Piece(target, 7, ref) for ref in source.extents(entry)])
            assert not target.pieces
            assert target.failed == [7]


def _deliver(source: TreeSource, pieces: list[Piece]) -> None:
    source.deliver(pieces)
    source.wait()


class _File:
    """A large file of data and holes, which notes what its sink tells it."""

    def __init__(self, parts: list[bytes | int]) -> None:
        self._parts = parts
        self._current = io.BytesIO()
        self.told: list[object] = []
        self.settled_in: threading.Thread | None = None

    def segments(self) -> Iterator[Readable | int]:
        for part in self._parts:
            if isinstance(part, int):
                yield part
            else:
                self._current = io.BytesIO(part)
                yield self

    def readinto(self, buffer: memoryview, /) -> int:
        return self._current.readinto(buffer[:10_001])

    def ended(self, size: int) -> None:
        self.told.append(size)

    def settled(self, entry: Entry) -> None:
        self.told.append((entry.path, entry.size))
        self.settled_in = threading.current_thread()


class _Target:
    def __init__(self) -> None:
        self.pieces: dict[int, bytes] = {}
        self.failed: list[int] = []
        self.refuses: OSError | None = None
        self._lock = threading.Lock()

    def write(self, position: int, data: bytes | memoryview) -> None:
        if self.refuses is not None:
            raise self.refuses
        with self._lock:
            assert position not in self.pieces, "each piece arrives once"
            self.pieces[position] = bytes(data)

    def fail(self, position: int, reason: str) -> None:
        assert reason
        self.failed.append(position)


def _entry(path: bytes, mode: int, **fields: Any) -> Entry:
    common: dict[str, Any] = {"uid": 1, "gid": 2, "mtime": 3, "ctime": 4, "size": 0, "ino": 5, "nlink": 1}
    return Entry(path=path, mode=mode, **{**common, **fields})


def _noise(size: int) -> bytes:
    """The same in every run, and nothing that compresses."""
    return hashlib.shake_128(b"%d" % size).digest(size)


def _files() -> dict[bytes, list[bytes | int]]:
    """Small ones, equal ones, none empty only by its holes, and some of several chunks."""
    files: dict[bytes, list[bytes | int]] = {b"s%03d" % i: [_noise(i * 37)] for i in range(200)}
    files |= {b"same%d" % i: [b"the same"] for i in range(3)}
    files[b"edge"] = [_noise(BUNDLE_BELOW - 1)]
    files[b"large"] = [_noise(9_000_000)]
    files[b"mixed"] = [5, _noise(10), 1 << 20, _noise(2_000_000), 3]
    return files


def _fill(sink: TreeSink, files: Mapping[bytes, list[bytes | int]]) -> None:
    sink.add(_entry(b"", stat.S_IFDIR | 0o755))
    for path in sorted(files):
        entry, parts = _entry(path, stat.S_IFREG | 0o600), files[path]
        if len(parts) == 1 and isinstance(parts[0], bytes) and len(parts[0]) < BUNDLE_BELOW:
            sink.add_small(entry, parts[0], sink.previous(path))
        else:
            sink.add_large(entry, _File(parts))


def _bytes(parts: list[bytes | int]) -> bytes:
    return b"".join(bytes(part) if isinstance(part, int) else part for part in parts)


def _contents(source: TreeSource) -> dict[bytes, bytes]:
    """Every file, all of them delivered at once."""
    targets: dict[bytes, tuple[_Target, int]] = {}
    pieces: list[Piece] = []
    for entry in source.entries():
        if stat.S_ISREG(entry.mode):
            target, position = _Target(), 0
            targets[entry.path] = target, entry.size
            for ref in source.extents(entry):
                if ref.chunk:
                    pieces.append(Piece(target, position, ref))
                position += ref.length
            assert position == entry.size
    _deliver(source, pieces)
    found: dict[bytes, bytes] = {}
    for path, (target, size) in targets.items():
        assert not target.failed
        data = bytearray(size)
        for position, piece in target.pieces.items():
            data[position : position + len(piece)] = piece
        found[path] = bytes(data)
    return found


def _lasting(entry: Entry) -> tuple[object, ...]:
    """What a restore brings back: all but change time and inode."""
    return (entry.path, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, entry.refs, entry.link, entry.xattrs)
