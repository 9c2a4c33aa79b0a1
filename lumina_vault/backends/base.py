"""The protocol that every store implements. Conformance: `lumina_vault.testing.backends`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

WHOLE_LIMIT: Final = 16 << 20
"""Longest object that is read as a whole (format.md section 2: a sealed object), in bytes."""


class ObjectInfo(NamedTuple):
    name: str
    size: int


class Spool(Protocol):
    """An object being written whose name is not known yet (a pack is named by its bytes)."""

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises `StoreFull`, `BackendError`."""

    def discard(self) -> None:
        """Drop it; does nothing once published or discarded."""


class Backend(Protocol):
    """Objects by name: `packs/ab/abcd…`, `config`. Every call may raise `BackendError`.

    Names are checked by the caller. Calls may come from several threads at once.
    """

    @property
    def url(self) -> str: ...

    @property
    def writable(self) -> bool: ...

    @property
    def place(self) -> tuple[int, int] | None:
        """(device, inode) of the directory that the store is, if it is one."""

    def exists(self) -> bool:
        """True if a vault's `config` is there."""

    def prepare(self) -> None:
        """Make the place ready for a new vault; raises `BackendError` if it can't be or holds something else."""

    def spool(self) -> Spool:
        """Begin an object of unknown name."""

    def publish(self, spool: Spool, name: str, length: int) -> None:
        """Make the spooled bytes the object `name`, durable when this returns.

        Raises `BackendError` when not exactly `length` bytes arrived. Immutable names are never written twice.
        """

    def put(self, name: str, data: bytes) -> None:
        """Write a small object, durable when this returns. An existing object of that name is replaced as a whole."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly those bytes (to the end without `length`).

        Raises `ObjectMissing`, or `Damage` when the object ends before or, without `length`, is longer than
        `WHOLE_LIMIT`: what somebody planted is not read into memory.
        """

    def size(self, name: str) -> int:
        """Length in bytes. Raises `ObjectMissing`."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below `packs/`, `snapshots/`, `annotations/`, `keys/` or `parity/`, in no order.

        Foreign names are passed over.
        """

    def delete(self, name: str) -> None:
        """Remove an object; not an error when it is gone already."""

    def compare_and_swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        """Replace the object if its bytes are `expected` (None: if it is missing). False, and no change, if not."""
