"""Real processes, really killed. `test_crash_points` enumerates the same promises within one process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from conftest import DATABASE, change_source, needed, write_source

from lumina_vault.testing.sandbox import Sandbox, TreeState, tree_state

# What the conftest does to packs in this process.
PROGRAM = """
import sys
from lumina_vault.store import pack
pack.TARGET_SIZE = int(sys.argv.pop(1))
from lumina_vault.cli.main import main
main()
"""
SMALL = 64 << 10


def command(sandbox: Sandbox, *arguments: str | Path, pack_size: int = SMALL) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(pack_size), *map(str, arguments)]


def environment(sandbox: Sandbox) -> dict[str, str]:
    values = {**os.environ, "VAULT_URL": str(sandbox.vault), "XDG_STATE_HOME": str(sandbox.root / "state")}
    if sandbox.encrypted:
        values["VAULT_KEY_FILE"] = str(sandbox.key_file)
    return values


@dataclass
class Stage:
    """Vaults, plain and encrypted, with one snapshot; and the source of the next."""

    sandboxes: list[Sandbox]
    source: Path
    room: Path
    older: dict[str, TreeState]


@pytest.fixture
def stage(tmp_path: Path, make_sandbox: Callable[[bool], Sandbox]) -> Stage:
    source = tmp_path / "source"
    write_source(source, 1)
    stage = Stage([make_sandbox(False), make_sandbox(True)], source, tmp_path, {})
    for sandbox in stage.sandboxes:
        stage.older[sandbox.snapshot(source).id.hex()] = tree_state(source)
    change_source(source, 2)
    return stage


def check_survives(sandbox: Sandbox, source: Path, older: dict[str, TreeState], to: Path) -> None:
    """Older snapshots restore, `verify` is clean, the next snapshot stores nothing again that had landed."""
    current = tree_state(source)
    found = sandbox.ids()
    assert found[0] in older
    assert sandbox.verify().clean
    for number, snapshot in enumerate(found):
        sandbox.restore(snapshot, to / f"out{number}")
        assert tree_state(to / f"out{number}/dir/source") == older.get(snapshot, current)
    landed = sandbox.packs()
    following = sandbox.snapshot(source).id.hex()
    new = {row.chunk for name, table in sandbox.packs().items() if name not in landed for row in table.rows}
    assert not new & {row.chunk for table in landed.values() for row in table.rows}, "something was stored twice"
    sandbox.restore(following, to / "next")
    assert tree_state(to / "next/dir/source") == current
    assert sandbox.verify().clean
    assert not [name for name in sandbox.scratch() if name.startswith("sessions/")]


@dataclass(frozen=True)
class Calls:
    """Kinds of system calls, and the one directory of the vault that they are about, if that matters."""

    names: str
    below: str = ""


def strace_kills(
    sandbox: Sandbox, arguments: list[str | Path], calls: Calls, number: int
) -> subprocess.CompletedProcess[bytes]:
    """Run `vault`; the kernel kills it when one of its threads enters its `number`th such call."""
    about = ["-P", str(sandbox.vault / calls.below)] if calls.below else []
    strace = [
        "strace", "-f", "-qq", "-o", "/dev/null", *about, "-e", f"trace={calls.names}",
        "-e", f"inject={calls.names}:signal=SIGKILL:when={number}", *command(sandbox, *arguments),
    ]  # fmt: skip
    return subprocess.run(strace, env=environment(sandbox), capture_output=True, check=False)


@pytest.fixture(scope="module")
def _strace() -> None:
    needed(shutil.which("strace") is not None, "strace kills at chosen system calls: apt install strace")


RENAMES = Calls("rename,renameat,renameat2")
REMOVALS = Calls("unlink,unlinkat")
RECORD = Calls("fsync", "snapshots")
SYNCS = Calls("fsync,fdatasync")
WRITES = Calls("pwrite64,ftruncate,mkdirat")
ALL = Calls(f"{RENAMES.names},{REMOVALS.names},{SYNCS.names},{WRITES.names}")


def killed_everywhere(stage: Stage, calls: Calls, arguments: list[str | Path], step: int = 1) -> Iterator[Sandbox]:
    """A copy of a vault in which a command was killed, for every `step`th such call there is."""
    for number in count(1, step):
        sandbox = stage.sandboxes[number // step % 2].copy(stage.room / f"run{number}")
        ran = strace_kills(sandbox, arguments, calls, number)
        if ran.returncode == 0:
            return
        assert ran.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), ran.stderr.decode()
        yield sandbox


def _ids(value: object) -> str:
    return f"{value.names} {value.below}".strip() if isinstance(value, Calls) else str(value)


@pytest.mark.usefixtures("_strace")
@pytest.mark.parametrize(
    ("calls", "step", "at_least"),
    [
        (RENAMES, 1, 3),
        (REMOVALS, 1, 2),
        (RECORD, 1, 1),
        (SYNCS, 4, 2),
        pytest.param(SYNCS, 1, 10, marks=pytest.mark.slow),
        pytest.param(WRITES, 1, 20, marks=pytest.mark.slow),
        pytest.param(ALL, 1, 30, marks=pytest.mark.slow),
    ],
    ids=_ids,
)
def test_a_snapshot_killed_at_a_system_call(stage: Stage, calls: Calls, step: int, at_least: int) -> None:
    killed = 0
    for sandbox in killed_everywhere(stage, calls, ["snapshot", "--path", stage.source], step):
        killed += 1
        check_survives(sandbox, stage.source, stage.older, sandbox.root / "check")
    print(f"\nkilled at {calls.names}: {killed} times")
    assert killed >= at_least


@pytest.mark.usefixtures("_strace")
@pytest.mark.parametrize(
    ("calls", "step", "at_least"),
    [
        (Calls("unlink", "index.db"), 1, 1),
        (Calls("unlink", "index.db-wal"), 1, 1),
        (Calls("rename"), 1, 1),
        pytest.param(RENAMES, 1, 2, marks=pytest.mark.slow),
        pytest.param(REMOVALS, 1, 4, marks=pytest.mark.slow),
        pytest.param(SYNCS, 1, 20, marks=pytest.mark.slow),
        pytest.param(WRITES, 3, 20, marks=pytest.mark.slow),
    ],
    ids=_ids,
)
def test_a_rebuild_killed_at_a_system_call(stage: Stage, calls: Calls, step: int, at_least: int) -> None:
    """The old index, none, or the new one; never one that lost its last commits, nor one with another's log."""
    committed: dict[Path, list[str]] = {}
    for sandbox in stage.sandboxes:  # killed after its commit: that is in the log beside the index, not in the index
        assert strace_kills(sandbox, ["snapshot", "--path", stage.source], REMOVALS, 1).returncode
        assert sandbox.object("index.db-wal").stat().st_size
        committed[sandbox.root] = [path.name for path in sandbox.object("snapshots").iterdir()]
        assert len(committed[sandbox.root]) == 2
    killed = 0
    for sandbox in killed_everywhere(stage, calls, ["index", "rebuild"], step):
        killed += 1
        here = sorted(next(names for names in committed.values() if sandbox.object(f"snapshots/{names[0]}").exists()))
        assert sorted(sandbox.ids()) == here
        if sandbox.object("index.db").exists():
            check_survives(sandbox.copy(sandbox.root / "as it is"), stage.source, stage.older, sandbox.root / "check1")
        assert not sandbox.rebuild().problems
        assert sorted(sandbox.ids()) == here
        check_survives(sandbox, stage.source, stage.older, sandbox.root / "check2")
    print(f"\nkilled at {calls.names}: {killed} times")
    assert killed >= at_least


@pytest.mark.usefixtures("_strace")
@pytest.mark.parametrize(
    ("calls", "step", "statuses"),
    [(RENAMES, 1, {10}), (SYNCS, 17, {10, 13}), pytest.param(SYNCS, 1, {10, 13}, marks=pytest.mark.slow)],
    ids=_ids,
)
def test_an_init_killed_at_a_system_call(tmp_path: Path, calls: Calls, step: int, statuses: set[int]) -> None:
    """No vault (10), one that needs its index made (13), or one that works."""
    source = tmp_path / "source"
    write_source(source, 1)
    found = set()
    for number in count(1, step):
        room = tmp_path / f"run{number}"
        room.mkdir()
        sandbox = Sandbox(room, False)
        if strace_kills(sandbox, ["init", "--no-encrypt"], calls, number).returncode == 0:
            break
        status = subprocess.run(
            command(sandbox, "snapshot", "--path", source), env=environment(sandbox), capture_output=True, check=False
        )
        assert b"Traceback" not in status.stderr
        found.add(status.returncode)
        assert status.returncode in (0, 10, 13)
        if status.returncode == 13:
            sandbox.rebuild()
        if status.returncode != 10:
            taken = sandbox.snapshot(source)
            sandbox.restore(taken.id.hex(), room / "out")
            assert tree_state(room / "out/dir/source") == tree_state(source)
    assert statuses <= found


# --- stopped politely ------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert process.poll() is None, "it ended too soon"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("when", ["reading", "storing"])
def test_a_snapshot_that_is_stopped(stage: Stage, number: signal.Signals, when: str) -> None:
    """Exit status 130, one clean line, and nothing left in scratch; what was stored is found again."""
    sandbox = stage.sandboxes[1]
    process = subprocess.Popen(
        command(sandbox, "snapshot", "--stdin", "endless"),
        env=environment(sandbox), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    before = len(list(sandbox.object("packs").rglob("?" * 64)))
    if when == "storing":
        os.set_blocking(process.stdin.fileno(), False)

        def more() -> bool:
            try:
                os.write(process.stdin.fileno(), random.randbytes(65536))
            except BlockingIOError:
                pass
            return len(list(sandbox.object("packs").rglob("?" * 64))) > before + 1

        wait_for(more, process)
    else:
        wait_for(lambda: any(name.startswith("sessions/") for name in sandbox.scratch()), process)
        process.stdin.write(b"the first bytes")
        process.stdin.flush()
    process.send_signal(number)
    process.stdin.close()
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read().decode()
    assert process.wait() == 130
    assert out == b""
    assert (
        err
        == "vault: interrupted; what was stored or restored so far is whole, and the same command goes on from there\n"
    )
    assert not sandbox.scratch()
    check_survives(sandbox, stage.source, stage.older, stage.room / "check")


@pytest.mark.slow
def test_snapshots_killed_at_any_moment(tmp_path: Path, make_sandbox: Callable[[bool], Sandbox]) -> None:
    """A larger tree and a clock: forty kills, one after another, into one vault."""
    rng = random.Random(7)
    source = tmp_path / "source"
    write_source(source, 1)
    sandbox = make_sandbox(True)
    older = {sandbox.snapshot(source).id.hex(): tree_state(source)}
    for number in range(6):
        (source / f"large{number}.db").write_bytes(DATABASE + rng.randbytes(6 << 20))
    arguments = command(sandbox, "snapshot", "--path", source, pack_size=1 << 20)
    started = time.monotonic()
    subprocess.run(arguments, env=environment(sandbox.copy(tmp_path / "timed")), check=True, capture_output=True)
    takes = time.monotonic() - started
    killed = 0
    for number in range(40):
        process = subprocess.Popen(
            arguments, env=environment(sandbox), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            process.wait(rng.uniform(0, takes * 1.2))
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.stderr is not None
        with process.stderr:
            assert b"Traceback" not in process.stderr.read()
        killed += process.wait() == -signal.SIGKILL
        current = tree_state(source)
        if process.returncode == 0:
            older[sandbox.ids()[-1]] = current
            (source / f"extra{number}.db").write_bytes(DATABASE + rng.randbytes(4 << 20))
        elif len(sandbox.ids()) > len(older):  # killed after its commit
            older[sandbox.ids()[-1]] = current
        assert sandbox.verify("none").clean
    assert killed >= 10
    assert sandbox.ids() == list(older)
    for number, (snapshot, state) in enumerate(older.items()):
        sandbox.restore(snapshot, tmp_path / f"out{number}")
        assert tree_state(tmp_path / f"out{number}/dir/source") == state
        shutil.rmtree(tmp_path / f"out{number}")
    check_survives(sandbox, source, older, tmp_path / "check")
