"""Restore: plan where each component goes and what is in the way, show it, then do it once."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from lumina_vault.components.base import Report
from lumina_vault.components.place import Placing, TreeRestorer
from lumina_vault.errors import Damage, TargetError, UsageError
from lumina_vault.model import SAFETY_TAG, Component
from lumina_vault.ops.snapshot import DirSource, SnapshotPlan, StreamSource
from lumina_vault.store.fetch import Fetcher, StoredTree
from lumina_vault.store.repository import Repository, Snapshot


@dataclass(frozen=True)
class Item:
    """One component and where it goes. `action`: `create`, `replace`, `skip` or `refuse`, with the reason."""

    component: Component
    target: str
    action: str
    reason: str = ""


@dataclass
class Outcome:
    """What happened to one component."""

    item: Item
    report: Report


@dataclass
class Events:
    begin: Callable[[Item], None] = lambda _item: None
    progress: Callable[[int], None] = lambda _bytes: None
    end: Callable[[Outcome], None] = lambda _outcome: None
    safety: Callable[[Snapshot], None] = lambda _snapshot: None


@dataclass(frozen=True)
class RestorePlan:
    """What a restore will do. `execute` does it, once; refused items stop it before anything is touched."""

    snapshot: Snapshot
    items: tuple[Item, ...]
    placing: Placing
    safety: bool = True
    level: int = 3
    notes: tuple[str, ...] = field(default=())

    @property
    def refused(self) -> list[Item]:
        return [item for item in self.items if item.action == "refuse"]

    def execute(self, repository: Repository, events: Events | None = None) -> list[Outcome]:
        """Raises `TargetError` if an item is refused or the target can't be written.

        What damage in the vault makes impossible is in the reports; everything else is restored.

        With `replace`, what is there is saved first as a snapshot tagged `safety`, unless the plan says otherwise.
        What can't be saved in full is not replaced.
        """
        events = events or Events()
        if self.refused:
            raise TargetError("; ".join(f"{item.component.id}: {item.reason}" for item in self.refused))
        self._safety_snapshot(repository, events)
        with repository.reading(self.snapshot.id):
            return self._restore(repository, events)

    def _safety_snapshot(self, repository: Repository, events: Events) -> None:
        replaced = [item for item in self.items if item.action == "replace"]
        if not self.safety or not replaced:
            return
        with contextlib.ExitStack() as files:
            sources = tuple(
                DirSource(item.component.name, item.target)
                if item.component.tree is not None
                else StreamSource(item.component.name, stdin=files.enter_context(_open_stream(item.target)))
                for item in replaced
            )
            saved = SnapshotPlan(sources, tags=(SAFETY_TAG,), level=self.level).execute(repository)
        events.safety(saved)
        if not saved.record.complete:
            missed = [note for component in saved.record.components for note in component.notes]
            raise TargetError(
                f"what is there could not be saved in full ({'; '.join(missed[:3])}), so nothing was replaced; "
                "mend that, or give it up with --no-safety-snapshot"
            )

    def _restore(self, repository: Repository, events: Events) -> list[Outcome]:
        outcomes: list[Outcome] = []
        with Fetcher(repository.reader) as fetcher:
            for item in self.items:
                if item.action == "skip":
                    continue
                events.begin(item)
                report = Report(progress=events.progress)
                try:
                    if item.component.tree is not None:
                        _restore_tree(fetcher, item, report, self.placing)
                    else:
                        _restore_stream(fetcher, item, report, self.placing)
                except Damage as error:  # the other components may be whole
                    report.miss(f"not restored: {error}", damage=True)
                outcome = Outcome(item, report)
                outcomes.append(outcome)
                events.end(outcome)
            if fetcher.damaged and not repository.index.readonly:
                places = repository.index.locate(list(fetcher.damaged))
                repository.index.mark_damaged((row.chunk, row.pack) for rows in places.values() for row in rows)
        return outcomes


def plan_restore(
    snapshot: Snapshot, *, to: str | None = None, in_place: bool = False, components: Sequence[str] = (),
    include: Sequence[str] = (), replace: bool = False, delete: bool = False, safety: bool = True, level: int = 3,
) -> RestorePlan:  # fmt: skip
    """Where everything goes: `DIR/<kind>/<name>` with `to`, the recorded paths with `in_place`. Raises `UsageError`."""
    if (to is None) == (not in_place):
        raise UsageError("say where to: --to DIR, or --in-place for the paths that were saved")
    if delete and not replace:
        raise UsageError("--delete removes files that the snapshot does not hold: it goes with --replace")
    if delete and include:
        raise UsageError("--delete and --include contradict each other: a part can't tell what is extra")
    chosen = _choose(snapshot, components)
    items: list[Item] = []
    notes: list[str] = []
    for component in chosen:
        if component.status != "done":
            items.append(Item(component, "", "skip", f"{component.status} when it was saved: {component.reason}"))
            continue
        if in_place and component.tree is None:
            items.append(
                Item(
                    component,
                    "",
                    "skip",
                    "a stream has no path of its own: restore it with --to, or vault cat",
                )
            )
            continue
        target = _saved_path(component) if in_place else _below(to or "", component)
        items.append(_item(component, target, replace))
    if not snapshot.record.complete:
        notes.append(f"snapshot {snapshot.short} is incomplete: vault show {snapshot.short} says what it lacks")
    placing = Placing(replace=replace, delete=delete, include=includer(include))
    return RestorePlan(snapshot, tuple(items), placing, safety, level, tuple(notes))


def _choose(snapshot: Snapshot, wanted: Sequence[str]) -> list[Component]:
    components = snapshot.record.components
    if not wanted:
        return components
    chosen: list[Component] = []
    for name in wanted:
        found = [c for c in components if name in (c.id, c.kind)]
        if not found:
            raise UsageError(
                f"snapshot {snapshot.short} has no component {name}; it has {', '.join(c.id for c in components)}"
            )
        chosen += [c for c in found if c not in chosen]
    return chosen


def _below(to: str, component: Component) -> str:
    """`DIR/<kind>/<name>`. Kind and name come from the vault: neither may name another place (law 9)."""
    for part in (component.kind, component.name):
        if not part or part in (".", "..") or "/" in part or "\0" in part:
            raise Damage(
                f"a component is called {part!r}, which would leave the restore root: the snapshot was tampered with"
            )
    return os.path.join(os.path.abspath(os.path.expanduser(to)), component.kind, component.name)


def _saved_path(component: Component) -> str:
    path = os.fsdecode(component.source)
    if not os.path.isabs(path) or "\0" in path:
        raise Damage(f"{component.id} says it was saved from {path!r}, which is no absolute path: it was tampered with")
    return path


def _open_stream(path: str) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
    except OSError as error:
        raise TargetError(f"{path} can't be saved before it is replaced: {error.strerror}") from None


def _item(component: Component, target: str, replace: bool) -> Item:
    try:
        mode = os.lstat(target).st_mode
        empty = stat.S_ISDIR(mode) and not os.listdir(target)
    except FileNotFoundError:
        return Item(component, target, "create")
    except OSError as error:
        return Item(component, target, "refuse", f"{target}: {error.strerror}")
    if component.tree is not None:
        right, kind, what = stat.S_ISDIR(mode), "directory", "is not empty"
    else:
        right, kind, what, empty = stat.S_ISREG(mode), "regular file", "is there already", False
    if not right:
        return Item(component, target, "refuse", f"{target} is there and is not a {kind}")
    if empty:
        return Item(component, target, "create")
    if replace:
        return Item(component, target, "replace")
    reason = f"{target} {what}; restore elsewhere, or add --replace to rewrite what differs"
    return Item(component, target, "refuse", reason)


def includer(patterns: Sequence[str]) -> Callable[[bytes], bool] | None:
    """True for a path that a pattern matches, or that lies below one that does. `*` also matches `/`."""
    if not patterns:
        return None
    expressions = [re.compile(fnmatch.translate(pattern.strip("/")), re.DOTALL) for pattern in patterns]

    def included(path: bytes) -> bool:
        text = os.fsdecode(path)
        while text:
            if any(e.match(text) or e.match(text.rsplit("/", 1)[-1]) for e in expressions):
                return True
            text = text.rpartition("/")[0]
        return False

    return included


def _restore_tree(fetcher: Fetcher, item: Item, report: Report, placing: Placing) -> None:
    assert item.component.tree is not None
    try:
        os.makedirs(item.target, mode=0o700, exist_ok=True)
        root = os.open(item.target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TargetError(f"{item.target}: {error.strerror}") from None
    try:
        TreeRestorer(root, StoredTree(fetcher, item.component.tree), report, placing).restore()
    finally:
        os.close(root)


def _restore_stream(fetcher: Fetcher, item: Item, report: Report, placing: Placing) -> None:
    """Written beside its name and renamed when every byte was checked, so that what is there is whole or untouched."""
    assert item.component.content is not None
    directory, name = os.path.split(item.target)
    temporary = os.path.join(directory, f".{name}.vault-restore")  # no component's name begins with a dot
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.path.lexists(temporary):  # left by an interrupted run
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"{temporary}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            for block in fetcher.stream(item.component.content, item.component.id):
                view = memoryview(block)
                while len(view):
                    view = view[file.write(view) or 0 :]
                report.progress(len(block))
                report.size += len(block)
            os.fsync(file.fileno())
        if not placing.replace and os.path.lexists(item.target):
            raise TargetError(f"{item.target} appeared while it was restored; nothing was overwritten")
        os.rename(temporary, item.target)
        report.files += 1
    except OSError as error:
        _discard(temporary)
        raise TargetError(f"{item.target}: {error.strerror}; nothing was put in place") from None
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
