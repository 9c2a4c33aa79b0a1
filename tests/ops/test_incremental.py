"""The second snapshot: what is not read again, what must be, and what it costs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Cli
from trees import assert_same

from lumina_vault.components.directory import DirectoryExporter

OLD = 1_600_000_000 * 10**9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    for i in range(30):
        directory = path / f"d{i % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{i}").write_bytes(random.Random(i).randbytes(i * 997))
    (path / "large").write_bytes(random.Random(99).randbytes(3_000_000))
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of the files that were opened to be read."""
    names: list[bytes] = []
    original = DirectoryExporter._open_file

    def open_file(self: DirectoryExporter, parent: int, name: bytes) -> int:
        names.append(name)
        return original(self, parent, name)

    monkeypatch.setattr(DirectoryExporter, "_open_file", open_file)
    # A real clock would make each test wait until its files are old enough to be trusted.
    monkeypatch.setattr("lumina_vault.ops.snapshot._TRUST_MARGIN", -(10**12))
    return names


def new_bytes(snapshot: dict[str, int]) -> int:
    return snapshot["new_bytes"]


def test_nothing_is_read_when_nothing_changed(cli: Cli, encrypted: Path, source: Path, opened: list[bytes]) -> None:
    first = cli.json("snapshot", "--path", source)
    assert len(opened) == 31
    opened.clear()
    second = cli.json("snapshot", "--path", source)
    assert opened == []
    assert new_bytes(first) > 3_000_000
    assert new_bytes(second) == 0
    assert second["parent"] == first["id"]
    cli("restore", "latest", "--to", "out")
    assert_same(source, "out/dir/src")


def _touch(path: Path) -> None:
    os.utime(path, ns=(OLD, OLD))


def _rewrite_in_place(path: Path) -> None:
    data, status = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(data)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace_by_rename(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "change", [_touch, _rewrite_in_place, _replace_by_rename, _grow, lambda path: path.chmod(0o600)]
)
def test_what_changed_is_read(
    cli: Cli, plain: Path, source: Path, opened: list[bytes], change: Callable[[Path], None]
) -> None:
    cli("snapshot", "--path", source)
    opened.clear()
    change(source / "d3" / "f23")
    cli("snapshot", "--path", source)
    assert opened == [b"f23"]
    cli("restore", "latest", "--to", "out")
    assert_same(source, "out/dir/src")


def test_reread_trusts_nothing(cli: Cli, plain: Path, source: Path, opened: list[bytes]) -> None:
    cli("snapshot", "--path", source)
    opened.clear()
    assert new_bytes(cli.json("snapshot", "--path", source, "--reread")) == 0
    assert len(opened) == 31


def test_a_file_as_young_as_the_snapshot_is_not_trusted(
    cli: Cli, plain: Path, source: Path, opened: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumina_vault.ops.snapshot._TRUST_MARGIN", 2_000_000_000)
    cli("snapshot", "--path", source)
    opened.clear()
    cli("snapshot", "--path", source)
    assert len(opened) == 31


def test_a_copied_tree_costs_no_contents(cli: Cli, encrypted: Path, source: Path, tmp_path: Path) -> None:
    cli("snapshot", "--path", source)
    shutil.copytree(source, tmp_path / "moved" / "src")
    again = cli.json("snapshot", "--path", tmp_path / "moved" / "src")
    assert new_bytes(again) < 20_000  # a leaf of entries with other inodes; no contents


def test_one_byte_at_the_front_makes_two_new_chunks_at_most(cli: Cli, plain: Path, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(1 << 20)
    stream = tmp_path / "stream"
    with stream.open("wb") as file:
        for i in range(256):
            file.write(random.Random(i).randbytes(64) + data)
    cli("snapshot", "--from-command", "s", "--", "cat", stream)
    before = cli.json("stats")["vault"]
    with (tmp_path / "shifted").open("wb") as file:
        file.write(b"!" + stream.read_bytes())
    cli("snapshot", "--from-command", "s", "--", "cat", tmp_path / "shifted")
    after = cli.json("stats")["vault"]
    nodes = 2  # a node of contents is rewritten where its refs changed
    assert after["chunks"] - before["chunks"] <= 2 + nodes
    assert after["plain_bytes"] - before["plain_bytes"] <= 2 * 4_194_304 + 200_000


def test_a_changed_file_in_a_bundle_rewrites_little(cli: Cli, plain: Path, tmp_path: Path, opened: list[bytes]) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for i in range(2000):
        (source / f"f{i:04}").write_bytes(random.Random(i).randbytes(2000))
    cli("snapshot", "--path", source)
    for i in range(0, 2000, 100):
        (source / f"f{i:04}").write_bytes(random.Random(-i - 1).randbytes(2000))
    second = cli.json("snapshot", "--path", source)
    assert 20 * 2000 <= new_bytes(second) < 600_000


@pytest.mark.parametrize("size", [40_000, 2_000_000])
def test_a_file_that_grows_while_it_is_read_is_reported(
    cli: Cli, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    source = tmp_path / "live"
    source.mkdir()
    (source / "log").write_bytes(b"x" * size)
    original = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/log"):
            with open(source / "log", "ab") as file:
                file.write(b"more")
        return original(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    out = cli.json("snapshot", "--path", source, status=3)
    assert not out["complete"]
    assert "changed while it was read" in cli.err
    assert "incomplete" in cli("snapshots")
    assert "incomplete" in (cli("restore", "latest", "--to", "out"), cli.err)[1]


def test_a_file_that_shrinks_while_it_is_read_is_reported(
    cli: Cli, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "live"
    source.mkdir()
    (source / "log").write_bytes(b"x" * 30_000_000)
    original = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(source / "log", 9_000_000)
        return original(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    cli("snapshot", "--path", source, status=3)
    assert "ends after" in cli.err


def test_a_file_that_vanishes_is_reported_and_the_rest_is_saved(
    cli: Cli, plain: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DirectoryExporter._open_file

    def open_file(self: DirectoryExporter, parent: int, name: bytes) -> int:
        if name == b"f7":
            os.unlink(name, dir_fd=parent)
        return original(self, parent, name)

    monkeypatch.setattr(DirectoryExporter, "_open_file", open_file)
    cli("snapshot", "--path", source, status=3)
    assert "d2/f7: vanished" in cli.err
    cli("restore", "latest", "--to", "out")
    assert (Path("out/dir/src/d2/f8")).exists() or (Path("out/dir/src/d3/f8")).exists()


def test_the_vault_is_not_part_of_what_it_holds(
    cli: Cli, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_URL", str(source / "vault"))
    cli("init", "--no-encrypt")
    cli("snapshot", "--path", source)
    assert "the vault itself" in cli.err
    assert not [e for e in cli.json("ls", "latest:dir:src") if e["path"].startswith("vault")]


def test_excludes(cli: Cli, plain: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    for name in ("keep.txt", "skip.log", "a/skip.log", "a/keep.log", "cache/CACHEDIR.TAG", "cache/x", "node_modules/y"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    (source / "cache" / "CACHEDIR.TAG").write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    (tmp_path / "patterns").write_text("# comment\nnode_modules/\n")
    cli(
        "snapshot", "--path", source, "--exclude", "*.log", "--exclude", "!a/keep.log",
        "--exclude-file", tmp_path / "patterns", "--exclude-caches",
    )  # fmt: skip
    assert [e["path"] for e in cli.json("ls", "latest:dir:src")] == ["", "a", "a/keep.log", "cache", "keep.txt"]
