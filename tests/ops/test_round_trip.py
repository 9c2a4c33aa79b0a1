"""What comes back is what went in: contents and everything that the file system says of them."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Cli, needs_root
from trees import assert_same, describe

NS = 1_700_000_000_123_456_789


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    return path


def round_trip(cli: Cli, source: Path, *, status: int = 0, restore_status: int = 0) -> Path:
    out = source.parent / "out"
    cli("snapshot", "--path", source, status=status)
    cli("restore", "latest", "--to", out, status=restore_status)
    return out / "dir" / "src"


def blob(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 131_073, 524_287, 524_289, 4_194_303, 4_194_305, 20_000_001])
def test_sizes_around_every_threshold(cli: Cli, encrypted: Path, source: Path, size: int) -> None:
    (source / "random").write_bytes(blob(size))
    (source / "zeros").write_bytes(bytes(size))
    (source / "text").write_bytes((b"all work and no play\n" * (size // 21 + 1))[:size])
    assert_same(source, round_trip(cli, source))


def test_many_small_files_with_equal_and_empty_ones(cli: Cli, encrypted: Path, source: Path) -> None:
    for i in range(1500):
        directory = source / f"d{i % 40}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{i}").write_bytes(blob(i * 7 % 9000, i % 100))
    assert_same(source, round_trip(cli, source))


def test_modes_owners_and_nanoseconds(cli: Cli, plain: Path, source: Path) -> None:
    needs_root()
    for i, mode in enumerate((0o0, 0o400, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777)):
        path = source / f"f{i}"
        path.write_bytes(b"x")
        os.chown(path, 1000 + i, 2000 + i)
        path.chmod(mode)
        os.utime(path, ns=(NS, NS + i))
        directory = source / f"d{i}"
        directory.mkdir()
        os.chown(directory, 3000 + i, 4000 + i)
        directory.chmod(mode)
        os.utime(directory, ns=(NS, NS - i))
    os.symlink("f1", source / "link")
    os.lchown(source / "link", 77, 88)
    os.utime(source / "link", ns=(NS, NS + 5), follow_symlinks=False)
    source.chmod(0o2750)
    os.utime(source, ns=(NS, NS))
    assert_same(source, round_trip(cli, source))


@pytest.mark.parametrize("when", [-2_000_000_000, -1, 0, 7_258_118_400])
def test_times_far_away(cli: Cli, plain: Path, source: Path, when: int) -> None:
    (source / "f").write_bytes(b"x")
    os.utime(source / "f", ns=(when * 10**9 + 1, when * 10**9 + 1))
    assert_same(source, round_trip(cli, source))


def test_links_of_every_kind(cli: Cli, plain: Path, source: Path) -> None:
    needs_root()
    (source / "b").mkdir()
    (source / "b" / "first").write_bytes(blob(300_000))
    os.link(source / "b" / "first", source / "c")
    os.link(source / "b" / "first", source / "a")
    (source / "small").write_bytes(b"small")
    os.link(source / "small", source / "small2")
    os.mkfifo(source / "pipe", 0o640)
    os.link(source / "pipe", source / "pipe2")
    os.symlink("nowhere", source / "dangling")
    os.link(source / "dangling", source / "dangling2", follow_symlinks=False)
    os.symlink("/etc/passwd", source / "absolute")
    os.symlink("loop", source / "loop")
    os.symlink("../../..", source / "up")
    restored = round_trip(cli, source)
    assert_same(source, restored)
    assert os.stat(restored / "a").st_ino == os.stat(restored / "b" / "first").st_ino


def test_fifos_devices_and_sockets(cli: Cli, plain: Path, source: Path) -> None:
    needs_root()
    os.mkfifo(source / "fifo")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 65_537))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        restored = round_trip(cli, source)
    assert_same(source, restored)
    cli("show", "latest")
    assert any("socket" in note for note in cli.json("show", "latest")["components"][0]["notes"])


def test_xattrs_acls_and_capabilities(cli: Cli, plain: Path, source: Path) -> None:
    needs_root()
    path = source / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.plain", b"value")
    os.setxattr(path, "user.bytes", bytes(range(256)))
    os.setxattr(path, "trusted.own", b"root only")
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    directory = source / "d"
    directory.mkdir()
    os.setxattr(directory, "user.dir", b"d")
    (directory / "acl").write_bytes(b"y")
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:4321:r,m::r", directory / "acl"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", directory], check=True)
    os.symlink("f", source / "link")
    os.setxattr(source / "link", "trusted.link", b"of the link", follow_symlinks=False)
    restored = round_trip(cli, source)
    assert_same(source, restored)
    assert os.getxattr(restored / "f", "security.capability")


@pytest.mark.parametrize(
    "layout",
    [
        [(0, 5_000_000), (b"x" * 4096, 0), (0, 3_000_000)],
        [(b"a" * 8192, 0), (0, 1 << 20), (b"b" * 8192, 0), (0, 1 << 20), (b"c", 0)],
        [(0, 10 << 20)],
        [(0, 65_536), (b"small and sparse", 0)],
    ],
    ids=["both ends", "between", "nothing but a hole", "small"],
)
def test_holes_stay_holes(cli: Cli, plain: Path, source: Path, layout: list[tuple[bytes | int, int]]) -> None:
    path = source / "sparse"
    with open(path, "wb") as file:
        for data, hole in layout:
            if isinstance(data, bytes):
                file.write(data)
            else:
                file.seek(hole, os.SEEK_CUR)
        file.truncate()
    restored = round_trip(cli, source)
    assert_same(source, restored)
    assert os.stat(restored / "sparse").st_blocks <= os.stat(path).st_blocks + 16


@pytest.mark.slow
def test_a_file_beyond_four_gibibytes(cli: Cli, plain: Path, source: Path) -> None:
    with open(source / "big", "wb") as file:
        file.write(blob(3_000_000))
        file.seek(4_500_000_000)
        file.write(blob(3_000_000, 2))
    assert_same(source, round_trip(cli, source))


def test_strange_names(cli: Cli, encrypted: Path, source: Path) -> None:
    root = os.fsencode(source)
    for name in (b"line\nbreak", b"\xff\xfe not utf-8", b"x" * 255, b"\xc3\xa9" * 127, b" ", b"-rf", b"*", b"\x1b[31m"):
        with open(root + b"/" + name, "wb") as file:
            file.write(name)
        os.mkdir(root + b"/" + name[:200] + b".d")
    restored = round_trip(cli, source)
    assert_same(source, restored)
    assert "\x1b" not in cli("ls", "latest:dir:src")


def test_paths_beyond_four_thousand_bytes(cli: Cli, plain: Path, source: Path) -> None:
    fd = os.open(source, os.O_RDONLY)
    for i in range(25):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        file = os.open(f"f{i}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.write(file, b"deep %d" % i)
        os.close(file)
    os.close(fd)
    restored = round_trip(cli, source)
    assert max(map(len, describe(source))) > 6000
    assert_same(source, restored)


def test_a_directory_of_many_names_is_sorted_in_bounded_memory(
    cli: Cli, plain: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumina_vault.components.directory._SORT_AT_ONCE", 100)
    for i in range(1234):
        (source / f"n{i * 7919 % 1234}").write_bytes(b"%d" % i)
    assert_same(source, round_trip(cli, source))


def test_many_hard_links_go_through_files(cli: Cli, plain: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lumina_vault.components.links._MOST", 3)
    for i in range(40):
        (source / f"a{i:02}").write_bytes(b"%d" % i)
    for i in range(40):
        os.link(source / f"a{i:02}", source / f"b{i:02}")
    assert_same(source, round_trip(cli, source))


def test_a_stream_comes_back(cli: Cli, encrypted: Path, tmp_path: Path) -> None:
    data = blob(30_000_000)
    (tmp_path / "data").write_bytes(data)
    cli("snapshot", "--from-command", "dump", "--", "cat", tmp_path / "data")
    cli("restore", "latest", "--to", tmp_path / "out")
    assert (tmp_path / "out" / "stream" / "dump").read_bytes() == data
    done = subprocess.run(
        [sys.executable, "-m", "lumina_vault", "cat", "latest:stream:dump"], capture_output=True, check=True
    )
    assert done.stdout == data


def test_what_a_user_without_root_may_not_do_is_said(cli: Cli, plain: Path, source: Path, tmp_path: Path) -> None:
    needs_root()
    (source / "f").write_bytes(b"x")
    os.chown(source / "f", 1234, 1234)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    cli("snapshot", "--path", source)
    cli("restore", "latest", "--to", tmp_path / "first")  # loads every module while it may be read
    target = tmp_path / "theirs"
    target.mkdir()
    os.chown(target, 65534, 65534)
    subprocess.run(["chown", "-R", "65534:65534", plain], check=True)
    for directory in [tmp_path, *tmp_path.parents][:-2]:
        directory.chmod(0o711)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        cli("restore", "latest", "--to", target, status=3)
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert "only root may make" in cli.err
    assert "owner of 2 entries not restored" in cli.err
    assert (target / "dir" / "src" / "f").read_bytes() == b"x"
