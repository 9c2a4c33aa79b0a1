"""Conformance of exporters and restorers, and fakes of the engine to try them on.

`FakeTree` is both a `TreeSink` and a `TreeSource` over dicts. A kind that exports trees subclasses `TreeConformance`
and says how it makes a source, exports it and restores it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from lumina_vault.components.base import LargeFile, Piece, Report, TreeSink, TreeSource
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


def _lasting(entry: Entry) -> tuple[object, ...]:
    """What a restore brings back: all but change time and inode."""
    return (entry.path, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, entry.refs, entry.link, entry.xattrs)
