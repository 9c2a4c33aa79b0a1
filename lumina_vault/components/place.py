"""Restorer of trees: puts entries back below one directory, never outside it, never through a symlink.

Fresh restores write files in place under their own names; `replace` writes each differing file beside the old one and
renames it over, so that every file is whole at every moment. Directories get their mode and times last, when nothing
is written into them any more.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lumina_vault.components.base import Piece, Plain, Report, TreeSource
from lumina_vault.components.directory import shown
from lumina_vault.errors import Damage, TargetError
from lumina_vault.model import BUNDLE, LINKED, Entry, Ref

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH_FILES, _BATCH_BYTES, _BATCH_DIRS = 1000, 32 << 20, 200
_COMPARE = 1 << 20


@dataclass(frozen=True)
class Placing:
    """How to treat what is in the way. `include(path)` narrows the restore to some entries."""

    replace: bool = False
    delete: bool = False
    include: Callable[[bytes], bool] | None = None


class _Directory:
    """An open directory of the target; closed when the last one who needs it lets go."""

    __slots__ = ("__weakref__", "fd", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd, self.path = fd, path

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


@dataclass
class _Frame:
    """A directory on the way down: its entry, and its descriptor once something below it is restored."""

    entry: Entry
    directory: _Directory | None
    names: set[bytes] = field(default_factory=set)


class TreeRestorer:
    """Restores one tree below `root`, an existing directory (descriptor). Use once."""

    def __init__(self, root: int, source: TreeSource, report: Report, placing: Placing) -> None:
        self.source, self.report, self.placing = source, report, placing
        self._root = _Directory(os.dup(root), b"")
        self._stack: list[_Frame] = []
        self._pieces: list[Piece] = []
        self._bytes = 0
        self._dirs: list[tuple[_Directory, Entry]] = []
        self._linked: list[Entry] = []
        self.lock = threading.Lock()
        self._is_root = os.geteuid() == 0
        self.unowned = 0
        """Entries whose owner could not be restored because this process is not root."""

    def restore(self) -> None:
        """Raises `TargetError` when the target can't be written, `Damage` when the tree itself can't be read."""
        try:
            for entry in self.source.entries():
                self._place(entry)
            while self._stack:
                self._leave()
            self._flush()
            self.source.wait()
            self._finish_directories()
        except OSError as error:
            raise TargetError(f"the restore stopped: {error.strerror}; what was written before is complete") from None
        finally:
            self._stack.clear()
        if self.unowned:
            self.report.miss(f"owner of {self.unowned} entries not restored: that takes root")

    # --- the way down ---

    def _place(self, entry: Entry) -> None:
        path = entry.path
        while self._stack and not _inside(path, self._stack[-1].entry.path):
            self._leave()
        if not path:
            self._stack.append(_Frame(entry, self._root))
            return
        if not self._stack or self._stack[-1].entry.path != (path.rsplit(b"/", 1)[0] if b"/" in path else b""):
            raise Damage(f"the tree holds {shown(path)} but not the directory that it is in")
        if stat.S_ISDIR(entry.mode):
            self._stack.append(_Frame(entry, None))
            if self._included(path):
                self._enter(len(self._stack) - 1)
            return
        if not self._included(path):
            return
        frame = self._stack[-1]
        directory = self._enter(len(self._stack) - 1)
        name = path.rsplit(b"/", 1)[-1]
        if self.placing.delete:
            frame.names.add(name)
        try:
            self._entry(directory, name, entry)
        except OSError as error:
            self.failed(entry, error)

    def _included(self, path: bytes) -> bool:
        return self.placing.include is None or self.placing.include(path)

    def _enter(self, position: int) -> _Directory:
        """The open directory of a frame, made with its parents if need be."""
        frame = self._stack[position]
        if frame.directory is not None:
            return frame.directory
        parent = self._enter(position - 1)
        name = frame.entry.path.rsplit(b"/", 1)[-1]
        if self.placing.delete:
            self._stack[position - 1].names.add(name)
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            if not self.placing.replace:
                raise
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent.fd)
                os.mkdir(name, 0o700, dir_fd=parent.fd)
        frame.directory = _Directory(os.open(name, _DIR, dir_fd=parent.fd), frame.entry.path)
        self.report.dirs += 1
        return frame.directory

    def _leave(self) -> None:
        frame = self._stack.pop()
        if frame.directory is None:
            return
        if self.placing.delete and self._included(frame.entry.path):
            self._flush()  # a file still on its way lies beside its place
            self.source.wait()
            self._delete_extra(frame)
        self._dirs.append((frame.directory, frame.entry))
        if len(self._dirs) >= _BATCH_DIRS:
            self._flush()
            self.source.wait()
            self._finish_directories()

    def _delete_extra(self, frame: _Frame) -> None:
        assert frame.directory is not None
        with os.scandir(frame.directory.fd) as found:
            extra = [os.fsencode(item.name) for item in found if os.fsencode(item.name) not in frame.names]
        for name in extra:
            remove(frame.directory.fd, name)
            self.report.note(f"{shown(frame.entry.path + b'/' + name)}: deleted, the snapshot does not hold it")

    def _finish_directories(self) -> None:
        for directory, entry in self._dirs:
            self.metadata(directory.fd, entry)
        self._dirs.clear()

    # --- entries ---

    def _entry(self, directory: _Directory, name: bytes, entry: Entry) -> None:
        if entry.flags & LINKED:
            self._flush()  # the first name must be complete before another can be made
            self.source.wait()
            self._hard_link(directory, name, entry)
        elif stat.S_ISREG(entry.mode):
            self._file(directory, name, entry)
        else:
            self._special(directory, name, entry)

    def _in_the_way(self, directory: _Directory, name: bytes) -> os.stat_result | None:
        if not self.placing.replace:
            return None
        try:
            return os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _file(self, directory: _Directory, name: bytes, entry: Entry) -> None:
        report = self.report
        status = self._in_the_way(directory, name)
        if status is not None:
            alone = status.st_nlink == 1 or entry.nlink > 1
            if stat.S_ISREG(status.st_mode) and alone and self._same_contents(directory, name, entry):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
                try:
                    self.metadata(fd, entry)
                finally:
                    os.close(fd)
                report.files += 1
                report.kept += 1
                report.progress(entry.size)
                return
            if stat.S_ISDIR(status.st_mode):
                remove(directory.fd, name)
        job = _File(self, directory, name, entry, atomic=self.placing.replace)
        if len(entry.refs) == 1 and entry.refs[0].chunk and entry.height == 0:
            job.expect(1)
            self._piece(Piece(job, 0, entry.refs[0]))
        else:
            job.start()
            position = 0
            for ref in self.source.extents(entry):
                if ref.chunk:
                    job.expect(1)
                    self._piece(Piece(job, position, ref))
                position += ref.length
        job.release()

    def _piece(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._bytes += piece.ref.length
        if self._bytes >= _BATCH_BYTES or len(self._pieces) >= _BATCH_FILES:
            self._flush()

    def _flush(self) -> None:
        pieces, self._pieces, self._bytes = self._pieces, [], 0
        if pieces:
            self.source.deliver(pieces)

    def _same_contents(self, directory: _Directory, name: bytes, entry: Entry) -> bool:
        """Reads the file that is there and compares it with the ids of the chunks, without fetching any."""
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
        try:
            if os.fstat(fd).st_size != entry.size:
                return False
            if entry.profile == BUNDLE:
                return self.source.digest_matches(entry, os.pread(fd, entry.size, 0))
            position = 0
            for ref in self.source.extents(entry):
                if not self._same_extent(fd, position, ref):
                    return False
                position += ref.length
            return True
        finally:
            os.close(fd)

    def _same_extent(self, fd: int, position: int, ref: Ref) -> bool:
        if ref.chunk:
            data = os.pread(fd, ref.length, position)
            return len(data) == ref.length and self.source.chunk_matches(ref, data)
        end = position + ref.length
        while position < end:
            data = os.pread(fd, min(_COMPARE, end - position), position)
            if not data or data.count(0) != len(data):
                return False
            position += len(data)
        return True

    def _special(self, directory: _Directory, name: bytes, entry: Entry) -> None:
        mode = entry.mode
        status = self._in_the_way(directory, name)
        if status is not None:
            if stat.S_ISDIR(status.st_mode):
                remove(directory.fd, name)
            else:
                os.unlink(name, dir_fd=directory.fd)
        if stat.S_ISLNK(mode):
            os.symlink(entry.link, name, dir_fd=directory.fd)  # data: restored verbatim, never followed
        elif stat.S_ISFIFO(mode):
            os.mkfifo(name, 0o600, dir_fd=directory.fd)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = os.makedev(entry.rdev >> 32, entry.rdev & 0xFFFFFFFF)
            try:
                os.mknod(name, stat.S_IFMT(mode) | 0o600, device, dir_fd=directory.fd)
            except PermissionError:
                self.report.miss(f"{shown(entry.path)}: a device node, which only root may make")
                return
        else:
            self.report.miss(f"{shown(entry.path)}: of a type that can't be restored")
            return
        self.report.files += 1
        self._metadata_of_name(directory, name, entry)

    def _hard_link(self, directory: _Directory, name: bytes, entry: Entry) -> None:
        *parents, base = entry.link.split(b"/")
        fd = os.dup(self._root.fd)
        try:
            for part in parents:
                below = os.open(part, _DIR, dir_fd=fd)
                os.close(fd)
                fd = below
            if self._in_the_way(directory, name) is not None:
                there = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                first = os.stat(base, dir_fd=fd, follow_symlinks=False)
                if (there.st_dev, there.st_ino) == (first.st_dev, first.st_ino):
                    self.report.kept += 1
                    self.report.files += 1
                    return
                remove(directory.fd, name)
            os.link(base, name, src_dir_fd=fd, dst_dir_fd=directory.fd, follow_symlinks=False)
            self.report.files += 1
        except FileNotFoundError:
            self.report.miss(f"{shown(entry.path)}: its first name {shown(entry.link)} was not restored")
        finally:
            os.close(fd)

    def failed(self, entry: Entry, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise TargetError(
                f"{shown(entry.path)}: {error.strerror}; the restore stopped there, "
                "run it again with --replace to go on"
            )
        with self.lock:
            self.report.miss(f"{shown(entry.path)}: {error.strerror}")

    # --- metadata ---

    def metadata(self, fd: int, entry: Entry) -> None:
        """Owner first: changing it clears setuid bits and file capabilities. Times last."""
        self._owner(entry, lambda: os.fchown(fd, entry.uid, entry.gid))
        try:
            os.fchmod(fd, stat.S_IMODE(entry.mode))
            for name, value in entry.xattrs or ():
                self._xattr(entry, name, lambda n=name, v=value: os.setxattr(fd, n, v))  # type: ignore[misc]
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        except OSError as error:
            self.failed(entry, error)

    def _metadata_of_name(self, directory: _Directory, name: bytes, entry: Entry) -> None:
        """The same for what can't be opened; a symlink has no mode of its own."""
        at = directory.fd
        path = b"/proc/self/fd/%d/%s" % (at, name)
        self._owner(entry, lambda: os.chown(name, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False))
        if not stat.S_ISLNK(entry.mode):
            os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=at)
        for key, value in entry.xattrs or ():
            self._xattr(entry, key, lambda k=key, v=value: os.setxattr(path, k, v, follow_symlinks=False))  # type: ignore[misc]
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=at, follow_symlinks=False)

    def _owner(self, entry: Entry, change: Callable[[], None]) -> None:
        if not self._is_root and (entry.uid, entry.gid) == (os.geteuid(), os.getegid()):
            return
        try:
            change()
        except OSError as error:
            if self._is_root:
                self.failed(entry, error)
            with self.lock:
                self.unowned += 1

    def _xattr(self, entry: Entry, name: bytes, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            with self.lock:
                self.report.miss(f"{shown(entry.path)}: {shown(name)} not restored: {error.strerror}")


class _File:
    """A regular file being written; finished by whoever writes its last piece."""

    __slots__ = (
        "_atomic",
        "_damaged",
        "_directory",
        "_entry",
        "_fd",
        "_lock",
        "_name",
        "_outstanding",
        "_owner",
        "_problem",
        "_temporary",
        "_writing",
    )

    def __init__(self, owner: TreeRestorer, directory: _Directory, name: bytes, entry: Entry, *, atomic: bool) -> None:
        self._owner, self._directory, self._name, self._entry, self._atomic = (
            owner,
            directory,
            name,
            entry,
            atomic,
        )
        # The same name each time, so that what an interrupted run left is found and written anew.
        digest = hashlib.sha256(name).hexdigest()[:16].encode()
        self._temporary = b".%s.vault-restore" % digest if atomic else name
        self._fd = -1
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._outstanding = 1
        self._problem: str | None = None
        self._damaged = False

    def start(self) -> None:
        """Make the file; for a sparse one its length, so that what is not written is a hole."""
        self._open()
        if self._entry.size:
            os.truncate(self._fd, self._entry.size)

    def _open(self) -> None:
        at = self._directory.fd
        try:
            self._fd = os.open(self._temporary, _NEW, 0o600, dir_fd=at)
        except FileExistsError:
            if not self._atomic:
                raise
            remove(at, self._temporary)
            self._fd = os.open(self._temporary, _NEW, 0o600, dir_fd=at)

    def expect(self, pieces: int) -> None:
        with self._lock:
            self._outstanding += pieces

    def write(self, position: int, data: Plain) -> None:
        with self._lock:
            if self._fd < 0:
                self._open()
        try:
            # One writer at a time: the kernel lets two threads that write one file spin against each other.
            with self._writing:
                view = memoryview(data)
                while len(view):
                    written = os.pwrite(self._fd, view, position)
                    view = view[written:]
                    position += written
        except OSError as error:
            self._problem = error.strerror
            self.release()
            self._owner.failed(self._entry, error)
            return
        self._owner.report.progress(len(data))
        self.release()

    def fail(self, position: int, reason: str) -> None:
        self._problem = f"bytes from {position} on: {reason}"
        self._damaged = True
        self.release()

    def release(self) -> None:
        """One piece less; the last one finishes the file."""
        with self._lock:
            self._outstanding -= 1
            if self._outstanding:
                return
        self._finish()

    def _finish(self) -> None:
        owner, entry, at = self._owner, self._entry, self._directory.fd
        try:
            if self._fd < 0 and self._problem is None:
                self.start()
            if self._problem is not None:
                if self._fd >= 0:
                    os.unlink(self._temporary, dir_fd=at)
                kept = "; the file that was there is untouched" if self._atomic else ""
                with owner.lock:
                    owner.report.miss(f"{shown(entry.path)}: not restored: {self._problem}{kept}", damage=self._damaged)
                return
            owner.metadata(self._fd, entry)
            if self._atomic:
                os.fsync(self._fd)
                os.rename(self._temporary, self._name, src_dir_fd=at, dst_dir_fd=at)
            with owner.lock:
                owner.report.files += 1
                owner.report.size += entry.size
        except OSError as error:
            owner.failed(entry, error)
        finally:
            if self._fd >= 0:
                os.close(self._fd)


def _inside(path: bytes, directory: bytes) -> bool:
    return not directory or path.startswith(directory + b"/")


def remove(parent: int, name: bytes) -> None:
    """Remove a file, or a directory with all that is in it, without following a symlink."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except (IsADirectoryError, PermissionError):
        pass
    fd = os.open(name, _DIR, dir_fd=parent)
    try:
        with os.scandir(fd) as found:
            below = [os.fsencode(item.name) for item in found]
        for item in below:
            remove(fd, item)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)
