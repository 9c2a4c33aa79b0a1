"""A file that a live session holds locked, so that its death can be proved (design, section 9, step 1)."""

from __future__ import annotations

import contextlib
import fcntl
import os


class SessionLock:
    """`directory/token`, exclusively locked until `release`. The kernel drops the lock with the process."""

    def __init__(self, directory: str, token: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.path = os.path.join(directory, token)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1


def is_dead(directory: str, token: str) -> bool:
    """True if the session that made this lock no longer lives. The file is created before the session's row and
    removed after the row is closed, so a row without a file is dead as well."""
    try:
        fd = os.open(os.path.join(directory, token), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def remove(directory: str, token: str) -> None:
    """Remove a dead session's lock file."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, token))
