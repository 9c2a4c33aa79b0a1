"""The protocols between components and the engine.

An exporter reads one component and writes it into a sink; a restorer reads it from a source. Neither knows of chunks,
packs or the index. Conformance: `lumina_vault.testing.components`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from lumina_vault.model import LARGE, Content, Entry, Ref

MOST_NOTES = 100

Plain = bytes | memoryview


class Readable(Protocol):
    """A stream of bytes: `readinto` as `io.RawIOBase` defines it; 0 at its end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass
class Report:
    """What an exporter or restorer did, and what it could not: counts, and the first hundred reasons."""

    progress: Callable[[int], None] = lambda _bytes: None
    files: int = 0
    dirs: int = 0
    size: int = 0
    """Logical bytes of the files."""
    left_out: int = 0
    """Things that the plan included and that were missed: the run ends with exit status 3."""
    damaged: int = 0
    """Those of them that stored bytes are to blame for: exit status 13."""
    kept: int = 0
    """Entries taken over unread, or found in place already."""
    notes: list[str] = field(default_factory=list)

    def miss(self, note: str, *, damage: bool = False) -> None:
        """Something planned was left out, or is not as it should be; `damage` if stored bytes are to blame."""
        self.left_out += 1
        self.damaged += damage
        self.note(note)

    def note(self, note: str) -> None:
        """Something worth a word that nobody expected to be saved (a socket)."""
        if len(self.notes) < MOST_NOTES:
            self.notes.append(note)


class StreamSink(Protocol):
    """Takes one stream of bytes."""

    def write_stream(self, source: Readable, profile: int = LARGE) -> Content:
        """Store `source` to its end. Raises what reading or storing raised; then nothing refers to what was stored."""


class LargeFile(Protocol):
    """A file that a sink reads while its exporter goes on; the sink calls each method once, in this order."""

    def segments(self) -> Iterator[Readable | int]:
        """Readers of its data and lengths of its holes, in order."""

    def ended(self, size: int) -> None:
        """So many bytes were read, just now, in the thread that read them."""

    def settled(self, entry: Entry) -> None:
        """The entry has its contents: last changes to it, and whatever is to be released. In the exporter's thread."""


class TreeSink(Protocol):
    """Takes the entries of one tree in depth-first order, names sorted as bytes."""

    def previous(self, path: bytes) -> Entry | None:
        """The entry of that path in the snapshot compared with. Call in tree order."""

    def keep(self, entry: Entry) -> bool:
        """Take over an entry that `previous` returned, unread. False if its contents can't be relied on."""

    def add(self, entry: Entry) -> None:
        """An entry without contents."""

    def add_small(self, entry: Entry, data: bytes, earlier: Entry | None) -> None:
        """A file without holes of fewer than `BUNDLE_BELOW` bytes; sets size, digest and contents of the entry."""

    def add_large(
        self,
        entry: Entry,
        file: LargeFile,
        profile: int = LARGE,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """A file of any size, read by the sink in its own time; sets size, digest and contents of the entry."""


class Target(Protocol):
    """Where restored bytes go. Called from several threads; each piece arrives once, in any order."""

    def write(self, position: int, data: Plain) -> None:
        """Verified bytes at a position of the file."""

    def fail(self, position: int, reason: str) -> None:
        """These bytes can't be had: they are damaged or missing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One extent to be delivered: `ref` belongs at `position` of the target."""

    target: Target
    position: int
    ref: Ref


class TreeSource(Protocol):
    """Gives back the entries of a tree and their contents."""

    def entries(self) -> Iterator[Entry]:
        """All entries in order. Raises `Damage` if the tree can't be read or a path would leave the restore root."""

    def find(self, path: bytes) -> Entry | None:
        """The entry of that path. Raises `Damage` as `entries` does."""

    def extents(self, entry: Entry) -> Iterator[Ref]:
        """Extents and holes of a file, in order."""

    def deliver(self, pieces: Iterable[Piece]) -> None:
        """Begin to fetch, verify and write these pieces. Waits while too many are under way.

        Raises what writing an earlier piece raised.
        """

    def wait(self) -> None:
        """Until everything delivered so far is written. Raises what writing raised."""

    def digest_matches(self, entry: Entry, data: Plain) -> bool:
        """True if these are the bytes of a bundled file."""

    def chunk_matches(self, ref: Ref, data: Plain) -> bool:
        """True if these are the bytes of a whole chunk."""
