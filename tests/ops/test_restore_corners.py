"""Restore into places that are not as simple: links, mounts, attributes, damage, another user, no room."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cli, needs_root
from trees import assert_same

from lumina_vault.components import place

NOBODY = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out" / "dir" / "src"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Another file system at `tmp_path/mounted`."""
    needs_root()
    path = tmp_path / "mounted"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def restore(cli: Cli, tmp_path: Path, *options: str, status: int = 0) -> str:
    return cli("restore", "latest", "--to", tmp_path / "out", *options, status=status)


REPLACE = ("--replace", "--no-safety-snapshot")


# --- attributes ---


def test_attributes_that_the_snapshot_does_not_hold_are_removed(
    cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path
) -> None:
    """A default ACL above the target is inherited by everything made below it."""
    needs_root()
    (source / "d").mkdir()
    (source / "d" / "f").write_bytes(b"x" * 1000)
    (source / "f").write_bytes(b"y")
    os.mkfifo(source / "pipe")
    cli("snapshot", "--path", source)
    (tmp_path / "out").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", tmp_path / "out"], check=True)
    restore(cli, tmp_path)
    assert_same(source, target)
    os.setxattr(target / "f", "user.mine", b"1")
    os.setxattr(target / "d", "trusted.mine", b"1")
    subprocess.run(["setfacl", "-m", "u:1234:rwx", target / "d" / "f"], check=True)
    restore(cli, tmp_path, *REPLACE)
    assert_same(source, target)


def test_attributes_that_differ_are_set_again(
    cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path
) -> None:
    needs_root()
    (source / "f").write_bytes(b"x")
    os.setxattr(source / "f", "user.mine", b"right")
    os.setxattr(source / "f", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.chmod(source / "f", 0o4711)
    cli("snapshot", "--path", source)
    restore(cli, tmp_path)
    os.setxattr(target / "f", "user.mine", b"wrong")
    os.chown(target / "f", 7, 7)
    restore(cli, tmp_path, *REPLACE)
    assert_same(source, target)


# --- hard links ---


@pytest.fixture
def linked(source: Path) -> Path:
    for name, data in (("a", b"small"), ("g", random.Random(1).randbytes(300_000))):
        (source / name).write_bytes(data)
        os.link(source / name, source / f"{name}2")
    return source


def test_a_further_name_alone_is_restored_with_its_contents(
    cli: Cli, plain: Path, linked: Path, target: Path, tmp_path: Path
) -> None:
    cli("snapshot", "--path", linked)
    restore(cli, tmp_path, "--include", "a2", "--include", "g2")
    assert sorted(os.listdir(target)) == ["a2", "g2"]
    assert all((target / name).read_bytes() == (linked / name).read_bytes() for name in ("a2", "g2"))


def test_a_further_name_is_not_linked_to_what_is_not_from_the_snapshot(
    cli: Cli, plain: Path, linked: Path, target: Path, tmp_path: Path
) -> None:
    cli("snapshot", "--path", linked)
    target.mkdir(parents=True)
    (target / "a").write_bytes(b"somebody else's")
    restore(cli, tmp_path, "--include", "a2", *REPLACE)
    assert (target / "a").read_bytes() == b"somebody else's"
    assert (target / "a2").read_bytes() == b"small"


def test_links_that_the_snapshot_does_not_hold_are_broken(
    cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path
) -> None:
    for name in "abcd":
        (source / name).write_bytes(b"all the same")
    os.remove(source / "b")
    os.remove(source / "d")
    os.link(source / "a", source / "b")
    os.link(source / "c", source / "d")
    (source / "e").write_bytes(b"all the same")
    cli("snapshot", "--path", source)
    target.mkdir(parents=True)
    (target / "a").write_bytes(b"all the same")
    for name in "bcde":
        os.link(target / "a", target / name)
    restore(cli, tmp_path, *REPLACE)
    assert_same(source, target)


def test_right_links_are_left_alone(cli: Cli, plain: Path, linked: Path, target: Path, tmp_path: Path) -> None:
    os.symlink("x", linked / "link")
    os.mkfifo(linked / "pipe")
    os.link(linked / "pipe", linked / "pipe2")
    cli("snapshot", "--path", linked)
    restore(cli, tmp_path)
    before = {name: (target / name).lstat() for name in os.listdir(target)}
    restore(cli, tmp_path, *REPLACE)
    assert {name: (target / name).lstat().st_ctime_ns for name in before} == {
        name: status.st_ctime_ns for name, status in before.items()
    }


def test_specials_that_differ_are_replaced(cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path) -> None:
    needs_root()
    os.symlink("right", source / "link")
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    cli("snapshot", "--path", source)
    restore(cli, tmp_path)
    for name in ("link", "pipe", "null"):
        (target / name).unlink()
    os.symlink("wrong", target / "link")
    (target / "pipe").mkdir()
    (target / "pipe" / "inside").write_bytes(b"x")
    os.mknod(target / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    restore(cli, tmp_path, *REPLACE)
    assert_same(source, target)


# --- damage ---


def test_damage_leaves_what_is_there_and_everything_linked_to_it(
    cli: Cli, plain: Path, linked: Path, target: Path, tmp_path: Path
) -> None:
    """The old file stays, a directory in the way stays, and no further name is linked to an old file."""
    cli("snapshot", "--path", linked)
    restore(cli, tmp_path)
    for name in ("a", "a2", "g", "g2"):
        (target / name).unlink()
    (target / "a").mkdir()
    (target / "a" / "inside").write_bytes(b"old")
    (target / "a2").write_bytes(b"old second")
    (target / "g").write_bytes(b"old g")
    before = {p: p.read_bytes() for p in target.rglob("*") if p.is_file()}
    data_packs = [p for p in (plain / "packs").rglob("*") if p.is_file()]
    for pack in data_packs:
        pack.chmod(0o600)
        content = pack.read_bytes()
        at = content.find(b"small")
        if at >= 0:
            pack.write_bytes(content[:at] + b"SMALL" + content[at + 5 :])
    restore(cli, tmp_path, *REPLACE, status=13)
    assert "a: not restored" in cli.err
    assert "a2: not restored: its first name a" in cli.err
    assert (target / "a" / "inside").read_bytes() == b"old"
    assert (target / "a2").read_bytes() == before[target / "a2"]
    assert (target / "g").read_bytes() == (linked / "g").read_bytes()
    assert (target / "g2").stat().st_ino == (target / "g").stat().st_ino
    assert not [name for name in os.listdir(target) if "vault-restore" in name]


# --- mounts and deep trees ---


def test_delete_does_not_reach_into_another_file_system(
    cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path, mounted: Path
) -> None:
    (source / "mnt").mkdir()
    cli("snapshot", "--path", source)
    restore(cli, tmp_path)
    (mounted / "theirs").write_bytes(b"x")
    (target / "extra" / "mnt").mkdir(parents=True)
    for at in (target / "mnt", target / "extra" / "mnt"):
        subprocess.run(["mount", "--bind", mounted, at], check=True)
    try:
        restore(cli, tmp_path, *REPLACE, "--delete", status=3)
    finally:
        for at in (target / "mnt", target / "extra" / "mnt"):
            subprocess.run(["umount", at], check=True)
    assert (mounted / "theirs").read_bytes() == b"x"
    assert "extra: not deleted" in cli.err
    assert "mnt: another file system" in cli.err


def test_delete_takes_a_tree_deeper_than_recursion(
    cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path
) -> None:
    (source / "f").write_bytes(b"x")
    cli("snapshot", "--path", source)
    restore(cli, tmp_path)
    fd = os.open(target, os.O_RDONLY)
    for _ in range(sys.getrecursionlimit() + 200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    restore(cli, tmp_path, *REPLACE, "--delete")
    assert_same(source, target)


def test_delete_spares_files_on_their_way(cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path) -> None:
    """What is being written beside its place is nothing extra, however many pieces it has."""
    (source / "d").mkdir()
    (source / "d" / "large").write_bytes(random.Random(1).randbytes(9_000_000))
    cli("snapshot", "--path", source)
    (target / "d").mkdir(parents=True)
    (target / "d" / "large").write_bytes(b"old")
    restore(cli, tmp_path, *REPLACE, "--delete")
    assert_same(source, target)


# --- no room, another user ---


def test_a_full_target_keeps_no_part_of_a_file(
    cli: Cli, plain: Path, source: Path, tmp_path: Path, mounted: Path
) -> None:
    (source / "a").write_bytes(b"fits")
    (source / "large").write_bytes(random.Random(1).randbytes(90_000_000))
    cli("snapshot", "--path", source)
    cli("restore", "latest", "--to", mounted / "out", status=1)
    assert "No space left" in cli.err
    assert "--replace" in cli.err
    there = {p.name: p.read_bytes() for p in mounted.rglob("*") if p.is_file()}
    assert there in ({"a": b"fits"}, {})


def test_an_interrupted_restore_leaves_no_part_of_a_file(
    cli: Cli, plain: Path, source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        (source / f"f{i:02}").write_bytes(random.Random(i).randbytes(3_000_000))
    cli("snapshot", "--path", source)
    original = place.TreeRestorer._place

    def stop(self: place.TreeRestorer, entry: object) -> None:
        if getattr(entry, "path", b"") == b"f25":
            raise KeyboardInterrupt
        original(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(place.TreeRestorer, "_place", stop)
    restore(cli, tmp_path, status=130)
    there = sorted(os.listdir(target))
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in there)


def as_nobody(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own as a user without rights; `place` and `FakeTree` are there already."""
    preamble = "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    return subprocess.run(
        [sys.executable, "-c", _IMPORTS + preamble + program, *map(str, arguments)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip


_IMPORTS = """
import os, sys
from lumina_vault.components.base import Report
from lumina_vault.components.directory import DirectoryExporter, Options
from lumina_vault.components.place import Placing, TreeRestorer
from lumina_vault.testing.components import FakeTree
tree = FakeTree()
DirectoryExporter(sys.argv[1], tree, Report(), Options()).export()
"""
_RESTORE = """
report = Report()
TreeRestorer(os.open(sys.argv[2], os.O_RDONLY), tree, report, Placing(replace=True)).restore()
print(report.left_out, *report.notes, sep="\\n")
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of a user without rights, and the way to it."""
    needs_root()
    path = tmp_path / "theirs"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    for directory in [tmp_path, *tmp_path.parents][:-2]:
        directory.chmod(0o711)
    return path


def test_without_root_no_rights_of_others_are_lent(source: Path, theirs: Path) -> None:
    """A setuid file that now belongs to whoever restores it would run as them."""
    (source / "tool").write_bytes(b"#!/bin/sh\n")
    (source / "tool").chmod(0o4755)
    (source / "mine").write_bytes(b"#!/bin/sh\n")
    os.chown(source / "mine", NOBODY, NOBODY)
    (source / "mine").chmod(0o4755)
    (source / "group").write_bytes(b"x")
    os.chown(source / "group", NOBODY, NOBODY)
    os.chown(source, NOBODY, NOBODY)
    os.chown(theirs, NOBODY, 1)
    theirs.chmod(0o2777)  # what is made below it gets its group
    said = as_nobody(_RESTORE, source, theirs).stdout
    assert stat.S_IMODE((theirs / "tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((theirs / "mine").stat().st_mode) == 0o4755
    assert (theirs / "group").stat().st_gid == NOBODY
    assert "owner of 1 entries not restored" in said


def test_without_root_directories_that_forbid_writing_are_replaced_all_the_same(source: Path, theirs: Path) -> None:
    (source / "d").mkdir()
    (source / "d" / "f").write_bytes(b"new")
    (source / "d" / "secret").write_bytes(b"new")
    for path in (source, source / "d", source / "d" / "f", source / "d" / "secret"):
        os.chown(path, NOBODY, NOBODY)
    (source / "d").chmod(0o500)
    (theirs / "d").mkdir()
    (theirs / "d" / "f").write_bytes(b"old")
    (theirs / "d" / "secret").write_bytes(b"old")
    for path in (theirs / "d", theirs / "d" / "f", theirs / "d" / "secret"):
        os.chown(path, NOBODY, NOBODY)
    (theirs / "d" / "secret").chmod(0)
    (theirs / "d").chmod(0o500)
    assert as_nobody(_RESTORE, source, theirs).stdout.strip() == "0"
    assert_same(source, theirs)
