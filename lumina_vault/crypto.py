"""Keys and sealing: headers, HKDF-derived AES-256-GCM keys, sealed objects, key slots (format.md sections 5 and 7)."""

from __future__ import annotations

import struct
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lumina_vault import codec, ids
from lumina_vault.errors import Damage, NewerFormat, VaultError, WrongKey
from lumina_vault.model import FORMAT_VERSION, Kdf, Keyring, KeySlot

HEADER: Final = struct.Struct("<7sBBBHI16s32s")
HEADER_SIZE: Final = HEADER.size
TAG_SIZE: Final = 16
PACK_MAGIC: Final = b"LVPACK\0"
SEAL_MAGIC: Final = b"LVSEAL\0"

DATA, META = 1, 2
CONFIG, KEYRING, SLOT, SNAPSHOT, ANNOTATION, GC, PARITY = range(16, 23)
PURPOSE: Final = {
    DATA: b"pack-data",
    META: b"pack-meta",
    KEYRING: b"keyring",
    SLOT: b"slot",
    SNAPSHOT: b"snapshot",
    ANNOTATION: b"annotation",
    GC: b"gc",
    PARITY: b"parity",
}

MAX_KDF_TIME, MAX_KDF_MEMORY_KIB, MAX_KDF_LANES = 16, 1 << 20, 16
KEY_FILE_PREFIX: Final = "lumina-vault-key-1 "


class Header:
    """The 64 bytes at the start of every pack and sealed object."""

    __slots__ = ("encrypted", "epoch", "salt", "type", "vault")

    def __init__(self, type_: int, encrypted: bool, epoch: int, vault: bytes, salt: bytes) -> None:
        self.type, self.encrypted, self.epoch, self.vault, self.salt = type_, encrypted, epoch, vault, salt

    def pack(self) -> bytes:
        magic = PACK_MAGIC if self.type in (DATA, META) else SEAL_MAGIC
        flags = 1 if self.encrypted else 0
        return HEADER.pack(magic, FORMAT_VERSION, self.type, flags, 0, self.epoch, self.vault, self.salt)

    @classmethod
    def parse(cls, data: bytes | memoryview, what: str) -> Header:
        """Raises `Damage` if these are not the first bytes of such an object, `NewerFormat` for a later version."""
        if len(data) < HEADER_SIZE:
            raise Damage(f"{what} is truncated: {len(data)} bytes")
        magic, version, type_, flags, reserved, epoch, vault, salt = HEADER.unpack(bytes(data[:HEADER_SIZE]))
        expected = PACK_MAGIC if type_ in (DATA, META) else SEAL_MAGIC
        if magic != expected:
            raise Damage(f"{what} does not begin as one: it is damaged, or not part of a vault")
        if version > FORMAT_VERSION:
            raise NewerFormat(
                f"{what} has format version {version}; this version reads up to {FORMAT_VERSION}: upgrade it"
            )
        if version != FORMAT_VERSION or flags > 1 or reserved:
            raise Damage(f"{what} has a header that format {FORMAT_VERSION} does not allow")
        return cls(type_, bool(flags), epoch, vault, salt)


def derive(ikm: bytes, salt: bytes, purpose: bytes, vault: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) to 32 bytes, bound to purpose and vault."""
    info = b"lumina-vault/v1/" + purpose + b"\0" + vault
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(ikm)


class Keys:
    """What a process needs to read and write one vault: id key and data keys by epoch; empty for a plain vault."""

    def __init__(self, vault: bytes, keyring: Keyring | None, master: bytes | None = None) -> None:
        self.vault = vault
        self.encrypted = keyring is not None
        self.id_key = keyring.id_key if keyring else None
        self.epoch = keyring.epochs[-1][0] if keyring else 0
        self._data = {number: key for number, key, _ in keyring.epochs} if keyring else {}
        self.master = master
        """Opens the keyring and makes new key slots; None in a plain vault."""

    def __repr__(self) -> str:
        return f"<Keys of vault {self.vault.hex()}>"

    def chunk_id(self, plain: bytes | memoryview) -> bytes:
        """ChunkId of a plaintext (32 bytes): BLAKE3, keyed when the vault is encrypted."""
        return (blake3(plain, key=self.id_key) if self.id_key else blake3(plain)).digest()

    def new_header(self, type_: int) -> Header:
        return Header(type_, self.encrypted, self.epoch, self.vault, ids.random_id())

    def cipher(self, header: Header) -> AESGCM | None:
        """The cipher of one pack or sealed object; None when it is not encrypted.

        Raises `Damage` for another vault's object or one whose mode is not the vault's: an encrypted vault never
        accepts a plain object.
        """
        if header.vault != self.vault:
            raise Damage(f"the object belongs to vault {header.vault.hex()}, not to {self.vault.hex()}")
        if header.encrypted != self.encrypted:
            raise Damage(
                "a plain object stands in an encrypted vault"
                if self.encrypted
                else "an encrypted object stands in a plain vault"
            )
        if not self.encrypted:
            return None
        key = self.master if header.type == KEYRING else self._data.get(header.epoch)
        if key is None:
            raise Damage(f"the object names key epoch {header.epoch}, which this vault's keyring does not hold")
        return AESGCM(derive(key, header.salt, PURPOSE[header.type], self.vault))


def nonce(number: int) -> bytes:
    """96-bit nonce of an entry: its number, big-endian. A key serves one pack, so no nonce repeats under it."""
    return number.to_bytes(12, "big")


_LENGTH: Final = struct.Struct("<I")


def seal(keys: Keys, type_: int, payload: bytes) -> bytes:
    """A sealed object's bytes (format.md section 7)."""
    clear = type_ in (CONFIG, SLOT)
    header = Header(type_, False, 0, keys.vault, ids.random_id()) if clear else keys.new_header(type_)
    head = header.pack()
    body = codec.zstd_frame(payload)
    if max(len(payload), len(head) + len(body) + 64) > codec.MAX_PLAIN:  # no reader would take it
        raise VaultError(f"a record of {len(payload)} bytes is more than the format allows; save less in one snapshot")
    cipher = None if clear else keys.cipher(header)
    if cipher is not None:
        body = cipher.encrypt(nonce(0), body, head)
        return head + _LENGTH.pack(len(body)) + body
    data = head + _LENGTH.pack(len(body)) + body
    return data + blake3(data).digest()


def unseal(keys: Keys, type_: int, data: bytes, what: str) -> bytes:
    """The payload of a sealed object. Raises `Damage`, naming `what`, if any byte of it is not as written."""
    header = Header.parse(data, what)
    if header.type != type_:
        raise Damage(f"{what} is another kind of object (type {header.type})")
    start = HEADER_SIZE + _LENGTH.size
    if type_ in (CONFIG, SLOT):
        if header.encrypted or header.vault != keys.vault:
            raise Damage(f"{what} belongs to another vault")
        cipher = None
    else:
        cipher = keys.cipher(header)
    trailer = ids.ID_BYTES if cipher is None else 0
    if len(data) < start or len(data) != start + _LENGTH.unpack_from(data, HEADER_SIZE)[0] + trailer:
        raise Damage(f"{what} is truncated or has bytes after its end")
    body = data[start : len(data) - trailer]
    if cipher is None:
        if blake3(data[:-trailer]).digest() != data[-trailer:]:
            raise Damage(f"{what} is damaged: its checksum does not match")
    else:
        try:
            body = cipher.decrypt(nonce(0), body, data[:HEADER_SIZE])
        except InvalidTag:
            raise Damage(f"{what} is damaged: it does not authenticate") from None
    return codec.zstd_unframe(body, what)


# --- key slots ---


def _slot_context(slot: KeySlot) -> bytes:
    import msgspec

    kdf = slot.kdf
    return msgspec.msgpack.encode([1, slot.kind, slot.vault, slot.slot, [kdf.name, kdf.time, kdf.memory, kdf.lanes]])


def _wrapping_key(slot: KeySlot, secret: bytes) -> bytes:
    if slot.kind == "passphrase":
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        kdf = slot.kdf
        if kdf.name != "argon2id" or not (
            1 <= kdf.time <= MAX_KDF_TIME
            and 1 <= kdf.lanes <= MAX_KDF_LANES
            and 8 * kdf.lanes <= kdf.memory <= MAX_KDF_MEMORY_KIB
        ):
            raise WrongKey(
                f"key slot {slot.slot} asks for a key derivation outside the allowed bounds: it is damaged or hostile"
            )
        try:
            secret = Argon2id(
                salt=slot.salt, length=32, iterations=kdf.time, lanes=kdf.lanes, memory_cost=kdf.memory
            ).derive(secret)
        except MemoryError:
            needed = kdf.memory >> 10
            raise WrongKey(f"key slot {slot.slot} takes {needed} MiB of memory to open: more than is free") from None
    return derive(secret, slot.salt, PURPOSE[SLOT], slot.vault)


def make_slot(vault: bytes, master: bytes, kind: str, secret: bytes, label: str, created: int) -> KeySlot:
    """Wrap the master key for a passphrase (UTF-8) or the 32 bytes of a key file."""
    kdf = Kdf(name="argon2id", time=3, memory=65536, lanes=4) if kind == "passphrase" else Kdf(name="none")
    slot = KeySlot(
        kind=kind, vault=vault, slot=ids.random_id(8).hex(), label=label, created=created, kdf=kdf,
        salt=ids.random_id(), nonce=ids.random_id(12), wrapped=b"",
    )  # fmt: skip
    slot.wrapped = AESGCM(_wrapping_key(slot, secret)).encrypt(slot.nonce, master, _slot_context(slot))
    return slot


def open_slot(slot: KeySlot, secret: bytes) -> bytes | None:
    """The master key, or None when this secret does not open this slot."""
    try:
        return AESGCM(_wrapping_key(slot, secret)).decrypt(slot.nonce, slot.wrapped, _slot_context(slot))
    except (InvalidTag, ValueError):
        return None


def key_file_text(secret: bytes) -> str:
    return f"{KEY_FILE_PREFIX}{secret.hex()}\n"


def parse_key_file(text: str, path: str) -> bytes:
    body = text.strip()
    try:
        secret = bytes.fromhex(body.removeprefix(KEY_FILE_PREFIX))
    except ValueError:
        secret = b""
    if not body.startswith(KEY_FILE_PREFIX) or len(secret) != 32:
        raise WrongKey(f"{path} is not a vault key file: it should hold '{KEY_FILE_PREFIX.strip()}' and 64 hex digits")
    return secret
