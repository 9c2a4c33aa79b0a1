"""Crashes and store errors on purpose, at every place where a vault changes.

    faults = Faults([Fault("store", 3, Kind.TORN)])
    with faults.process():
        ... a snapshot into FaultyBackend(backend, faults) ...        # SimulatedCrash at the third write
    ... the vault is now what a killed process leaves: locks free, their files there, spool files there ...

A dry run with `Faults()` counts: `faults.log` lists every operation, so that a test can enumerate them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from unittest import mock

from lumina_vault.backends import Backend, Spool
from lumina_vault.backends.base import ObjectInfo
from lumina_vault.errors import BackendError
from lumina_vault.index import Index
from lumina_vault.index.locks import SessionLock

STORE, INDEX = "store", "index"


class SimulatedCrash(BaseException):
    """The process died here. Not an `Exception`: nothing may handle it and go on."""


class Kind(Enum):
    BEFORE = "before"
    """Dies before the operation begins."""
    AFTER = "after"
    """Dies once the operation is durable, before its caller learns of it."""
    TORN = "torn"
    """Dies half-way: a truncated object stands under the final name (stores only; law 4 keeps a local one from it)."""
    ERROR = "error"
    """The operation raises, and the process lives on."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at operation `at` (from 1) of a domain: `store` or `index`. `forever`: and at all later ones."""

    domain: str
    at: int
    kind: Kind
    error: Callable[[], Exception] = lambda: BackendError("injected: the store did not answer")
    forever: bool = False


@dataclass
class Faults:
    """The faults of one process, and what it did until the first crash."""

    faults: tuple[Fault, ...] = ()
    log: dict[str, list[str]] = field(default_factory=lambda: {STORE: [], INDEX: []})
    """Operations begun, by domain: `publish packs/..`, `commit`."""
    dead: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()

    def begin(self, domain: str, what: str) -> Fault | None:
        """Count an operation; its fault, if it has one. Raises `SimulatedCrash` or the injected error."""
        with self._lock:
            self.check()
            log = self.log[domain]
            log.append(what)
            fault = next(
                (
                    f
                    for f in self.faults
                    if f.domain == domain and (f.at == len(log) or (f.forever and f.at < len(log)))
                ),
                None,
            )
            if fault is not None and fault.kind is Kind.BEFORE:
                self.crash()
        if fault is not None and fault.kind is Kind.ERROR:
            raise fault.error()
        return fault

    def check(self) -> None:
        """A dead process does nothing any more."""
        if self.dead:
            raise SimulatedCrash("this process is dead")

    def crash(self) -> None:
        self.dead = True
        raise SimulatedCrash("the process dies here")

    def observe(self, event: str) -> None:
        """For `Index.observer`: a transaction is an operation of the domain `index`."""
        when, _, step = event.partition(" ")
        if when == "before":
            self._thread.fault = self.begin(INDEX, step)
        elif (fault := getattr(self._thread, "fault", None)) is not None and fault.kind is Kind.AFTER:
            self.crash()

    @contextlib.contextmanager
    def process(self) -> Iterator[None]:
        """What runs in this block is one process: indexes opened in it are observed; when it dies the kernel drops its
        locks, and nobody removes its files."""
        opened, released = Index.__init__, SessionLock.release

        def open_(index: Index, *arguments: Any, **options: Any) -> None:
            opened(index, *arguments, **options)
            index.observer = self.observe

        def release(lock: SessionLock) -> None:
            if not self.dead:
                released(lock)
            elif lock.fd >= 0:
                os.close(lock.fd)
                lock.fd = -1

        with mock.patch.object(Index, "__init__", open_), mock.patch.object(SessionLock, "release", release):
            yield


class _FaultySpool:
    """Keeps what passes, so that a torn write can leave half of it."""

    def __init__(self, inner: Spool, faults: Faults) -> None:
        self.inner, self._faults = inner, faults
        self.written = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self._faults.check()
        self.written += data
        self.inner.write(data)

    def discard(self) -> None:
        if not self._faults.dead:
            self.inner.discard()


class FaultyBackend:
    """A backend whose writes can fail, and whose process can die in them. Reads fail only once it is dead."""

    def __init__(self, inner: Backend, faults: Faults) -> None:
        self.inner, self.faults = inner, faults

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def writable(self) -> bool:
        return self.inner.writable

    @property
    def place(self) -> tuple[int, int] | None:
        return self.inner.place

    def exists(self) -> bool:
        return self.inner.exists()

    def prepare(self) -> None:
        fault = self.faults.begin(STORE, "prepare")
        self.inner.prepare()
        self._after(fault)

    def spool(self) -> Spool:
        self.faults.check()
        return _FaultySpool(self.inner.spool(), self.faults)

    def publish(self, spool: Spool, name: str, length: int) -> None:
        assert isinstance(spool, _FaultySpool)
        fault = self.faults.begin(STORE, f"publish {name}")
        self._tear(fault, name, spool.written)
        self.inner.publish(spool.inner, name, length)
        self._after(fault)

    def put(self, name: str, data: bytes) -> None:
        fault = self.faults.begin(STORE, f"put {name}")
        self._tear(fault, name, data)
        self.inner.put(name, data)
        self._after(fault)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.faults.check()
        return self.inner.read(name, offset, length)

    def size(self, name: str) -> int:
        self.faults.check()
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.faults.check()
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        fault = self.faults.begin(STORE, f"delete {name}")
        self.inner.delete(name)
        self._after(fault)

    def compare_and_swap(self, name: str, expected: bytes | None, data: bytes) -> bool:
        fault = self.faults.begin(STORE, f"swap {name}")
        swapped = self.inner.compare_and_swap(name, expected, data)
        self._after(fault)
        return swapped

    def _tear(self, fault: Fault | None, name: str, data: bytes | bytearray) -> None:
        if fault is not None and fault.kind is Kind.TORN:
            self.inner.put(name, bytes(data[: len(data) // 2]))
            self.faults.crash()

    def _after(self, fault: Fault | None) -> None:
        if fault is not None and fault.kind is not Kind.ERROR:  # what can't be torn is whole, or not there
            self.faults.crash()
