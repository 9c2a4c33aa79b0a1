"""Makes the files of this folder: `python tests/golden/make.py vectors` and `... vaults`.

`vectors.json` is written by `reference.py`, which shares no code with the engine. The two vaults are written by the
engine, once for each format version; they stay as they are however the engine changes, so `vaults` refuses to
replace them unless `--replace` is given.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden import reader
from golden import reference as ref

HERE = Path(__file__).resolve().parent
PASSPHRASE = "golden"
VAULT = bytes.fromhex("000102030405060708090a0b0c0d0e0f")


def secret(name: str, size: int = 32) -> bytes:
    return ref.noise(f"golden/{name}", size)


MASTER, ID_KEY, EPOCHS = secret("master"), secret("id key"), {1: secret("epoch 1"), 2: secret("epoch 2")}


# --- vectors ----------------------------------------------------------------------------------------------------------

STREAMS = [
    (1, "zeros", "", 9_000_001),
    (1, "noise", "large", 7_340_033),
    (1, "text", "large", 4_500_000),
    (2, "zeros", "", 600_000),
    (2, "noise", "small", 1_500_001),
    (2, "text", "small", 1_000_000),
    *((profile, "noise", "edge", size + more) for profile, (low, average, _) in ref.SIZES.items()
      for size in (low, average) for more in (-1, 0, 1, 2, 3)),
    (1, "noise", "edge", 0),
    (2, "noise", "edge", 1),
    (2, "zeros", "", 262_143),
    (2, "zeros", "", 262_144),
    (2, "zeros", "", 262_145),
]  # fmt: skip


def cuts() -> list[dict[str, Any]]:
    return [
        {
            "profile": profile,
            "kind": kind,
            "seed": seed,
            "size": size,
            "lengths": ref.cut(ref.sample(kind, seed, size), profile),
        }
        for profile, kind, seed, size in STREAMS
    ]


def bundle_files(seed: str, count: int, most: int) -> list[bytes]:
    """Small files, each of noise; the seed says how long."""
    sizes = [int.from_bytes(ref.noise(f"{seed}/{i}/size", 4), "big") % most + 1 for i in range(count)]
    return [ref.noise(f"{seed}/{i}", size) for i, size in enumerate(sizes)]


BUNDLES = [("bundle of many", 900, 4_000), ("bundle of few", 60, 131_071), ("bundle of one", 1, 5)]


def bundles() -> list[dict[str, Any]]:
    found = []
    for seed, count, most in BUNDLES:
        files = bundle_files(seed, count, most)
        for id_key in (None, ID_KEY):
            digests = [ref.chunk_id(data, id_key) for data in files]
            found.append(
                {
                    "seed": seed, "count": count, "most": most, "keyed": id_key is not None,
                    "files": ref.bundles(digests, [len(data) for data in files]),
                }
            )  # fmt: skip
    return found


def tree_entries(seed: str, count: int) -> list[list[Any]]:
    """Entries of every type, sorted as a tree is; some heavy with xattrs, links and refs."""
    entries: list[list[Any]] = [[b"", 0o40755, 0, 0, 1, 2, 0, 2, 3, b"", 0, 0, [], b"", 0, None, 0]]
    for number in range(count):
        dice = ref.noise(f"{seed}/{number}", 40)
        name = b"%s/%s" % (dice[:1].hex().encode(), dice[1 : 2 + dice[2] % 12].hex().encode() + b"%d" % number)
        kind = dice[3] % 8
        refs = [[ref.chunk_id(dice, None), 17 * number, 1 + dice[4]]] if kind < 5 else []
        if kind == 5:
            refs = [[b"" if i % 7 == 0 else ref.chunk_id(b"%d" % i, None), 0, 1 + i] for i in range(dice[5] % 65)]
        xattrs = [[b"user.x", dice], [b"user.y", bytes(3000)]] if dice[6] % 32 == 0 else None
        link = b"target" * (dice[7] % 9 + 1) if kind == 6 else b""
        mode = {6: 0o120777, 7: 0o20600}.get(kind, 0o100644)
        entries.append(
            [
                name, mode, dice[8], 1000, 1_700_000_000_000_000_000 + number, -1 - number, sum(r[2] for r in refs),
                1 << 40 | number, 1, ref.chunk_id(name, None) if refs else b"", (3 if kind < 5 else 1) if refs else 0,
                0, refs, link, (8 << 32 | dice[9]) if kind == 7 else 0, xattrs, 0,
            ]
        )  # fmt: skip
    directories = sorted({entry[0].split(b"/")[0] for entry in entries[1:]})
    entries += [[name, 0o40700, 0, 0, 3, 4, 0, 5, 2, b"", 0, 0, [], b"", 0, None, 0] for name in directories]
    return sorted(entries, key=lambda entry: entry[0].replace(b"/", b"\0"))


def many_refs(seed: str, count: int) -> list[list[Any]]:
    """Refs of a long stream, with a hole now and then."""
    refs: list[list[Any]] = []
    for number in range(count):
        dice = ref.noise(f"{seed}/{number}", 34)
        refs.append([b"" if dice[32] % 97 == 0 else dice[:32], 0, 1 + dice[33]])
    return refs


def outline(root: list[Any], made: dict[bytes, bytes], height: int) -> dict[str, Any]:
    digest = hashlib.sha256(b"".join(made.values())).hexdigest()
    return {"height": height, "root": ref.canonical(root).hex(), "stored": len(made), "sha256 of all": digest}


def contents() -> list[dict[str, Any]]:
    found = []
    for count in (0, 1, 63, 64, 65, 66, 128, 129, 1024, 5_000, 80_000):
        for id_key in (None, ID_KEY):
            refs = many_refs("refs", count)
            height, root, made = ref.fold_contents(refs, id_key)
            size = sum(r[2] for r in refs)
            entry = {
                "seed": "refs",
                "count": count,
                "size": size,
                "keyed": id_key is not None,
                **outline(root, made, height),
            }
            entry["digest"] = ref.content_digest(1, size, height, root, id_key).hex()
            found.append(entry)
    return found


def trees() -> list[dict[str, Any]]:
    found = []
    for count in (0, 1, 3_000, 20_000):
        entries = tree_entries("tree", count)
        for id_key in (None, ID_KEY):
            height, root, made = ref.fold_tree(entries, id_key)
            found.append(
                {"seed": "tree", "count": count, "keyed": id_key is not None, "entries": len(entries),
                 "leaves": [len(leaf) for leaf in ref.leaves(entries)], **outline(root, made, height)}
            )  # fmt: skip
    return found


CHUNKS = [b"", b"a", b"format 1\n" * 40, ref.noise("chunk", 300), bytes(5000)]


def packs() -> list[dict[str, Any]]:
    """Whole packs: empty, plain, encrypted under two epochs, of both types."""
    import zstandard

    encoded = []
    for plain in CHUNKS:
        frame = zstandard.ZstdCompressor(level=3).compress(plain)
        encoded.append((1, frame) if len(frame) < len(plain) else (0, plain))
    found = []
    for type_, epoch, chunks in (
        (1, 0, CHUNKS),
        (2, 0, CHUNKS[:2]),
        (1, 0, []),
        (1, 1, CHUNKS),
        (2, 2, CHUNKS),
        (2, 1, []),
    ):
        id_key = ID_KEY if epoch else None
        salt = secret(f"pack {type_} {epoch} {len(chunks)}")
        rows = [
            (ref.chunk_id(plain, id_key), codec, payload, len(plain))
            for plain, (codec, payload) in zip(chunks, encoded, strict=False)
        ]
        data = ref.pack(type_, VAULT, salt, rows, epoch, EPOCHS.get(epoch))
        found.append(
            {"type": type_, "epoch": epoch, "salt": salt.hex(), "plaintexts": [c.hex() for c in chunks],
             "payloads": [[codec, payload.hex()] for _, codec, payload, _ in rows],
             "name": ref.blake3(data).hexdigest(), "bytes": data.hex()}
        )  # fmt: skip
    return found


def sealed() -> list[dict[str, Any]]:
    """One sealed object of each type, with the map that it holds."""
    config = {
        "version": 1,
        "requires": [],
        "vault": VAULT,
        "created": 1_700_000_000_000_000_000,
        "encryption": "aes-256-gcm",
    }
    config_object = ref.seal(ref.CONFIG, VAULT, secret("salt config"), ref.canonical(config))
    keyring = {
        "version": 1, "vault": VAULT, "config": ref.blake3(config_object).digest(), "id_key": ID_KEY,
        "epochs": [[number, key, 1_700_000_000_000_000_000 + number] for number, key in EPOCHS.items()],
    }  # fmt: skip
    record = {
        "version": 1, "requires": [], "vault": VAULT, "time": 1_700_000_000_000_000_001,
        "end": 1_700_000_000_000_000_999, "host": "host", "user": "üser", "tags": ["one", "two"],
        "program": "lumina-vault 0", "parent": bytes(32),
        "components": [
            {"kind": "dir", "name": "data", "status": "done", "reason": "", "complete": True, "consistency": "live",
             "source": b"/srv/d\xff", "profile": 1, "tree": [3, 0, [[bytes(32), 3, b""]]], "content": None,
             "digests": {}, "files": 1, "dirs": 2, "size": 300, "new_bytes": 200, "stored_bytes": 100, "left_out": 0,
             "notes": [], "meta": {}},
            {"kind": "stream", "name": "dump", "status": "failed", "reason": "why", "complete": False,
             "consistency": "native", "source": b"", "profile": 2, "tree": None,
             "content": [70_000, 0, [[bytes(32), 0, 65_536], [b"", 0, 4_464]]],
             "digests": {"sha256:00": [1, 0, [[b"\x01" * 32, 5, 1]]]}, "files": 0, "dirs": 0, "size": 1 << 40,
             "new_bytes": 0, "stored_bytes": 0, "left_out": 2, "notes": ["a", "b"], "meta": {"k": "v"}},
        ],
        "meta": {},
    }  # fmt: skip
    annotation = {
        "version": 1, "vault": VAULT, "target": "snapshot", "id": bytes(32), "kind": "pinned", "time": -5, "value": "",
        "replaces": ["0" * 32],
    }  # fmt: skip
    gc = {"version": 1, "vault": VAULT, "generation": 300, "condemned": [bytes(32), b"\xff" * 32]}
    slot = slots()[0]["map"]
    found = []
    for kind, type_, value in (
        ("config", ref.CONFIG, config), ("keyring", ref.KEYRING, keyring), ("slot", ref.SLOT, slot),
        ("snapshot", ref.SNAPSHOT, record), ("annotation", ref.ANNOTATION, annotation), ("gc", ref.GC, gc),
    ):  # fmt: skip
        payload = ref.canonical(value)
        clear = type_ in (ref.CONFIG, ref.SLOT)
        for epoch in (0,) if clear else (2,) if type_ == ref.KEYRING else (0, 1, 2):
            ikm = None if epoch == 0 else MASTER if type_ == ref.KEYRING else EPOCHS[epoch]
            data = ref.seal(type_, VAULT, secret(f"salt {kind}"), payload, epoch, ikm)
            found.append({"kind": kind, "type": type_, "epoch": epoch, "payload": payload.hex(), "bytes": data.hex()})
    return found


KDF = {"name": "argon2id", "time": 2, "memory": 64, "lanes": 2}
NO_KDF = {"name": "none", "time": 0, "memory": 0, "lanes": 0}


def slots() -> list[dict[str, Any]]:
    """Key slots that wrap the master key, cheap to open."""
    found = []
    for kind, kdf, wanted in (("passphrase", KDF, "gölden".encode()), ("keyfile", NO_KDF, secret("key file"))):
        slot = ref.key_slot(
            VAULT, secret(f"slot {kind}", 8).hex(), kind, wanted, MASTER, kdf, secret(f"slot salt {kind}"),
            secret(f"slot nonce {kind}", 12), "label", 1_700_000_000_000_000_000,
        )  # fmt: skip
        found.append({"kind": kind, "secret": wanted.hex(), "map": slot, "payload": ref.canonical(slot).hex()})
    return found


def encodings() -> list[dict[str, str]]:
    """Structures of format 1 in their canonical encoding."""
    numbers = [0, 127, 128, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1]
    entries = tree_entries("encodings", 40)
    entries[3][4:6] = [-1, -(1 << 63)]
    entries[4][7:9] = [(1 << 64) - 1, 4_000_000_000]
    entries[5][13], entries[5][16] = b"\xff\xfe\n" * 100, 1
    entries[6][15] = [[b"user.empty", b""], [b"user.long", bytes(300)]]
    return [
        {"kind": "ContentNode", "bytes": ref.canonical([1, 1, [[bytes(32), n, max(n, 1)] for n in numbers]]).hex()},
        {
            "kind": "TreeNode",
            "bytes": ref.canonical([1, 0, [[bytes(32), max(n, 1), b"p" * (n % 300)] for n in numbers]]).hex(),
        },
        {"kind": "Leaf", "bytes": ref.canonical([1, entries]).hex()},
        {"kind": "Leaf", "bytes": ref.canonical([1, []]).hex()},
    ]


def vectors() -> dict[str, Any]:
    keyed = b"whats the Elvish word for friend"
    table = b"".join(value.to_bytes(8, "little") for value in ref.GEAR)
    return {
        "format": 1,
        "vault": VAULT.hex(),
        "secrets": {
            "master": MASTER.hex(), "id_key": ID_KEY.hex(), "epochs": {str(n): k.hex() for n, k in EPOCHS.items()},
        },
        "chunk_ids": [
            {"plaintext": plain.hex(), "key": key.hex(), "id": ref.chunk_id(plain, key or None).hex()}
            for plain in (b"", b"abc", ref.noise("chunk", 3000)) for key in (b"", keyed, ID_KEY)
        ],
        "derivations": [
            {"ikm": secret("ikm").hex(), "salt": secret("salt").hex(), "purpose": purpose,
             "key": ref.derive(secret("ikm"), secret("salt"), purpose.encode(), VAULT).hex()}
            for purpose in ("pack-data", "pack-meta", "keyring", "slot", "snapshot", "annotation", "gc", "parity")
        ],
        "gear": {"blake3": ref.blake3(table).hexdigest(), "first": [hex(value) for value in ref.GEAR[:4]]},
        "cuts": cuts(),
        "bundles": bundles(),
        "encodings": encodings(),
        "contents": contents(),
        "trees": trees(),
        "packs": packs(),
        "sealed": sealed(),
        "slots": [{key: value for key, value in slot.items() if key != "map"} for slot in slots()],
    }  # fmt: skip


# --- vaults -----------------------------------------------------------------------------------------------------------


def write_source(root: Path) -> None:
    """A small tree that holds one of everything that the format can say and that an ordinary user can make."""
    (root / "sub/empty").mkdir(parents=True)
    (root / "sub/deep").mkdir()
    (root / "plain.txt").write_bytes(ref.text("golden", 3_000))
    (root / "binary").write_bytes(ref.noise("golden", 900))
    (root / "empty").touch()
    (root / "setuid").write_bytes(b"#!/bin/sh\n")
    os.chmod(root / "setuid", 0o4755)
    (root / "large.txt").write_bytes(ref.text("golden", 500) * 1_200)
    (root / "rows.db").write_bytes(b"SQLite format 3\0" + bytes(20_000_000))
    with open(root / "sparse", "wb") as file:
        file.write(b"head")
        file.seek(3 << 20)
        file.write(b"middle")
        file.truncate(8 << 20)
    with open(os.fsencode(root) + b"/sub/na\xefve \xff\n", "wb") as file:
        file.write(b"a name that is not UTF-8")
    os.symlink("../plain.txt", root / "sub/link")
    os.symlink("/nowhere/\udcff", root / "dangling")
    os.link(root / "plain.txt", root / "sub/deep/same")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "binary", "user.golden", b"\x00value\xff")
    for number in range(20):
        (root / f"sub/deep/{number:02}").write_bytes(b"%d\n" % number * number)
    for place, directories, files in os.walk(os.fsencode(root), topdown=False):
        for name in directories + files + [b"."]:
            os.utime(os.path.join(place, name), ns=(10**18 + 1, 10**18 + 123_456_789), follow_symlinks=False)


def make_vault(place: Path, encrypted: bool) -> None:
    from lumina_vault import crypto, ids
    from lumina_vault.model import Annotation, encode
    from lumina_vault.ops import vaults
    from lumina_vault.ops.snapshot import StreamSource, plan_snapshot
    from lumina_vault.settings import load
    from lumina_vault.store import keystore

    source, root = place / "source", place / "vault"
    source.mkdir()
    write_source(source)
    environment = {"HOME": str(place), "VAULT_PASSPHRASE": PASSPHRASE} if encrypted else {"HOME": str(place)}
    settings = load(url=str(root), environ=environment)
    vaults.create_vault(settings, vaults.secrets(settings)[0] if encrypted else None)
    with vaults.open_vault(settings, write=True) as repository:
        stream = StreamSource("dump", command=(sys.executable, "-c", "print('row\\n' * 50_000)"))
        first = plan_snapshot([str(source)], [stream], tags=["first"]).execute(repository)
        (source / "plain.txt").write_bytes(b"changed\n")
        (source / "binary").unlink()
        plan_snapshot([str(source)], [], tags=["second", "changed"]).execute(repository)
        note = Annotation(
            vault=repository.keys.vault, target="snapshot", id=first.id, kind="pinned", time=first.record.end
        )
        repository.backend.put(
            f"annotations/{secret('annotation', 16).hex()}",
            crypto.seal(repository.keys, crypto.ANNOTATION, encode(note)),
        )
        if encrypted:
            key_file = keystore.Secret("keyfile", secret("vault key file"), "make.py")
            keystore.add_slot(repository.backend, repository.keys, key_file, "a key file")
        assert ids.is_object_name("annotations/" + secret("annotation", 16).hex())


def archive(root: Path, target: Path) -> None:
    """The truth of a vault alone: no index, no sessions, no spool files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and name.parts[0] not in ("sessions", "tmp") and not name.name.startswith("index.db"):
                info = tarfile.TarInfo(f"{root.name}/{name}")
                info.size, info.mode = path.stat().st_size, 0o400
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    target.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


def make_vaults(replace: bool) -> None:
    for mode in ("plain", "encrypted"):
        target = HERE / f"v1-{mode}.tar.gz"
        if target.exists() and not replace:
            sys.exit(f"{target} is there: what an earlier writer wrote is the point of it; --replace to make it again")
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            make_vault(place, mode == "encrypted")
            archive(place / "vault", target)
            seen = reader.listing(place / "vault", PASSPHRASE if mode == "encrypted" else None)
            check_against_source(seen, place / "source")
        (HERE / f"v1-{mode}.json").write_text(json.dumps(seen, indent=1) + "\n")


def check_against_source(seen: dict[str, Any], source: Path) -> None:
    """The expected listing says what the file system said."""
    tree = {entry["path"]: entry for entry in seen["snapshots"][-1]["components"][0]["tree"]}
    names = [""]
    for place, directories, files in os.walk(os.fsencode(source)):
        names += [
            os.path.relpath(os.path.join(place, n), os.fsencode(source)).decode("latin-1") for n in directories + files
        ]
    assert set(names) == set(tree)
    for name, entry in tree.items():
        path = os.path.join(os.fsencode(source), name.encode("latin-1"))
        status = os.lstat(path)
        assert (entry["mode"], entry["mtime"]) == (oct(status.st_mode), status.st_mtime_ns), name
        if stat.S_ISREG(status.st_mode) and not entry["flags"]:
            with open(path, "rb") as file:
                assert entry["sha256"] == hashlib.sha256(file.read()).hexdigest(), name


if __name__ == "__main__":
    if sys.argv[1:2] == ["vectors"]:
        (HERE / "vectors.json").write_text(json.dumps(vectors(), indent=1) + "\n")
    elif sys.argv[1:2] == ["vaults"]:
        make_vaults("--replace" in sys.argv)
    else:
        sys.exit(__doc__)
