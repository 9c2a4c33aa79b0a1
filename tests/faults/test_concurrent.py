"""Several processes in one vault at once, and sessions that outlive what others believe of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import DATABASE, vault, write_source

from lumina_vault import ids
from lumina_vault.errors import SessionFenced, VaultLocked
from lumina_vault.index import Index
from lumina_vault.model import Record
from lumina_vault.store.recover import adopt_packs
from lumina_vault.store.session import Session
from lumina_vault.testing.faults import STORE, Fault, Faults, Kind, SimulatedCrash
from lumina_vault.testing.sandbox import Sandbox, tree_state

MODES = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])


class Running:
    """A real `vault snapshot` of a directory and of a stream that this test feeds, so that it ends when told to."""

    def __init__(self, sandbox: Sandbox, source: Path) -> None:
        environment = {**os.environ, "VAULT_URL": str(sandbox.vault), "XDG_STATE_HOME": str(sandbox.root / "state")}
        if sandbox.encrypted:
            environment["VAULT_KEY_FILE"] = str(sandbox.key_file)
        program = "from lumina_vault.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "snapshot", "--path", str(source), "--stdin", "feed", "--json"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def feed(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def end(self) -> str:
        """The id of the snapshot that landed."""
        import json

        out, err = self.process.communicate()
        assert self.process.returncode == 0, err.decode()
        return str(json.loads(out)["id"])


def sessions(sandbox: Sandbox) -> int:
    return len([name for name in sandbox.scratch() if name.startswith("sessions/")])


@MODES
def test_two_snapshots_at_once(make_sandbox: Callable[[bool], Sandbox], tmp_path: Path, encrypted: bool) -> None:
    """With much in common: both land; a restore and a verification beside them see whole snapshots only."""
    sandbox = make_sandbox(encrypted)
    source = tmp_path / "source"
    write_source(source, 1)
    older = sandbox.snapshot(source).id.hex()
    rng = random.Random(5)
    (source / "common.db").write_bytes(DATABASE + rng.randbytes(400_000))
    state = tree_state(source)
    common, apart = rng.randbytes(3 << 20), [rng.randbytes(1 << 20), rng.randbytes(1 << 20)]
    both = [Running(sandbox, source), Running(sandbox, source)]
    while sessions(sandbox) < 2:
        assert all(run.process.poll() is None for run in both)
    for at in range(0, len(common), 1 << 19):
        for run in both:
            run.feed(common[at : at + (1 << 19)])

    ran = vault(sandbox, "verify", "--data", "all")
    assert ran.status == 0, ran
    assert vault(sandbox, "restore", older, "--to", tmp_path / "beside").status == 0
    assert [s["id"] for s in vault(sandbox, "snapshots", "--json").json] == [older]
    assert vault(sandbox, "index", "rebuild").status == 11

    for run, data in zip(both, apart, strict=True):
        run.feed(data)
    taken = [run.end() for run in both]
    assert set(sandbox.ids()) == {older, *taken}
    assert sandbox.verify().clean
    for number, (snapshot, data) in enumerate(zip(taken, apart, strict=True)):
        sandbox.restore(snapshot, tmp_path / f"out{number}")
        assert tree_state(tmp_path / f"out{number}/dir/source") == state
        assert (tmp_path / f"out{number}/stream/feed").read_bytes() == common + data
    assert not sandbox.scratch()
    assert not sandbox.rebuild().problems
    assert set(sandbox.ids()) == {older, *taken}


def test_many_snapshots_at_once(make_sandbox: Callable[[bool], Sandbox], tmp_path: Path) -> None:
    """Six writers of six trees that share half of their bytes."""
    sandbox = make_sandbox(True)
    sources = []
    for number in range(6):
        source = tmp_path / f"source{number}"
        write_source(source, number % 3)
        (source / "own").write_bytes(os.urandom(200_000))
        sources.append(source)
    running = [Running(sandbox, source) for source in sources]
    taken = [run.end() for run in running]
    assert len(set(taken)) == 6
    assert set(sandbox.ids()) == set(taken)
    assert sandbox.verify().clean
    for source, snapshot in zip(sources, taken, strict=True):
        sandbox.restore(snapshot, tmp_path / "out" / source.name)
        assert tree_state(tmp_path / "out" / source.name / "dir" / source.name) == tree_state(source)


def test_a_rebuild_keeps_others_out(make_sandbox: Callable[[bool], Sandbox], tmp_path: Path) -> None:
    """A snapshot that began meanwhile would be committed to the index that is about to go."""
    sandbox = make_sandbox(False)
    source = tmp_path / "source"
    write_source(source, 1)
    sandbox.snapshot(source)
    refused: list[VaultLocked] = []

    class Beside(Faults):
        def observe(self, event: str) -> None:
            if event == "before commit" and not refused:
                with pytest.raises(VaultLocked) as caught:
                    Index(str(sandbox.object("index.db")))
                refused.append(caught.value)

    sandbox.rebuild(Beside())
    assert "being rebuilt" in str(refused[0])
    sandbox.snapshot(source)
    assert len(sandbox.ids()) == 2


# --- fencing ---------------------------------------------------------------------------------------------------------


def die(session: Session) -> None:
    """What the kernel does for a dead process; this one goes on as if it had only been suspended."""
    os.close(session._lock.fd)
    session._lock.fd = -1


@MODES
def test_a_fenced_session_can_do_nothing_more(
    make_sandbox: Callable[[bool], Sandbox], tmp_path: Path, encrypted: bool
) -> None:
    sandbox = make_sandbox(encrypted)
    source = tmp_path / "source"
    write_source(source, 1)
    snapshot = sandbox.snapshot(source)
    with sandbox.open(write=True) as first, sandbox.open(write=True) as second:
        late = first.session("writer")
        pack = first.index.declare(late.id, ids.random_id(), 1, 100, 0, ids.random_id())
        die(late)
        with second.session("writer"):
            live = [row.id for row in first.index.live_packs()]
            attempts: list[Callable[[], object]] = [
                lambda: first.index.register(late.id, live),
                lambda: late.register_snapshot(snapshot.id),
                lambda: first.index.declare(late.id, ids.random_id(), 1, 100, 0, ids.random_id()),
                lambda: first.index.make_live(late.id, pack, []),
                lambda: first.index.adopt(late.id, pack),
                lambda: first.store_record(late, _record(snapshot.record)),
            ]
            for attempt in attempts:
                with pytest.raises(SessionFenced):
                    attempt()
        late.close()
    assert sandbox.ids() == [snapshot.id.hex()]
    result = sandbox.verify()
    assert result.clean
    assert len(result.notes) == 1, "the record of the session that came too late is noted"


def _record(like: Record) -> Record:
    return Record(vault=like.vault, time=like.time, end=like.end, host="", user="", program="", components=[])


def test_a_session_is_fenced_only_when_it_is_dead(make_sandbox: Callable[[bool], Sandbox]) -> None:
    sandbox = make_sandbox(False)
    with sandbox.open(write=True) as first, sandbox.open(write=True) as second:
        with first.session("writer") as session, second.session("writer"):
            assert second.index.fence_dead_sessions() == 0
            assert len(second.index.active_sessions()) == 2
            first.store_record(session, Record(vault=first.keys.vault, time=1, end=2, host="", user="", program="", components=[]))  # fmt: skip
    assert len(sandbox.ids()) == 1


def test_a_commit_names_only_packs_that_were_registered(
    make_sandbox: Callable[[bool], Sandbox], tmp_path: Path
) -> None:
    sandbox = make_sandbox(False)
    source = tmp_path / "source"
    write_source(source, 1)
    snapshot = sandbox.snapshot(source)
    with sandbox.open(write=True) as repository, repository.session("writer") as session:
        session.use([repository.index.live_packs()[0].id])
        with pytest.raises(SessionFenced, match="no longer registered"):
            repository.store_record(session, _record(snapshot.record))
    assert sandbox.ids() == [snapshot.id.hex()]


# --- adoption --------------------------------------------------------------------------------------------------------


@MODES
def test_adoption_has_one_winner(make_sandbox: Callable[[bool], Sandbox], tmp_path: Path, encrypted: bool) -> None:
    """Four sessions at once for the pack of a dead one: it goes to one of them, and is used."""
    sandbox = make_sandbox(encrypted)
    source = tmp_path / "source"
    write_source(source, 1)
    for attempt in range(8):
        (source / f"more{attempt}.db").write_bytes(DATABASE + os.urandom(200_000))
        crash = Faults((Fault(STORE, 1, Kind.AFTER),))
        with pytest.raises(SimulatedCrash):
            sandbox.snapshot(source, faults=crash)
        with ExitStack() as stack:
            opened = [stack.enter_context(sandbox.open(write=True)) for _ in range(4)]
            running = [stack.enter_context(repository.session("writer")) for repository in opened]
            waiting = {row.id for row in opened[0].index.adoptable()}
            assert len(waiting) == 1
            barrier = threading.Barrier(4)
            adopted = [0] * 4

            def adopt(number: int) -> None:
                barrier.wait()
                adopted[number] = adopt_packs(opened[number], running[number])

            threads = [threading.Thread(target=adopt, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            live = {row.id for row in opened[0].index.live_packs()}
            assert sum(adopted) == len(waiting & live)
    landed = sandbox.packs()
    with sandbox.open() as repository:
        live_names = {row.name.hex() for row in repository.index.live_packs()}
    assert live_names == set(landed), "every pack that landed is used"
    sandbox.snapshot(source)
    assert sandbox.verify().clean
