"""Random histories with crashes and damage in them, against a model that remembers every tree.

`test_model` has the everyday histories. Here processes die at any write, packs rot, unchanged files are taken over
unread, and packs are so small that a few files fill several.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lumina_vault import process
from lumina_vault.ops import browse
from lumina_vault.ops import snapshot as snapshot_module
from lumina_vault.store import pack
from lumina_vault.testing.faults import INDEX, STORE, Fault, Faults, Kind, SimulatedCrash
from lumina_vault.testing.sandbox import Sandbox, TreeState, tree_state

NAMES = ["a", "b/c", "b/d", "b/e/f", "b/e/g", "c", "z"]
DATABASE = b"SQLite format 3\0"
SIZES = [0, 1, 700, 60_000, 131_071, 131_072, 250_000]
Taken = tuple[TreeState, bytes | None]
ANY = st.integers(0, 10**6)
"""Chooses one of things whose number no strategy may depend on, since threads and random names have a part in it."""


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "TARGET_SIZE", 64 << 10)
        patch.setattr(process, "workers", lambda: 1)
        # Long enough for a clock that ticks every 10 ms, short enough that files of earlier steps are trusted.
        patch.setattr(snapshot_module, "_TRUST_MARGIN", 20_000_000)
        yield


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="vault-history-", dir=memory))
        self.source = self.root / "src"
        self.source.mkdir()
        self.taken: dict[str, Taken] = {}
        self.lone: list[Taken] = []
        """What a crashed snapshot was of: a rebuild may find its record."""

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @initialize(encrypted=st.booleans())
    def init(self, encrypted: bool) -> None:
        self.sandbox = Sandbox(self.root, encrypted)
        self.sandbox.init()

    # --- the source ---

    def _files(self) -> list[str]:
        return [name for name in NAMES if (self.source / name).is_file()]

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 5), size=st.sampled_from(SIZES), database=st.booleans())
    def write(self, name: str, seed: int, size: int, database: bool) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.write_bytes(((DATABASE if database else b"") + random.Random(seed).randbytes(size))[:size])

    @precondition(lambda self: self._files())
    @rule(data=st.data(), seed=st.integers(0, 5))
    def overwrite_a_part(self, data: st.DataObject, seed: int) -> None:
        path = self.source / data.draw(st.sampled_from(self._files()))
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(random.Random(seed).randbytes(1000))

    @precondition(lambda self: self._files())
    @rule(data=st.data(), to=st.sampled_from(NAMES))
    def rename(self, data: st.DataObject, to: str) -> None:
        name = data.draw(st.sampled_from(self._files()))
        (self.source / to).parent.mkdir(parents=True, exist_ok=True)
        (self.source / name).rename(self.source / to)

    @precondition(lambda self: self._files())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        (self.source / data.draw(st.sampled_from(self._files()))).unlink()

    @precondition(lambda self: (self.source / "b").is_dir())
    @rule()
    def delete_directory(self) -> None:
        shutil.rmtree(self.source / "b")

    @rule(target_=st.sampled_from(["a", "nowhere"]), mode=st.sampled_from([0o755, 0o700]))
    def link_and_mode(self, target_: str, mode: int) -> None:
        (self.source / "link").unlink(missing_ok=True)
        (self.source / "link").symlink_to(target_)
        self.source.chmod(mode)

    # --- the vault ---

    @rule(stream=st.none() | st.integers(0, 3), reread=st.booleans())
    def snapshot(self, stream: int | None, reread: bool) -> None:
        data = None if stream is None else random.Random(stream).randbytes(stream * 300_000)
        taken = self.sandbox.snapshot(self.source, stream=data, reread=reread)
        assert taken.record.complete
        self.taken[taken.id.hex()] = tree_state(self.source), data

    @rule(
        domain=st.sampled_from([STORE, INDEX]),
        at=st.integers(1, 12),
        kind=st.sampled_from(list(Kind)),
        stream=st.none() | st.integers(0, 3),
    )
    def crashed_snapshot(self, domain: str, at: int, kind: Kind, stream: int | None) -> None:
        """It dies, or its store or index fails once; or it is done before that could happen."""
        data = None if stream is None else random.Random(stream).randbytes(stream * 300_000)
        made = tree_state(self.source), data
        with contextlib.suppress(SimulatedCrash, Exception):
            self.sandbox.snapshot(self.source, stream=data, faults=Faults((Fault(domain, at, kind),)))
        found = self.sandbox.ids()
        assert found[: len(self.taken)] == list(self.taken)
        for extra in found[len(self.taken) :]:
            self.taken[extra] = made
        assert len(found) == len(self.taken)
        self.lone.append(made)

    @rule(lose=st.booleans(), crash=st.none() | st.integers(1, 15))
    def rebuild(self, lose: bool, crash: int | None) -> None:
        if lose:
            for path in self.sandbox.vault.glob("index.db*"):
                path.unlink()
        elif crash is not None:
            with contextlib.suppress(SimulatedCrash):
                self.sandbox.rebuild(Faults((Fault(INDEX, crash, Kind.AFTER),)))
        self.sandbox.rebuild()
        found = self.sandbox.ids()
        assert set(self.taken) <= set(found)
        for extra in [snapshot for snapshot in found if snapshot not in self.taken]:
            self.taken[extra] = self._restored(extra)
            assert self.taken[extra] in self.lone
        self.taken = {snapshot: self.taken[snapshot] for snapshot in found}

    def _restored(self, snapshot: str) -> Taken:
        target = self.root / "out"
        try:
            outcomes = self.sandbox.restore(snapshot, target)
            assert not [note for outcome in outcomes for note in outcome.report.notes]
            stream = target / "stream/data"
            return tree_state(target / "dir/src"), stream.read_bytes() if stream.exists() else None
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _some(self, number: int) -> str:
        return list(self.taken)[number % len(self.taken)]

    @rule(number=ANY)
    def restore(self, number: int) -> None:
        if self.taken:
            snapshot = self._some(number)
            assert self._restored(snapshot) == self.taken[snapshot]

    @rule(a=ANY, b=ANY)
    def diff(self, a: int, b: int) -> None:
        if not self.taken:
            return
        first, second = self._some(a), self._some(b)
        with self.sandbox.open() as repository:
            changes = browse.diff(repository, repository.find(first), repository.find(second))
            found = {(c.sign, os.fsdecode(c.path) or ".") for c in changes if c.component == "dir:src"}
        assert found == set(_changes(self.taken[first][0], self.taken[second][0]))

    @rule()
    def verify(self) -> None:
        result = self.sandbox.verify()
        assert result.clean, result
        assert result.snapshots == len(self.taken)
        assert set(result.notes) <= {n for n in result.notes if "never committed" in n}

    @precondition(lambda self: self._files())
    @rule(which=ANY, where=ANY)
    def damage_and_heal(self, which: int, where: int) -> None:
        """A pack of the newest snapshot loses a byte. Once that is known, a snapshot of the same source mends it."""
        self.snapshot(None, False)
        newest = list(self.taken)[-1]
        with self.sandbox.open() as repository:
            packs = repository.index.snapshot_pack_rows(bytes.fromhex(newest))
        name = packs[which % len(packs)].name.hex()
        path = self.sandbox.object(f"packs/{name[:2]}/{name}")
        whole = path.read_bytes()
        at = where % len(whole)
        _replace(path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        result = self.sandbox.verify()
        assert not result.clean
        assert self.sandbox.verify("none").affected == result.affected
        self.snapshot(None, False)
        mended = list(self.taken)[-1]
        assert self._restored(mended) == self.taken[mended]
        assert self._restored(newest) == self.taken[newest]
        # What only older snapshots held can't be mended from the source: put the pack back, as from a copy.
        _replace(path, whole)
        assert self.sandbox.verify().clean

    @invariant()
    def nothing_of_the_dead_is_in_the_way(self) -> None:
        if self.taken:
            assert self.sandbox.ids() == list(self.taken)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o400)


def _changes(before: TreeState, after: TreeState) -> Iterator[tuple[str, str]]:
    """What `diff` should say, from two states of a tree. A directory's time alone is no difference."""
    for path in before.keys() | after.keys():
        if path not in after:
            yield "-", path
        elif path not in before:
            yield "+", path
        else:
            (mode, mtime, data), (mode2, mtime2, data2) = before[path], after[path]
            if stat.S_IFMT(mode) != stat.S_IFMT(mode2):
                yield "T", path
            elif data != data2:
                yield "M", path
            elif mode != mode2 or (mtime != mtime2 and not stat.S_ISDIR(mode)):
                yield "m", path


def _run(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        History,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None,
            suppress_health_check=list(HealthCheck), derandomize=True,
        ),
    )  # fmt: skip


def test_histories_with_crashes() -> None:
    _run(20, 20)


@pytest.mark.slow
def test_long_histories_with_crashes() -> None:
    _run(40, 40)
