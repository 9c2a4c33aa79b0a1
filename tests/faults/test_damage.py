"""Bytes that are not what was recorded: a clear message, the documented exit status, nothing half-restored, and a way
back from it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import DATABASE, Ran, vault, write_source

from lumina_vault import crypto, ids
from lumina_vault.index import ChunkRow
from lumina_vault.model import GcState, Record, decode, encode
from lumina_vault.ops import snapshot as snapshot_module
from lumina_vault.ops import vaults
from lumina_vault.store.pack import Table
from lumina_vault.store.trees import entries
from lumina_vault.testing.sandbox import Sandbox, TreeState, tree_state

MODES = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])


class Where(NamedTuple):
    """A pack's name and table, and the row of one of its chunks."""

    name: str
    table: Table
    row: ChunkRow


@dataclass
class Stage:
    """A vault with two snapshots: of the source as it was, and as it is with one more file."""

    sandbox: Sandbox
    source: Path
    room: Path
    states: dict[str, TreeState] = field(default_factory=dict)
    rooms: int = 0

    @property
    def first(self) -> str:
        return next(iter(self.states))

    def take(self) -> str:
        snapshot = self.sandbox.snapshot(self.source).id.hex()
        self.states[snapshot] = tree_state(self.source)
        return snapshot

    def restore(self, snapshot: str) -> tuple[Ran, Path]:
        self.rooms += 1
        target = self.room / f"restored{self.rooms}"
        return vault(self.sandbox, "restore", snapshot, "--to", target), target / "dir/source"

    def check_restores_all(self) -> None:
        for snapshot, state in self.states.items():
            ran, target = self.restore(snapshot)
            assert (ran.status, ran.err) == (0, "")
            assert tree_state(target) == state

    def pack_of(self, data: bool, snapshot: str = "") -> Where:
        """Where the database's first chunk lies, or the first leaf of a snapshot's tree."""
        packs = self.sandbox.packs()
        with self.sandbox.open() as repository:
            tree = repository.find(snapshot or self.first).record.components[0].tree
            assert tree is not None
            refs = next(e for e in entries(repository.reader, tree) if e.path == b"one.db").refs
            chunk = refs[0].chunk if data else tree.refs[0].chunk
            row = repository.index.locate([chunk])[chunk][0]
            name = repository.index.packs_by_id([row.pack])[row.pack].name.hex()
        return Where(name, packs[name], row)


@pytest.fixture
def make_stage(tmp_path: Path, make_sandbox: Callable[[bool], Sandbox]) -> Callable[[bool], Stage]:
    def make(encrypted: bool) -> Stage:
        source = tmp_path / "source"
        write_source(source, 1)
        stage = Stage(make_sandbox(encrypted), source, tmp_path)
        stage.take()
        (source / "later").write_bytes(DATABASE + os.urandom(150_000))
        stage.take()
        return stage

    return make


@pytest.fixture(params=[True, False], ids=["trusted", "reread"])
def trusted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether unchanged files are taken over unread: by their times, which these tests can't wait for."""
    if request.param:
        monkeypatch.setattr(snapshot_module, "_TRUST_MARGIN", -3600 * 10**9)
    return bool(request.param)


def rewrite(path: Path, data: bytes) -> None:
    """Damage, whatever the file's mode, and only this link to it."""
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o400)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    rewrite(path, data)


def clear(ran: Ran, status: int) -> str:
    """The one or two sentences on stderr of a command that failed as documented."""
    assert ran.status == status, ran
    assert ran.err.startswith("vault: ")
    assert "Traceback" not in ran.err
    return ran.err


ENTRY_REGIONS = {"first byte": lambda row: row.offset, "last byte": lambda row: row.offset + row.stored - 1}
FRAME_REGIONS = {
    "magic": lambda _table: 0,
    "version": lambda _table: 7,
    "type": lambda _table: 8,
    "flags": lambda _table: 9,
    "epoch": lambda _table: 12,
    "vault": lambda _table: 16,
    "salt": lambda _table: 40,
    "table": lambda table: _end(table) + 1,
    "table offset": lambda table: table.length - 56,
    "table length": lambda table: table.length - 48,
    "count": lambda table: table.length - 44,
    "table hash": lambda table: table.length - 20,
    "tail magic": lambda table: table.length - 1,
}


def _end(table: Table) -> int:
    return table.rows[-1].offset + table.rows[-1].stored - 1


@MODES
@pytest.mark.parametrize("region", ENTRY_REGIONS)
def test_flipped_byte_in_a_chunk_of_data(
    make_stage: Callable[[bool], Stage], encrypted: bool, region: str, trusted: bool
) -> None:
    stage = make_stage(encrypted)
    name, _, row = stage.pack_of(data=True)
    flip(stage.sandbox.object(f"packs/{name[:2]}/{name}"), ENTRY_REGIONS[region](row))

    ran = vault(stage.sandbox, "verify", "--data", "all", "--json")
    assert ran.status == 13
    assert any(name in problem for problem in ran.json["problems"])
    affected = {(a["snapshot"], a["component"], a["path"]) for a in ran.json["affected"]}
    assert affected == {(s[:12], "dir:source", "one.db") for s in stage.states}

    ran, target = stage.restore(stage.first)
    assert ran.status == 13
    assert "one.db: not restored" in ran.err
    assert not [path for path in target.rglob("*") if "one.db" in path.name]
    whole = {path: state for path, state in stage.states[stage.first].items() if path != "one.db"}
    assert tree_state(target) == whole

    vault(stage.sandbox, "snapshot", "--path", stage.source)
    stage.check_restores_all()
    ran = vault(stage.sandbox, "verify", "--data", "all", "--json")
    assert not ran.json["affected"]
    assert [problem for problem in ran.json["problems"] if name not in problem] == []


@MODES
@pytest.mark.parametrize("found_by", ["verify", "restore", "cat"])
def test_whoever_finds_the_damage_the_next_snapshot_heals_it(
    make_stage: Callable[[bool], Stage], encrypted: bool, found_by: str, trusted: bool
) -> None:
    stage = make_stage(encrypted)
    name, _, row = stage.pack_of(data=True)
    flip(stage.sandbox.object(f"packs/{name[:2]}/{name}"), row.offset + 5)
    if found_by == "verify":
        assert vault(stage.sandbox, "verify", "--data", "all").status == 13
    elif found_by == "restore":
        assert stage.restore(stage.first)[0].status == 13
    else:
        assert vault(stage.sandbox, "cat", f"{stage.first}:dir:source/one.db").status == 13
    assert vault(stage.sandbox, "verify").status == 13, "known damage is damage, even if no data is read"

    stage.take()
    stage.check_restores_all()
    assert vault(stage.sandbox, "verify").status == 0


@MODES
@pytest.mark.parametrize("region", ENTRY_REGIONS)
@pytest.mark.parametrize("verified", [True, False], ids=["verified", "unnoticed"])
def test_flipped_byte_in_a_tree(
    make_stage: Callable[[bool], Stage], encrypted: bool, region: str, verified: bool, trusted: bool
) -> None:
    """A snapshot that walks a damaged tree notices, reads the files again, and stores a tree that can be read."""
    stage = make_stage(encrypted)
    latest = list(stage.states)[-1]
    name, _, row = stage.pack_of(data=False, snapshot=latest)
    flip(stage.sandbox.object(f"packs/{name[:2]}/{name}"), ENTRY_REGIONS[region](row))
    if verified:
        ran = vault(stage.sandbox, "verify", "--data", "all", "--json")
        assert ran.status == 13
        assert {(a["snapshot"], a["component"]) for a in ran.json["affected"]} == {(latest[:12], "dir:source")}
        clear(stage.restore(latest)[0], 13)

    stage.take()  # of the same source: the same tree
    stage.check_restores_all()


@MODES
@pytest.mark.parametrize("data", [True, False], ids=["data", "meta"])
@pytest.mark.parametrize("region", FRAME_REGIONS)
def test_flipped_byte_in_the_frame_of_a_pack(
    make_stage: Callable[[bool], Stage], encrypted: bool, data: bool, region: str
) -> None:
    """Header, table and footer repeat what the index holds: with an index everything can still be restored."""
    stage = make_stage(encrypted)
    name, table, _ = stage.pack_of(data)
    flip(stage.sandbox.object(f"packs/{name[:2]}/{name}"), FRAME_REGIONS[region](table))
    stage.check_restores_all()
    ran = vault(stage.sandbox, "verify", "--data", "all", "--json")
    assert ran.status == 13
    assert ran.json["problems"]
    assert all(name in problem for problem in ran.json["problems"])
    assert not ran.json["affected"]

    ran = vault(stage.sandbox, "index", "rebuild", "--json")
    problems = ran.json["problems"]
    if problems:
        assert ran.status == 13
        assert any(name in problem for problem in problems)
    else:  # where a plain pack's table does not cover it, the whole pack's name still does
        assert vault(stage.sandbox, "verify", "--data", "all").status == 13
    stage.take()
    newest = list(stage.states)[-1]
    ran, target = stage.restore(newest)
    assert (ran.status, ran.err) == (0, "")
    assert tree_state(target) == stage.states[newest]


@MODES
@pytest.mark.parametrize("data", [True, False], ids=["data", "meta"])
@pytest.mark.parametrize("how", ["missing", "empty", "short", "half", "swapped"])
def test_whole_packs(make_stage: Callable[[bool], Stage], encrypted: bool, data: bool, how: str) -> None:
    stage = make_stage(encrypted)
    name, table, row = stage.pack_of(data)
    path = stage.sandbox.object(f"packs/{name[:2]}/{name}")
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "swapped":
        other = next(n for n, t in stage.sandbox.packs().items() if n != name and t.header.type == table.header.type)
        there = stage.sandbox.object(f"packs/{other[:2]}/{other}")
        rewrite(path, there.read_bytes())
        rewrite(there, whole)
    else:
        rewrite(path, whole[: {"empty": 0, "short": len(whole) - 1, "half": row.offset + 10}[how]])

    ran = vault(stage.sandbox, "verify", "--json")
    if how != "swapped" or ran.status:
        assert ran.status == 13
        assert any(name in problem for problem in ran.json["problems"])
    ran = vault(stage.sandbox, "verify", "--data", "all", "--json")
    assert ran.status == 13
    components = {(a["snapshot"], a["component"]) for a in ran.json["affected"]}
    expected = {(s[:12], "dir:source") for s in (stage.states if data else [stage.first])}
    if how == "short":  # every chunk is there
        assert not components
    else:
        assert expected <= components
        ran, target = stage.restore(stage.first)
        assert clear(ran, 13)
        for found, state in tree_state(target).items():
            if not found.endswith(".") and state[2]:
                assert state[2] == stage.states[stage.first][found][2], "a partial file was left"

    stage.take()
    newest = list(stage.states)[-1]
    ran, target = stage.restore(newest)
    assert (ran.status, ran.err) == (0, "")
    assert tree_state(target) == stage.states[newest]
    if data:
        stage.check_restores_all()
        assert not vault(stage.sandbox, "verify", "--data", "all", "--json").json["affected"]


def test_damage_leaves_good_data_alone(make_stage: Callable[[bool], Stage]) -> None:
    """A restore over what is there: the file that can't be had stays as it was."""
    stage = make_stage(True)
    target = stage.room / "target"
    assert vault(stage.sandbox, "restore", stage.first, "--to", target).status == 0
    (target / "dir/source/one.db").write_bytes(b"newer work")
    name, _, row = stage.pack_of(data=True)
    flip(stage.sandbox.object(f"packs/{name[:2]}/{name}"), row.offset)
    ran = vault(stage.sandbox, "restore", stage.first, "--to", target, "--replace", "--no-safety-snapshot")
    assert "untouched" in clear(ran, 13)
    assert (target / "dir/source/one.db").read_bytes() == b"newer work"
    assert not list(target.rglob("*vault-restore*"))


# --- records ---------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("how", ["missing", "empty", "short", "flipped"])
def test_records(make_stage: Callable[[bool], Stage], encrypted: bool, how: str) -> None:
    """The index holds a copy: `verify` says so, and everything can still be restored."""
    stage = make_stage(encrypted)
    path = stage.sandbox.object(f"snapshots/{stage.first}")
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        flip(path, 70)
    else:
        rewrite(path, path.read_bytes()[: 0 if how == "empty" else -1])
    ran = vault(stage.sandbox, "verify", "--json")
    assert ran.status == 13
    assert any(stage.first[:12] in problem for problem in ran.json["problems"])
    stage.check_restores_all()
    stage.take()

    ran = vault(stage.sandbox, "index", "rebuild", "--json")
    assert ran.status == 13
    assert any(stage.first[:12] in problem and "in the store again" in problem for problem in ran.json["problems"])
    stage.check_restores_all()
    assert vault(stage.sandbox, "verify", "--data", "all").status == 0
    assert vault(stage.sandbox, "index", "rebuild").status == 0


@MODES
def test_a_record_lost_with_the_index(make_stage: Callable[[bool], Stage], encrypted: bool) -> None:
    """Nothing is left of it; the other snapshots are not touched, and the message names what was lost."""
    stage = make_stage(encrypted)
    flip(stage.sandbox.object(f"snapshots/{stage.first}"), 70)
    stage.sandbox.object("index.db").unlink()
    ran = vault(stage.sandbox, "index", "rebuild")
    assert ran.status == 13
    assert stage.first[:12] in ran.out
    del stage.states[stage.first]
    assert stage.sandbox.ids() == list(stage.states)
    stage.check_restores_all()


# --- keys, configuration, deletion state -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how", "status", "says"),
    [
        ("config", "missing", 13, "config"),
        ("config", "empty", 13, "config"),
        ("config", "flipped", 13, "config"),
        ("keyring", "missing", 13, "keyring"),
        ("keyring", "empty", 13, "keyring"),
        ("keyring", "flipped", 13, "keyring"),
        ("keys", "missing", 12, "key slot"),
        ("keys", "empty", 12, "key slot"),
        ("keys", "flipped", 12, "key slot"),
    ],
)
def test_what_opens_the_vault(make_stage: Callable[[bool], Stage], name: str, how: str, status: int, says: str) -> None:
    stage = make_stage(True)
    path = stage.sandbox.object(name)
    if name == "keys":
        path = next(path.iterdir())
    if how == "missing":
        path.unlink()
    elif how == "empty":
        rewrite(path, b"")
    else:
        flip(path, 80)
    for command in (["snapshots"], ["verify"], ["snapshot", "--path", stage.source], ["index", "rebuild"]):
        assert says in clear(vault(stage.sandbox, *command), status)
    assert vault(stage.sandbox, "doctor").status == 1
    assert clear(
        vault(stage.sandbox, "init", "--key-file", stage.sandbox.key_file),
        2 if how != "missing" or name != "config" else 1,
    )


@MODES
@pytest.mark.parametrize("how", ["missing", "empty", "flipped"])
def test_deletion_state(make_stage: Callable[[bool], Stage], encrypted: bool, how: str) -> None:
    """Only deleting needs it. A rebuild makes it anew: nothing is taken for condemned that may still be needed."""
    stage = make_stage(encrypted)
    path = stage.sandbox.object("gc")
    if how == "missing":
        path.unlink()
    elif how == "empty":
        rewrite(path, b"")
    else:
        flip(path, 80)
    stage.check_restores_all()
    stage.take()
    assert vault(stage.sandbox, "doctor").status == 1
    stage.sandbox.object("index.db").unlink()
    ran = vault(stage.sandbox, "snapshots", "--json")
    assert ran.status == 0
    assert [s["id"] for s in ran.json] == list(stage.states)
    ran = vault(stage.sandbox, "index", "rebuild", "--json")
    assert ran.status == 13
    assert any("gc" in problem for problem in ran.json["problems"])
    stage.check_restores_all()
    assert vault(stage.sandbox, "index", "rebuild").status == 0
    assert vault(stage.sandbox, "doctor").status == 0


# --- the index -------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("how", ["deleted", "empty", "garbage", "half", "no tables", "foreign", "stale log"])
def test_index(make_stage: Callable[[bool], Stage], tmp_path: Path, encrypted: bool, how: str) -> None:
    """Losing it loses nothing: readers do without one that is gone, and a rebuild makes it anew."""
    stage = make_stage(encrypted)
    path = stage.sandbox.object("index.db")
    if how == "deleted":
        path.unlink()
    elif how == "empty":
        rewrite(path, b"")
    elif how == "garbage":
        rewrite(path, os.urandom(20_000))
    elif how == "half":
        rewrite(path, path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no tables":
        path.unlink()
        sqlite3.connect(path).execute("CREATE TABLE other (x)").connection.close()
    elif how == "foreign":
        (tmp_path / "other").mkdir()
        other = Sandbox(tmp_path / "other", encrypted)
        other.init()
        rewrite(path, other.object("index.db").read_bytes())
        path.chmod(0o600)
    else:
        path.unlink()
        stage.sandbox.object("index.db-wal").write_bytes(os.urandom(8192))
    if how in ("deleted", "stale log"):
        ran = vault(stage.sandbox, "snapshots", "--json")
        assert ran.status == 0
        assert [s["id"] for s in ran.json] == list(stage.states)
        assert vault(stage.sandbox, "verify", "--data", "all").status == 0
        ran, target = stage.restore(stage.first)
        assert ran.status == 0
        assert tree_state(target) == stage.states[stage.first]
    else:
        assert "vault index rebuild" in clear(vault(stage.sandbox, "snapshots"), 13)
    if how != "half" or vault(stage.sandbox, "snapshots").status:
        assert "vault index rebuild" in clear(vault(stage.sandbox, "snapshot", "--path", stage.source), 13)
    assert "vault index rebuild" in vault(stage.sandbox, "doctor").out

    ran = vault(stage.sandbox, "index", "rebuild")
    assert ran.status == 0, ran
    stage.take()
    stage.check_restores_all()
    assert vault(stage.sandbox, "verify", "--data", "all").status == 0


def test_a_rebuild_waits_for_nobody(make_stage: Callable[[bool], Stage]) -> None:
    """While another command has the vault open it is refused; the other one's snapshot is not lost from the index."""
    stage = make_stage(False)
    with stage.sandbox.open(write=True):
        assert "another vault command" in clear(vault(stage.sandbox, "index", "rebuild"), 11)
    assert vault(stage.sandbox, "index", "rebuild").status == 0


# --- later versions --------------------------------------------------------------------------------------------------


@MODES
def test_a_pack_of_a_later_format(make_stage: Callable[[bool], Stage], encrypted: bool) -> None:
    """A pack that is what its name says, and of a version that this program does not know."""
    stage = make_stage(encrypted)
    data = bytearray(next(stage.sandbox.object("packs").rglob("?" * 64)).read_bytes())
    data[7] = 2
    name = ids.object_hash(data).hex()
    path = stage.sandbox.object(f"packs/{name[:2]}/{name}")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    before = tree_state(stage.sandbox.vault)
    assert "upgrade" in clear(vault(stage.sandbox, "index", "rebuild"), 14)
    stage.check_restores_all()
    after = tree_state(stage.sandbox.vault)
    assert {n for n in before if n.startswith(("packs/", "snapshots/"))} == {
        n for n in after if n.startswith(("packs/", "snapshots/"))
    }


@MODES
def test_a_config_of_a_later_format(make_stage: Callable[[bool], Stage], encrypted: bool) -> None:
    stage = make_stage(encrypted)
    path = stage.sandbox.object("config")
    data = bytearray(path.read_bytes())
    data[7] = 2
    rewrite(path, data)
    for command in (["snapshots"], ["snapshot", "--path", stage.source], ["index", "rebuild"], ["verify"]):
        assert "upgrade" in clear(vault(stage.sandbox, *command), 14)


@MODES
def test_a_record_that_needs_what_this_version_does_not_know(
    make_stage: Callable[[bool], Stage], encrypted: bool
) -> None:
    stage = make_stage(encrypted)
    backend, _, keys = vaults.unlock(stage.sandbox.settings)
    sealed = backend.read(f"snapshots/{stage.first}")
    record = decode(crypto.unseal(keys, crypto.SNAPSHOT, sealed, "record"), Record, "record")
    record.requires = ["time travel"]
    later = crypto.seal(keys, crypto.SNAPSHOT, encode(record))
    snapshot = ids.object_hash(later)
    backend.put(ids.snapshot_path(snapshot), later)
    assert "time travel" in clear(vault(stage.sandbox, "index", "rebuild"), 14)
    stage.check_restores_all()


def test_a_rebuild_leaves_out_what_was_condemned(make_stage: Callable[[bool], Stage]) -> None:
    stage = make_stage(True)
    name, _, _ = stage.pack_of(data=True)
    backend, _, keys = vaults.unlock(stage.sandbox.settings)
    raw = backend.read("gc")
    state = decode(crypto.unseal(keys, crypto.GC, raw, "gc"), GcState, "gc")
    state.condemned = [bytes.fromhex(name)]
    assert backend.compare_and_swap("gc", raw, crypto.seal(keys, crypto.GC, encode(state)))
    ran = vault(stage.sandbox, "index", "rebuild", "--json")
    assert ran.status == 13
    assert any(stage.first[:12] in problem for problem in ran.json["problems"])
    stage.take()
    stage.check_restores_all()


def test_a_vault_that_was_replaced(make_stage: Callable[[bool], Stage], tmp_path: Path) -> None:
    """An encrypted vault never turns plain under a client that knows it."""
    stage = make_stage(True)
    (tmp_path / "other").mkdir()
    other = Sandbox(tmp_path / "other", False)
    other.init()
    shutil.rmtree(stage.sandbox.vault)
    shutil.copytree(other.vault, stage.sandbox.vault)
    assert "replaced" in clear(vault(stage.sandbox, "snapshot", "--path", stage.source), 13)
