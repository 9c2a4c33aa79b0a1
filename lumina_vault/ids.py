"""Ids and names: how they are made, shortened and checked."""

from __future__ import annotations

import os
import re

from blake3 import blake3

ID_BYTES = 32
VAULT_ID_BYTES = 16
SHORT = 12
"""Hex digits of a shortened id in tables."""

_OBJECT_NAME = re.compile(
    r"config|keyring|gc|keys/[0-9a-f]{16}|(packs|parity)/([0-9a-f]{2})/\2[0-9a-f]{62}"
    r"|snapshots/[0-9a-f]{64}|annotations/[0-9a-f]{32}"
)


def object_hash(data: bytes | memoryview) -> bytes:
    """BLAKE3 of an object's own bytes, unkeyed (32 bytes): the name of packs and snapshot records."""
    return blake3(data).digest()


def pack_path(name: bytes) -> str:
    """Where the pack of that name (32 bytes) lies in the store."""
    text = name.hex()
    return f"packs/{text[:2]}/{text}"


def snapshot_path(snapshot: bytes) -> str:
    return f"snapshots/{snapshot.hex()}"


def is_object_name(name: str) -> bool:
    """True for names that format.md section 1 lists; anything else in a store is not ours."""
    return _OBJECT_NAME.fullmatch(name) is not None


def random_id(size: int = ID_BYTES) -> bytes:
    return os.urandom(size)
