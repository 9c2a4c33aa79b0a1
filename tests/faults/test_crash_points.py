"""A process that dies at each of its writes in turn, in the store and in the index.

Whatever the point: older snapshots restore bit for bit, `verify` is clean, a rebuilt index agrees, and the next
snapshot succeeds without storing again what had landed whole. `pytest -s` prints the table of points.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import MakeSandbox, change_source, write_source

from lumina_vault.errors import BackendError, Damage, NoSuchVault, StoreFull, UsageError, VaultError
from lumina_vault.testing.faults import INDEX, STORE, Fault, Faults, Kind, SimulatedCrash
from lumina_vault.testing.sandbox import Sandbox, TreeState, tree_state

MODES = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
STREAM = b"a stream of its own " * 400


@dataclass
class Stage:
    """A vault with older snapshots, and the source of the next one."""

    sandbox: Sandbox
    source: Path
    older: dict[str, TreeState]

    def take(self, sandbox: Sandbox, faults: Faults | None = None) -> str:
        return sandbox.snapshot(self.source, stream=STREAM, faults=faults).id.hex()


@pytest.fixture
def make_stage(tmp_path: Path, make_sandbox: MakeSandbox) -> Callable[[bool], Stage]:
    def make(encrypted: bool) -> Stage:
        source = tmp_path / "source"
        write_source(source, 1)
        stage = Stage(make_sandbox(encrypted), source, {})
        for seed in (2, 3):
            stage.older[stage.take(stage.sandbox)] = tree_state(source)
            change_source(source, seed)
        return stage

    return make


def points(run: Callable[[Faults], object]) -> Iterator[tuple[Fault, Faults]]:
    """Run once for every point there is, dying there; ends when a run outlives its fault."""
    kinds = {STORE: (Kind.BEFORE, Kind.TORN, Kind.AFTER), INDEX: (Kind.BEFORE, Kind.AFTER)}
    for domain in (STORE, INDEX):
        for kind in kinds[domain]:
            for number in itertools.count(1):
                fault = Fault(domain, number, kind)
                faults = Faults((fault,))
                try:
                    run(faults)
                except SimulatedCrash:
                    yield fault, faults
                else:
                    assert not faults.dead
                    assert len(faults.log[domain]) < number, "the fault did not strike"
                    break


class Table:
    """The points of one enumeration, as they are printed and counted."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, fault: Fault, faults: Faults) -> None:
        self.counts[fault.domain, faults.log[fault.domain][-1].split("/")[0], fault.kind.value] += 1

    def show(self, at_least: int) -> None:
        print(f"\n{self.title}: {self.counts.total()} points")
        for (domain, step, kind), count in sorted(self.counts.items()):
            print(f"  {domain:6} {step:20} {kind:7} {count:4}")
        assert self.counts.total() >= at_least


def check_restores(sandbox: Sandbox, expected: dict[str, TreeState], to: Path) -> None:
    for number, (snapshot, state) in enumerate(expected.items()):
        target = to / f"restored{number}"
        outcomes = sandbox.restore(snapshot, target)
        assert not any(outcome.report.left_out for outcome in outcomes)
        assert tree_state(target / "dir/source") == state
        assert (target / "stream/data").read_bytes() == STREAM


def check_rebuild(stage: Stage, sandbox: Sandbox, torn: bool, to: Path) -> None:
    """Without the index: all older snapshots, and the one whose record had landed, can be had."""
    records = {path.name for path in sandbox.object("snapshots").iterdir()}
    rebuilt = sandbox.rebuild()
    assert torn or not rebuilt.problems
    found = sandbox.ids()
    assert set(stage.older) <= set(found)
    assert torn or set(found) == records
    current = tree_state(stage.source)
    check_restores(sandbox, {snapshot: stage.older.get(snapshot, current) for snapshot in found}, to)
    assert sandbox.verify().clean


def check_survives(stage: Stage, sandbox: Sandbox, fault: Fault, to: Path) -> None:
    """What part 6 of the issue promises after a crash."""
    if fault.domain == STORE:  # what a rebuild finds is what the store holds
        check_rebuild(stage, sandbox.copy(to / "twin"), fault.kind is Kind.TORN, to / "twin")
    landed = sandbox.packs()
    before = sandbox.ids()
    assert before[: len(stage.older)] == list(stage.older)
    assert len(before) <= len(stage.older) + 1
    assert sandbox.verify().clean
    current = tree_state(stage.source)
    check_restores(sandbox, {snapshot: stage.older.get(snapshot, current) for snapshot in before}, to / "before")

    counted = Faults()
    following = stage.take(sandbox, counted)
    written = [name.rsplit("/", 1)[1] for name in counted.log[STORE] if name.startswith("publish packs/")]
    packs = sandbox.packs()
    stored = {row.chunk for name in written for row in packs[name].rows}
    assert not stored & {row.chunk for table in landed.values() for row in table.rows}, "something was stored twice"
    assert len(stored) == sum(len(packs[name].rows) for name in written)
    assert sandbox.ids() == [*before, following]
    check_restores(sandbox, {following: current}, to / "after")
    assert sandbox.verify().clean
    assert not [name for name in sandbox.scratch() if name.startswith("sessions/")], "the dead session's lock remains"


@MODES
def test_a_snapshot_that_dies_at_any_point(
    make_stage: Callable[[bool], Stage], encrypted: bool, tmp_path: Path
) -> None:
    stage = make_stage(encrypted)
    table = Table(f"snapshot, {'encrypted' if encrypted else 'plain'}")
    rooms = (tmp_path / f"run{number}" for number in itertools.count())
    room = tmp_path
    sandbox = stage.sandbox

    def run(faults: Faults) -> None:
        nonlocal room, sandbox
        room = next(rooms)
        sandbox = stage.sandbox.copy(room)
        stage.take(sandbox, faults)

    for fault, faults in points(run):
        table.add(fault, faults)
        check_survives(stage, sandbox, fault, room / "check")
    table.show(35)


@pytest.mark.parametrize("encrypted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "encrypted"])
def test_a_recovery_that_dies_at_any_point(
    make_stage: Callable[[bool], Stage], encrypted: bool, tmp_path: Path
) -> None:
    """The crash of the run that takes over what an earlier crash left: fence, adopt, go on."""
    stage = make_stage(encrypted)
    with pytest.raises(SimulatedCrash):  # two packs are in the store; one is live, the other still `writing`
        stage.take(stage.sandbox, Faults((Fault(STORE, 2, Kind.AFTER),)))
    table = Table(f"recovery, {'encrypted' if encrypted else 'plain'}")
    rooms = (tmp_path / f"run{number}" for number in itertools.count())
    room = tmp_path
    sandbox = stage.sandbox

    def run(faults: Faults) -> None:
        nonlocal room, sandbox
        room = next(rooms)
        sandbox = stage.sandbox.copy(room)
        stage.take(sandbox, faults)

    for fault, faults in points(run):
        table.add(fault, faults)
        check_survives(stage, sandbox, fault, room / "check")
    steps = {step for _, step, _ in table.counts}
    assert {"fence", "adopt", "make live", "commit"} <= steps
    table.show(35)


@MODES
def test_a_rebuild_that_dies_at_any_point(make_stage: Callable[[bool], Stage], encrypted: bool, tmp_path: Path) -> None:
    """The old index serves until the new one is whole; a second rebuild succeeds."""
    stage = make_stage(encrypted)
    table = Table(f"rebuild, {'encrypted' if encrypted else 'plain'}")
    rooms = (tmp_path / f"run{number}" for number in itertools.count())
    room = tmp_path
    sandbox = stage.sandbox

    def run(faults: Faults) -> None:
        nonlocal room, sandbox
        room = next(rooms)
        sandbox = stage.sandbox.copy(room)
        sandbox.rebuild(faults)

    for fault, faults in points(run):
        table.add(fault, faults)
        assert sandbox.ids() == list(stage.older)
        check_restores(sandbox, stage.older, room / "old")
        assert sandbox.verify().clean
        assert not sandbox.rebuild().problems
        assert sandbox.ids() == list(stage.older)
        check_restores(sandbox, {stage.take(sandbox): tree_state(stage.source)}, room / "new")
        assert sandbox.verify().clean
        assert not sandbox.object("rebuild").exists()
    table.show(30)


@MODES
def test_an_init_that_dies_at_any_point(encrypted: bool, tmp_path: Path) -> None:
    """Either there is no vault, and `init` says what stands there; or there is one, and a rebuild makes it usable."""
    table = Table(f"init, {'encrypted' if encrypted else 'plain'}")
    source = tmp_path / "source"
    write_source(source, 1)
    rooms = (tmp_path / f"run{number}" for number in itertools.count())
    room = tmp_path
    sandbox = Sandbox(tmp_path, encrypted)
    made = 0

    def run(faults: Faults) -> None:
        nonlocal room, sandbox
        room = next(rooms)
        room.mkdir()
        sandbox = Sandbox(room, encrypted)
        sandbox.init(faults)

    for fault, faults in points(run):
        if fault.kind is Kind.TORN and faults.log[STORE][-1] == "put config":
            continue  # a torn config is damage: no backend may leave one
        table.add(fault, faults)
        if not sandbox.object("config").exists():
            with pytest.raises(NoSuchVault):
                sandbox.ids()
            if sandbox.vault.is_dir() and any(sandbox.vault.iterdir()):
                with pytest.raises(BackendError, match="not empty"):
                    sandbox.init()
            else:
                sandbox.init()
            continue
        made += 1
        with pytest.raises(UsageError, match="there is a vault"):
            sandbox.init()
        try:
            with sandbox.open(write=True):
                pass
        except Damage as error:
            assert "vault index rebuild" in str(error)
            sandbox.rebuild()
        taken = sandbox.snapshot(source)
        sandbox.restore(taken.id.hex(), room / "out")
        assert tree_state(room / "out/dir/source") == tree_state(source)
        assert sandbox.verify().clean
    assert made >= 3
    table.show(7)


@pytest.mark.parametrize(
    ("domain", "forever", "encrypted"),
    [(STORE, False, False), (STORE, True, True), (INDEX, False, True), (INDEX, True, False)],
)
def test_a_snapshot_that_meets_an_error_at_any_point(
    make_stage: Callable[[bool], Stage], encrypted: bool, domain: str, forever: bool, tmp_path: Path
) -> None:
    """An error is not a crash: it is raised, nothing is left in scratch, and the next run takes over."""
    stage = make_stage(encrypted)
    error = StoreFull("injected: no space left")
    struck = 0
    for number in itertools.count(1):
        room = tmp_path / f"run{number}"
        sandbox = stage.sandbox.copy(room)
        faults = Faults((Fault(domain, number, Kind.ERROR, lambda: error, forever),))
        try:
            stage.take(sandbox, faults)
        except VaultError as raised:
            assert raised is error
        else:
            break
        struck += 1
        assert sandbox.ids() == list(stage.older)
        assert not sandbox.scratch()
        check_survives(stage, sandbox, faults.faults[0], room / "check")
    assert struck >= 5
