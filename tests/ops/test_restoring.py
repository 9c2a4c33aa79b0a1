"""Restore: what it refuses, what it rewrites, what it never touches."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from harness import Cli
from trees import assert_same, describe

from lumina_vault.components.place import TreeRestorer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    (path / "d").mkdir(parents=True)
    for i in range(20):
        (path / "d" / f"f{i:02}").write_bytes(random.Random(i).randbytes(5000))
    (path / "large").write_bytes(random.Random(9).randbytes(5_000_000))
    os.symlink("large", path / "link")
    return path


@pytest.fixture
def saved(cli: Cli, encrypted: Path, source: Path) -> Path:
    """The source, saved once."""
    cli("snapshot", "--path", source)
    return source


def test_a_target_that_is_not_empty_is_refused(cli: Cli, saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "dir" / "src"
    target.mkdir(parents=True)
    (target / "mine").write_bytes(b"mine")
    cli("restore", "latest", "--to", tmp_path / "out", status=1)
    assert "--replace" in cli.err
    assert os.listdir(target) == ["mine"]


def test_replace_rewrites_only_what_differs(cli: Cli, saved: Path, tmp_path: Path) -> None:
    cli("restore", "latest", "--to", tmp_path / "out")
    target = tmp_path / "out" / "dir" / "src"
    before = {p.name: p.lstat() for p in target.rglob("*")}
    (target / "d" / "f03").write_bytes(b"spoiled")
    (target / "d" / "f04").unlink()
    with (target / "large").open("r+b") as file:
        file.seek(4_000_000)
        file.write(b"?")
    (target / "d" / "f05").chmod(0o777)
    (target / "extra").write_bytes(b"extra")
    result = cli.json("restore", "latest", "--to", tmp_path / "out", "--replace")
    after = {p.name: p.lstat() for p in target.rglob("*") if p.name in before}
    changed = {name for name in after if after[name].st_ino != before[name].st_ino}
    assert changed - {"f04"} == {"f03", "large"}
    touched = {name for name in after if after[name].st_ctime_ns != before[name].st_ctime_ns}
    assert touched == {"d", "f03", "f04", "f05", "large"}, "what was right was left alone"
    assert result["components"][0]["kept"] == 19
    assert (target / "extra").read_bytes() == b"extra"
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", "--delete")
    assert_same(saved, target)


def test_replace_saves_what_is_there_first(cli: Cli, saved: Path, tmp_path: Path) -> None:
    cli("restore", "latest", "--to", tmp_path / "out")
    (tmp_path / "out" / "dir" / "src" / "d" / "f03").write_bytes(b"my work of a week")
    first = cli.json("snapshots")[0]["id"]
    cli("restore", first, "--to", tmp_path / "out", "--replace")
    safety = cli.json("snapshots")[-1]
    assert safety["tags"] == ["safety"]
    assert cli("cat", f"{safety['id']}:dir:src/d/f03") == "my work of a week"
    assert cli.json("show", "latest")["id"] == first
    assert_same(saved, tmp_path / "out" / "dir" / "src")
    cli("restore", first, "--to", tmp_path / "out", "--replace", "--no-safety-snapshot")
    assert len(cli.json("snapshots")) == 2


def test_delete_removes_what_the_snapshot_does_not_hold(cli: Cli, saved: Path, tmp_path: Path) -> None:
    cli("restore", "latest", "--to", tmp_path / "out")
    target = tmp_path / "out" / "dir" / "src"
    (target / "extra" / "deep").mkdir(parents=True)
    (target / "extra" / "deep" / "file").write_bytes(b"x")
    (target / "d" / "extra").symlink_to("/etc")
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", "--delete", "--no-safety-snapshot")
    assert_same(saved, target)
    assert Path("/etc").is_dir()


def test_other_types_in_the_way_are_replaced_and_links_never_followed(cli: Cli, saved: Path, tmp_path: Path) -> None:
    cli("restore", "latest", "--to", tmp_path / "out")
    target = tmp_path / "out" / "dir" / "src"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f01").write_bytes(b"not yours")
    for name in os.listdir(target / "d"):
        (target / "d" / name).unlink()
    (target / "d").rmdir()
    (target / "d").symlink_to(outside)
    (target / "large").unlink()
    (target / "large").mkdir()
    (target / "large" / "inside").write_bytes(b"x")
    (target / "link").unlink()
    (target / "link").write_bytes(b"a file now")
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", "--no-safety-snapshot")
    assert_same(saved, target)
    assert (outside / "f01").read_bytes() == b"not yours"
    assert os.listdir(outside) == ["f01"]


def test_an_interrupted_replace_goes_on(cli: Cli, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("restore", "latest", "--to", tmp_path / "out")
    target = tmp_path / "out" / "dir" / "src"
    for i in range(20):
        (target / "d" / f"f{i:02}").write_bytes(b"old but whole")
    original = TreeRestorer._place
    count = 0

    def place(self: TreeRestorer, entry: object) -> None:
        nonlocal count
        count += 1
        if count == 12:
            raise KeyboardInterrupt
        original(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(TreeRestorer, "_place", place)
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", "--no-safety-snapshot", status=130)
    whole = {b"old but whole", *((saved / "d" / f"f{i:02}").read_bytes() for i in range(20))}
    assert all((target / "d" / f"f{i:02}").read_bytes() in whole for i in range(20))
    monkeypatch.setattr(TreeRestorer, "_place", original)
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", "--no-safety-snapshot")
    assert_same(saved, target)


def test_in_place(cli: Cli, saved: Path) -> None:
    before = describe(saved)
    (saved / "d" / "f00").write_bytes(b"broken")
    cli("restore", "latest", "--in-place", status=1)
    cli("restore", "latest", "--in-place", "--replace")
    assert describe(saved) == before


def test_a_part_by_component_and_pattern(cli: Cli, saved: Path, tmp_path: Path) -> None:
    cli("snapshot", "--path", saved, "--from-command", "hello", "--", "echo", "hi")
    cli("restore", "latest", "--to", "one", "--component", "stream:hello")
    assert [str(p) for p in Path("one").rglob("*") if p.is_file()] == ["one/stream/hello"]
    cli("restore", "latest", "--to", "two", "--component", "dir", "--include", "d/f0*", "--include", "link")
    names = sorted(p.name for p in Path("two").rglob("*") if p.is_symlink() or p.is_file())
    assert names == [*(f"f0{i}" for i in range(10)), "link"]
    assert (Path("two/dir/src/d").stat().st_mtime_ns) == (saved / "d").stat().st_mtime_ns
    cli("restore", "latest", "--to", "three", "--component", "volume:x", status=2)
    assert "it has dir:src, stream:hello" in cli.err


def test_dry_run_changes_nothing(cli: Cli, saved: Path, tmp_path: Path) -> None:
    plan = cli.json("restore", "latest", "--to", tmp_path / "out", "--dry-run")
    assert [(p["component"], p["action"]) for p in plan["plan"]] == [("dir:src", "create")]
    assert not (tmp_path / "out").exists()


def test_where_to_must_be_said(cli: Cli, saved: Path) -> None:
    cli("restore", "latest", status=2)
    cli("restore", "latest", "--to", "x", "--in-place", status=2)
    cli("restore", "latest", "--to", "x", "--delete", status=2)
    cli("restore", "ffffffff", "--to", "x", status=2)
