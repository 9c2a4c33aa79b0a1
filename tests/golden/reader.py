"""Reads a whole vault by docs/format.md alone, with nothing of the engine: what a reader of another make would do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3
from golden import reference as ref


class Vault:
    """A vault in a directory, opened with a passphrase (None: a plain one)."""

    def __init__(self, place: Path, passphrase: str | None) -> None:
        self.place = place
        raw = (place / "config").read_bytes()
        self.config = ref.parse(ref.unseal(raw, raw[16:32]))
        self.id: bytes = self.config["vault"]
        self.epochs: dict[int, bytes] = {}
        self.id_key: bytes | None = None
        if passphrase is not None:
            assert self.config["encryption"] == "aes-256-gcm"
            keyring = ref.parse(ref.unseal((place / "keyring").read_bytes(), self.id, self._master(passphrase)))
            assert keyring["config"] == blake3(raw).digest()
            self.epochs = {number: key for number, key, _ in keyring["epochs"]}
            self.id_key = keyring["id_key"]
        self.chunks: dict[bytes, bytes] = {}
        self.packs: list[dict[str, Any]] = []
        for path in sorted(place.glob("packs/*/*")):
            self._read_pack(path)

    def _master(self, passphrase: str) -> bytes:
        for path in sorted(self.place.glob("keys/*")):
            slot = ref.parse(ref.unseal(path.read_bytes(), self.id))
            if slot["kind"] == "passphrase":
                kdf = slot["kdf"]
                ikm = ref.argon2id(passphrase.encode(), slot["salt"], kdf["time"], kdf["memory"], kdf["lanes"])
                key = ref.derive(ikm, slot["salt"], b"slot", self.id)
                context = ref.canonical([1, slot["kind"], self.id, slot["slot"], list(kdf.values())])
                return ref.decrypt(key, slot["nonce"], slot["wrapped"], context)
        raise AssertionError("no slot for a passphrase")

    def _key(self, data: bytes) -> bytes | None:
        return self.epochs[int.from_bytes(data[12:16], "little")] if self.id_key else None

    def _read_pack(self, path: Path) -> None:
        data = path.read_bytes()
        assert blake3(data).hexdigest() == path.name
        count = 0
        for name, _, plain, _ in ref.unpack(data, self.id, self._key(data)):
            assert ref.chunk_id(plain, self.id_key) == name
            self.chunks[name] = plain
            count += 1
        self.packs.append({"name": path.name, "type": data[8], "entries": count})

    def sealed(self, kind: str) -> Iterator[tuple[str, Any]]:
        for path in sorted(self.place.glob(f"{kind}/*")):
            data = path.read_bytes()
            yield path.name, ref.parse(ref.unseal(data, self.id, self._key(data)))

    def extents(self, height: int, refs: list[Any]) -> Iterator[list[Any]]:
        for item in refs:
            if height == 0:
                yield item
                continue
            version, below, children = ref.parse(self.chunks[item[0]])
            assert (version, below, sum(r[2] for r in children)) == (1, height - 1, item[2])
            yield from self.extents(below, children)

    def sha256(self, height: int, refs: list[Any]) -> str:
        hasher = hashlib.sha256()
        for chunk, offset, length in self.extents(height, refs):
            hasher.update(self.chunks[chunk][offset : offset + length] if chunk else bytes(length))
        return hasher.hexdigest()

    def entries(self, height: int, refs: list[Any]) -> Iterator[list[Any]]:
        for chunk, count, first in refs:
            version, *rest = ref.parse(self.chunks[chunk])
            assert version == 1
            if height:
                assert (rest[0], sum(r[1] for r in rest[1])) == (height - 1, count)
                yield from self.entries(height - 1, rest[1])
            else:
                assert (len(rest[0]), rest[0][0][0]) == (count, first)
                yield from rest[0]


ENTRY_FIELDS = (
    "path", "mode", "uid", "gid", "mtime", "ctime", "size", "ino", "nlink", "digest", "profile", "height", "refs",
    "link", "rdev", "xattrs", "flags",
)  # fmt: skip


def shown_entry(values: dict[str, Any], sha256: str | None) -> dict[str, Any]:
    """One entry as JSON holds it: names as latin-1, other bytes as hex."""
    xattrs = values["xattrs"]
    shown = {
        **values,
        "path": values["path"].decode("latin-1"),
        "mode": oct(values["mode"]),
        "digest": values["digest"].hex(),
        "refs": len(values["refs"]),
        "link": values["link"].decode("latin-1"),
        "xattrs": [[name.decode("latin-1"), value.hex()] for name, value in xattrs] if xattrs else None,
    }
    return shown if sha256 is None else {**shown, "sha256": sha256}


def _component(vault: Vault, component: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        key: component[key] for key in ("kind", "name", "status", "complete", "files", "dirs", "size")
    }
    if component["tree"] is not None:
        count, height, refs = component["tree"]
        shown["tree"] = []
        for values in vault.entries(height, refs):
            entry = dict(zip(ENTRY_FIELDS, values, strict=True))
            regular = entry["mode"] & 0o170000 == 0o100000 and not entry["flags"]
            shown["tree"].append(shown_entry(entry, vault.sha256(entry["height"], entry["refs"]) if regular else None))
        assert len(shown["tree"]) == count
    if component["content"] is not None:
        size, height, refs = component["content"]
        shown["content"] = {"size": size, "height": height, "sha256": vault.sha256(height, refs)}
    return shown


def listing(place: Path, passphrase: str | None) -> dict[str, Any]:
    """Everything that a vault says, as JSON."""
    vault = Vault(place, passphrase)
    records = sorted(vault.sealed("snapshots"), key=lambda item: item[1]["time"])
    return {
        "vault": vault.id.hex(),
        "encryption": vault.config["encryption"],
        "packs": vault.packs,
        "chunks": len(vault.chunks),
        "snapshots": [
            {
                "id": name,
                "time": record["time"],
                "tags": record["tags"],
                "parent": record["parent"].hex(),
                "components": [_component(vault, component) for component in record["components"]],
            }
            for name, record in records
        ],
        "annotations": [
            {"name": name, "target": note["target"], "id": note["id"].hex(), "kind": note["kind"]}
            for name, note in vault.sealed("annotations")
        ],
    }
