"""The engine against the pinned vectors of format 1, and the vectors against a second implementation of the format."""

import hashlib
import json
import zlib
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
from golden import make
from golden import reference as ref
from pyfastcdc.py.constants import GEAR

from lumina_vault import crypto, ids, model
from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, NewerFormat
from lumina_vault.model import Keyring, Ref, TreeRef
from lumina_vault.store import contents, profiles
from lumina_vault.store.contents import NodeList, content_digest
from lumina_vault.store.pack import PackWriter, check_pack, open_chunk, read_table
from lumina_vault.store.trees import TreeBuilder, sort_key
from lumina_vault.store.uploader import Counter

VECTORS = json.loads((Path(__file__).parent / "golden/vectors.json").read_text())
VAULT = bytes.fromhex(VECTORS["vault"])
MASTER = bytes.fromhex(VECTORS["secrets"]["master"])
ID_KEY = bytes.fromhex(VECTORS["secrets"]["id_key"])
EPOCHS = {int(number): bytes.fromhex(key) for number, key in VECTORS["secrets"]["epochs"].items()}


def keys(epoch):
    """Keys whose newest epoch is this one; 0: of a plain vault."""
    if not epoch:
        return Keys(VAULT, None)
    epochs = [(number, EPOCHS[number], 0) for number in sorted(EPOCHS, key=lambda n: n == epoch)]
    return Keys(VAULT, Keyring(vault=VAULT, config=b"", id_key=ID_KEY, epochs=epochs), MASTER)


def named(section, *fields):
    return [pytest.param(v, id="-".join(str(v[f]) for f in fields)) for v in VECTORS[section]]


# --- the vectors themselves -------------------------------------------------------------------------------------------


def test_what_the_two_implementations_share_is_what_its_specification_says():
    """BLAKE3's own vectors, RFC 5869 A.1 (its first block), FIPS 202, CRC-32's check value, Argon2's test suite."""
    assert ref.chunk_id(b"", None).hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    keyed = ref.chunk_id(b"", b"whats the Elvish word for friend").hex()
    assert keyed == "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"
    made = ref.hkdf(bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert made.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert hashlib.shake_128(b"").hexdigest(4) == "7f9c2ba4"
    assert zlib.crc32(b"123456789") == 0xCBF43926
    made = ref.argon2id(b"password", b"somesalt", 2, 256, 1)
    assert made.hex() == "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"


def test_the_committed_vectors_are_those_that_the_second_implementation_makes(monkeypatch):
    """All but what depends on a release of zstd (packs, sealed objects) or takes long."""
    short = [stream for stream in make.STREAMS if stream[3] < 1_100_000]
    monkeypatch.setattr(make, "STREAMS", short)
    monkeypatch.setattr(make, "packs", list)
    monkeypatch.setattr(make, "sealed", list)
    made = json.loads(json.dumps(make.vectors()))
    kept = [v for v in VECTORS["cuts"] if v["size"] < 1_100_000]
    assert len(kept) > 20
    assert made == {**VECTORS, "packs": [], "sealed": [], "cuts": kept}


# --- ids, keys, profiles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["chunk_ids"])
def test_chunk_ids(vector):
    key = bytes.fromhex(vector["key"])
    made = Keys(VAULT, Keyring(vault=VAULT, config=b"", id_key=key, epochs=[(1, b"", 0)]) if key else None)
    assert made.chunk_id(bytes.fromhex(vector["plaintext"])).hex() == vector["id"]


@pytest.mark.parametrize("vector", named("derivations", "purpose"))
def test_derived_keys(vector):
    ikm, salt = bytes.fromhex(vector["ikm"]), bytes.fromhex(vector["salt"])
    assert crypto.derive(ikm, salt, vector["purpose"].encode(), VAULT).hex() == vector["key"]


def test_every_purpose_has_a_key_of_its_own():
    assert {v["purpose"].encode() for v in VECTORS["derivations"]} == set(crypto.PURPOSE.values())
    assert len({v["key"] for v in VECTORS["derivations"]}) == len(crypto.PURPOSE)


def test_gear_table():
    table = b"".join(value.to_bytes(8, "little") for value in GEAR)
    assert ids.object_hash(table).hex() == VECTORS["gear"]["blake3"]
    assert list(GEAR) == ref.GEAR


@pytest.mark.parametrize("vector", named("cuts", "profile", "kind", "seed", "size"))
def test_cuts(vector):
    data = ref.sample(vector["kind"], vector["seed"], vector["size"])
    chunks = profiles.Cutter(vector["profile"]).cut(memoryview(data), last=True)
    assert [len(chunk) for chunk in chunks] == vector["lengths"]
    assert sum(vector["lengths"]) == vector["size"]


def test_a_cut_depends_only_on_the_bytes_from_the_chunk_s_start():
    """The second implementation on data that no vector pins: what stands before a chunk does not matter."""
    data = ref.noise("another", 700_000)
    lengths = ref.cut(data, model.SMALL)
    start = sum(lengths[:2])
    rest = profiles.Cutter(model.SMALL).cut(memoryview(data)[start:], last=True)
    assert [len(chunk) for chunk in rest] == lengths[2:]


@pytest.mark.parametrize("vector", named("bundles", "seed", "keyed"))
def test_bundles(vector):
    held, counts = 0, [0]
    for data in make.bundle_files(vector["seed"], vector["count"], vector["most"]):
        held += len(data)
        counts[-1] += 1
        if profiles.bundle_ends(held, keys(vector["keyed"]).chunk_id(data)):
            held = 0
            counts.append(0)
    assert [count for count in counts if count] == vector["files"]


# --- structures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named("encodings", "kind"))
def test_encodings(vector):
    data = bytes.fromhex(vector["bytes"])
    value = model.decode(data, getattr(model, vector["kind"]), "a vector")
    assert model.encode(value) == data
    assert ref.parse(data) == msgspec.msgpack.decode(data)
    assert ref.canonical(ref.parse(data)) == data


@pytest.mark.parametrize("value", [2**exponent + more for exponent in (0, 5, 7, 8, 16, 32, 63) for more in (-1, 0, 1)])
def test_integers_take_their_shortest_form(value):
    for number in (value, -value if value <= 2**63 else 0):
        assert msgspec.msgpack.encode(number) == ref.canonical(number)
        assert ref.parse(ref.canonical(number)) == number


@pytest.mark.parametrize("size", [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536])
def test_lengths_take_their_shortest_form(size):
    for value in (bytes(size), "x" * size, [None] * size, {str(i): i for i in range(size)}):
        assert msgspec.msgpack.encode(value) == ref.canonical(value)
        assert ref.parse(ref.canonical(value)) == value


KINDS = {
    "Config": "config", "Keyring": "keyring", "KeySlot": "slot", "Record": "snapshot", "Annotation": "annotation",
    "GcState": "gc",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_revision_s_fields_are_ignored_and_its_requirements_are_not(kind):
    payload = next(bytes.fromhex(v["payload"]) for v in VECTORS["sealed"] if v["kind"] == KINDS[kind])
    value = ref.parse(payload)
    struct = getattr(model, kind)
    known = model.decode(payload, struct, "it")
    assert model.decode(ref.canonical({**value, "later": [1, {"x": b""}]}), struct, "it") == known
    with pytest.raises(NewerFormat, match="version 2"):
        model.decode(ref.canonical({**value, "version": 2}), struct, "it")
    if hasattr(known, "requires"):
        with pytest.raises(NewerFormat, match="dictionary"):
            model.decode(ref.canonical({**value, "requires": ["dictionary"]}), struct, "it")
    for missing in value:
        if missing in ("vault", "epochs", "wrapped", "components", "encryption", "generation", "id"):
            with pytest.raises(Damage):
                model.decode(ref.canonical({k: v for k, v in value.items() if k != missing}), struct, "it")


@pytest.mark.parametrize("kind", ["ContentNode", "TreeNode", "Leaf"])
def test_appended_elements_are_ignored(kind):
    payload = next(bytes.fromhex(v["bytes"]) for v in VECTORS["encodings"] if v["kind"] == kind)
    value = ref.parse(payload)
    struct = getattr(model, kind)
    known = model.decode(payload, struct, "it")
    assert model.decode(ref.canonical([*value, "later"]), struct, "it") == known
    longer = [[*item, "later", None] for item in value[-1]]
    assert model.decode(ref.canonical([*value[:-1], longer]), struct, "it") == known
    with pytest.raises(NewerFormat):
        model.decode(ref.canonical([2, *value[1:]]), struct, "it")


# --- lists of extents and trees ---------------------------------------------------------------------------------------


class Recorder:
    """Takes the place of the uploader: keeps what is stored, in order."""

    def __init__(self):
        self.stored = []

    def submit(self, chunks, type_, counter, done=None):
        assert type_ == crypto.META
        self.stored += [bytes(chunk) for chunk in chunks]
        future = Future()
        future.set_result([])
        return future


def check_outline(vector, height, root, stored, keys):
    by_id = {keys.chunk_id(payload): payload for payload in stored}
    assert height == vector["height"]
    assert msgspec.msgpack.encode(root).hex() == vector["root"]
    assert len(by_id) == vector["stored"]
    return by_id


@pytest.mark.parametrize("vector", named("contents", "count", "keyed"))
def test_nodes_of_contents(vector):
    made, recorder = keys(vector["keyed"]), Recorder()
    writer = contents.ContentWriter(made, recorder, Counter())
    refs = make.many_refs(vector["seed"], vector["count"])
    for chunk, _, length in refs:
        if chunk:
            future = Future()
            future.set_result([chunk])
            writer.block(future, [length])
        else:
            writer.hole(length)
    content = writer.finish()
    assert content.size == vector["size"]
    by_id = check_outline(vector, content.height, content.refs, recorder.stored, made)
    assert content_digest(made, model.LARGE, content).hex() == vector["digest"]
    _, _, expected = ref.fold_contents(refs, made.id_key)
    assert by_id == expected


@pytest.mark.parametrize("vector", named("trees", "count", "keyed"))
def test_leaves_and_nodes_of_trees(vector):
    made, recorder = keys(vector["keyed"]), Recorder()
    builder = TreeBuilder(made, recorder, Counter())
    entries = make.tree_entries(vector["seed"], vector["count"])
    assert [e[0] for e in entries] == sorted((e[0] for e in entries), key=sort_key)
    for entry in entries:
        builder.add(model.decode(ref.canonical([1, [entry]]), model.Leaf, "an entry").entries[0])
    tree = builder.finish()
    assert tree.count == vector["entries"] == len(entries)
    by_id = check_outline(vector, tree.height, tree.refs, recorder.stored, made)
    digest = hashlib.sha256(b"".join(sorted(by_id.values()))).digest()
    _, _, expected = ref.fold_tree(entries, made.id_key)
    assert digest == hashlib.sha256(b"".join(sorted(expected.values()))).digest()


def test_a_list_of_exactly_64_refs_stays_inline():
    for count, height in ((64, 0), (65, 1)):
        nodes = NodeList(1024, lambda r: r.chunk, lambda _, refs: Ref(b"n" * 32, 0, len(refs)))
        for _ in range(count):
            nodes.add(Ref(bytes(32), 0, 1))  # an id that ends a node wherever one may end
        assert nodes.finish()[0] == height
    trees = NodeList(256, lambda r: r.chunk, lambda _, refs: TreeRef(b"n" * 32, len(refs), b""))
    for _ in range(257):
        trees.add(TreeRef(b"\xff" * 32, 1, b""))  # an id that never ends one
    assert [ref.count for ref in trees.finish()[1]] == [256, 1]


# --- packs and sealed objects -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named("packs", "type", "epoch"))
def test_packs_are_read(vector):
    data, made = bytes.fromhex(vector["bytes"]), keys(vector["epoch"])
    backend, name = MemoryBackend(), bytes.fromhex(vector["name"])
    path = ids.pack_path(name)
    backend.put(path, data)
    table = check_pack(backend, made, name, len(data))
    assert table == read_table(backend, made, path, len(data))._replace(header=table.header)
    header = table.header
    salt = bytes.fromhex(vector["salt"])
    assert (header.type, header.epoch, header.vault, header.salt) == (vector["type"], vector["epoch"], VAULT, salt)
    assert header.pack() == data[:64]
    plaintexts = [bytes.fromhex(plain) for plain in vector["plaintexts"]]
    assert len(table.rows) == len(plaintexts)
    cipher = made.cipher(header)
    for row, plain, (codec, payload) in zip(table.rows, plaintexts, vector["payloads"], strict=True):
        stored = data[row.offset : row.offset + row.stored]
        assert row.codec == codec
        assert row.stored == len(bytes.fromhex(payload)) + (16 if vector["epoch"] else 0)
        assert open_chunk(cipher, header.type, row, stored) == plain
        assert made.chunk_id(plain) == row.chunk


@pytest.mark.parametrize("vector", named("packs", "type", "epoch"))
def test_packs_are_written_to_the_byte(vector, monkeypatch):
    monkeypatch.setattr(ids, "random_id", lambda size=32: bytes.fromhex(vector["salt"])[:size])
    backend, made = MemoryBackend(), keys(vector["epoch"])
    writer = PackWriter(backend, made, vector["type"])
    for plain, (codec, payload) in zip(vector["plaintexts"], vector["payloads"], strict=True):
        data = bytes.fromhex(plain)
        writer.add(made.chunk_id(data), codec, bytes.fromhex(payload), len(data))
    sealed = writer.seal()
    backend.publish(writer.spool, ids.pack_path(sealed.name), sealed.length)
    assert backend.read(ids.pack_path(sealed.name)).hex() == vector["bytes"]
    assert sealed.name.hex() == vector["name"]


@pytest.mark.parametrize("vector", named("sealed", "kind", "epoch"))
def test_sealed_objects_are_read(vector):
    data = bytes.fromhex(vector["bytes"])
    opened = crypto.unseal(keys(vector["epoch"]), vector["type"], data, vector["kind"])
    assert opened.hex() == vector["payload"]
    assert crypto.Header.parse(data, vector["kind"]).pack() == data[:64]
    struct = {name: kind for kind, name in KINDS.items()}[vector["kind"]]
    assert model.encode(model.decode(opened, getattr(model, struct), "it")) == opened


@pytest.mark.parametrize("vector", named("sealed", "kind", "epoch"))
def test_sealed_objects_are_written_so_that_the_other_implementation_reads_them(vector):
    payload = bytes.fromhex(vector["payload"])
    data = crypto.seal(keys(vector["epoch"]), vector["type"], payload)
    ikm = None if not vector["epoch"] else MASTER if vector["kind"] == "keyring" else EPOCHS[vector["epoch"]]
    assert ref.unseal(data, VAULT, ikm) == payload
    clear = vector["kind"] in ("config", "slot")
    assert (
        data[:32] == ref.header(vector["type"], ikm is not None, 0 if clear else vector["epoch"], VAULT, bytes(32))[:32]
    )


@pytest.mark.parametrize("vector", named("slots", "kind"))
def test_key_slots_open(vector):
    slot = model.decode(bytes.fromhex(vector["payload"]), model.KeySlot, "a slot")
    wanted = bytes.fromhex(vector["secret"])
    assert crypto.open_slot(slot, wanted) == MASTER
    assert crypto.open_slot(slot, wanted[:-1] + b"?") is None
    for field in ("vault", "slot", "salt", "nonce", "wrapped"):
        value = getattr(slot, field)
        other = msgspec.structs.replace(slot, **{field: value[:-1] + ("?" if isinstance(value, str) else b"?")})
        assert crypto.open_slot(other, wanted) is None


@pytest.mark.parametrize("kind", ["passphrase", "keyfile"])
def test_key_slots_are_made_so_that_the_other_implementation_opens_them(kind):
    wanted = bytes(32)
    slot = crypto.make_slot(VAULT, MASTER, kind, wanted, "", 0)
    kdf = {"name": slot.kdf.name, "time": slot.kdf.time, "memory": slot.kdf.memory, "lanes": slot.kdf.lanes}
    again = ref.key_slot(VAULT, slot.slot, kind, wanted, MASTER, kdf, slot.salt, slot.nonce, "", 0)
    assert again["wrapped"] == slot.wrapped
    if kind == "passphrase":
        assert kdf == {"name": "argon2id", "time": 3, "memory": 65_536, "lanes": 4}
    else:
        assert kdf == {"name": "none", "time": 0, "memory": 0, "lanes": 0}


def test_key_files():
    text = crypto.key_file_text(bytes(range(32)))
    assert text == "lumina-vault-key-1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"
    assert crypto.parse_key_file(text, "f") == bytes(range(32))


def test_object_names():
    name = bytes(range(32))
    assert ids.pack_path(name) == f"packs/00/{name.hex()}"
    assert ids.snapshot_path(name) == f"snapshots/{name.hex()}"
    assert ids.is_object_name(ids.pack_path(name))
    assert not ids.is_object_name(f"packs/01/{name.hex()}")
