"""The first path of every hard-linked inode, in bounded memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from types import TracebackType

_MOST = 100_000
"""Inodes remembered in memory; the rest goes to files."""
_BUCKETS = 4096


class LinkTable:
    """(device, inode) -> the path it was first seen under. An inode is forgotten when all its names were seen."""

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._directory: str | None = None

    def __enter__(self) -> LinkTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def first(self, device: int, inode: int, names: int, path: bytes) -> bytes | None:
        """The path that this inode was seen under before; None, and remembered, the first time."""
        key = (device, inode)
        known = self._memory.get(key)
        if known is not None:
            first, left = known
            if left <= 1:
                del self._memory[key]
            else:
                self._memory[key] = (first, left - 1)
            return first
        if self._directory is None and len(self._memory) < _MOST:
            self._memory[key] = (path, names - 1)
            return None
        return self._on_disk(key, path)

    def forget(self, device: int, inode: int) -> None:
        """The first name could not be stored: the next one takes its place."""
        key = (device, inode)
        if self._memory.pop(key, None) is None and self._directory is not None:
            with open(self._bucket(key), "ab") as bucket:
                bucket.write(b"\0%d:%d\0\0" % key)

    def _on_disk(self, key: tuple[int, int], path: bytes) -> bytes | None:
        """Bucket files of `NUL device:inode NUL /path NUL`: no path holds a NUL, and with the slash none looks like a
        key. The last one of a key counts; without a path it is forgotten."""
        if self._directory is None:
            self._directory = tempfile.mkdtemp(prefix="vault-links-")
        tag = b"\0%d:%d\0" % key
        with open(self._bucket(key), "a+b") as bucket:
            bucket.seek(0)
            known = bucket.read()
            at = known.rfind(tag)
            if at >= 0:
                start = at + len(tag)
                if first := known[start : known.index(b"\0", start)]:
                    return first[1:]
            bucket.write(tag + b"/" + path + b"\0")
        return None

    def _bucket(self, key: tuple[int, int]) -> str:
        assert self._directory is not None
        return os.path.join(self._directory, f"{hash(key) % _BUCKETS:04x}")
