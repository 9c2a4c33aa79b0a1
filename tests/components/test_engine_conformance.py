"""The store's sink and source of trees, and the fake of both, against one conformance suite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lumina_vault import process
from lumina_vault.components.base import TreeSink, TreeSource
from lumina_vault.crypto import DATA, Header
from lumina_vault.model import Record, Tree
from lumina_vault.store.contents import BufferPool
from lumina_vault.store.fetch import Fetcher, StoredTree
from lumina_vault.store.treewriter import Previous, TreeWriter
from lumina_vault.store.uploader import Counter, Uploader
from lumina_vault.testing.components import EngineConformance, FakeTree
from lumina_vault.testing.memory import MemoryVault, memory_vault


class TestFake(EngineConformance):
    def write(self, place: Path, fill: Callable[[TreeSink], None], earlier: object = None) -> FakeTree:
        assert earlier is None or isinstance(earlier, FakeTree)
        tree = FakeTree(earlier)
        fill(tree)
        return tree

    @contextlib.contextmanager
    def read(self, place: Path, stored: object) -> Iterator[TreeSource]:
        assert isinstance(stored, FakeTree)
        yield stored

    def lose(self, stored: object) -> None:
        assert isinstance(stored, FakeTree)
        stored.chunks.clear()


class _Stored:
    """Writes and reads trees by the engine, each in a session of its own."""

    encrypted: bool
    vault: MemoryVault | None = None

    def write(self, place: Path, fill: Callable[[TreeSink], None], earlier: object = None) -> Tree:
        self.vault = self.vault or memory_vault(place, self.encrypted)
        with self.vault.open() as repository, repository.session("writer") as session:
            keys, counter, buffers = repository.keys, Counter(), BufferPool(process.workers() + 2)
            previous = None
            if isinstance(earlier, Tree):
                previous = Previous(repository.reader, session, earlier)
            with Uploader(repository.backend, keys, session) as uploader:
                with TreeWriter(keys, session, uploader, buffers, previous, counter) as writer:
                    fill(writer)
                    tree = writer.finish()
                uploader.finish()
            repository.store_record(
                session,
                Record(vault=keys.vault, time=0, end=0, host="", user="", program="", components=[]),
            )
        return tree

    @contextlib.contextmanager
    def read(self, place: Path, stored: object) -> Iterator[TreeSource]:
        assert isinstance(stored, Tree)
        assert self.vault is not None
        with self.vault.open() as repository, Fetcher(repository.reader) as fetcher:
            yield StoredTree(fetcher, stored)

    def lose(self, stored: object) -> None:
        assert self.vault is not None
        objects = self.vault.backend.objects
        for name in [name for name in objects if name.startswith("packs/")]:
            if Header.parse(objects[name], name).type == DATA:
                del objects[name]


class TestStoredPlain(_Stored, EngineConformance):
    encrypted = False


class TestStoredEncrypted(_Stored, EngineConformance):
    encrypted = True


@pytest.mark.parametrize("kind", [TestStoredPlain, TestStoredEncrypted])
def test_the_engine_shares_what_it_has(kind: type[_Stored], tmp_path: Path) -> None:
    """Small files in a row lie in one chunk: what a hundred thousand of them rely on."""
    from lumina_vault.testing.components import _fill

    engine = kind()
    stored = engine.write(tmp_path, lambda sink: _fill(sink, {b"f%d" % i: [b"%d" % i] for i in range(500)}))
    with engine.read(tmp_path, stored) as source:
        assert len({ref.chunk for entry in source.entries() for ref in entry.refs}) == 1
