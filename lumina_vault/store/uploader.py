"""The bounded pipeline from plaintext chunks to durable packs.

    submit(chunks) ─ pool ─> ids ─> known? ─> compress, decode, compare ─> open pack ─ upload thread ─> store, index

One block of chunks is one unit of work: a handful of chunks, a few megabytes, so that the Python around it costs
little. At most `slots` blocks are in flight and a few sealed packs wait for the store: memory and spool are bounded
 whatever the data's size.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from lumina_vault import codec, ids, process
from lumina_vault.backends import Backend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage
from lumina_vault.store.pack import PackWriter
from lumina_vault.store.session import Session

Buffer = bytes | memoryview

_SEALED_WAITING = 6
"""Packs that may wait for the store's fsync; they lie in spool files, not in memory."""


class Counter:
    """What storing a component cost: plaintext bytes of chunks new to the vault, bytes they take, chunks seen."""

    def __init__(self) -> None:
        self.new_bytes = self.stored_bytes = self.chunks = self.new_chunks = 0


class _OpenPack:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.writer: PackWriter | None = None


class Uploader:
    """Stores chunks once. Use as a context manager; `finish()` before the record is written."""

    def __init__(self, backend: Backend, keys: Keys, session: Session, level: int = codec.DEFAULT_LEVEL) -> None:
        self._backend, self._keys, self._session, self._level = backend, keys, session, level
        workers = process.workers()
        self._slots = threading.Semaphore(workers * 2 + 1)
        self._pool = ThreadPoolExecutor(workers, "store")
        self._upload = ThreadPoolExecutor(1, "upload")
        self._waiting = threading.Semaphore(_SEALED_WAITING)
        self._uploads: list[Future[None]] = []
        self._pending: set[bytes] = set()
        """Chunks that this session stores in packs which are not live yet."""
        self._lock = threading.Lock()
        self._open: dict[int, list[_OpenPack]] = {}
        self._error: BaseException | None = None
        self._unpublished: set[PackWriter] = set()
        """Packs that lie in spool files: open, waiting or being put."""

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._error = self._error or error
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        self._upload.shutdown(wait=True, cancel_futures=error is not None)
        for writer in self._unpublished:
            writer.spool.discard()

    def submit(
        self, chunks: Sequence[Buffer], type_: int, counter: Counter, done: Callable[[], None] | None = None
    ) -> Future[list[bytes]]:
        """Store the chunks of a block; the result is their ids. `done` runs when the buffers are free again.

        Blocks while the pipeline is full. Raises the first error that any earlier block met.
        """
        self._slots.acquire()
        try:
            self._raise()
            future = self._pool.submit(self._store, chunks, type_, counter)
        except BaseException:
            self._slots.release()
            raise

        def release(finished: Future[list[bytes]]) -> None:
            if not finished.cancelled() and (error := finished.exception()) is not None:
                self._error = self._error or error
            if done is not None:
                done()
            self._slots.release()

        future.add_done_callback(release)
        return future

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _store(self, chunks: Sequence[Buffer], type_: int, counter: Counter) -> list[bytes]:
        self._raise()
        names = [self._keys.chunk_id(chunk) for chunk in chunks]
        with self._lock:
            unsure = list({name for name in names if name not in self._pending})
        known = self._session.find(unsure) if unsure else {}
        if known:
            self._session.use(set(known.values()))
        new: list[int] = []
        with self._lock:
            for position, name in enumerate(names):
                if name not in known and name not in self._pending:
                    self._pending.add(name)
                    new.append(position)
        for position in new:
            self._store_chunk(names[position], chunks[position], type_, counter)
        with self._lock:
            counter.chunks += len(chunks)
        return names

    def _store_chunk(self, name: bytes, plain: Buffer, type_: int, counter: Counter) -> None:
        codec_, payload = codec.compress(plain, self._level)
        # Law 5: what is decoded again is compared by id, so that a bit that flips in memory, in the source's buffer
        # or in the compressed copy, is found before it becomes part of a pack. An encrypted pack compares what was not
        # compressed itself.
        if (codec_ != codec.NONE or not self._keys.encrypted) and (
            self._keys.chunk_id(codec.decompress(codec_, payload, len(plain))) != name
        ):
            raise Damage("a chunk did not decode to what was read: this machine's memory or processor is faulty")
        slots = self._open_packs(type_)
        slot = slots[secrets.randbelow(len(slots))] if len(slots) > 1 else slots[0]
        with slot.lock:
            if slot.writer is None:
                slot.writer = PackWriter(self._backend, self._keys, type_)
                with self._lock:
                    self._unpublished.add(slot.writer)
            stored = slot.writer.add(name, codec_, payload, len(plain))
            if slot.writer.full:
                self._hand_over(slot)
        with self._lock:
            counter.new_bytes += len(plain)
            counter.stored_bytes += stored
            counter.new_chunks += 1

    def _open_packs(self, type_: int) -> list[_OpenPack]:
        """The open packs of a type: two in an encrypted vault, so that positions tell less about lengths."""
        with self._lock:
            slots = self._open.get(type_)
            if slots is None:
                slots = self._open[type_] = [_OpenPack() for _ in range(2 if self._keys.encrypted else 1)]
            return slots

    def _hand_over(self, slot: _OpenPack) -> None:
        """Give a full pack to the upload thread; waits while too many are waiting. The slot's lock is held."""
        writer, slot.writer = slot.writer, None
        assert writer is not None
        self._waiting.acquire()
        future = self._upload.submit(self._put, writer)
        with self._lock:
            self._uploads = [f for f in self._uploads if not f.done()] + [future]

    def _put(self, writer: PackWriter) -> None:
        """Step 3 of the deletion protocol: declare, put, make live."""
        try:
            self._raise()
            sealed = writer.seal()
            index, header = self._session.index, writer.header
            pack = index.declare(self._session.id, sealed.name, header.type, sealed.length, header.epoch, header.salt)
            self._backend.publish(writer.spool, ids.pack_path(sealed.name), sealed.length)
            with self._lock:
                self._unpublished.discard(writer)
            index.make_live(self._session.id, pack, [row._replace(pack=pack) for row in sealed.rows])
            self._session.use([pack])
            with self._lock:
                self._pending.difference_update(row.chunk for row in sealed.rows)
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._waiting.release()

    def finish(self) -> None:
        """Wait until everything submitted is durable and live. Raises the first error that was met."""
        self._pool.shutdown(wait=True)
        self._raise()
        for slot in (slot for slots in self._open.values() for slot in slots):
            with slot.lock:
                if slot.writer is not None:
                    self._hand_over(slot)
        self._upload.shutdown(wait=True)
        self._raise()
