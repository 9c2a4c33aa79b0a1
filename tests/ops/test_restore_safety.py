"""What a restore saves before it replaces, and what it makes of damage and of what others say in the vault."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from harness import Cli, needs_root
from trees import assert_same

from lumina_vault.components import place
from lumina_vault.errors import Damage
from lumina_vault.model import Component, Entry
from lumina_vault.ops import vaults
from lumina_vault.settings import load
from lumina_vault.store.fetch import StoredTree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    for name in ("a/f", "b/f", "c/f"):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text(name)
    return path


def rewrite(change: Callable[[Component], None]) -> None:
    """One more snapshot like the latest, its first component changed: as somebody who can write the store would."""
    with vaults.open_vault(load(), write=True) as repository:
        record = msgspec.structs.replace(repository.find("latest").record)
        change(record.components[0])
        with repository.session("writer") as session:
            repository.store_record(session, record)


# --- the safety snapshot ---


def test_a_stream_is_saved_before_it_is_replaced(cli: Cli, plain: Path, tmp_path: Path) -> None:
    cli("snapshot", "--from-command", "db", "--", "echo", "from the vault")
    target = tmp_path / "out" / "stream" / "db"
    target.parent.mkdir(parents=True)
    target.write_text("the only copy")
    cli("restore", "latest", "--to", tmp_path / "out", status=1)
    assert target.read_text() == "the only copy"
    cli("restore", "latest", "--to", tmp_path / "out", "--replace")
    assert target.read_text() == "from the vault\n"
    safety = cli.json("snapshots")[-1]
    assert safety["tags"] == ["safety"]
    cli("restore", safety["id"], "--to", tmp_path / "again")
    assert (tmp_path / "again" / "stream" / "db").read_text() == "the only copy"


def test_a_stream_replaces_nothing_but_a_file(cli: Cli, plain: Path, tmp_path: Path) -> None:
    cli("snapshot", "--from-command", "db", "--", "echo", "x")
    (tmp_path / "out" / "stream" / "db").mkdir(parents=True)
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", status=1)
    assert "not a regular file" in cli.err
    assert len(cli.json("snapshots")) == 1


def test_streams_with_names_alike_do_not_meet(cli: Cli, plain: Path, tmp_path: Path) -> None:
    cli("snapshot", "--from-command", "db.vault-restore", "--", "echo", "one")
    cli("restore", "latest", "--to", tmp_path / "out")
    cli("snapshot", "--from-command", "db", "--", "echo", "two")
    (tmp_path / "out" / "stream" / ".db.vault-restore").write_text("left by an interrupted run")
    cli("restore", "latest", "--to", tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out" / "stream").iterdir()} == {
        "db.vault-restore": "one\n",
        "db": "two\n",
    }


def test_nothing_is_replaced_that_could_not_be_saved(
    cli: Cli, plain: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("snapshot", "--path", source)
    (source / "b" / "f").write_text("newer")

    def refuse(_exporter: object, _parent: int, name: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("lumina_vault.components.directory.DirectoryExporter._open_file", refuse)
        cli("restore", "latest", "--in-place", "--replace", status=1)
    assert "b/f: Permission denied" in cli.err
    assert "--no-safety-snapshot" in cli.err
    assert (source / "b" / "f").read_text() == "newer"
    cli("restore", "latest", "--in-place", "--replace")
    assert (source / "b" / "f").read_text() == "b/f"


# --- damage ---


def test_a_damaged_tree_stops_neither_what_came_before_nor_other_components(
    cli: Cli, plain: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chmod(source / "a", 0o751)
    os.utime(source / "a", ns=(1, 12345))
    cli("snapshot", "--path", source, "--from-command", "after", "--", "echo", "whole")
    target = tmp_path / "out" / "dir" / "src"
    for name in ("a", "b", "c"):
        (target / name).mkdir(parents=True)
        (target / name / "mine").write_text("mine")
    original = StoredTree.entries

    def entries(self: StoredTree) -> object:
        for entry in original(self):
            if entry.path == b"b/f":
                raise Damage("a leaf of a tree is gone")
            yield entry

    monkeypatch.setattr(StoredTree, "entries", entries)
    cli("restore", "latest", "--to", tmp_path / "out", "--replace", "--delete", "--no-safety-snapshot", status=13)
    assert "a leaf of a tree is gone" in cli.err
    assert (tmp_path / "out" / "stream" / "after").read_text() == "whole\n"
    assert (target / "a" / "f").read_text() == "a/f"
    assert (target / "a").stat().st_mode & 0o7777 == 0o751
    assert sorted(p.name for p in target.glob("*/mine")) == ["mine"] * 3, "nothing counts as extra in half a tree"


def test_exit_13_even_when_many_other_things_were_missed(
    cli: Cli, plain: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a hundred notes are kept: the status must not depend on them."""
    monkeypatch.setattr("lumina_vault.components.base.MOST_NOTES", 1)
    cli("snapshot", "--path", source)
    original = place.TreeRestorer._entry

    def entry(self: place.TreeRestorer, directory: object, name: bytes, item: Entry) -> None:
        if item.path == b"a/f":
            self.report.miss("something else")
        original(self, directory, name, item)  # type: ignore[arg-type]

    monkeypatch.setattr(place.TreeRestorer, "_entry", entry)
    for pack in (plain / "packs").rglob("*"):
        if pack.is_file() and b"a/fb/fc/f" in (data := pack.read_bytes()):
            pack.chmod(0o600)
            pack.write_bytes(data.replace(b"a/fb/fc/f", b"a/fb/fc/F"))
    cli("restore", "latest", "--to", tmp_path / "out", status=13)
    assert "4 things" in cli.err


# --- hostile records ---


def test_in_place_goes_to_absolute_paths_only(cli: Cli, plain: Path, source: Path, tmp_path: Path) -> None:
    cli("snapshot", "--path", source)
    rewrite(lambda component: setattr(component, "source", b"somewhere"))
    cli("restore", "latest", "--in-place", status=13)
    assert not (tmp_path / "somewhere").exists()


def test_a_record_says_nothing_to_the_terminal(cli: Cli, plain: Path, source: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x9b31m"
    cli("snapshot", "--path", source)

    def change(component: Component) -> None:
        component.source = os.fsencode("/" + evil)
        component.notes = [evil]

    rewrite(change)
    for command in (["show", "latest"], ["ls", "latest"], ["restore", "latest", "--in-place", "--dry-run"]):
        said = cli(*command) + cli.err
        assert not set(said) & set("\x1b\x07\x9b")
    assert "owned" in cli("show", "latest")


def test_what_was_restored_in_place_is_read_the_next_time_only_where_it_changed(
    cli: Cli, plain: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A safety snapshot of another place is no parent for the next snapshot of this one."""
    monkeypatch.setattr("lumina_vault.ops.snapshot._TRUST_MARGIN", -(10**12))
    first = cli.json("snapshot", "--path", source)
    cli("restore", "latest", "--to", tmp_path / "out")
    cli("restore", "latest", "--to", tmp_path / "out", "--replace")
    assert len(cli.json("snapshots")) == 2
    read: list[bytes] = []

    def note(_exporter: object, _parent: int, name: bytes) -> int:
        read.append(name)
        raise AssertionError("read again")

    monkeypatch.setattr("lumina_vault.components.directory.DirectoryExporter._open_file", note)
    assert cli.json("snapshot", "--path", source)["parent"] == first["id"]
    assert read == []


def test_the_safety_snapshot_holds_what_a_delete_removes(cli: Cli, plain: Path, source: Path, tmp_path: Path) -> None:
    needs_root()
    cli("snapshot", "--path", source)
    (source / "extra").mkdir()
    (source / "extra" / "f").write_text("extra")
    os.chown(source / "extra" / "f", 12, 34)
    cli("restore", "latest", "--in-place", "--replace", "--delete")
    assert not (source / "extra").exists()
    safety = cli.json("snapshots")[-1]["id"]
    cli("restore", safety, "--in-place", "--replace")
    assert (source / "extra" / "f").stat().st_uid == 12
    cli("restore", safety, "--to", tmp_path / "compare")
    assert_same(source, tmp_path / "compare" / "dir" / "src")


def test_a_component_name_is_checked_before_anything_is_made(cli: Cli, plain: Path, source: Path) -> None:
    cli("snapshot", "--path", source)
    rewrite(lambda component: setattr(component, "name", "../../escaped"))
    cli("restore", "latest", "--to", "out", status=13)
    assert not Path("out").exists()
