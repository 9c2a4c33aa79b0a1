"""Vaults that an earlier version wrote stay readable: by the engine, and by a reader made from the format's page alone.

The archives hold packs, records, annotations and keys, but no index: each test rebuilds it.
"""

import hashlib
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from golden import reader
from golden.make import PASSPHRASE, secret

from lumina_vault import crypto
from lumina_vault.backends.local import LocalBackend
from lumina_vault.components.base import Report
from lumina_vault.components.place import Placing, TreeRestorer
from lumina_vault.crypto import key_file_text, parse_key_file
from lumina_vault.errors import WrongKey
from lumina_vault.index import Index
from lumina_vault.model import Annotation, decode
from lumina_vault.store import keystore
from lumina_vault.store.fetch import Fetcher, StoredTree
from lumina_vault.store.keystore import Secret
from lumina_vault.store.pack import check_pack
from lumina_vault.store.rebuild import rebuild_in_place, temporary_index
from lumina_vault.store.repository import Repository, read_gc
from lumina_vault.store.verify import Verifier

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=["v1-plain", "v1-encrypted"])
def golden(request, tmp_path):
    """(directory of the vault, what it must say)."""
    with tarfile.open(GOLDEN / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "vault", json.loads((GOLDEN / f"{request.param}.json").read_text())


def unlock(place, secret=Secret("passphrase", PASSPHRASE.encode(), "test")):  # noqa: B008 (immutable)
    backend = LocalBackend(str(place))
    config, raw = keystore.load_config(backend)
    return backend, config, keystore.unlock(backend, config, raw, lambda: [secret])


def engine_component(fetcher, component):
    shown = {key: getattr(component, key) for key in ("kind", "name", "status", "complete", "files", "dirs", "size")}

    def sha256(content):
        hasher = hashlib.sha256()
        for block in fetcher.stream(content, "a golden file"):
            hasher.update(block)
        return hasher.hexdigest()

    if component.tree is not None:
        shown["tree"] = []
        for entry in StoredTree(fetcher, component.tree).entries():
            values = {field: getattr(entry, field) for field in reader.ENTRY_FIELDS}
            regular = stat.S_ISREG(entry.mode) and not entry.flags
            shown["tree"].append(reader.shown_entry(values, sha256(entry.content) if regular else None))
    if component.content is not None:
        content = component.content
        shown["content"] = {"size": content.size, "height": content.height, "sha256": sha256(content)}
    return shown


def engine_listing(repository):
    """What `golden.reader.listing` says, by the engine and through its index."""
    backend, keys, index = repository.backend, repository.keys, repository.index
    packs = []
    for row in index.live_packs():
        table = check_pack(backend, keys, row.name, row.size)
        assert [r._replace(pack=row.id) for r in table.rows] == index.pack_chunks(row.id)
        packs.append({"name": row.name.hex(), "type": row.type, "entries": len(table.rows)})
    notes = []
    for info in backend.list("annotations/"):
        note = decode(crypto.unseal(keys, crypto.ANNOTATION, backend.read(info.name), info.name), Annotation, "it")
        name = info.name.rsplit("/", maxsplit=1)[-1]
        notes.append({"name": name, "target": note.target, "id": note.id.hex(), "kind": note.kind})
    with Fetcher(repository.reader) as fetcher:
        snapshots = [
            {
                "id": snapshot.id.hex(),
                "time": snapshot.record.time,
                "tags": snapshot.record.tags,
                "parent": snapshot.record.parent.hex(),
                "components": [engine_component(fetcher, component) for component in snapshot.record.components],
            }
            for snapshot in repository.snapshots()
        ]
    return {
        "vault": keys.vault.hex(),
        "encryption": repository.config.encryption,
        "packs": sorted(packs, key=lambda pack: pack["name"]),
        "chunks": index.totals()["chunks"],
        "snapshots": snapshots,
        "annotations": sorted(notes, key=lambda note: note["name"]),
    }


def test_it_is_read_by_the_format_s_page_alone(golden):
    place, expected = golden
    passphrase = None if expected["encryption"] == "none" else PASSPHRASE
    assert reader.listing(place, passphrase) == expected


def test_it_is_read_through_a_temporary_index_and_not_changed(golden, tmp_path):
    place, expected = golden
    before = {path: path.stat() for path in place.rglob("*")}
    backend, config, keys = unlock(place)
    (tmp_path / "elsewhere").mkdir()
    index = temporary_index(backend, config, keys, str(tmp_path / "elsewhere/index.db"))
    with Repository(backend, config, keys, index) as repository:
        assert engine_listing(repository) == expected
    after = {path: path.stat() for path in place.rglob("*")}
    assert {path: status.st_ctime_ns for path, status in after.items()} == {
        path: status.st_ctime_ns for path, status in before.items()
    }


def test_its_index_is_rebuilt_in_place(golden):
    place, expected = golden
    backend, config, keys = unlock(place)
    generation = read_gc(backend, keys)[0].generation
    rebuilt = rebuild_in_place(backend, config, keys, str(place / "index.db"), lambda _what, _count: None)
    counts = (rebuilt.packs, rebuilt.chunks, rebuilt.snapshots, rebuilt.annotations)
    assert rebuilt.problems == []
    assert counts == (len(expected["packs"]), expected["chunks"], 2, 1)
    with Repository(backend, config, keys, Index(str(place / "index.db"))) as repository:
        assert engine_listing(repository) == expected
        assert Verifier(repository).run(None, "all").clean
        assert repository.index.get_info("generation") == str(generation + 1)
        assert read_gc(backend, keys)[0].generation == generation + 1
        for snapshot in repository.snapshots():
            needed = {row.name for row in repository.index.snapshot_pack_rows(snapshot.id)}
            assert needed <= {bytes.fromhex(pack["name"]) for pack in expected["packs"]}
            assert needed


def test_what_the_golden_vaults_hold():
    """They are worth little if a later `make.py` leaves something out."""
    for mode in ("plain", "encrypted"):
        expected = json.loads((GOLDEN / f"v1-{mode}.json").read_text())
        tree = expected["snapshots"][0]["components"][0]["tree"]
        kinds = {int(entry["mode"], 8) & 0o170000 for entry in tree}
        assert kinds == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO}
        assert any(entry["flags"] == 1 for entry in tree)
        assert any(entry["xattrs"] for entry in tree)
        assert any("\xff" in entry["path"] for entry in tree)
        assert {entry["height"] for entry in tree} == {0, 1}
        assert {entry["profile"] for entry in tree} == {0, 1, 2, 3}
        assert any(entry["refs"] > 1 and not entry["height"] for entry in tree)
        assert [note["kind"] for note in expected["annotations"]] == ["pinned"]
        assert expected["snapshots"][1]["parent"] == expected["snapshots"][0]["id"]
        assert expected["snapshots"][0]["components"][1]["content"]["size"] == 200_001


def test_the_encrypted_one_opens_with_each_of_its_keys_and_no_other(tmp_path):
    with tarfile.open(GOLDEN / "v1-encrypted.tar.gz") as archive:
        archive.extractall(tmp_path)
    place = tmp_path / "vault"
    key_file = parse_key_file(key_file_text(secret("vault key file")), "test")
    _, _, keys = unlock(place, Secret("keyfile", key_file, "test"))
    assert keys.master == unlock(place)[2].master
    for wrong in (Secret("passphrase", b"Golden", "test"), Secret("keyfile", bytes(32), "test")):
        with pytest.raises(WrongKey):
            unlock(place, wrong)


def test_it_is_restored(golden, tmp_path):
    place, expected = golden
    backend, config, keys = unlock(place)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "target").mkdir()
    index = temporary_index(backend, config, keys, str(tmp_path / "elsewhere/index.db"))
    report = Report()
    with Repository(backend, config, keys, index) as repository, Fetcher(repository.reader) as fetcher:
        tree = next(repository.snapshots()).record.components[0].tree
        root = os.open(tmp_path / "target", os.O_RDONLY)
        TreeRestorer(root, StoredTree(fetcher, tree), report, Placing()).restore()
        os.close(root)
    unowned = [note for note in report.notes if "that takes root" in note or "user.golden" in note]
    assert report.notes == unowned
    for entry in expected["snapshots"][0]["components"][0]["tree"]:
        path = os.path.join(os.fsencode(tmp_path / "target"), entry["path"].encode("latin-1"))
        status = os.lstat(path)
        assert (oct(status.st_mode), status.st_mtime_ns) == (entry["mode"], entry["mtime"]), entry["path"]
        if "sha256" in entry:
            with open(path, "rb") as file:
                assert hashlib.sha256(file.read()).hexdigest() == entry["sha256"]
        if stat.S_ISLNK(status.st_mode):
            assert os.readlink(path) == entry["link"].encode("latin-1")
