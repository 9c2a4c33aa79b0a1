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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from lumina_vault.components.base import Piece, Plain, Report, TreeSource
from lumina_vault.components.directory import shown
from lumina_vault.components.links import LinkTable
from lumina_vault.errors import Damage, TargetError, VaultError
from lumina_vault.model import BUNDLE, LINKED, Entry, Ref

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BATCH_FILES, _BATCH_BYTES, _BATCH_DIRS = 1000, 32 << 20, 200
_COMPARE = 1 << 20
_OURS = (b"user.", b"trusted.", b"system.posix_acl_", b"security.capability")
"""Extended attributes that a file made here may not have unless the snapshot says so: a default ACL is inherited."""


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
        self._dirs: list[_Frame] = []
        self._names_known = True
        """False once the tree proved damaged: then nothing can be called extra."""
        self._links = LinkTable()
        self._lost: dict[bytes, bool] = {}
        """First names of hard links that could not be restored, and whether damage is to blame."""
        self.open: set[_File] = set()
        """Files begun and not finished."""
        self.lock = threading.Lock()
        self._is_root = os.geteuid() == 0
        self.unowned = 0
        """Entries whose owner could not be restored because this process is not root."""

    def restore(self) -> None:
        """Raises `TargetError` when the target can't be written, `Damage` when the tree itself can't be read."""
        with self._links:
            try:
                for entry in self.source.entries():
                    self._place(entry)
                self._settle()
            except Damage:
                self._names_known = False
                self._settle()  # what was read before is restored, and whole
                raise
            except OSError as error:
                raise TargetError(
                    f"the restore stopped: {error.strerror}; what was written before is complete"
                ) from None
            finally:
                self._abandon()
        if self.unowned:
            self.report.miss(
                f"owner of {self.unowned} entries not restored, nor setuid and setgid of those: that takes root"
            )

    def _settle(self) -> None:
        while self._stack:
            self._leave()
        self._flush()
        self.source.wait()
        self._finish_directories()

    def _abandon(self) -> None:
        """Leave no part of a file behind: what is still being fetched may end, what is incomplete goes."""
        while self.open:
            try:
                self.source.wait()
            except (OSError, VaultError):  # a further piece of a restore that has failed already
                continue
            break
        for file in list(self.open):
            file.abandon()
        self._stack.clear()

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
            self.lose(entry, damage=False)

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
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=parent.fd)
                os.mkdir(name, 0o700, dir_fd=parent.fd)
            elif not self._is_root and status.st_mode & 0o700 != 0o700:
                os.chmod(name, 0o700, dir_fd=parent.fd)  # until it is finished: its own mode may forbid to write
        frame.directory = _Directory(os.open(name, _DIR, dir_fd=parent.fd), frame.entry.path)
        self.report.dirs += 1
        return frame.directory

    def _leave(self) -> None:
        frame = self._stack.pop()
        if frame.directory is None:
            return
        self._dirs.append(frame)
        if len(self._dirs) >= _BATCH_DIRS:
            self._flush()
            self.source.wait()
            self._finish_directories()

    def _finish_directories(self) -> None:
        """Only once everything in them is written, or what is being written would look like something extra."""
        for frame in self._dirs:
            assert frame.directory is not None
            if self.placing.delete and self._names_known and self._included(frame.entry.path):
                self._delete_extra(frame.directory, frame)
            self.metadata(frame.directory.fd, frame.entry)
        self._dirs.clear()

    def _delete_extra(self, directory: _Directory, frame: _Frame) -> None:
        prefix = frame.entry.path + b"/" if frame.entry.path else b""
        if os.fstat(directory.fd).st_dev != os.fstat(self._root.fd).st_dev:
            self.report.note(f"{shown(frame.entry.path)}: another file system, where nothing is deleted")
            return
        with os.scandir(directory.fd) as found:
            extra = [os.fsencode(item.name) for item in found if os.fsencode(item.name) not in frame.names]
        for name in extra:
            try:
                remove(directory.fd, name)
                self.report.note(f"{shown(prefix + name)}: deleted, the snapshot does not hold it")
            except OSError as error:
                self.report.miss(f"{shown(prefix + name)}: not deleted: {error.strerror}")

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
        if status is not None and self._keep(directory, name, entry, status):
            report.files += 1
            report.kept += 1
            report.progress(entry.size)
            return
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

    def _keep(self, directory: _Directory, name: bytes, entry: Entry, status: os.stat_result) -> bool:
        """True if the file that is there holds these bytes; then nothing but its metadata was set."""
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return False
        if status.st_nlink > 1 and (
            entry.nlink == 1 or self._links.first(status.st_dev, status.st_ino, status.st_nlink, entry.path) is not None
        ):
            return False  # it is linked to something that the snapshot does not link it to
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
        except OSError:  # what can't be read can still be replaced
            return False
        try:
            if os.fstat(fd).st_ino != status.st_ino or not self._same_contents(fd, entry):
                return False
            self.metadata(fd, entry)
            return True
        finally:
            os.close(fd)

    def _same_contents(self, fd: int, entry: Entry) -> bool:
        """Compares the file that is there with the ids of the chunks, without fetching any."""
        if entry.profile == BUNDLE:
            return self.source.digest_matches(entry, os.pread(fd, entry.size, 0))
        position = 0
        for ref in self.source.extents(entry):
            if not self._same_extent(fd, position, ref):
                return False
            position += ref.length
        return True

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
        at, mode = directory.fd, entry.mode
        status = self._in_the_way(directory, name)
        if status is not None and self._same_special(at, name, entry, status):
            self._metadata_of_name(at, name, entry)
            self.report.files += 1
            self.report.kept += 1
            return
        temporary = name if status is None else temporary_name(at, name)
        if stat.S_ISLNK(mode):
            os.symlink(entry.link, temporary, dir_fd=at)  # data: restored verbatim, never followed
        elif stat.S_ISFIFO(mode):
            os.mkfifo(temporary, 0o600, dir_fd=at)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = os.makedev(entry.rdev >> 32, entry.rdev & 0xFFFFFFFF)
            try:
                os.mknod(temporary, stat.S_IFMT(mode) | 0o600, device, dir_fd=at)
            except PermissionError:
                self.report.miss(f"{shown(entry.path)}: a device node, which only root may make")
                return
        else:
            self.report.miss(f"{shown(entry.path)}: of a type that can't be restored")
            return
        self._metadata_of_name(at, temporary, entry)
        if temporary != name:
            put_in_place(at, temporary, name)
        self.report.files += 1

    def _same_special(self, at: int, name: bytes, entry: Entry, status: os.stat_result) -> bool:
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(entry.mode) or (status.st_nlink > 1 and entry.nlink == 1):
            return False
        if stat.S_ISLNK(entry.mode):
            return os.readlink(name, dir_fd=at) == entry.link
        rdev = os.major(status.st_rdev) << 32 | os.minor(status.st_rdev)
        return stat.S_ISFIFO(entry.mode) or rdev == entry.rdev

    def _hard_link(self, directory: _Directory, name: bytes, entry: Entry) -> None:
        if entry.link in self._lost:  # what lies there in the target, if anything, is not from this snapshot
            note = f"{shown(entry.path)}: not restored: its first name {shown(entry.link)} was not either"
            self.report.miss(note, damage=self._lost[entry.link])
            return
        if not self._included(entry.link):  # nor in this case
            first = self.source.find(entry.link)
            if first is None or first.flags & LINKED or stat.S_ISDIR(first.mode):
                raise Damage(f"the tree holds no file {shown(entry.link)} that {shown(entry.path)} could be a name of")
            self._entry(directory, name, msgspec.structs.replace(first, path=entry.path, nlink=1))
            self.report.note(f"{shown(entry.path)}: restored as a file of its own, without {shown(entry.link)}")
            return
        at = directory.fd
        *parents, base = entry.link.split(b"/")
        fd = os.dup(self._root.fd)
        try:
            for part in parents:
                below = os.open(part, _DIR, dir_fd=fd)
                os.close(fd)
                fd = below
            there = self._in_the_way(directory, name)
            first_status = os.stat(base, dir_fd=fd, follow_symlinks=False)
            self.report.files += 1
            if there is None:
                os.link(base, name, src_dir_fd=fd, dst_dir_fd=at, follow_symlinks=False)
            elif (there.st_dev, there.st_ino) == (first_status.st_dev, first_status.st_ino):
                self.report.kept += 1
            else:
                temporary = temporary_name(at, name)
                os.link(base, temporary, src_dir_fd=fd, dst_dir_fd=at, follow_symlinks=False)
                put_in_place(at, temporary, name)
        except FileNotFoundError:
            self.report.miss(f"{shown(entry.path)}: its first name {shown(entry.link)} was not restored")
        finally:
            os.close(fd)

    def lose(self, entry: Entry, *, damage: bool) -> None:
        """Remember that this was not restored, if others are to be linked to it."""
        if entry.nlink > 1:
            with self.lock:
                self._lost[entry.path] = damage

    def failed(self, entry: Entry, error: OSError) -> None:
        self.stop_if_hopeless(entry, error)
        with self.lock:
            self.report.miss(f"{shown(entry.path)}: {error.strerror}")

    @staticmethod
    def stop_if_hopeless(entry: Entry, error: OSError) -> None:
        """Raises `TargetError` for what every further file would meet as well."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise TargetError(
                f"{shown(entry.path)}: {error.strerror}; the restore stopped there, "
                "run it again with --replace to go on"
            )

    # --- metadata ---

    def metadata(self, target: int | bytes, entry: Entry) -> None:
        """Set what differs. Owner first: changing it clears setuid bits and file capabilities. Times last."""
        try:
            status = os.stat(target)
            mode = stat.S_IMODE(entry.mode)
            changed = (status.st_uid, status.st_gid) != (entry.uid, entry.gid)
            if changed and not self._owner(target, entry):
                mode &= ~(stat.S_ISUID | stat.S_ISGID)  # they would lend the rights of somebody else
            wanted = dict(entry.xattrs or ())
            there = self._xattrs(target)
            for name in there.keys() - wanted.keys():
                if name.startswith(_OURS):
                    self._xattr(entry, name, lambda n=name: os.removexattr(target, n))  # type: ignore[misc]
                    changed = True
            if (changed or stat.S_IMODE(status.st_mode) != mode) and not stat.S_ISLNK(entry.mode):
                os.chmod(target, mode)
            for name, value in wanted.items():
                if there.get(name) != value:
                    self._xattr(entry, name, lambda n=name, v=value: os.setxattr(target, n, v))  # type: ignore[misc]
            if status.st_mtime_ns != entry.mtime:
                os.utime(target, ns=(entry.mtime, entry.mtime))
        except OSError as error:
            self.failed(entry, error)

    def _metadata_of_name(self, at: int, name: bytes, entry: Entry) -> None:
        """The same for what can't be opened, through a descriptor that stands for the thing and not for its name."""
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            self.metadata(b"/proc/self/fd/%d" % fd, entry)
        finally:
            os.close(fd)

    def _owner(self, target: int | bytes, entry: Entry) -> bool:
        """False if it could not be set; then the group alone is, if this user is in it."""
        try:
            os.chown(target, entry.uid, entry.gid)
            return True
        except OSError as error:
            if self._is_root:
                self.failed(entry, error)
            with contextlib.suppress(OSError):
                os.chown(target, -1, entry.gid)
            with self.lock:
                self.unowned += 1
            return False

    @staticmethod
    def _xattrs(target: int | bytes) -> dict[bytes, bytes]:
        try:
            return {os.fsencode(name): os.getxattr(target, name) for name in os.listxattr(target)}
        except OSError:  # the file system has none
            return {}

    def _xattr(self, entry: Entry, name: bytes, change: Callable[[], None]) -> None:
        try:
            change()
        except (OSError, ValueError) as error:  # a name with a NUL is no name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            with self.lock:
                self.report.miss(f"{shown(entry.path)}: attribute {shown(name)}: {reason}")


class _File:
    """A regular file being written; finished by whoever writes its last piece."""

    __slots__ = (
        "_atomic",
        "_damaged",
        "_directory",
        "_done",
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
        self._temporary = temporary_name(directory.fd, name) if atomic else name
        self._fd = -1
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._outstanding = 1
        self._problem: str | None = None
        self._damaged = self._done = False
        owner.open.add(self)

    def start(self) -> None:
        """Make the file; for a sparse one its length, so that what is not written is a hole."""
        self._fd = os.open(self._temporary, _NEW, 0o600, dir_fd=self._directory.fd)
        if self._entry.size:
            os.truncate(self._fd, self._entry.size)

    def expect(self, pieces: int) -> None:
        with self._lock:
            self._outstanding += pieces

    def write(self, position: int, data: Plain) -> None:
        try:
            with self._lock:
                if self._fd < 0:
                    self._fd = os.open(self._temporary, _NEW, 0o600, dir_fd=self._directory.fd)
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
            self._owner.stop_if_hopeless(self._entry, error)
            return
        self._owner.report.progress(len(data))
        self.release()

    def fail(self, position: int, reason: str) -> None:
        self._problem, self._damaged = f"bytes from {position} on: {reason}", True
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
                kept = "; the file that was there is untouched" if self._atomic else ""
                note = f"{shown(entry.path)}: not restored: {self._problem}{kept}"
                with owner.lock:
                    owner.report.miss(note, damage=self._damaged)
                owner.lose(entry, damage=self._damaged)
                return
            owner.metadata(self._fd, entry)
            if self._atomic:
                os.fsync(self._fd)
                put_in_place(at, self._temporary, self._name)
            self._done = True
            with owner.lock:
                owner.report.files += 1
                owner.report.size += entry.size
        except OSError as error:
            owner.lose(entry, damage=False)
            owner.failed(entry, error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close it; what is not whole is removed."""
        self._owner.open.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if not self._done:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory.fd)


def _inside(path: bytes, directory: bytes) -> bool:
    return not directory or path.startswith(directory + b"/")


def temporary_name(at: int, name: bytes) -> bytes:
    """What is to replace `name` in the directory `at` is made under this name, which is free now.

    It is the same each time, so that what an interrupted run left is found and removed.
    """
    temporary = b".%s.vault-restore" % hashlib.sha256(name).hexdigest()[:16].encode()
    with contextlib.suppress(FileNotFoundError):
        remove(at, temporary)
    return temporary


def put_in_place(at: int, temporary: bytes, name: bytes) -> None:
    """Rename over what is there. A directory has to go before, since nothing else can be renamed over it."""
    try:
        os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
    except IsADirectoryError:
        remove(at, name)
        os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)


def remove(parent: int, name: bytes) -> None:
    """Remove a file, or a directory with all that is in it, without following a symlink or entering a mount."""
    try:
        os.unlink(name, dir_fd=parent)
        return
    except (IsADirectoryError, PermissionError):
        pass
    device = os.fstat(parent).st_dev
    stack: list[tuple[int, bytes, int, Iterator[bytes]]] = []

    def descend(above: int, below: bytes) -> None:
        fd = os.open(below, _DIR, dir_fd=above)
        stack.append((above, below, fd, iter(())))
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.EBUSY, "another file system is mounted there")
        with os.scandir(fd) as found:
            stack[-1] = (above, below, fd, iter([os.fsencode(item.name) for item in found]))

    try:
        descend(parent, name)
        while stack:
            above, directory, fd, names = stack[-1]
            for item in names:
                try:
                    os.unlink(item, dir_fd=fd)
                except (IsADirectoryError, PermissionError):
                    descend(fd, item)
                    break
            else:
                os.close(fd)
                stack.pop()
                os.rmdir(directory, dir_fd=above)
    finally:
        for _, _, fd, _ in stack:
            os.close(fd)
