"""Chunk profiles: where a stream is cut (format.md section 4). Part of the format; vectors pin the cuts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol
from zlib import crc32

from pyfastcdc.cy import (
    FastCDC,  # the Cython build by name: the Python fallback is 200 times slower and silent
)

from lumina_vault.model import LARGE, SMALL

_SIZES: Final = {LARGE: (524_288, 1_048_576, 4_194_304), SMALL: (32_768, 65_536, 262_144)}
_BUNDLE_MIN, _BUNDLE_MAX = 262_144, 1_048_576
_LEAF_COUNT, _LEAF_WEIGHT = 1024, 262_144


class Reader(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


class Cutter:
    """FastCDC over one stream. Not to be shared between threads."""

    def __init__(self, profile: int) -> None:
        low, average, high = _SIZES[profile]
        self.max = high
        self._cdc = FastCDC(average, min_size=low, max_size=high, normalized_chunking=1)

    def cut(self, data: memoryview, last: bool) -> Iterator[memoryview]:
        """Chunks at the start of `data`. Unless `last`, stops where a cut could depend on bytes still to come."""
        position, end = 0, len(data)
        chunks = self._cdc.cut_buf(data)
        while position < end and (last or end - position >= self.max):
            chunk = next(chunks)
            position += chunk.length
            yield chunk.data


def bundle_ends(length: int, digest: bytes) -> bool:
    """True if a bundle of `length` bytes ends after the file with this digest."""
    return length >= _BUNDLE_MAX or (length >= _BUNDLE_MIN and not digest[0] & 0x0F)


def leaf_ends(path: bytes, count: int, weight: int) -> bool:
    """True if a leaf of `count` entries and `weight` ends after the entry with this path."""
    return not crc32(path) & 0xFF or count >= _LEAF_COUNT or weight >= _LEAF_WEIGHT


def node_ends(chunk: bytes, count: int, most: int) -> bool:
    """True if a node of `count` refs ends after the ref to this chunk (empty for a hole)."""
    if count >= most:
        return True
    return count >= 64 and (not chunk or not int.from_bytes(chunk[:2], "little") & 0x1FF)
