"""Exporter of component kind `dir`: a directory tree with everything the file system says of it.

The walk goes by directory descriptors and never follows a symlink. A file whose size, times and inode are those of
the previous snapshot is taken over unread. COMPONENTS of other kinds that are trees (volumes) use it as well.
"""

from __future__ import annotations

import errno
import heapq
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lumina_vault.components.base import Readable, Report, TreeSink
from lumina_vault.components.links import LinkTable
from lumina_vault.errors import SourceError
from lumina_vault.model import BUNDLE_BELOW, CHANGED, LARGE, LINKED, SMALL, Entry

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SORT_AT_ONCE = 100_000
"""Names of one directory sorted in memory; more go through sorted runs on disk."""
_RETRIES = 2
_TIMES = range(-1 << 63, 1 << 64)
"""Nanoseconds that the format's integers hold."""
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"
_DATABASES = (b"SQLite format 3\0", b"REDIS0")
"""First bytes of files that change a page at a time: they get the small profile."""


@dataclass(frozen=True)
class Options:
    """What to leave out, and which earlier entries to trust.

    `exclude(path, is_dir)` takes a path relative to the root. `trust_before` (ns): an earlier entry is trusted only
    if its times are older, since a file may change twice within a clock's tick.
    """

    exclude: Callable[[bytes, bool], bool] | None = None
    exclude_caches: bool = False
    one_file_system: bool = False
    trust_before: int = 0
    vault: tuple[int, int] | None = None
    """(device, inode) of the vault's own directory, which is never part of what it holds."""


class DirectoryExporter:
    """Exports one directory. Use once."""

    def __init__(self, root: str, sink: TreeSink, report: Report, options: Options) -> None:
        self.root, self.sink, self.report, self.options = root, sink, report, options
        self._links = LinkTable()
        self._device = 0
        self._noatime = os.O_NOATIME if hasattr(os, "O_NOATIME") else 0

    def export(self) -> None:
        """Raises `SourceError` if the root can't be read; what can't be read below it is reported and left out."""
        try:
            fd = os.open(self.root, _DIR & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            raise SourceError(f"{self.root} does not exist; nothing was stored for it") from None
        except OSError as error:
            raise SourceError(f"{self.root}: {error.strerror}; nothing was stored for it") from None
        with self._links:
            try:
                names = _sorted_names(fd)
            except OSError as error:
                os.close(fd)
                raise SourceError(f"{self.root}: {error.strerror}; nothing was stored for it") from None
            status = os.fstat(fd)
            self._device = status.st_dev
            self._directory(b"", status, fd)
            self._walk(fd, names)

    def _walk(self, fd: int, names: Iterator[bytes]) -> None:
        """Depth-first, with an explicit stack: paths may be deeper than Python's."""
        stack = [(fd, b"", names)]
        try:
            while stack:
                fd, prefix, names = stack[-1]
                for name in names:
                    below = self._visit(fd, name, prefix + name)
                    if below is not None:
                        stack.append((below[0], prefix + name + b"/", below[1]))
                        break
                else:
                    os.close(fd)
                    stack.pop()
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _visit(self, parent: int, name: bytes, path: bytes) -> tuple[int, Iterator[bytes]] | None:
        """Store one entry; for a directory to descend into, its descriptor and names."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            self._missed(path, error)
            return None
        mode = status.st_mode
        is_dir = stat.S_ISDIR(mode)
        options = self.options
        if options.exclude is not None and options.exclude(path, is_dir):
            return None
        earlier = self.sink.previous(path)
        if is_dir:
            return self._open_directory(parent, name, path, status)
        if status.st_nlink > 1 and not stat.S_ISSOCK(mode) and self._link(path, status):
            return None
        if earlier is not None and self._unchanged(earlier, status) and self.sink.keep(earlier):
            report = self.report
            report.files += 1
            report.kept += 1
            report.size += earlier.size
            report.progress(earlier.size)
            return None
        try:
            if stat.S_ISREG(mode):
                self._file(parent, name, path, status, earlier)
            else:
                self._special(parent, name, path, status)
        except OSError as error:
            self._links.forget(status.st_dev, status.st_ino)
            self._missed(path, error)
        return None

    def _unchanged(self, earlier: Entry, status: os.stat_result) -> bool:
        """A change of owner, mode, links or xattrs changes ctime as well, so these need no look."""
        ctime = status.st_ctime_ns
        return (
            earlier.ctime == ctime
            and earlier.mtime == status.st_mtime_ns
            and earlier.ino == status.st_ino
            and earlier.mode == status.st_mode
            and (earlier.size == status.st_size or not stat.S_ISREG(status.st_mode))
            and not earlier.flags
            and ctime < self.options.trust_before
            and earlier.mtime < self.options.trust_before
        )

    def _open_directory(
        self, parent: int, name: bytes, path: bytes, status: os.stat_result
    ) -> tuple[int, Iterator[bytes]] | None:
        crosses = self.options.one_file_system and status.st_dev != self._device
        try:
            fd = os.open(name, _DIR, dir_fd=parent)
        except OSError as error:
            self._missed(path, error)
            return None
        try:
            if (status.st_dev, status.st_ino) == self.options.vault:
                self.report.note(f"{shown(path)}: the vault itself, left out")
                os.close(fd)
                return None
            self._directory(path, os.fstat(fd), fd)
            if crosses or (self.options.exclude_caches and is_cache(fd)):
                os.close(fd)
                return None
            return fd, _sorted_names(fd)
        except OSError as error:
            os.close(fd)
            self._missed(path, error)
            return None

    def _directory(self, path: bytes, status: os.stat_result, fd: int) -> None:
        earlier = self.sink.previous(path)
        self.report.dirs += 1
        if earlier is not None and self._unchanged(earlier, status) and self.sink.keep(earlier):
            return
        self.sink.add(self._entry(path, status, _xattrs(fd)))

    def _link(self, path: bytes, status: os.stat_result) -> bool:
        """True if this is a further name of something stored under an earlier path."""
        first = self._links.first(status.st_dev, status.st_ino, status.st_nlink, path)
        if first is None:
            return False
        entry = self._entry(path, status, None)
        entry.link, entry.flags = first, LINKED
        self.report.files += 1
        self.sink.add(entry)
        return True

    def _file(self, parent: int, name: bytes, path: bytes, status: os.stat_result, earlier: Entry | None) -> None:
        """The status that the walk saw serves the first attempt: what is read must still be that."""
        fd = self._open_file(parent, name)
        try:
            for attempt in range(_RETRIES + 1):
                if attempt:
                    status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.ESTALE, "it was replaced while the directory was read")
                entry = self._entry(path, status, _xattrs(fd))
                if status.st_size >= BUNDLE_BELOW or _has_holes(fd, status):
                    profile = SMALL if os.pread(fd, 16, 0).startswith(_DATABASES) else LARGE
                    file, fd = _LargeFile(fd, status, self.report), -1
                    self.sink.add_large(entry, file, profile, self.report.progress)
                    return
                data = _read_small(fd, status.st_size)
                if len(data) < BUNDLE_BELOW and not _changed(fd, status, len(data)):
                    break
            else:
                entry.flags |= CHANGED
                self.report.miss(f"{shown(path)}: changed while it was read")
                data = data[: BUNDLE_BELOW - 1]
            self.sink.add_small(entry, data, earlier)
            self.report.progress(len(data))
            self.report.files += 1
            self.report.size += entry.size
        finally:
            if fd >= 0:
                os.close(fd)

    def _open_file(self, parent: int, name: bytes) -> int:
        if self._noatime:
            try:
                return os.open(name, _OPEN | self._noatime, dir_fd=parent)
            except PermissionError:  # only a file's owner and root may leave its access time alone
                pass
        return os.open(name, _OPEN, dir_fd=parent)

    def _special(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        mode = status.st_mode
        if stat.S_ISSOCK(mode):
            self.report.note(f"{shown(path)}: a socket, which has no contents to save")
            return
        entry = self._entry(path, status, _xattrs(b"/proc/self/fd/%d/%s" % (parent, name), follow=False))
        if stat.S_ISLNK(mode):
            entry.link = os.readlink(name, dir_fd=parent)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            entry.rdev = os.major(status.st_rdev) << 32 | os.minor(status.st_rdev)
        self.report.files += 1
        self.sink.add(entry)

    def _entry(self, path: bytes, status: os.stat_result, xattrs: list[tuple[bytes, bytes]] | None) -> Entry:
        mtime = status.st_mtime_ns
        if mtime not in _TIMES:
            mtime = max(_TIMES.start, min(mtime, _TIMES.stop - 1))
            self.report.miss(f"{shown(path)}: its time is out of the range that can be saved, years 1677 to 2554")
        return Entry(
            path, status.st_mode, status.st_uid, status.st_gid, mtime, status.st_ctime_ns,
            0, status.st_ino, status.st_nlink, xattrs=xattrs,
        )  # fmt: skip

    def _missed(self, path: bytes, error: OSError) -> None:
        reason = "vanished while the directory was read" if error.errno == errno.ENOENT else error.strerror
        self.report.miss(f"{shown(path)}: {reason}")


class _LargeFile:
    """An open file as data ranges and holes. Ends early, with a problem noted, if the file can't be read on."""

    def __init__(self, fd: int, status: os.stat_result, report: Report) -> None:
        self._fd, self._status, self._size, self._report = fd, status, status.st_size, report
        self._position = 0
        self._end = 0
        self._problem: str | None = None

    def segments(self) -> Iterator[Readable | int]:
        while self._position < self._size and self._problem is None:
            data = _seek(self._fd, self._position, os.SEEK_DATA, self._size)
            if data > self._position:
                yield data - self._position
                self._position = data
            if self._position < self._size:
                self._end = min(_seek(self._fd, self._position, os.SEEK_HOLE, self._size), self._size)
                yield self

    def readinto(self, buffer: memoryview, /) -> int:
        left = self._end - self._position
        if left <= 0:
            return 0
        try:
            got = os.preadv(self._fd, [buffer[:left]], self._position)
        except OSError as error:
            self._problem = f"{error.strerror} after {self._position} bytes"
            return 0
        if not got:
            self._problem = f"changed while it was read: it ends after {self._position} bytes"
        self._position += got
        return got

    def ended(self, size: int) -> None:
        if self._problem is None and _changed(self._fd, self._status, size):
            self._problem = "changed while it was read"

    def settled(self, entry: Entry) -> None:
        os.close(self._fd)
        if self._problem is not None:
            entry.flags |= CHANGED
            self._report.miss(f"{shown(entry.path)}: {self._problem}")
        self._report.files += 1
        self._report.size += entry.size


def _seek(fd: int, position: int, whence: int, size: int) -> int:
    """The next data or hole at or after `position`; `size` when there is none or the file system can't tell."""
    try:
        return min(os.lseek(fd, position, whence), size)
    except OSError:
        return position if whence == os.SEEK_DATA and _can_not_tell(fd) else size


def _can_not_tell(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_HOLE)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def _has_holes(fd: int, status: os.stat_result) -> bool:
    """Fewer blocks than bytes may also mean inline data or compression, so ask for the first hole."""
    return status.st_blocks * 512 < status.st_size and _seek(fd, 0, os.SEEK_HOLE, status.st_size) < status.st_size


def _read_small(fd: int, expected: int) -> bytes:
    """A small file's bytes; a second read only if the first was not what its size promised."""
    data = os.pread(fd, BUNDLE_BELOW, 0)
    while len(data) < BUNDLE_BELOW and len(data) != expected:
        more = os.pread(fd, BUNDLE_BELOW - len(data), len(data))
        if not more:
            break
        data += more
    return data


def _changed(fd: int, before: os.stat_result, read: int) -> bool:
    now = os.fstat(fd)
    return (
        read != before.st_size
        or now.st_size != read
        or now.st_mtime_ns != before.st_mtime_ns
        or now.st_ctime_ns != before.st_ctime_ns
        or now.st_ino != before.st_ino
    )


def _xattrs(target: int | bytes, *, follow: bool = True) -> list[tuple[bytes, bytes]] | None:
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:  # the file system has none
        return None
    found: list[tuple[bytes, bytes]] = []
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    return sorted(found) or None


def is_cache(fd: int) -> bool:
    """A cache directory by the convention of bford.info/cachedir."""
    try:
        tag = os.open("CACHEDIR.TAG", _OPEN, dir_fd=fd)
    except OSError:
        return False
    try:
        return os.read(tag, len(CACHE_TAG)) == CACHE_TAG
    except OSError:
        return False
    finally:
        os.close(tag)


def shown(path: bytes) -> str:
    """A path for a message: unprintable bytes escaped, so that no file name can write to the terminal."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) or "."


def _sorted_names(fd: int) -> Iterator[bytes]:
    """Names in a directory sorted as bytes, in bounded memory."""
    names: list[bytes] = []
    runs: list[Iterator[bytes]] = []
    with os.scandir(fd) as found:
        for item in found:
            names.append(os.fsencode(item.name))
            if len(names) >= _SORT_AT_ONCE:
                runs.append(_run(sorted(names)))
                names = []
    names.sort()
    return heapq.merge(*runs, names) if runs else iter(names)


def _run(names: list[bytes]) -> Iterator[bytes]:
    """A sorted run on disk; NUL ends a name, since no name holds one."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (read() below closes it)
    file.write(b"\0".join(names) + b"\0")
    file.seek(0)

    def read() -> Iterator[bytes]:
        rest = b""
        with file:
            while block := file.read(1 << 16):
                *whole, rest = (rest + block).split(b"\0")
                yield from whole

    return read()
