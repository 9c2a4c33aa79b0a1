"""Look into snapshots without touching contents: list, compare, find; and read one file out."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from lumina_vault.components.directory import shown
from lumina_vault.errors import UsageError
from lumina_vault.model import Component, Content, Entry
from lumina_vault.store.fetch import Fetcher
from lumina_vault.store.reader import Plain
from lumina_vault.store.repository import Repository, Snapshot
from lumina_vault.store.trees import below, check_path, entries, sort_key


@dataclass(frozen=True)
class Place:
    """`ID`, `ID:component` or `ID:component/path`, resolved."""

    snapshot: Snapshot
    component: Component | None
    path: bytes


@dataclass(frozen=True)
class Found:
    snapshot: Snapshot
    component: Component
    entry: Entry


@dataclass(frozen=True)
class Change:
    """One difference: `sign` is `+` added, `-` removed, `M` contents, `m` metadata, `T` type."""

    sign: str
    component: str
    path: bytes
    before: Entry | None
    after: Entry | None


def resolve(repository: Repository, text: str) -> Place:
    """Raises `UsageError` if there is no such snapshot or component."""
    wanted, _, rest = text.partition(":")
    snapshot = repository.find(wanted)
    if not rest:
        return Place(snapshot, None, b"")
    components = snapshot.record.components
    for component in sorted(components, key=lambda c: -len(c.id)):
        if rest == component.id or rest.startswith(component.id + "/"):
            return Place(snapshot, component, os.fsencode(rest[len(component.id) + 1 :].rstrip("/")))
    raise UsageError(
        f"snapshot {snapshot.short} has no component at {rest}; it has {', '.join(c.id for c in components)}"
    )


def listing(repository: Repository, place: Place) -> Iterator[Entry]:
    """Entries at and below a place. Raises `UsageError` if there is nothing."""
    component = place.component
    if component is None or component.tree is None:
        raise UsageError("name a component that is a tree, as in latest:dir:data")
    nothing = True
    for entry in below(repository.reader, component.tree, place.path):
        nothing = False
        yield entry
    if nothing:
        raise UsageError(f"{component.id} has no {shown(place.path)} in snapshot {place.snapshot.short}")


def contents(repository: Repository, fetcher: Fetcher, place: Place) -> Iterator[Plain]:
    """The bytes of one file or stream, checked chunk by chunk. Raises `UsageError`, `Damage`."""
    component = place.component
    if component is None:
        raise UsageError("name a file or a stream, as in latest:dir:data/path or latest:stream:dump")
    if component.tree is None:
        if component.content is None or place.path:
            raise UsageError(f"{component.id} has no such file")
        return fetcher.stream(component.content, component.id)
    return fetcher.stream(_file(repository, place), shown(place.path))


def _file(repository: Repository, place: Place, hops: int = 0) -> Content:
    assert place.component is not None
    entry = next(listing(repository, place))
    if entry.path != place.path or not stat.S_ISREG(entry.mode):
        raise UsageError(f"{shown(place.path)} is not a regular file")
    if entry.flags & 1 and not hops:
        check_path(entry.link)
        return _file(repository, Place(place.snapshot, place.component, entry.link), 1)
    return entry.content


def find(repository: Repository, pattern: str, snapshots: list[Snapshot]) -> Iterator[Found]:
    """Entries whose name or path matches a shell pattern, newest snapshot first."""
    expression = re.compile(fnmatch.translate(pattern), re.DOTALL)
    for snapshot in snapshots:
        for component in snapshot.record.components:
            if component.tree is None:
                continue
            for entry in entries(repository.reader, component.tree):
                path = os.fsdecode(entry.path)
                if expression.match(path) or expression.match(path.rsplit("/", 1)[-1]):
                    yield Found(snapshot, component, entry)


def diff(repository: Repository, before: Snapshot, after: Snapshot) -> Iterator[Change]:
    """Differences between two snapshots, component by component, from metadata alone."""
    old = {c.id: c for c in before.record.components if c.status == "done"}
    new = {c.id: c for c in after.record.components if c.status == "done"}
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if a is None or b is None:
            yield Change("+" if a is None else "-", name, b"", None, None)
        elif a.tree is not None and b.tree is not None:
            if a.tree != b.tree:
                yield from _diff_trees(repository, name, a, b)
        elif a.content != b.content:
            yield Change("M", name, b"", None, None)


def _diff_trees(repository: Repository, name: str, a: Component, b: Component) -> Iterator[Change]:
    assert a.tree is not None
    assert b.tree is not None
    left, right = entries(repository.reader, a.tree), entries(repository.reader, b.tree)
    x, y = next(left, None), next(right, None)
    while x is not None or y is not None:
        xk = sort_key(x.path) if x is not None else None
        yk = sort_key(y.path) if y is not None else None
        if y is None or (xk is not None and yk is not None and xk < yk):
            assert x is not None
            yield Change("-", name, x.path, x, None)
            x = next(left, None)
        elif x is None or (xk is not None and yk is not None and yk < xk):
            yield Change("+", name, y.path, None, y)
            y = next(right, None)
        else:
            sign = _compare(x, y)
            if sign:
                yield Change(sign, name, y.path, x, y)
            x, y = next(left, None), next(right, None)


def _compare(x: Entry, y: Entry) -> str:
    if stat.S_IFMT(x.mode) != stat.S_IFMT(y.mode):
        return "T"
    if (x.digest, x.size, x.link, x.rdev) != (y.digest, y.size, y.link, y.rdev):
        return "M"
    if (x.mode, x.uid, x.gid, x.xattrs) != (y.mode, y.uid, y.gid, y.xattrs):
        return "m"
    if x.mtime != y.mtime and not stat.S_ISDIR(y.mode):
        return "m"
    return ""
