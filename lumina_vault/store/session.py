"""One running writer or reader, and the packs that it relies on (design, section 9, steps 1, 2, 4 and 7)."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from lumina_vault.index import Index


class PackSet:
    """A set of pack row ids, one bit each: row ids are dense, so a petabyte of packs takes 8 MiB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, pack: int) -> None:
        byte, bit = divmod(pack, 8)
        if byte >= len(self._bits):
            self._bits.extend(bytes(byte + 1024 - len(self._bits)))
        self._bits[byte] |= 1 << bit

    def __iter__(self) -> Iterator[int]:
        for byte, bits in enumerate(self._bits):
            if bits:
                for bit in range(8):
                    if bits >> bit & 1:
                        yield byte * 8 + bit


class Session:
    """An open session; `with` closes it. `kind` is `writer` or `reader`."""

    def __init__(self, index: Index, kind: str) -> None:
        self.index = index
        index.fence_dead_sessions()
        self.id, self._lock = index.open_session(kind)
        self.used = PackSet()
        """Packs that the snapshot being written refers to."""
        self._used_lock = threading.Lock()
        self._open = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; does nothing after a commit or another close."""
        try:
            if self._open:
                self._open = False
                self.index.close_session(self.id)
        finally:
            self._lock.release()

    def use(self, packs: Iterable[int]) -> None:
        """Note packs, already registered, as used by what is being written."""
        with self._used_lock:
            for pack in packs:
                self.used.add(pack)

    def find(self, chunks: Sequence[bytes]) -> dict[bytes, int]:
        """ChunkId -> a live pack that this session has now registered. Chunks not in the result are unknown."""
        found = self.index.find(chunks, self.id)
        fresh = {pack for pack, held in found.values() if not held}
        if fresh:
            held_now = self.index.register(self.id, sorted(fresh))
            return {chunk: pack for chunk, (pack, held) in found.items() if held or pack in held_now}
        return {chunk: pack for chunk, (pack, _) in found.items()}

    def register_snapshot(self, snapshot: bytes) -> bool:
        """Register all live packs of a snapshot. False if one of them is gone."""
        return self.index.register_snapshot(self.id, snapshot)

    def commit(self, snapshot: bytes, record: bytes) -> None:
        """Step 4. Raises `SessionFenced` if this session was found dead meanwhile."""
        with self._used_lock:
            self.index.commit(self.id, snapshot, record, self.used)
        self._open = False
