"""A vault in memory: for tests, and as the simplest example of the protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from lumina_vault import ids
from lumina_vault.backends.base import WHOLE_LIMIT, ObjectInfo, Spool
from lumina_vault.errors import BackendError, Damage, ObjectMissing


class _MemorySpool:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self.data += data

    def discard(self) -> None:
        self.data.clear()


class MemoryBackend:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.writable = True

    @property
    def url(self) -> str:
        return "memory:"

    @property
    def place(self) -> tuple[int, int] | None:
        return None

    def exists(self) -> bool:
        return "config" in self.objects

    def prepare(self) -> None:
        if self.objects:
            raise BackendError("this memory backend is not empty; a new vault needs an empty one")

    def spool(self) -> Spool:
        return _MemorySpool()

    def publish(self, spool: Spool, name: str, length: int) -> None:
        assert isinstance(spool, _MemorySpool)
        if len(spool.data) != length:
            raise BackendError(f"{name}: {len(spool.data)} of {length} bytes arrived; it was not kept")
        with self.lock:
            self.objects[name] = bytes(spool.data)

    def put(self, name: str, data: bytes) -> None:
        with self.lock:
            self.objects[name] = bytes(data)

    def _object(self, name: str) -> bytes:
        try:
            return self.objects[name]
        except KeyError:
            raise ObjectMissing(f"{name} is not there") from None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._object(name)
        if length is None and len(data) > WHOLE_LIMIT:
            raise Damage(f"{name} has {len(data)} bytes, more than the format allows")
        end = len(data) if length is None else offset + length
        if end > len(data) or offset > len(data):
            raise Damage(f"{name} is truncated: bytes {offset}-{end} were asked for, it ends at {len(data)}")
        return data[offset:end]

    def size(self, name: str) -> int:
        return len(self._object(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self.lock:
            found = [ObjectInfo(n, len(d)) for n, d in self.objects.items() if n.startswith(prefix)]
        yield from (info for info in found if ids.is_object_name(info.name))

    def delete(self, name: str) -> None:
        with self.lock:
            self.objects.pop(name, None)

    def compare_and_swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        with self.lock:
            if self.objects.get(name) != expected:
                return False
            self.objects[name] = bytes(data)
            return True
