"""Compare two directory trees by everything that a file system says of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any


def describe(root: str | Path) -> dict[bytes, dict[str, Any]]:
    """path -> all that a restore has to bring back; sockets are left out. Goes by descriptors: paths may be long."""
    found: dict[bytes, dict[str, Any]] = {}
    links: dict[tuple[int, int], bytes] = {}

    def visit(parent: int, name: bytes, path: bytes) -> None:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            return
        at = b"/proc/self/fd/%d/%s" % (parent, name)
        item: dict[str, Any] = {
            "mode": status.st_mode,
            "owner": (status.st_uid, status.st_gid),
            "mtime": status.st_mtime_ns,
            "xattrs": _xattrs(at),
        }
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            item["same as"] = links.setdefault((status.st_dev, status.st_ino), path)
        if kind == stat.S_IFREG:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                item["size"], item["data"] = status.st_size, _data(fd, status.st_size)
            finally:
                os.close(fd)
        elif kind == stat.S_IFLNK:
            item["target"] = os.readlink(name, dir_fd=parent)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            item["device"] = status.st_rdev
        found[path] = item
        if kind == stat.S_IFDIR:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                for below in sorted(os.fsencode(n) for n in os.listdir(fd)):
                    visit(fd, below, path + b"/" + below if path else below)
            finally:
                os.close(fd)

    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        visit(top, b".", b"")
    finally:
        os.close(top)
    return found


def _data(fd: int, size: int) -> list[tuple[int, bytes]]:
    """Ranges of data between holes, so that a hole filled with zeros is a difference."""
    ranges: list[tuple[int, bytes]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, os.pread(fd, position - start, start)))
    return ranges


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except OSError:
        return {}


def assert_same(original: str | Path, restored: str | Path) -> None:
    """Fails with the first few differences."""
    a, b = describe(original), describe(restored)
    problems = [f"missing {p!r}" for p in a.keys() - b.keys()] + [f"extra {p!r}" for p in b.keys() - a.keys()]
    for path in sorted(a.keys() & b.keys()):
        for key in sorted(a[path].keys() | b[path].keys()):
            x, y = a[path].get(key), b[path].get(key)
            if x != y:
                problems.append(f"{path!r}: {key} is {_short(y)}, was {_short(x)}")
    assert not problems, "\n".join(problems[:20])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."
