"""A vault in a local directory.

Everything is 0600 (0400 once complete) in directories of 0700, whatever the umask. No path component below the root
is followed if it is a symlink. `_publish` is the one place where bytes become a durable object.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator

from lumina_vault import ids
from lumina_vault.backends.base import ObjectInfo, Spool
from lumina_vault.errors import BackendError, Damage, ObjectMissing, StoreFull

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
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


class _LocalSpool:
    def __init__(self, directory: int, name: str) -> None:
        self.name = name
        self.directory = directory
        self.fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=directory)
        os.fchmod(self.fd, 0o600)

    def write(self, data: bytes | memoryview) -> None:
        with _mapped(f"tmp/{self.name}"):
            view = memoryview(data)
            while len(view):
                view = view[os.write(self.fd, view) :]

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
            os.makedirs(self.root, mode=0o700, exist_ok=True)
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
            return _LocalSpool(self._directory(("tmp",), create=True), secrets.token_hex(16))

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
                if length is None:
                    length = max(0, os.fstat(fd).st_size - offset)
                data = os.pread(fd, length, offset)
                while len(data) < length:  # a signal or a file system may cut a read short
                    more = os.pread(fd, length - len(data), offset + len(data))
                    if not more:
                        raise Damage(
                            f"{name} is truncated: bytes {offset}-{offset + length} were asked for, "
                            f"it ends at {offset + len(data)}"
                        )
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
                    with _mapped(f"{top}/{parent}"):
                        below = os.open(parent, _DIR_FLAGS, dir_fd=directory)
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
                    yield ObjectInfo(name, entry.stat(follow_symlinks=False).st_size)

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
