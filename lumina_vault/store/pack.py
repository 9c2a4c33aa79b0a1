"""Packs: immutable objects of many encoded chunks with a table of contents at the end (format.md section 5)."""

from __future__ import annotations

import struct
import time
from typing import Final, NamedTuple

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lumina_vault import codec, ids
from lumina_vault.backends import Backend
from lumina_vault.crypto import DATA, HEADER_SIZE, META, TAG_SIZE, Header, Keys, nonce
from lumina_vault.errors import Damage
from lumina_vault.index import ChunkRow

TARGET_SIZE: Final = 16 << 20
TARGET_ENTRIES: Final = 65_536
TARGET_AGE: Final = 300.0
MAX_ENTRIES: Final = 1 << 20
MAX_SIZE: Final = 4 << 30

_ROW: Final = struct.Struct("<32sIIBBHI")
_FOOTER_START: Final = struct.Struct("<QII")
_CONTEXT: Final = struct.Struct("<BBHII32s")
_TAIL_MAGIC: Final = b"LVTAIL\0\1"
FOOTER_SIZE: Final = _FOOTER_START.size + ids.ID_BYTES + len(_TAIL_MAGIC)
_TOC_NONCE: Final = 0xFFFFFFFF


class SealedPack(NamedTuple):
    """A complete pack, still in its spool: its name, length in bytes and the rows of its chunks (pack id 0)."""

    name: bytes
    length: int
    rows: list[ChunkRow]


def _context(type_: int, codec_: int, number: int, plain: int, chunk: bytes) -> bytes:
    return _CONTEXT.pack(type_, codec_, 0, number, plain, chunk)


class PackWriter:
    """One open pack, written and hashed as it grows. Not thread-safe: its owner locks it."""

    def __init__(self, backend: Backend, keys: Keys, type_: int) -> None:
        self.header = keys.new_header(type_)
        self.spool = backend.spool()
        self._keys = keys
        self._cipher = keys.cipher(self.header)
        self._hasher = blake3()
        self._rows: list[ChunkRow] = []
        self._born = time.monotonic()
        self._length = 0
        try:
            self._write(self.header.pack())
        except BaseException:
            self.spool.discard()
            raise

    def _write(self, data: bytes | memoryview) -> None:
        self.spool.write(data)
        self._hasher.update(data)
        self._length += len(data)

    @property
    def full(self) -> bool:
        return (
            self._length >= TARGET_SIZE
            or len(self._rows) >= TARGET_ENTRIES
            or (bool(self._rows) and time.monotonic() - self._born >= TARGET_AGE)
        )

    @property
    def chunks(self) -> list[bytes]:
        return [row.chunk for row in self._rows]

    def add(self, chunk: bytes, codec_: int, payload: bytes | memoryview, plain: int) -> int:
        """Append an encoded chunk; returns the bytes it takes.

        Law 5: what was encrypted is decrypted again and compared; the caller has done the same for the compression.
        Uncompressed chunks are compared by id, since comparing memoryviews goes byte by byte.
        """
        number = len(self._rows)
        stored: bytes | memoryview = payload
        if self._cipher is not None:
            context = _context(self.header.type, codec_, number, plain, chunk)
            stored = self._cipher.encrypt(nonce(number), payload, context)
            again = self._cipher.decrypt(nonce(number), stored, context)
            if (self._keys.chunk_id(again) != chunk) if codec_ == codec.NONE else (again != payload):
                raise Damage(
                    "a chunk did not decrypt to what was encrypted: this machine's memory or processor is faulty"
                )
        self._rows.append(ChunkRow(chunk, 0, number, self._length, len(stored), plain, codec_))
        self._write(stored)
        return len(stored)

    def seal(self) -> SealedPack:
        """Write the table of contents and the footer; nothing can be added after."""
        table = b"".join(_ROW.pack(row.chunk, row.stored, row.plain, row.codec, 0, 0, 0) for row in self._rows)
        head = self.header.pack()
        tag = TAG_SIZE if self._cipher is not None else 0
        start = _FOOTER_START.pack(self._length, len(table) + tag, len(self._rows))
        if self._cipher is not None:
            table = self._cipher.encrypt(nonce(_TOC_NONCE), table, head + start)
        self._write(table)
        self._write(start + blake3(head + table + start).digest() + _TAIL_MAGIC)
        return SealedPack(self._hasher.digest(), self._length, self._rows)


def open_chunk(cipher: AESGCM | None, type_: int, row: ChunkRow, stored: bytes | memoryview) -> bytes | memoryview:
    """The plaintext of one entry; not yet checked against its id. Raises `Damage`."""
    payload = stored
    if cipher is not None:
        try:
            payload = cipher.decrypt(
                nonce(row.number), stored, _context(type_, row.codec, row.number, row.plain, row.chunk)
            )
        except InvalidTag:
            raise Damage(f"chunk {row.chunk.hex()[: ids.SHORT]} does not authenticate") from None
    return codec.decompress(row.codec, payload, row.plain)


class Table(NamedTuple):
    """What a pack says of itself: header, total length, rows of its chunks (pack id 0)."""

    header: Header
    length: int
    rows: list[ChunkRow]


def read_table(backend: Backend, keys: Keys, path: str, length: int) -> Table:
    """Header and table of contents of a pack of `length` bytes, reading only its two ends. Raises `Damage`."""
    if not HEADER_SIZE + FOOTER_SIZE <= length <= MAX_SIZE:
        raise Damage(f"{path} has {length} bytes, which no pack can have: it is truncated or not a pack")
    head = backend.read(path, 0, HEADER_SIZE)
    footer = backend.read(path, length - FOOTER_SIZE, FOOTER_SIZE)
    offset, stored, _ = parse_footer(footer, length, path)
    return parse_table(keys, path, head, backend.read(path, offset, stored), footer, length)


def parse_footer(footer: bytes, length: int, path: str) -> tuple[int, int, int]:
    """(toc offset, toc stored length, entries) of a pack of `length` bytes, bounds checked."""
    if footer[-len(_TAIL_MAGIC) :] != _TAIL_MAGIC:
        raise Damage(f"{path} does not end as a pack: it is truncated or damaged")
    offset, stored, count = _FOOTER_START.unpack_from(footer)
    if (
        count > MAX_ENTRIES
        or offset < HEADER_SIZE
        or offset + stored + FOOTER_SIZE != length
        or not 0 <= stored - count * _ROW.size <= TAG_SIZE  # before a table of gigabytes is read
    ):
        raise Damage(f"{path} has a damaged footer")
    return offset, stored, count


def parse_table(keys: Keys, path: str, head: bytes, table: bytes, footer: bytes, length: int) -> Table:
    """Check and read a table of contents from its parts."""
    header = Header.parse(head, path)
    if header.type not in (DATA, META):
        raise Damage(f"{path} is not a pack but an object of type {header.type}")
    offset, stored, count = parse_footer(footer, length, path)
    start = footer[: _FOOTER_START.size]
    if len(table) != stored or blake3(head + table + start).digest() != footer[len(start) : len(start) + ids.ID_BYTES]:
        raise Damage(f"{path} has a damaged table of contents")
    cipher = keys.cipher(header)
    if cipher is not None:
        try:
            table = cipher.decrypt(nonce(_TOC_NONCE), table, head + start)
        except InvalidTag:
            raise Damage(f"{path} has a table of contents that does not authenticate") from None
    if len(table) != count * _ROW.size:
        raise Damage(f"{path} has a table of contents of the wrong length")
    rows: list[ChunkRow] = []
    position = HEADER_SIZE
    for number, (chunk, size, plain, codec_, *rest) in enumerate(_ROW.iter_unpack(table)):
        if any(rest) or plain > codec.MAX_PLAIN or size > codec.MAX_PLAIN + TAG_SIZE:
            raise Damage(f"{path} has an entry that format 1 does not allow")
        rows.append(ChunkRow(chunk, 0, number, position, size, plain, codec_))
        position += size
    if position != offset:
        raise Damage(f"{path} has entries that do not fill it")
    if len({row.chunk for row in rows}) != count:
        raise Damage(f"{path} lists a chunk twice, which no writer does")
    return Table(header, length, rows)


def check_pack(backend: Backend, keys: Keys, name: bytes, length: int) -> Table:
    """Read a whole pack piece by piece and compare its bytes with its name; its table if they agree."""
    path = ids.pack_path(name)
    hasher = blake3()
    step = 4 << 20
    for at in range(0, length, step):
        hasher.update(backend.read(path, at, min(step, length - at)))
    if hasher.digest() != name:
        raise Damage(f"{path} is damaged: its bytes are not what its name says")
    return read_table(backend, keys, path, length)
