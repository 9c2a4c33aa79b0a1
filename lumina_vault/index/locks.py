"""Locks that prove who lives: the kernel drops them with the process (design, section 9, step 1).

`sessions/<token>` is a file that a live session holds locked. `sessions/` itself is locked shared by every process
that works with the index, and exclusively by the one that replaces it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re

from lumina_vault.errors import BackendError, StoreFull, VaultLocked

_TOKEN = re.compile(r"[0-9a-f]{32}")


class IndexLock:
    """A hold on the index whose sessions lie in `directory`, until `release`."""

    def __init__(self, directory: str, *, exclusive: bool = False) -> None:
        """Raises `VaultLocked` if others hold what this one excludes."""
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot(directory, error) from None
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise VaultLocked(
                "another vault command is running on this vault; run again when it is done"
                if exclusive
                else "the index is being rebuilt by another vault command; run again when it is done"
            ) from None

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SessionLock:
    """`directory/token`, exclusively locked until `release`."""

    def __init__(self, directory: str, token: str) -> None:
        self.path = os.path.join(directory, token)
        try:
            while True:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                fcntl.flock(self.fd, fcntl.LOCK_EX)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self.fd), os.lstat(self.path)):
                        return
                os.close(self.fd)  # swept before it was locked
        except OSError as error:
            raise _cannot(self.path, error) from None

    def release(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1


def is_dead(directory: str, token: str) -> bool:
    """True if the session that made this lock no longer lives. The file is locked before the session's row is there
    and removed after the row is closed, so a row without a file is dead as well."""
    return _if_dead(directory, token, remove=False)


def sweep(directory: str) -> None:
    """Remove the files that dead processes left."""
    for token in os.listdir(directory):
        if _TOKEN.fullmatch(token):
            _if_dead(directory, token, remove=True)


def _if_dead(directory: str, token: str, *, remove: bool) -> bool:
    path = os.path.join(directory, token)
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Removed under its lock: whoever waits for that sees that the file is gone, and makes another.
        with contextlib.suppress(FileNotFoundError):
            if remove and os.path.samestat(os.fstat(fd), os.lstat(path)):
                os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _cannot(path: str, error: OSError) -> BackendError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no space left for {path}; nothing older is harmed, free some space and run again")
    return BackendError(f"{path}: {error.strerror}")
