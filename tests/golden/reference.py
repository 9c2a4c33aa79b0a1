"""Format v1 a second time, written from docs/format.md alone: nothing of the engine is imported here.

Vectors and tests hold the engine against this. Slow and plain on purpose. What it shares with the engine are BLAKE3,
AES, Argon2id and zstd themselves; vectors of their own specifications stand in `vectors.json`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

DATA, META = 1, 2
CONFIG, KEYRING, SLOT, SNAPSHOT, ANNOTATION, GC, PARITY = 16, 17, 18, 19, 20, 21, 22
PURPOSES = {
    DATA: b"pack-data",
    META: b"pack-meta",
    KEYRING: b"keyring",
    SNAPSHOT: b"snapshot",
    ANNOTATION: b"annotation",
    GC: b"gc",
    PARITY: b"parity",
}


def noise(seed: str, size: int) -> bytes:
    """Bytes that every machine makes alike."""
    return hashlib.shake_128(seed.encode()).digest(size)


def text(seed: str, size: int) -> bytes:
    """Lines of words, as a table's dump has them."""
    words = [noise(f"{seed}/word/{i}", 2 + i % 7).hex().encode() for i in range(64)]
    lines: list[bytes] = []
    length = 0
    for number in range(size):
        picks = noise(f"{seed}/{number}", 12)
        line = b"%d\t%s\n" % (number, b" ".join(words[pick & 63] for pick in picks))
        lines.append(line)
        length += len(line)
        if length >= size:
            break
    return b"".join(lines)[:size]


def sample(kind: str, seed: str, size: int) -> bytes:
    return {"zeros": lambda: bytes(size), "noise": lambda: noise(seed, size), "text": lambda: text(seed, size)}[kind]()


# --- section 2: MessagePack, restricted -------------------------------------------------------------------------------


_BIN = [(1 << 8, b"\xc4", ">B"), (1 << 16, b"\xc5", ">H"), (1 << 32, b"\xc6", ">I")]
_STR = [(1 << 8, b"\xd9", ">B"), (1 << 16, b"\xda", ">H"), (1 << 32, b"\xdb", ">I")]
_ARRAY = [(1 << 16, b"\xdc", ">H"), (1 << 32, b"\xdd", ">I")]
_MAP = [(1 << 16, b"\xde", ">H"), (1 << 32, b"\xdf", ">I")]
_UNSIGNED = [(1 << 8, b"\xcc", ">B"), (1 << 16, b"\xcd", ">H"), (1 << 32, b"\xce", ">I"), (1 << 64, b"\xcf", ">Q")]
_SIGNED = [(7, b"\xd0", ">b"), (15, b"\xd1", ">h"), (31, b"\xd2", ">i"), (63, b"\xd3", ">q")]


def canonical(value: Any) -> bytes:
    """The canonical encoding of nil, booleans, integers, bytes, text, lists and dictionaries."""
    match value:
        case None | bool():
            data = {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            data = _integer(value)
        case bytes():
            data = _sized(len(value), _BIN) + value
        case str():
            raw = value.encode()
            data = (bytes([0xA0 | len(raw)]) if len(raw) < 32 else _sized(len(raw), _STR)) + raw
        case list():
            data = bytes([0x90 | len(value)]) if len(value) < 16 else _sized(len(value), _ARRAY)
            data += b"".join(map(canonical, value))
        case dict():
            data = bytes([0x80 | len(value)]) if len(value) < 16 else _sized(len(value), _MAP)
            data += b"".join(canonical(key) + canonical(item) for key, item in value.items())
        case _:
            raise TypeError(type(value))
    return data


def _sized(size: int, forms: list[tuple[int, bytes, str]]) -> bytes:
    """The shortest form that can say `size`."""
    if size >= forms[-1][0]:
        raise OverflowError(size)
    _, mark, layout = next(form for form in forms if size < form[0])
    return mark + struct.pack(layout, size)


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b", value)
    if value > 0:
        return _sized(value, _UNSIGNED)
    if value < -(1 << 63):
        raise OverflowError(value)
    _, mark, layout = next(form for form in _SIGNED if value >= -(1 << form[0]))
    return mark + struct.pack(layout, value)


def parse(data: bytes) -> Any:
    """What a canonical encoding says; nothing may follow it."""
    value, end = _parse(data, 0)
    assert end == len(data)
    return value


_FIXED = {mark[0]: struct.Struct(layout) for _, mark, layout in _UNSIGNED + _SIGNED}
_LENGTHS = {
    mark[0]: (kind, struct.Struct(layout))
    for kind, forms in (("bin", _BIN), ("str", _STR), ("array", _ARRAY), ("map", _MAP))
    for _, mark, layout in forms
}


def _parse(data: bytes, at: int) -> tuple[Any, int]:
    mark, at = data[at], at + 1
    if mark < 0x80 or mark >= 0xE0:
        return mark - (256 if mark >= 0xE0 else 0), at
    if mark in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[mark], at
    if mark in _FIXED:
        return _FIXED[mark].unpack_from(data, at)[0], at + _FIXED[mark].size
    if mark in _LENGTHS:
        kind, layout = _LENGTHS[mark]
        size, at = layout.unpack_from(data, at)[0], at + layout.size
    else:
        kind = "map" if mark < 0x90 else "array" if mark < 0xA0 else "str"
        size = mark & (0x1F if kind == "str" else 0x0F)
    if kind in ("bin", "str"):
        raw = data[at : at + size]
        assert len(raw) == size
        return (raw if kind == "bin" else raw.decode()), at + size
    items = []
    for _ in range(size * (2 if kind == "map" else 1)):
        item, at = _parse(data, at)
        items.append(item)
    return (items if kind == "array" else dict(zip(items[::2], items[1::2], strict=True))), at


# --- section 3 --------------------------------------------------------------------------------------------------------


def chunk_id(plain: bytes, id_key: bytes | None) -> bytes:
    return (blake3(plain, key=id_key) if id_key else blake3(plain)).digest()


def content_digest(profile: int, size: int, height: int, refs: list[list[Any]], id_key: bytes | None) -> bytes:
    return chunk_id(canonical([profile, size, height, refs]), id_key)


# --- section 4: profiles ----------------------------------------------------------------------------------------------

GEAR = [int.from_bytes(hashlib.md5(bytes([value]) * 64).digest()[:8], "big") for value in range(256)]
"""The authors' table: the first eight bytes of the MD5 of 64 equal bytes."""
SIZES = {1: (524_288, 1_048_576, 4_194_304), 2: (32_768, 65_536, 262_144)}
MASKS = {1: (0x0000D91767537000, 0x0000D91707537000), 2: (0x0000D90703537000, 0x0000D90F03530000)}
_U64 = (1 << 64) - 1


def cut(data: bytes, profile: int) -> list[int]:
    """Lengths of the chunks of a stream: FastCDC 2020 as section 4 spells it."""
    lengths: list[int] = []
    start = 0
    while start < len(data):
        lengths.append(_first_cut(data, start, profile))
        start += lengths[-1]
    return lengths


def _first_cut(data: bytes, start: int, profile: int) -> int:
    low, average, high = SIZES[profile]
    small, large = MASKS[profile]
    n = min(len(data) - start, high)
    if n <= low:
        return n
    gear = GEAR
    h = 0
    for first, last, mask in ((low, min(average, n) & ~1, small), (min(average, n) & ~1, n & ~1, large)):
        for p in range(first, last, 2):
            h = ((h << 2) + (gear[data[start + p]] << 1)) & _U64
            if not h & (mask << 1):
                return p
            h = (h + gear[data[start + p + 1]]) & _U64
            if not h & mask:
                return p + 1
    return n


def bundles(digests: list[bytes], sizes: list[int]) -> list[int]:
    """How many files each bundle of profile 3 holds."""
    counts: list[int] = []
    held = count = 0
    for digest, size in zip(digests, sizes, strict=True):
        held += size
        count += 1
        if held >= 1_048_576 or (held >= 262_144 and digest[0] & 0x0F == 0):
            counts.append(count)
            held = count = 0
    return counts + ([count] if count else [])


def leaves(entries: list[list[Any]]) -> list[list[list[Any]]]:
    """Entries (arrays of section 6) cut into leaves by profile 4."""
    found: list[list[list[Any]]] = [[]]
    weight = 0
    for entry in entries:
        found[-1].append(entry)
        weight += 64 + len(entry[0]) + len(entry[13]) + 48 * len(entry[12])
        weight += sum(len(name) + len(value) for name, value in entry[15] or [])
        if zlib.crc32(entry[0]) & 0xFF == 0 or len(found[-1]) == 1024 or weight >= 262_144:
            found.append([])
            weight = 0
    return [leaf for leaf in found if leaf]


# --- section 6: nodes -------------------------------------------------------------------------------------------------


def fold(
    refs: list[Any], most: int, chunk: Callable[[Any], bytes], node: Callable[[int, list[Any]], Any]
) -> tuple[int, list[Any]]:
    """(height, refs) of the root: while there are more than 64 refs, they are cut into nodes."""
    height = 0
    while len(refs) > 64:
        groups: list[list[Any]] = [[]]
        for ref in refs:
            groups[-1].append(ref)
            head = struct.unpack("<H", chunk(ref)[:2])[0] if chunk(ref) else 0
            if len(groups[-1]) == most or (len(groups[-1]) >= 64 and head & 0x1FF == 0):
                groups.append([])
        refs = [node(height, group) for group in groups if group]
        height += 1
    return height, refs


def fold_contents(refs: list[list[Any]], id_key: bytes | None) -> tuple[int, list[Any], dict[bytes, bytes]]:
    """(height, root refs, nodes by id) of a content."""
    made: dict[bytes, bytes] = {}

    def node(height: int, group: list[Any]) -> list[Any]:
        payload = canonical([1, height, group])
        name = chunk_id(payload, id_key)
        made[name] = payload
        return [name, 0, sum(ref[2] for ref in group)]

    height, root = fold(refs, 1024, lambda ref: ref[0], node)
    return height, root, made


def fold_tree(entries: list[list[Any]], id_key: bytes | None) -> tuple[int, list[Any], dict[bytes, bytes]]:
    """(height, root refs, leaves and nodes by id) of a tree."""
    made: dict[bytes, bytes] = {}

    def store(payload: bytes) -> bytes:
        name = chunk_id(payload, id_key)
        made[name] = payload
        return name

    def node(height: int, group: list[Any]) -> list[Any]:
        return [store(canonical([1, height, group])), sum(ref[1] for ref in group), group[0][2]]

    refs = [[store(canonical([1, leaf])), len(leaf), leaf[0][0]] for leaf in leaves(entries)]
    height, root = fold(refs, 256, lambda ref: ref[0], node)
    return height, root, made


# --- sections 5 and 7: packs, sealed objects, key slots ---------------------------------------------------------------


def hkdf(ikm: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, one block of output."""
    extracted = hmac.new(salt, ikm, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def derive(ikm: bytes, salt: bytes, purpose: bytes, vault: bytes) -> bytes:
    return hkdf(ikm, salt, b"lumina-vault/v1/" + purpose + b"\0" + vault)


def encrypt(key: bytes, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(associated)
    return encryptor.update(plain) + encryptor.finalize() + encryptor.tag


def decrypt(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), modes.GCM(nonce, sealed[-16:])).decryptor()
    decryptor.authenticate_additional_data(associated)
    return decryptor.update(sealed[:-16]) + decryptor.finalize()


def header(type_: int, encrypted: bool, epoch: int, vault: bytes, salt: bytes) -> bytes:
    magic = b"LVPACK\x00\x01" if type_ in (DATA, META) else b"LVSEAL\x00\x01"
    data = magic + bytes([type_, 1 if encrypted else 0, 0, 0]) + epoch.to_bytes(4, "little") + vault + salt
    assert len(data) == 64
    return data


def pack(
    type_: int,
    vault: bytes,
    salt: bytes,
    chunks: list[tuple[bytes, int, bytes, int]],
    epoch: int = 0,
    data_key: bytes | None = None,
) -> bytes:
    """A pack's bytes; `chunks` are (ChunkId, codec, encoded payload, plaintext length)."""
    head = header(type_, data_key is not None, epoch, vault, salt)
    key = derive(data_key, salt, PURPOSES[type_], vault) if data_key else b""
    entries = b""
    rows = b""
    for number, (name, codec, payload, plain) in enumerate(chunks):
        stored = payload
        if data_key:
            associated = bytes([type_, codec, 0, 0]) + struct.pack("<II", number, plain) + name
            stored = encrypt(key, bytes(8) + number.to_bytes(4, "big"), payload, associated)
        entries += stored
        rows += name + struct.pack("<II", len(stored), plain) + bytes([codec, 0, 0, 0]) + struct.pack("<I", 0)
    start = struct.pack("<QII", 64 + len(entries), len(rows) + (16 if data_key else 0), len(chunks))
    table = encrypt(key, bytes(8) + b"\xff" * 4, rows, head + start) if data_key else rows
    return head + entries + table + start + blake3(head + table + start).digest() + b"LVTAIL\x00\x01"


def unpack(data: bytes, vault: bytes, data_key: bytes | None = None) -> Iterator[tuple[bytes, int, bytes, int]]:
    """(ChunkId, codec, plaintext, stored length) of each entry of a pack that is not damaged."""
    head, footer = data[:64], data[-56:]
    salt = head[32:64]
    offset, stored, count = struct.unpack("<QII", footer[:16])
    assert footer[48:] == b"LVTAIL\x00\x01"
    assert footer[16:48] == blake3(head + data[offset : offset + stored] + footer[:16]).digest()
    rows = data[offset : offset + stored]
    key = b""
    if data_key:
        key = derive(data_key, salt, PURPOSES[head[8]], vault)
        rows = decrypt(key, bytes(8) + b"\xff" * 4, rows, head + footer[:16])
    position = 64
    for number in range(count):
        row = rows[48 * number : 48 * number + 48]
        name, (length, plain), codec = row[:32], struct.unpack("<II", row[32:40]), row[40]
        payload = data[position : position + length]
        if data_key:
            associated = bytes([head[8], codec, 0, 0]) + struct.pack("<II", number, plain) + name
            payload = decrypt(key, bytes(8) + number.to_bytes(4, "big"), payload, associated)
        yield name, codec, zstandard.ZstdDecompressor().decompress(payload) if codec else payload, length
        position += length
    assert position == offset


def seal(type_: int, vault: bytes, salt: bytes, payload: bytes, epoch: int = 0, ikm: bytes | None = None) -> bytes:
    """A sealed object; encrypted under `ikm` (data key of the epoch, or master key for a keyring) if there is one."""
    head = header(type_, ikm is not None, epoch, vault, salt)
    body = zstandard.ZstdCompressor(level=3).compress(payload)
    if ikm is not None:
        body = encrypt(derive(ikm, salt, PURPOSES[type_], vault), bytes(12), body, head)
    data = head + struct.pack("<I", len(body)) + body
    return data if ikm is not None else data + blake3(data).digest()


def unseal(data: bytes, vault: bytes, ikm: bytes | None = None) -> bytes:
    length = struct.unpack("<I", data[64:68])[0]
    body, rest = data[68 : 68 + length], data[68 + length :]
    if ikm is not None:
        assert rest == b""
        body = decrypt(derive(ikm, data[32:64], PURPOSES[data[8]], vault), bytes(12), body, data[:64])
    else:
        assert rest == blake3(data[: 68 + length]).digest()
    return zstandard.ZstdDecompressor().decompress(body)


def argon2id(passphrase: bytes, salt: bytes, time: int, memory: int, lanes: int) -> bytes:
    return Argon2id(salt=salt, length=32, iterations=time, lanes=lanes, memory_cost=memory).derive(passphrase)


def key_slot(
    vault: bytes,
    slot: str,
    kind: str,
    secret: bytes,
    master: bytes,
    kdf: dict[str, Any],
    salt: bytes,
    nonce: bytes,
    label: str,
    created: int,
) -> dict[str, Any]:
    """The map of a key slot that wraps `master`."""
    ikm = argon2id(secret, salt, kdf["time"], kdf["memory"], kdf["lanes"]) if kind == "passphrase" else secret
    context = canonical([1, kind, vault, slot, list(kdf.values())])
    wrapped = encrypt(derive(ikm, salt, b"slot", vault), nonce, master, context)
    return {
        "version": 1, "kind": kind, "vault": vault, "slot": slot, "label": label, "created": created, "kdf": kdf,
        "salt": salt, "nonce": nonce, "wrapped": wrapped,
    }  # fmt: skip
