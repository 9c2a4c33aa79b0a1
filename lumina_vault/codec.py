"""zstd behind one small module, with one context per thread (sharing one between threads crashes)."""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from lumina_vault.errors import Damage

NONE: Final = 0
ZSTD: Final = 1

MAX_PLAIN: Final = 16 << 20
"""Largest plaintext of a chunk or sealed object, in bytes (format.md section 2)."""

DEFAULT_LEVEL: Final = 3

_local = threading.local()


def compress(data: bytes | memoryview, level: int) -> tuple[int, bytes | memoryview]:
    """(codec, payload): a zstd frame, or `data` itself when a frame would not be smaller."""
    contexts: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if contexts is None:
        contexts = _local.compressors = {}
    context = contexts.get(level)
    if context is None:
        context = contexts[level] = zstandard.ZstdCompressor(level=level)
    frame = context.compress(data)
    return (ZSTD, frame) if len(frame) < len(data) else (NONE, data)


def decompress(codec: int, payload: bytes | memoryview, plain_length: int) -> bytes | memoryview:
    """The plaintext of exactly `plain_length` bytes. Raises `Damage` for anything else, before allocating for it."""
    if plain_length > MAX_PLAIN:
        raise Damage(f"a chunk claims {plain_length} bytes, more than the format allows")
    if codec == NONE:
        plain: bytes | memoryview = payload
    elif codec == ZSTD:
        try:
            if zstandard.frame_content_size(payload) != plain_length:
                raise Damage("a chunk's compressed frame does not state the recorded length")
            context: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
            if context is None:
                context = _local.decompressor = zstandard.ZstdDecompressor()
            plain = context.decompress(payload, max_output_size=plain_length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Damage(f"a chunk does not decompress ({error})") from None
    else:
        raise Damage(f"a chunk names codec {codec}, which this version does not know")
    if len(plain) != plain_length:
        raise Damage("a chunk's length is not the recorded one")
    return plain


def zstd_frame(payload: bytes) -> bytes:
    """One zstd frame with content size, for sealed objects."""
    return zstandard.ZstdCompressor(level=DEFAULT_LEVEL).compress(payload)


def zstd_unframe(frame: bytes, what: str) -> bytes:
    """The contents of one frame of at most `MAX_PLAIN` bytes; raises `Damage` naming `what`."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= MAX_PLAIN:
            raise Damage(f"{what} claims {size} bytes, more than the format allows")
        plain = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damage(f"{what} does not decompress ({error})") from None
    return plain
