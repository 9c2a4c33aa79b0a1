"""Take a snapshot: plan what goes in, then store it, component by component, and commit."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from lumina_vault import __version__, process
from lumina_vault.components.base import Report
from lumina_vault.components.directory import DirectoryExporter, Options, is_cache
from lumina_vault.components.stream import CountingReader, command_output
from lumina_vault.errors import SourceError, UsageError
from lumina_vault.model import LARGE, Component, Record
from lumina_vault.store.contents import BlockReader, BufferPool, ContentWriter
from lumina_vault.store.recover import adopt_packs
from lumina_vault.store.repository import Repository, Snapshot
from lumina_vault.store.session import Session
from lumina_vault.store.treewriter import Previous, TreeWriter
from lumina_vault.store.uploader import Counter, Uploader

_TRUST_MARGIN = 2_000_000_000
"""An entry is trusted unread if its times precede the earlier snapshot's start by this (ns): clocks tick coarsely."""


@dataclass(frozen=True)
class DirSource:
    """A directory to save as component `dir:<name>`."""

    name: str
    path: str


@dataclass(frozen=True)
class StreamSource:
    """A stream to save as component `stream:<name>`: standard input, or a command's output."""

    name: str
    command: tuple[str, ...] = ()
    stdin: BinaryIO | None = None


Source = DirSource | StreamSource


@dataclass(frozen=True)
class Filter:
    """What to leave out of directories."""

    exclude: tuple[str, ...] = ()
    exclude_caches: bool = False
    one_file_system: bool = False


@dataclass
class Events:
    """What a command line shows while a snapshot runs: a component begins, bytes pass, it ends."""

    begin: Callable[[str, int], None] = lambda _component, _expected: None
    """A component and the bytes it had last time; 0 when that is not known."""
    progress: Callable[[int], None] = lambda _bytes: None
    end: Callable[[Component, Report], None] = lambda _component, _report: None


@dataclass(frozen=True)
class SnapshotPlan:
    """What a snapshot will hold. `execute` takes it, once."""

    sources: tuple[Source, ...]
    tags: tuple[str, ...] = ()
    filter: Filter = Filter()
    level: int = 3
    reread: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def execute(self, repository: Repository, events: Events | None = None) -> Snapshot:
        """Raises `SourceError` if a source can't be read at all; then no snapshot exists."""
        return _Run(self, repository, events or Events()).run()


def plan_snapshot(
    paths: Sequence[str], streams: Sequence[StreamSource], *, tags: Sequence[str] = (), filter_: Filter | None = None,
    level: int = 3, reread: bool = False, environment: Mapping[str, str] | None = None,
) -> SnapshotPlan:  # fmt: skip
    """Name the components and check that they can be. Raises `UsageError`."""
    if not paths and not streams:
        raise UsageError("nothing to save: give --path DIR, --stdin NAME or --from-command NAME -- COMMAND")
    sources: list[Source] = [*_name_directories(paths), *streams]
    for stream in streams:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", stream.name):
            raise UsageError(f"{stream.name!r} can't name a stream: use up to 100 letters, digits, '.', '_' and '-'")
    names = [(type(source).__name__, source.name) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two components would be called {name[1]}; take them in separate snapshots")
    for tag in tags:
        if not tag or len(tag) > 200 or not tag.isprintable() or "," in tag:
            raise UsageError(f"{tag!r} can't be a tag: use up to 200 printable characters without commas")
    return SnapshotPlan(tuple(sources), tuple(tags), filter_ or Filter(), level, reread, environment or {})


def _name_directories(paths: Sequence[str]) -> list[DirSource]:
    """`dir:<last part of the path>`; where two paths end alike, as much of them as tells them apart."""
    absolute: list[str] = []
    for path in paths:
        full = os.path.abspath(os.path.expanduser(path))
        if not os.path.lexists(full):
            raise UsageError(f"{path} does not exist")
        if not os.path.isdir(full):
            raise UsageError(f"{path} is not a directory; a single file can be saved with: --stdin NAME < {path}")
        if full not in absolute:
            absolute.append(full)
    depth = 1
    while depth < 64 and len({_name(path, depth) for path in absolute}) < len(absolute):
        depth += 1
    return [DirSource(_name(path, depth), path) for path in absolute]


def _name(path: str, depth: int) -> str:
    parts = [part for part in path.split("/") if part][-depth:]
    return (
        re.sub(
            r"[^A-Za-z0-9._-]",
            "_",
            os.fsencode("-".join(parts)).decode("ascii", "replace").replace("\ufffd", "_"),
        ).lstrip(".-")
        or "root"
    )


class _Run:
    def __init__(self, plan: SnapshotPlan, repository: Repository, events: Events) -> None:
        self.plan, self.repository, self.events = plan, repository, events
        self.keys = repository.keys

    def run(self) -> Snapshot:
        started = time.time_ns()
        with self.repository.session("writer") as session:
            adopt_packs(self.repository, session)
            parent = self._parent()
            if parent is not None:
                session.register_snapshot(parent.id)
            with Uploader(self.repository.backend, self.keys, session, self.plan.level) as uploader:
                buffers = BufferPool(process.workers() + 2)
                components = [
                    self._component(source, session, uploader, buffers, parent) for source in self.plan.sources
                ]
                uploader.finish()
                for component, counter in components:
                    component.new_bytes, component.stored_bytes = counter.new_bytes, counter.stored_bytes
            record = Record(
                vault=self.keys.vault, time=started, end=time.time_ns(), host=socket.gethostname(), user=_user(),
                tags=list(self.plan.tags), program=f"lumina-vault {__version__}", parent=parent.id if parent else b"",
                components=[component for component, _ in components],
            )  # fmt: skip
            return self.repository.store_record(session, record)

    def _parent(self) -> Snapshot | None:
        """The latest snapshot of this host that holds one of these directories, or else one of any directory: its
        contents are compared by digest, so a wrong guess costs nothing."""
        sources = {
            source.name: os.fsencode(source.path) for source in self.plan.sources if isinstance(source, DirSource)
        }
        if not sources:
            return None
        host = socket.gethostname()
        best: tuple[tuple[bool, ...], Snapshot] | None = None
        for snapshot in self.repository.newest():
            trees = [c for c in snapshot.record.components if c.tree is not None and c.kind == "dir"]
            rank = (
                any(sources.get(c.name) == c.source for c in trees),
                any(c.name in sources for c in trees),
                snapshot.record.host == host,
            )
            if trees and (best is None or rank > best[0]):
                best = (rank, snapshot)
                if all(rank):
                    break
        return best[1] if best else None

    def _component(
        self,
        source: Source,
        session: Session,
        uploader: Uploader,
        buffers: BufferPool,
        parent: Snapshot | None,
    ) -> tuple[Component, Counter]:
        counter = Counter()
        report = Report(progress=self.events.progress)
        if isinstance(source, DirSource):
            earlier = _earlier(parent, source)
            self.events.begin(f"dir:{source.name}", earlier.size if earlier else 0)
            component = self._directory(source, session, uploader, buffers, parent, report, counter)
        else:
            self.events.begin(f"stream:{source.name}", 0)
            component = self._stream(source, uploader, buffers, report, counter)
        component.files, component.dirs, component.size = report.files, report.dirs, report.size
        component.left_out, component.notes, component.complete = (
            report.left_out,
            report.notes,
            not report.left_out,
        )
        component.new_bytes, component.stored_bytes = counter.new_bytes, counter.stored_bytes
        self.events.end(component, report)
        return component, counter

    def _directory(
        self, source: DirSource, session: Session, uploader: Uploader, buffers: BufferPool, parent: Snapshot | None,
        report: Report, counter: Counter,
    ) -> Component:  # fmt: skip
        earlier = _earlier(parent, source)
        previous = None
        trust = 0
        if parent is not None and earlier is not None and earlier.tree is not None:
            previous = Previous(self.repository.reader, session, earlier.tree)
            if (
                earlier.source == os.fsencode(source.path)
                and parent.record.host == socket.gethostname()
                and not self.plan.reread
            ):
                trust = parent.record.time - _TRUST_MARGIN
        filter_ = self.plan.filter
        options = Options(
            excluder(filter_.exclude),
            filter_.exclude_caches,
            filter_.one_file_system,
            trust,
            self.repository.backend.place,
        )
        with TreeWriter(self.keys, session, uploader, buffers, previous, counter) as writer:
            DirectoryExporter(source.path, writer, report, options).export()
            tree = writer.finish()
        return Component(kind="dir", name=source.name, source=os.fsencode(source.path), profile=LARGE, tree=tree)

    def _stream(
        self, source: StreamSource, uploader: Uploader, buffers: BufferPool, report: Report, counter: Counter
    ) -> Component:
        writer = ContentWriter(self.keys, uploader, counter)
        blocks = BlockReader(uploader, buffers, counter)
        if source.command:
            with command_output(source.command, self.plan.environment) as output:
                blocks.read(CountingReader(output, report.progress), LARGE, writer)
        elif source.stdin is not None:
            blocks.read(CountingReader(source.stdin, report.progress), LARGE, writer)
        else:
            raise SourceError(f"stream {source.name} has neither a command nor standard input")
        content = writer.finish()
        report.files, report.size = 1, content.size
        shown = os.fsencode(source.command[0]) if source.command else b"stdin"
        return Component(kind="stream", name=source.name, source=shown, profile=LARGE, content=content)


def _earlier(parent: Snapshot | None, source: DirSource) -> Component | None:
    """The parent's component of the same name; or its only directory, for a tree that was moved or copied."""
    if parent is None:
        return None
    trees = [c for c in parent.record.components if c.kind == "dir" and c.tree is not None]
    same = [c for c in trees if c.name == source.name]
    return same[0] if same else trees[0] if len(trees) == 1 else None


def excluder(patterns: Sequence[str]) -> Callable[[bytes, bool], bool] | None:
    """A predicate over paths relative to the root, by the rules of .gitignore. Raises `UsageError`."""
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec

    try:
        spec = GitIgnoreSpec.from_lines(patterns)
    except ValueError as error:
        raise UsageError(f"an exclude pattern can't be used: {error}") from None

    def excluded(path: bytes, is_dir: bool) -> bool:
        return spec.match_file(os.fsdecode(path) + ("/" if is_dir else ""))

    return excluded


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def estimate(source: DirSource, filter_: Filter) -> tuple[int, int]:
    """(files, bytes) that a directory would add, by a walk that reads no contents: for `--dry-run`."""
    exclude = excluder(filter_.exclude)
    device = os.stat(source.path).st_dev
    files = total = 0

    def included(path: str, is_dir: bool) -> bool:
        return exclude is None or not exclude(os.fsencode(os.path.relpath(path, source.path)), is_dir)

    for directory, names, leaves in os.walk(source.path):
        below = [os.path.join(directory, name) for name in names]
        links = [path for path in below if os.path.islink(path)]
        names[:] = [
            os.path.basename(path)
            for path in below
            if path not in links and included(path, True) and _entered(path, device, filter_)
        ]
        for path in [*links, *(os.path.join(directory, name) for name in leaves)]:
            if included(path, False):
                files += 1
                with contextlib.suppress(OSError):
                    total += os.lstat(path).st_size
    return files, total


def _entered(path: str, device: int, filter_: Filter) -> bool:
    """False for a directory of which only the name is saved."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        crosses = filter_.one_file_system and os.fstat(fd).st_dev != device
        return not crosses and not (filter_.exclude_caches and is_cache(fd))
    finally:
        os.close(fd)
