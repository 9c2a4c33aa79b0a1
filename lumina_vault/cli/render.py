"""How things look: sizes, times, tables, progress, JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumina_vault.model import Component, Entry
    from lumina_vault.store.repository import Snapshot


def out(text: str = "") -> None:
    """A line on stdout."""
    sys.stdout.write(printable(text) + "\n")


def warn(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"vault: {printable(text)}\n")


def printable(text: str) -> str:
    """With what could command a terminal, or can't be encoded, escaped: a path or a record may hold anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def emit(value: object) -> None:
    """JSON on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=True)
    sys.stdout.write("\n")


def size(count: int) -> str:
    """Bytes as people read them: 1.4 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def local_time(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"@{nanoseconds // 10**9}"  # a file may claim any year


def iso_time(nanoseconds: int) -> str | None:
    """UTC with microseconds, as JSON carries it; None for a year that ISO 8601 has no four digits for."""
    whole, rest = divmod(nanoseconds, 10**9)
    try:
        return datetime.fromtimestamp(whole, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"
    except (ValueError, OverflowError, OSError):
        return None


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns as wide as they need; `right` are the numbers of columns aligned to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        out("  ".join(cells).rstrip())


def component_json(component: Component) -> dict[str, Any]:
    return {
        "id": component.id,
        "kind": component.kind,
        "name": component.name,
        "status": component.status,
        "reason": component.reason,
        "complete": component.complete,
        "consistency": component.consistency,
        "source": os.fsdecode(component.source).encode("utf-8", "replace").decode(),
        "files": component.files,
        "dirs": component.dirs,
        "size": component.size,
        "new_bytes": component.new_bytes,
        "stored_bytes": component.stored_bytes,
        "left_out": component.left_out,
        "notes": component.notes,
    }


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    record = snapshot.record
    return {
        "id": snapshot.id.hex(),
        "short_id": snapshot.short,
        "time": iso_time(record.time),
        "end": iso_time(record.end),
        "host": record.host,
        "user": record.user,
        "tags": record.tags,
        "program": record.program,
        "parent": record.parent.hex() or None,
        "complete": record.complete,
        "size": sum(c.size for c in record.components),
        "new_bytes": sum(c.new_bytes for c in record.components),
        "stored_bytes": sum(c.stored_bytes for c in record.components),
        "components": [component_json(c) for c in record.components],
    }


def entry_json(component: str, entry: Entry) -> dict[str, Any]:
    """Bytes that are not UTF-8 are shown as surrogate escapes, which `os.fsencode` turns back."""
    import stat

    value: dict[str, Any] = {
        "component": component,
        "path": os.fsdecode(entry.path),
        "type": _TYPES.get(stat.S_IFMT(entry.mode), "other"),
        "mode": f"{stat.S_IMODE(entry.mode):04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime": iso_time(entry.mtime),
        "mtime_ns": entry.mtime,
    }
    if entry.link:
        value["hardlink" if entry.flags & 1 else "target"] = os.fsdecode(entry.link)
    if entry.flags & 2:
        value["changed_while_read"] = True
    return value


_TYPES = {
    0o100000: "file",
    0o040000: "dir",
    0o120000: "symlink",
    0o010000: "fifo",
    0o020000: "chardev",
    0o060000: "blockdev",
}


class Progress:
    """One line for each component on a terminal, rewritten ten times a second; nothing when stderr is a pipe."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._name = ""
        self._done = self._expected = 0
        self._began = self._shown = 0.0

    def begin(self, name: str, expected: int = 0) -> None:
        self._name, self._done, self._expected = name, 0, expected
        self._began = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if self._live:
            now = time.monotonic()
            if now - self._shown >= 0.1:
                self._shown = now
                self._draw(now)

    def set(self, done: int, expected: int) -> None:
        self._expected = expected
        self.add(done - self._done)

    def _draw(self, now: float) -> None:
        elapsed = max(now - self._began, 1e-3)
        rate = self._done / elapsed
        line = f"{self._name}  {size(self._done)}"
        if self._expected:
            line += f" of {size(self._expected)}"
        line += f"  {size(int(rate))}/s"
        if self._expected > self._done and rate > 0 and elapsed > 1:
            line += f"  {int((self._expected - self._done) / rate)} s left"
        self._stream.write(f"\r{line}\x1b[K")
        self._stream.flush()

    def end(self) -> None:
        """Clear the line; what was done is told on stdout."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
