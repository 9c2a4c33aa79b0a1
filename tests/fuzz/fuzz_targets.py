"""Every parser that reads vault bytes, with seeds that it accepts: out of it come values and `VaultError`s alone.

Most targets have two forms. The first takes the bytes as a broken disk leaves them. The second ("crafted") takes what
an attacker who can compute checksums, or who holds a key, would make: the mutated part is put behind valid checksums
and tags, so that the mutation reaches the code behind them.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden import make
from golden import reference as ref

from lumina_vault import codec, crypto, ids, model
from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, VaultError
from lumina_vault.index import ChunkRow
from lumina_vault.model import Config, Content, GcState, Keyring, KeySlot, Record, Tree, TreeRef
from lumina_vault.store.contents import extents
from lumina_vault.store.fetch import StoredTree
from lumina_vault.store.keystore import Secret, load_config, unlock
from lumina_vault.store.pack import FOOTER_SIZE, check_pack, open_chunk, parse_footer, parse_table, read_table
from lumina_vault.store.rebuild import reachable
from lumina_vault.store.repository import open_record
from lumina_vault.testing.memory import VAULT, make_keys, secret

PLAIN, ENCRYPTED = make_keys(False), make_keys(True)
DATA_KEY = secret("epoch 2")
_WALK = 5_000
"""Entries, extents and nodes that one case may visit."""


@dataclass(frozen=True)
class Target:
    """`run(data)` returns, or raises a `VaultError`; anything else is a defect."""

    name: str
    seeds: tuple[bytes, ...]
    run: Callable[[bytes], None]
    restructure: Callable[[bytes, random.Random], bytes] | None = None
    """Changes one value inside the structure that the bytes encode, for targets that take structures."""


def accepts(target: Target, data: bytes) -> bool:
    """Run one case; True if nothing was raised. What is no `VaultError` comes out."""
    try:
        target.run(data)
    except VaultError as error:
        said = str(error)
    else:
        return True
    assert said, "an error without a word"
    return False


# --- mutations --------------------------------------------------------------------------------------------------------

_MARKERS = bytes(
    [
        0xC0,
        0xC1,
        0xC4,
        0xC5,
        0xC6,
        0xC7,
        0xC9,
        0xCA,
        0xCB,
        0xCC,
        0xCF,
        0xD0,
        0xD3,
        0xD4,
        0xD9,
        0xDB,
        0xDC,
        0xDD,
        0xDE,
        0xDF,
    ]
)
_NUMBERS = [
    number.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for order in ("little", "big")
    for number in (0, 1, (1 << 8 * size) - 1, 1 << 8 * size - 1, (1 << 8 * size - 1) - 1, 64)
]


def mutate(data: bytes, seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, markers, cuts, copies, and parts of other seeds."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(made) + 1)
        length = min(rng.choice((1, 2, 4, 8, 32, 200)), len(made) - at)
        match rng.randrange(9):
            case 0 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 1 if made:
                made[at % len(made)] = rng.randrange(256)
            case 2:
                number = rng.choice(_NUMBERS)
                made[at : at + len(number)] = number
            case 3:
                made[at : at + 1] = bytes([rng.choice(_MARKERS)])
            case 4:
                del made[at:]
            case 5:
                del made[at : at + length]
            case 6:
                made[at:at] = made[at : at + length] * rng.choice((1, 2, 50))
            case 7:
                made[at:at] = rng.randbytes(rng.choice((1, 3, 64)))
            case _:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                made[at : at + length] = other[start : start + length]
    return bytes(made)


_VALUES: list[Any] = [
    0, 1, -1, 2, 8, 9, 64, 255, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63),
    None, True, b"", b"\0", b"\0" * 31, b"\0" * 32, b"\1" * 32, b"..", b"/", b"/etc/passwd", b"a/../../b", b"a//b",
    b"a/", b".", b"a\0b", b"\xff" * 5000, "", "..", "/", "a\0", "a" * 5000, [], {}, [[]], [b""], [b"", 0, 1], 0o40755,
    0o120777, 0o10644,
]  # fmt: skip


def restructure(data: bytes, rng: random.Random) -> bytes:
    """Another value at one place of a MessagePack structure; or an element twice, gone, or moved."""
    if len(data) > 1 << 20:
        return data
    value = ref.parse(data)
    place: Any = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return ref.canonical(rng.choice(_VALUES))
        key = rng.choice(keys)
        if isinstance(place[key], (list, dict)) and place[key] and rng.randrange(5):
            place = place[key]
            continue
        break
    match rng.randrange(8):
        case 0 if isinstance(place, list):
            place.insert(rng.randrange(len(place)), place[key])
        case 1:
            del place[key]
        case 2 if isinstance(place, list):
            rng.shuffle(place)
        case 3 if isinstance(place, list):
            place *= rng.choice((2, 65, 300)) if len(data) < 20_000 else 2
        case 4 if isinstance(place[key], int):
            place[key] += rng.choice((-1, 1))
        case _:
            place[key] = rng.choice(_VALUES)
    return ref.canonical(value)


def restructure_bundle(data: bytes, rng: random.Random) -> bytes:
    """The same for one of several chunks."""
    chunks = list(_bundle_of_chunks(data).values())
    at = rng.randrange(len(chunks))
    chunks[at] = restructure(chunks[at], rng)
    return _as_bundle(chunks)


def cases(target: Target, count: int, seed: int) -> Iterator[bytes]:
    """`count` mutations of a target's seeds, the same for the same seed."""
    rng = random.Random(f"{target.name}/{seed}")
    for number in range(count):
        data = target.seeds[number % len(target.seeds)]
        if target.restructure is None:
            yield mutate(data, target.seeds, rng)
            continue
        kind = rng.randrange(4)
        for _ in range((1, 1, 3, 0)[kind]):
            try:
                data = target.restructure(data, rng)
            except (AssertionError, OverflowError):  # an earlier change made it another thing, or too long
                break
        yield mutate(data, target.seeds, rng) if kind in (0, 3) else data


# --- headers and sealed objects ---------------------------------------------------------------------------------------

TYPES = {
    "config": crypto.CONFIG, "keyring": crypto.KEYRING, "slot": crypto.SLOT, "snapshot": crypto.SNAPSHOT,
    "annotation": crypto.ANNOTATION, "gc": crypto.GC,
}  # fmt: skip
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "config": Config, "keyring": Keyring, "slot": KeySlot, "snapshot": Record, "annotation": model.Annotation,
    "gc": GcState,
}  # fmt: skip


def payloads() -> dict[str, bytes]:
    """A canonical payload of each kind of sealed object."""
    found = {vector["kind"]: bytes.fromhex(vector["payload"]) for vector in make.sealed()}
    return {kind: ref.canonical({**ref.parse(payload), "vault": VAULT}) for kind, payload in found.items()}


PAYLOADS = payloads()


def _header(data: bytes) -> None:
    header = crypto.Header.parse(data, "it")
    assert header.pack() == data[:64]


def _headers() -> tuple[bytes, ...]:
    types = (crypto.DATA, crypto.META, crypto.CONFIG, crypto.PARITY)
    return tuple(keys.new_header(type_).pack() for keys in (PLAIN, ENCRYPTED) for type_ in types)


def _sealed(kind: str, keys: Keys) -> Target:
    seeds = (crypto.seal(keys, TYPES[kind], PAYLOADS[kind]),)

    def run(data: bytes) -> None:
        assert crypto.unseal(keys, TYPES[kind], data, "it") == PAYLOADS[kind]
        assert data in seeds, "changed bytes were taken for what was written"

    return Target(f"sealed {kind} {'encrypted' if keys.encrypted else 'plain'}", seeds, run)


def _sealed_crafted(keys: Keys) -> Target:
    """The zstd frame of a record, mutated, then sealed as it should be."""
    frames = tuple(codec.zstd_frame(payload) for payload in (*PAYLOADS.values(), b"", bytes(100_000)))
    ikm = DATA_KEY if keys.encrypted else None

    def run(frame: bytes) -> None:
        head = ref.header(crypto.SNAPSHOT, keys.encrypted, keys.epoch, VAULT, bytes(32))
        body = frame
        if ikm is not None:
            body = ref.encrypt(ref.derive(ikm, bytes(32), b"snapshot", VAULT), bytes(12), frame, head)
        data = head + struct.pack("<I", len(body)) + body
        if ikm is None:
            data += ids.object_hash(data)
        payload = crypto.unseal(keys, crypto.SNAPSHOT, data, "it")
        assert len(payload) <= codec.MAX_PLAIN

    return Target(f"sealed crafted {'encrypted' if keys.encrypted else 'plain'}", frames, run)


def _opened(kind: str) -> Target:
    """The structure in a sealed object."""

    def run(data: bytes) -> None:
        value = model.decode(data, STRUCTS[kind], "it")
        assert model.decode(model.encode(value), STRUCTS[kind], "it") == value

    return Target(f"decode {kind}", (PAYLOADS[kind],), run, restructure)


def _keyring(data: bytes) -> None:
    """A whole vault whose keyring somebody with the master key made: opened, and written to."""
    backend = MemoryBackend()
    backend.put("config", CONFIG_OBJECT)
    backend.put(f"keys/{SLOT.slot}", crypto.seal(PLAIN, crypto.SLOT, model.encode(SLOT)))
    backend.put("keyring", crypto.seal(MASTER_KEYS, crypto.KEYRING, data))
    config, raw = load_config(backend)
    keys = unlock(backend, config, raw, lambda: [Secret("keyfile", bytes(32), "test")])
    assert keys.encrypted
    crypto.unseal(keys, crypto.GC, crypto.seal(keys, crypto.GC, b"payload"), "gc")


CONFIG_OBJECT = crypto.seal(PLAIN, crypto.CONFIG, PAYLOADS["config"])
MASTER_KEYS = Keys(VAULT, Keyring(vault=VAULT, config=b"", id_key=b"", epochs=[(1, b"", 0)]), secret("master"))
SLOT = crypto.make_slot(VAULT, secret("master"), "keyfile", bytes(32), "", 0)


def _keyrings() -> tuple[bytes, ...]:
    value = ref.parse(PAYLOADS["keyring"])
    return (ref.canonical({**value, "config": ids.object_hash(CONFIG_OBJECT)}),)


def _slot(data: bytes) -> None:
    """A key slot made by anybody; its cost is bounded before it is paid."""
    slot = model.decode(data, KeySlot, "a slot")
    if slot.kdf.memory > 1 << 12 and slot.kdf.memory <= crypto.MAX_KDF_MEMORY_KIB:
        return  # allowed, and slow: `test_bombs` opens the dearest one
    assert crypto.open_slot(slot, b"wrong") is None


def _key_file(data: bytes) -> None:
    secret_ = crypto.parse_key_file(data.decode("ascii", "replace"), "f")
    assert len(secret_) == 32


# --- packs ------------------------------------------------------------------------------------------------------------


def _pack_rows(keys: Keys) -> list[tuple[bytes, int, bytes, int]]:
    rows = []
    for plain in (b"", b"one", b"two " * 500, bytes(70_000)):
        codec_, payload = codec.compress(plain, 3)
        rows.append((keys.chunk_id(plain), codec_, bytes(payload), len(plain)))
    return rows


def _packs(keys: Keys) -> tuple[bytes, ...]:
    ikm = DATA_KEY if keys.encrypted else None
    return tuple(
        ref.pack(type_, VAULT, bytes(32), rows, keys.epoch, ikm)
        for type_ in (crypto.DATA, crypto.META)
        for rows in (_pack_rows(keys), _pack_rows(keys)[:1], [])
    )


def _read_pack(keys: Keys, data: bytes) -> None:
    """As a rebuild, a restore and a verification read it. Chunks that open are what their ids say."""
    name = ids.object_hash(data)
    backend = MemoryBackend()
    path = ids.pack_path(name)
    backend.put(path, data)
    table = check_pack(backend, keys, name, len(data))
    assert table.rows == read_table(backend, keys, path, len(data)).rows
    cipher = keys.cipher(table.header)
    for row in table.rows:
        plain = open_chunk(cipher, table.header.type, row, data[row.offset : row.offset + row.stored])
        assert len(plain) == row.plain <= codec.MAX_PLAIN


def _pack(keys: Keys) -> Target:
    seeds = _packs(keys)

    def run(data: bytes) -> None:
        if data not in seeds:
            # Under its first name the change is found at once; it is read under its new one all the same.
            backend = MemoryBackend()
            backend.put(ids.pack_path(bytes(32)), data)
            try:
                check_pack(backend, keys, bytes(32), len(data))
            except Damage:
                pass
            else:
                raise AssertionError("bytes under a name that is not theirs")
        _read_pack(keys, data)

    return Target(f"pack {'encrypted' if keys.encrypted else 'plain'}", seeds, run)


def _pack_crafted(keys: Keys) -> Target:
    """Entries and table mutated as one, then closed with a valid checksum and, if encrypted, tags."""
    ikm = DATA_KEY if keys.encrypted else None
    count = len(_pack_rows(keys))
    whole = ref.pack(crypto.DATA, VAULT, bytes(32), _pack_rows(keys), keys.epoch, ikm)
    toc = struct.unpack("<Q", whole[-56:-48])[0]
    entries, rows = whole[64:toc], b""
    position = 64
    for name, codec_, _, stored in ref.unpack(whole, VAULT, ikm):
        plain = next(plain for row, _, _, plain in _pack_rows(keys) if row == name)
        rows += name + struct.pack("<II", stored, plain) + bytes([codec_, 0, 0, 0]) + bytes(4)
        position += stored

    def run(data: bytes) -> None:
        table, body = data[: 48 * count], data[48 * count :]
        head = ref.header(crypto.DATA, keys.encrypted, keys.epoch, VAULT, bytes(32))
        tag = 16 if ikm else 0
        start = struct.pack("<QII", 64 + len(body), len(table) + tag, len(table) // 48)
        if ikm:
            key = ref.derive(ikm, bytes(32), b"pack-data", VAULT)
            table = ref.encrypt(key, bytes(8) + b"\xff" * 4, table, head + start)
        closed = head + body + table + start + ids.object_hash(head + table + start) + b"LVTAIL\x00\x01"
        _read_pack(keys, closed)

    return Target(f"pack crafted {'encrypted' if keys.encrypted else 'plain'}", (rows + entries,), run)


def _footer(data: bytes) -> None:
    footer, length = data[:FOOTER_SIZE].ljust(FOOTER_SIZE, b"\0"), int.from_bytes(data[FOOTER_SIZE:], "little")
    offset, stored, count = parse_footer(footer, length, "packs/it")
    assert offset + stored + FOOTER_SIZE == length
    assert stored <= 48 * count + 16


def _footers() -> tuple[bytes, ...]:
    return tuple(pack[-FOOTER_SIZE:] + struct.pack("<Q", len(pack)) for pack in _packs(PLAIN) + _packs(ENCRYPTED))


def _table(data: bytes) -> None:
    """Header, table and footer as three ranged reads give them, cut anywhere."""
    head, footer, table = data[:64], data[64 : 64 + FOOTER_SIZE].ljust(FOOTER_SIZE, b"\0"), data[64 + FOOTER_SIZE :]
    length = int.from_bytes(footer[:8], "little") + len(table) + FOOTER_SIZE
    for keys in (PLAIN, ENCRYPTED):
        try:
            parse_table(keys, "packs/it", head, table, footer, length)
        except VaultError as error:
            last = error
        else:
            return
    raise last


def _tables() -> tuple[bytes, ...]:
    found = []
    for pack in _packs(PLAIN) + _packs(ENCRYPTED):
        footer = pack[-FOOTER_SIZE:]
        found.append(pack[:64] + footer + pack[int.from_bytes(footer[:8], "little") : -FOOTER_SIZE])
    return tuple(found)


def _chunk(data: bytes) -> None:
    """A codec byte, a claimed length, a payload."""
    claimed, payload = int.from_bytes(data[1:5], "little"), data[5:]
    row = ChunkRow(bytes(32), 0, 0, 64, len(payload), claimed, data[0] if data else 0)
    plain = open_chunk(None, crypto.DATA, row, payload)
    assert len(plain) == claimed <= codec.MAX_PLAIN


def _chunks() -> tuple[bytes, ...]:
    return tuple(
        bytes([codec_]) + struct.pack("<I", plain) + payload for _, codec_, payload, plain in _pack_rows(PLAIN)
    )


# --- trees, contents, records -----------------------------------------------------------------------------------------


class Chunks:
    """Takes the place of a `ChunkReader`: chunks by id, as an attacker chose them."""

    def __init__(self, chunks: dict[bytes, bytes]) -> None:
        self.chunks = chunks

    def get(self, chunk: bytes) -> bytes:
        if chunk not in self.chunks:
            raise Damage("a chunk is missing")
        return self.chunks[chunk]

    def prefetch(self, chunks: list[bytes]) -> None:
        pass

    def chunk_id(self, plain: bytes) -> bytes:
        return PLAIN.chunk_id(plain)


class _NoFetcher:
    def __init__(self, reader: Chunks) -> None:
        self.reader = reader


def walk(chunks: dict[bytes, bytes], tree: Tree) -> None:
    """Everything that a restore asks of a tree before it touches the target."""
    source = StoredTree(_NoFetcher(Chunks(chunks)), tree)  # type: ignore[arg-type]
    for entry in islice(source.entries(), _WALK):
        parts = entry.path.split(b"/")
        assert not entry.path or not {b"", b".", b".."} & set(parts)
        assert b"\0" not in entry.path
        for found in islice(source.extents(entry), _WALK):
            assert found.length > 0
            assert found.offset >= 0


def _leaf(data: bytes) -> None:
    leaf = model.decode(data, model.Leaf, "a leaf")
    name = PLAIN.chunk_id(data)
    count = max(len(leaf.entries), 1)
    walk({name: data}, Tree(count, 0, [TreeRef(name, count, b"")]))


def _leaves() -> tuple[bytes, ...]:
    entries = make.tree_entries("fuzz", 12)
    entries[2][13], entries[2][16] = b"dir/first", model.LINKED
    return (ref.canonical([1, entries]), ref.canonical([1, entries[:1]]), ref.canonical([1, []]))


def _bundle_of_chunks(data: bytes) -> dict[bytes, bytes]:
    """Chunks behind one another, each with a length before it: the first is the root."""
    found: dict[bytes, bytes] = {}
    while len(data) > 4 and len(found) < 256:
        length = int.from_bytes(data[:4], "little")
        chunk, data = data[4 : 4 + length], data[4 + length :]
        found[bytes([len(found)]) * 32] = chunk
    return found


def _as_bundle(chunks: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(chunk)) + chunk for chunk in chunks)


def _tree_nodes(data: bytes) -> None:
    """A tree whose chunks have the ids 00.., 01.., 02..: nodes may name themselves and each other, as a broken index or
    a reader that does not check ids might let them."""
    chunks = _bundle_of_chunks(data)
    node = model.decode(chunks.get(bytes(32), b""), model.TreeNode, "a node")
    count = max(sum(r.count for r in node.refs), 1)
    walk(chunks, Tree(count, node.height + 1 if node.height < 8 else 8, [TreeRef(bytes(32), count, b"")]))


def _trees() -> tuple[bytes, ...]:
    entries = make.tree_entries("fuzz", 9)
    leaves = [ref.canonical([1, entries[:5]]), ref.canonical([1, entries[5:]])]
    flat = [ref.canonical([1, 0, [[b"\1" * 32, 5, b""], [b"\2" * 32, len(entries) - 5, entries[5][0]]]]), *leaves]
    itself = [ref.canonical([1, 0, [[bytes(32), 1, b""]]])]
    upwards = [ref.canonical([1, 7, [[bytes(32), 1, b""], [b"\1" * 32, 1, b""]]]), *leaves]
    return tuple(map(_as_bundle, (flat, itself, upwards)))


def _content_nodes(data: bytes) -> None:
    """The same for the contents of a file, and for what a rebuild and a verification visit."""
    chunks = _bundle_of_chunks(data)
    node = model.decode(chunks.get(bytes(32), b""), model.ContentNode, "a node")
    size = sum(r.length for r in node.refs)
    content = Content(size, min(node.height + 1, 8), [model.Ref(bytes(32), 0, max(size, 1))])
    seen = 0
    for found in islice(extents(Chunks(chunks), content), _WALK):  # type: ignore[arg-type]
        seen += found.length
        assert seen <= size


def _contents() -> tuple[bytes, ...]:
    low = [[b"\x07" * 32, 0, 100], [b"", 0, 1 << 40], [b"\x08" * 32, 5, 1]]
    total = sum(r[2] for r in low)
    flat = [ref.canonical([1, 0, low])]
    high = [ref.canonical([1, 1, [[b"\1" * 32, 0, total]] * 3]), ref.canonical([1, 0, low])]
    itself = [ref.canonical([1, 0, [[bytes(32), 0, 1]] * 64])]
    laughs = [ref.canonical([1, 8 - i, [[bytes([i + 1]) * 32, 0, 64 ** (8 - i)]] * 64]) for i in range(8)]
    return tuple(map(_as_bundle, (flat, high, itself, laughs)))


def _record(data: bytes) -> None:
    """A sealed record, and everything that it reaches."""
    sealed = crypto.seal(PLAIN, crypto.SNAPSHOT, data)
    record = open_record(PLAIN, ids.object_hash(sealed), sealed)
    chunks = Chunks(RECORD_CHUNKS)
    for chunk in islice(reachable(chunks, record), _WALK):  # type: ignore[arg-type]
        assert isinstance(chunk, bytes)
    for component in record.components:
        if component.tree is not None:
            walk(chunks.chunks, component.tree)


_LEAF = _leaves()[0]
_LOW = ref.canonical([1, 0, [[b"\7" * 32, 0, 100], [b"", 0, 1 << 40], [b"\x08" * 32, 5, 1]]])
_HIGH = ref.canonical([1, 1, [[b"\2" * 32, 0, 101 + (1 << 40)]] * 3])
RECORD_CHUNKS = {bytes(32): _LEAF, b"\1" * 32: _HIGH, b"\2" * 32: _LOW}


def _records() -> tuple[bytes, ...]:
    value = ref.parse(PAYLOADS["snapshot"])
    count = len(ref.parse(_LEAF)[1])
    value["components"][0]["tree"] = [count, 0, [[bytes(32), count, b""]]]
    size = sum(r[2] for r in ref.parse(RECORD_CHUNKS[b"\1" * 32])[2])
    value["components"][1]["content"] = [size, 2, [[b"\1" * 32, 0, size]]]
    return (ref.canonical(value),)


TARGETS: tuple[Target, ...] = (
    Target("header", _headers(), _header),
    *(_sealed(kind, keys) for kind in TYPES for keys in (PLAIN, ENCRYPTED) if keys.encrypted or kind != "keyring"),
    *(_sealed_crafted(keys) for keys in (PLAIN, ENCRYPTED)),
    *(_opened(kind) for kind in TYPES),
    Target("keyring", _keyrings(), _keyring, restructure),
    Target("slot", tuple(ref.canonical({**slot["map"], "vault": VAULT}) for slot in make.slots()), _slot, restructure),
    Target("key file", (crypto.key_file_text(bytes(range(32))).encode(),), _key_file),
    *(_pack(keys) for keys in (PLAIN, ENCRYPTED)),
    *(_pack_crafted(keys) for keys in (PLAIN, ENCRYPTED)),
    Target("footer", _footers(), _footer),
    Target("table", _tables(), _table),
    Target("chunk", _chunks(), _chunk),
    Target("leaf", _leaves(), _leaf, restructure),
    Target("tree nodes", _trees(), _tree_nodes, restructure_bundle),
    Target("content nodes", _contents(), _content_nodes, restructure_bundle),
    Target("record", _records(), _record, restructure),
)
