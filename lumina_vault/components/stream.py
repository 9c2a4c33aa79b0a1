"""Component kind `stream`: what one command or standard input produced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from lumina_vault.components.base import Readable
from lumina_vault.errors import SourceError, UsageError


class CountingReader:
    """Passes a stream on and tells how far it is."""

    def __init__(self, source: BinaryIO, progress: Callable[[int], None]) -> None:
        self._source, self._progress = source, progress
        self.total = 0

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            got = self._source.readinto(buffer) or 0  # type: ignore[attr-defined]
        except OSError as error:
            raise SourceError(f"the stream can't be read after {self.total} bytes: {error.strerror}") from None
        self.total += got
        self._progress(got)
        return int(got)


@contextlib.contextmanager
def command_output(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[BinaryIO]:
    """The standard output of a child process; leaving the block checks how it ended.

    A command that fails after it has written everything fails the snapshot all the same: raises `SourceError`.
    Secrets are not in `environment` (law 8).
    """
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=dict(environment), bufsize=0
        )
    except FileNotFoundError:
        raise UsageError(f"{command[0]}: no such command") from None
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror}") from None
    assert process.stdout is not None
    try:
        yield process.stdout  # type: ignore[misc]
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stdout.close()
    status = process.wait()
    if status < 0:
        raise SourceError(f"{command[0]} was ended by {signal.Signals(-status).name}; nothing was stored for it")
    if status:
        raise SourceError(f"{command[0]} failed with exit status {status}; nothing was stored for it")


def open_target(directory: int, name: str) -> int:
    """A new 0600 file in a directory (descriptor), never through a symlink."""
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)


__all__ = ["CountingReader", "Readable", "command_output", "open_target"]
