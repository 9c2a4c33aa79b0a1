"""A disk that fills up: a clear error, nothing older harmed, no junk, and all is well again once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DATABASE, needed, vault, write_source

from lumina_vault.testing.sandbox import Sandbox, tree_state

MiB = 1 << 20


def _mount(path: Path, size: int) -> list[str]:
    """A file system in memory of `size` bytes at `path`; the command that takes it away, or nothing if that failed."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={size},mode=0700,uid={os.geteuid()},gid={os.getegid()}"
    mounted = subprocess.run([*sudo, "mount", "-t", "tmpfs", "-o", options, "none", path], check=False)
    return [] if mounted.returncode else [*sudo, "umount", "-l", str(path)]


Disk = Callable[[int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes small file systems."""
    undo: list[list[str]] = []

    def make(size: int) -> Path:
        path = tmp_path / f"disk{len(undo)}"
        path.mkdir()
        try:
            unmount = _mount(path, size)
        except FileNotFoundError:
            unmount = []
        needed(bool(unmount), "mounting a small file system takes root, or sudo without a password")
        undo.append(unmount)
        return path

    yield make
    for command in undo:
        subprocess.run(command, check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes free."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    size = free.f_bavail * free.f_frsize - leave
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return ballast


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("leave", [0, 4096, 40_000, 120_000, 300_000, 600_000])
def test_the_disk_fills_in_mid_snapshot(small_disk: Disk, tmp_path: Path, encrypted: bool, leave: int) -> None:
    disk = small_disk(8 * MiB)
    sandbox = Sandbox(disk, encrypted)
    sandbox.init()
    source = tmp_path / "source"
    write_source(source, 1)
    older = sandbox.snapshot(source).id.hex()
    state = tree_state(source)
    (source / "large.db").write_bytes(DATABASE + os.urandom(2 * MiB))

    ballast = fill(disk, leave)
    ran = vault(sandbox, "snapshot", "--path", source)
    assert ran.status == 1
    assert ran.err.startswith("vault: no space left")
    assert "nothing older is harmed, free some space" in ran.err
    assert not sandbox.scratch()

    # Reading takes no room.
    ran = vault(sandbox, "restore", older, "--to", tmp_path / "while")
    assert ran.status == 0, ran
    assert tree_state(tmp_path / "while/dir/source") == state
    ran = vault(sandbox, "verify", "--data", "all")
    assert ran.status == 0, ran
    assert vault(sandbox, "snapshots").status == 0

    ballast.unlink()
    landed = {row.chunk for table in sandbox.packs().values() for row in table.rows}
    before = set(sandbox.packs())
    taken = vault(sandbox, "snapshot", "--path", source, "--json")
    assert taken.status == 0, taken
    stored = {row.chunk for name, table in sandbox.packs().items() if name not in before for row in table.rows}
    assert not stored & landed
    for number, (snapshot, expected) in enumerate([(older, state), (taken.json["id"], tree_state(source))]):
        assert vault(sandbox, "restore", snapshot, "--to", tmp_path / f"after{number}").status == 0
        assert tree_state(tmp_path / f"after{number}/dir/source") == expected
    assert vault(sandbox, "verify", "--data", "all").status == 0


def test_init_on_a_full_disk(small_disk: Disk) -> None:
    disk = small_disk(1 * MiB)
    sandbox = Sandbox(disk, True)
    ballast = fill(disk, 0)
    ran = vault(sandbox, "init", "--key-file", sandbox.key_file)
    assert ran.status == 1
    assert "no space left" in ran.err.lower()
    ballast.unlink()
    shutil.rmtree(sandbox.vault, ignore_errors=True)
    assert vault(sandbox, "init", "--key-file", sandbox.key_file).status == 0


@pytest.mark.parametrize("leave", [0, 200_000, 1_000_000])
def test_a_rebuild_on_a_full_disk(small_disk: Disk, tmp_path: Path, leave: int) -> None:
    """The old index goes on."""
    disk = small_disk(8 * MiB)
    sandbox = Sandbox(disk, False)
    sandbox.init()
    source = tmp_path / "source"
    write_source(source, 1)
    older = sandbox.snapshot(source).id.hex()
    ballast = fill(disk, leave)
    ran = vault(sandbox, "index", "rebuild")
    if ran.status:
        assert ran.status == 1
        assert ran.err.lower().startswith("vault: no space left")
    ballast.unlink()
    assert sandbox.ids() == [older]
    assert vault(sandbox, "index", "rebuild").status == 0
    assert vault(sandbox, "verify", "--data", "all").status == 0


@pytest.mark.parametrize("replace", [False, True])
def test_the_target_of_a_restore_is_full(
    small_disk: Disk, make_sandbox: Callable[[bool], Sandbox], tmp_path: Path, replace: bool
) -> None:
    sandbox = make_sandbox(True)
    source = tmp_path / "source"
    write_source(source, 1)
    (source / "large.db").write_bytes(DATABASE + os.urandom(2 * MiB))
    taken = sandbox.snapshot(source).id.hex()
    disk = small_disk(1 * MiB)
    target = disk / "target"
    good = b"good data"
    if replace:
        (target / "dir/source").mkdir(parents=True)
        (target / "dir/source/large.db").write_bytes(good)
    options = ["--replace", "--no-safety-snapshot"] if replace else []
    ran = vault(sandbox, "restore", taken, "--to", target, *options)
    assert ran.status == 1
    assert ran.err.startswith("vault: ")
    assert "No space left" in ran.err
    assert "Traceback" not in ran.err
    left = target / "dir/source/large.db"
    if replace:
        assert left.read_bytes() == good
    ran = vault(sandbox, "restore", taken, "--to", tmp_path / "elsewhere")
    assert ran.status == 0
