"""A vault in a local directory.

Everything is 0600 (0400 once complete) in directories of 0700, whatever the umask. No path component below the root
is followed if it is a symlink. `_publish` is the one place where bytes become a durable object.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import cast

from lumina_vault import ids
from lumina_vault.backends.base import WHOLE_LIMIT, ObjectInfo, Spool
from lumina_vault.errors import BackendError, Damage, ObjectMissing, StoreFull

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE_BACK = 4 << 20
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _mapped(what: str) -> Iterator[None]:
    """OS errors as errors of ours, at the edge."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissing(f"{what} is not there") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"no space left while writing {what}; nothing older is harmed, free some space and run again"
            ) from None
        if error.errno == errno.ELOOP:
            raise BackendError(f"{what} is a symbolic link, which a vault never holds: somebody planted it") from None
        if error.errno == errno.ENOTDIR:
            raise BackendError(f"{what}: a part of its path is not a directory") from None
        raise BackendError(f"{what}: {error.strerror or error}") from None


def _libc_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):  # not Linux: fsync does it all at the end
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast("Callable[[int, int, int, int], int]", function)


_sync_file_range = _libc_sync_file_range()


def _start_write_back(fd: int, offset: int, length: int) -> None:
    """Let the disk begin, so that the fsync of a finished pack has little left to wait for. Promises nothing."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, length, 2)  # SYNC_FILE_RANGE_WRITE


class _LocalSpool:
    def __init__(self, directory: int, name: str) -> None:
        self.name = name
        self.directory = directory
        self.fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=directory)
        os.fchmod(self.fd, 0o600)
        self._length = self._started = 0

    def write(self, data: bytes | memoryview) -> None:
        with _mapped(f"tmp/{self.name}"):
            view = memoryview(data)
            while len(view):
                written = os.write(self.fd, view)
                self._length += written
                view = view[written:]
            if self._length - self._started >= _WRITE_BACK:
                _start_write_back(self.fd, self._started, self._length - self._started)
                self._started = self._length

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def discard(self) -> None:
        if self.directory >= 0:
            with contextlib.suppress(OSError):  # it is scratch: the next prune of tmp/ takes it
                os.unlink(self.name, dir_fd=self.directory)
        self.close()


class LocalBackend:
    """Objects as files below `root`."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))

    @property
    def url(self) -> str:
        return f"file:{self.root}"

    @property
    def writable(self) -> bool:
        return os.access(self.root, os.W_OK | os.X_OK) and not os.statvfs(self.root).f_flag & os.ST_RDONLY

    @property
    def place(self) -> tuple[int, int] | None:
        with _mapped(self.root):
            status = os.stat(self.root)
        return status.st_dev, status.st_ino

    def exists(self) -> bool:
        return os.path.lexists(os.path.join(self.root, "config"))

    def prepare(self) -> None:
        with _mapped(self.root):
            if not os.path.isdir(self.root):
                os.makedirs(self.root, mode=0o700)
                os.chmod(self.root, 0o700)  # the umask may have taken away what listing it takes
            if os.listdir(self.root):
                raise BackendError(f"{self.root} is not empty; a new vault needs an empty or new directory")
            os.chmod(self.root, 0o700)
            for name in ("packs", "snapshots", "annotations", "keys", "tmp"):
                os.close(self._directory((name,), create=True))

    def _directory(self, parts: tuple[str, ...], create: bool = False) -> int:
        """Descriptor of a directory below the root; the caller closes it."""
        fd = os.open(self.root, _DIR_FLAGS & ~os.O_NOFOLLOW)
        try:
            for part in parts:
                try:
                    below = os.open(part, _DIR_FLAGS, dir_fd=fd)
                except FileNotFoundError:
                    if not create:
                        raise
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=fd)
                        os.chmod(part, 0o700, dir_fd=fd)
                        os.fsync(fd)
                    below = os.open(part, _DIR_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open(self, name: str) -> int:
        *parents, base = name.split("/")
        directory = self._directory(tuple(parents))
        try:
            fd = os.open(base, _READ_FLAGS, dir_fd=directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BackendError(f"{name} is not a regular file, which is all a vault holds: somebody planted it")
        return fd

    def spool(self) -> Spool:
        with _mapped("tmp/"):
            directory = self._directory(("tmp",), create=True)
            try:
                return _LocalSpool(directory, secrets.token_hex(16))
            except BaseException:
                os.close(directory)
                raise

    def publish(self, spool: Spool, name: str, length: int) -> None:
        assert isinstance(spool, _LocalSpool)
        try:
            self._publish(spool, name, length)
        except BaseException:
            spool.discard()
            raise

    def _publish(self, spool: _LocalSpool, name: str, length: int) -> None:
        """Law 4: fsync, check the length, make read-only, rename, fsync the directory."""
        *parents, base = name.split("/")
        if spool.fd < 0:
            raise BackendError(f"{name}: its spool was dropped or published before")
        with _mapped(name):
            os.fsync(spool.fd)
            written = os.fstat(spool.fd).st_size
            if written != length:
                raise BackendError(f"{name}: {written} of {length} bytes arrived on disk; it was not kept")
            os.fchmod(spool.fd, 0o400)
            target = self._directory(tuple(parents), create=True)
            try:
                os.rename(spool.name, base, src_dir_fd=spool.directory, dst_dir_fd=target)
                os.fsync(target)
            finally:
                os.close(target)
        spool.close()

    def put(self, name: str, data: bytes) -> None:
        spool = self.spool()
        try:
            spool.write(data)
        except BaseException:
            spool.discard()
            raise
        self.publish(spool, name, len(data))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with _mapped(name):
            fd = self._open(name)
            try:
                size = os.fstat(fd).st_size
                if length is None and size > WHOLE_LIMIT:
                    raise Damage(f"{name} has {size} bytes, more than the format allows")
                end = size if length is None else offset + length
                if max(offset, end) > size:  # looked at first: reading allocates what is asked for
                    raise Damage(f"{name} is truncated: bytes {offset}-{end} were asked for, it ends at {size}")
                data = os.pread(fd, end - offset, offset)
                while len(data) < end - offset:  # a signal or a file system may cut a read short
                    more = os.pread(fd, end - offset - len(data), offset + len(data))
                    if not more:
                        raise Damage(f"{name} was cut short while it was read")
                    data += more
                return data
            finally:
                os.close(fd)

    def size(self, name: str) -> int:
        with _mapped(name):
            fd = self._open(name)
            try:
                return os.fstat(fd).st_size
            finally:
                os.close(fd)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        top = prefix.rstrip("/")
        try:
            with _mapped(prefix):
                directory = self._directory((top,))
        except ObjectMissing:
            return
        try:
            if top in ("packs", "parity"):
                with _mapped(prefix):
                    parents = sorted(
                        entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)
                    )
                for parent in parents:
                    try:
                        with _mapped(f"{top}/{parent}"):
                            below = os.open(parent, _DIR_FLAGS, dir_fd=directory)
                    except ObjectMissing:  # removed since it was listed
                        continue
                    try:
                        yield from self._files(below, f"{top}/{parent}")
                    finally:
                        os.close(below)
            else:
                yield from self._files(directory, top)
        finally:
            os.close(directory)

    def _files(self, directory: int, prefix: str) -> Iterator[ObjectInfo]:
        with _mapped(prefix), os.scandir(directory) as entries:
            for entry in entries:
                name = f"{prefix}/{entry.name}"
                if ids.is_object_name(name) and entry.is_file(follow_symlinks=False):
                    try:
                        size = entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:  # removed since it was listed
                        continue
                    yield ObjectInfo(name, size)

    def delete(self, name: str) -> None:
        *parents, base = name.split("/")
        with contextlib.suppress(ObjectMissing), _mapped(name):
            directory = self._directory(tuple(parents))
            try:
                os.unlink(base, dir_fd=directory)
                os.fsync(directory)
            finally:
                os.close(directory)

    def compare_and_swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        with _mapped(name):
            lock = os.open(self.root, _DIR_FLAGS & ~os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                current: bytes | None = self.read(name)
            except ObjectMissing:
                current = None
            if current != expected:
                return False
            self.put(name, data)
            return True
        finally:
            os.close(lock)
