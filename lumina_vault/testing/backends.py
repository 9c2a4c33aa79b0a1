"""What every backend promises, as tests. Subclass it with pytest and supply an empty backend:

class TestMemory(BackendConformance):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from lumina_vault.backends.base import WHOLE_LIMIT, Backend, ObjectInfo
from lumina_vault.errors import BackendError, Damage, ObjectMissing, VaultError

PACK = "packs/ab/ab" + "0" * 62
OTHER_PACK = "packs/cd/cd" + "1" * 62
SNAPSHOT = "snapshots/" + "2" * 64
ANNOTATION = "annotations/" + "3" * 32
SLOT = "keys/" + "4" * 16
PARITY = "parity/ef/ef" + "5" * 62
NAMES = (PACK, SNAPSHOT, ANNOTATION, SLOT, PARITY, "config", "keyring", "gc")

FOREIGN = (
    "packs/README",
    "packs/ab/ab" + "0" * 61,  # too short
    "packs/cd/ab" + "0" * 62,  # in another pack's directory
    "packs/AB/AB" + "0" * 62,
    "snapshots/lost+found",
    "snapshots/" + "g" * 64,
    "snapshots/" + "2" * 64 + ".tmp",
    "annotations/" + "3" * 33,
    "keys/" + "4" * 15,
)
"""Names that no vault of format 1 has (format.md section 1), and that a directory may hold all the same."""


class BackendConformance:
    """Each test is one promise of `backends/base.py`. The fixture `backend` gives an empty, writable one."""

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError("a subclass supplies the backend")

    @pytest.fixture(autouse=True)
    def _prepared(self, backend: Backend) -> None:
        backend.prepare()

    # --- the place ---------------------------------------------------------------------------------------------------

    def test_it_names_itself_and_is_writable(self, backend: Backend) -> None:
        assert ":" in backend.url
        assert backend.writable

    def test_a_vault_exists_once_its_config_does(self, backend: Backend) -> None:
        backend.put("keyring", b"k")
        backend.put(SLOT, b"s")
        assert not backend.exists()
        backend.put("config", b"c")
        assert backend.exists()

    def test_a_place_that_holds_something_is_not_prepared(self, backend: Backend) -> None:
        backend.put("config", b"a vault")
        with pytest.raises(BackendError):
            backend.prepare()
        assert backend.read("config") == b"a vault"

    # --- writing -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", NAMES)
    def test_put_makes_an_object_of_every_name(self, backend: Backend, name: str) -> None:
        backend.put(name, b"bytes")
        assert backend.read(name) == b"bytes"
        assert backend.size(name) == 5

    def test_put_replaces_the_whole_object(self, backend: Backend) -> None:
        backend.put("gc", b"a long first version")
        backend.put("gc", b"short")
        assert backend.read("gc") == b"short"
        assert backend.size("gc") == 5

    def test_an_empty_object_is_an_object(self, backend: Backend) -> None:
        backend.put("gc", b"")
        assert backend.read("gc") == b""
        assert backend.size("gc") == 0

    def test_a_spool_becomes_the_object(self, backend: Backend) -> None:
        spool = backend.spool()
        spool.write(b"one")
        spool.write(memoryview(b"-two-")[1:4])
        spool.write(b"")
        spool.write(b"three")
        backend.publish(spool, PACK, 11)
        assert backend.read(PACK) == b"onetwothree"

    def test_a_spool_is_no_object_before_it_is_published(self, backend: Backend) -> None:
        spool = backend.spool()
        spool.write(b"not yet")
        assert [info for prefix in ("packs/", "snapshots/") for info in backend.list(prefix)] == []
        with pytest.raises(ObjectMissing):
            backend.read(PACK)
        spool.discard()

    @pytest.mark.parametrize("claimed", [0, 6, 8, 1 << 40])
    def test_a_spool_of_another_length_is_not_published(self, backend: Backend, claimed: int) -> None:
        spool = backend.spool()
        spool.write(b"7 bytes")
        with pytest.raises(BackendError):
            backend.publish(spool, PACK, claimed)
        with pytest.raises(ObjectMissing):
            backend.size(PACK)
        assert list(backend.list("packs/")) == []

    def test_discard_may_be_repeated(self, backend: Backend) -> None:
        spool = backend.spool()
        spool.write(b"dropped")
        spool.discard()
        spool.discard()
        with pytest.raises(BackendError):
            backend.publish(spool, PACK, 7)

    def test_discard_after_publish_does_nothing(self, backend: Backend) -> None:
        spool = backend.spool()
        spool.write(b"kept")
        backend.publish(spool, PACK, 4)
        spool.discard()
        assert backend.read(PACK) == b"kept"

    def test_spools_are_independent(self, backend: Backend) -> None:
        first, second = backend.spool(), backend.spool()
        first.write(b"first")
        second.write(b"second")
        first.discard()
        backend.publish(second, PACK, 6)
        assert backend.read(PACK) == b"second"

    # --- reading -----------------------------------------------------------------------------------------------------

    def test_reads_give_exactly_the_bytes_asked_for(self, backend: Backend) -> None:
        data = bytes(range(256)) * 16
        backend.put(PACK, data)
        edges = [0, 1, 7, 255, 256, 4095, 4096]
        for start, end in [*pairwise(edges), (0, 4096), (5, 5), (4096, 4096)]:
            assert backend.read(PACK, start, end - start) == data[start:end]
        for start in edges:
            assert backend.read(PACK, start) == data[start:]

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 11), (10, 1), (9, 2), (11, 0), (11, None), (0, 1 << 62), (1 << 62, 1)]
    )
    def test_a_read_beyond_the_end_is_damage(self, backend: Backend, offset: int, length: int | None) -> None:
        backend.put(PACK, b"ten bytes.")
        with pytest.raises(Damage):
            backend.read(PACK, offset, length)

    def test_an_object_too_long_to_be_one_is_not_read_whole(self, backend: Backend) -> None:
        backend.put(PACK, bytes(WHOLE_LIMIT))
        assert len(backend.read(PACK)) == WHOLE_LIMIT
        backend.put(PACK, bytes(WHOLE_LIMIT + 1))
        with pytest.raises(Damage):
            backend.read(PACK)
        with pytest.raises(Damage):
            backend.read(PACK, 1)
        assert backend.size(PACK) == WHOLE_LIMIT + 1
        assert backend.read(PACK, WHOLE_LIMIT, 1) == b"\0"

    @pytest.mark.parametrize("call", [Backend.read, Backend.size])
    def test_what_is_missing_is_said_to_be(self, backend: Backend, call: Callable[[Backend, str], Any]) -> None:
        backend.put(PACK, b"there")
        for name in (OTHER_PACK, SNAPSHOT, PARITY, "keyring"):
            with pytest.raises(ObjectMissing, match=name.rsplit("/", maxsplit=1)[-1]):
                getattr(backend, call.__name__)(name)

    # --- listing and deleting ----------------------------------------------------------------------------------------

    def test_list_gives_names_and_sizes_below_one_prefix(self, backend: Backend) -> None:
        for size, name in enumerate((*NAMES, OTHER_PACK)):
            backend.put(name, bytes(size))
        found = {
            prefix: sorted(backend.list(prefix))
            for prefix in ("packs/", "snapshots/", "annotations/", "keys/", "parity/")
        }
        assert found == {
            "packs/": [ObjectInfo(PACK, 0), ObjectInfo(OTHER_PACK, 8)],
            "snapshots/": [ObjectInfo(SNAPSHOT, 1)],
            "annotations/": [ObjectInfo(ANNOTATION, 2)],
            "keys/": [ObjectInfo(SLOT, 3)],
            "parity/": [ObjectInfo(PARITY, 4)],
        }

    def test_list_of_nothing_is_empty(self, backend: Backend) -> None:
        for prefix in ("packs/", "snapshots/", "annotations/", "keys/", "parity/"):
            assert list(backend.list(prefix)) == []

    def test_list_passes_over_foreign_names(self, backend: Backend) -> None:
        backend.put(PACK, b"1")
        for name in FOREIGN:
            backend.put(name, b"foreign")
        found = [
            info.name for prefix in ("packs/", "snapshots/", "annotations/", "keys/") for info in backend.list(prefix)
        ]
        assert found == [PACK]

    def test_objects_may_go_while_they_are_listed(self, backend: Backend) -> None:
        names = [f"packs/{number:02x}/{number:02x}{'0' * 62}" for number in range(8)]
        names += [f"packs/00/00{number:02x}{'0' * 60}" for number in range(1, 8)]
        for name in names:
            backend.put(name, b"pack")
        listing = backend.list("packs/")
        seen = {next(listing).name}
        for name in names[1:]:
            backend.delete(name)
        seen.update(info.name for info in listing)
        assert names[0] in seen
        assert seen <= set(names)

    def test_delete_removes_one_object_and_may_be_repeated(self, backend: Backend) -> None:
        backend.put(PACK, b"1")
        backend.put(OTHER_PACK, b"2")
        backend.delete(PACK)
        backend.delete(PACK)
        backend.delete(PARITY)
        backend.delete("keyring")
        with pytest.raises(ObjectMissing):
            backend.read(PACK)
        assert [info.name for info in backend.list("packs/")] == [OTHER_PACK]

    # --- compare and swap --------------------------------------------------------------------------------------------

    def test_compare_and_swap_makes_what_is_missing(self, backend: Backend) -> None:
        assert backend.compare_and_swap("gc", None, b"1")
        assert backend.read("gc") == b"1"

    def test_compare_and_swap_replaces_what_is_as_expected(self, backend: Backend) -> None:
        backend.put("gc", b"1")
        assert backend.compare_and_swap("gc", b"1", b"22")
        assert backend.read("gc") == b"22"
        assert backend.compare_and_swap("gc", b"22", b"")
        assert backend.compare_and_swap("gc", b"", b"3")

    @pytest.mark.parametrize("expected", [None, b"", b"another", b"present."])
    def test_compare_and_swap_changes_nothing_else(self, backend: Backend, expected: bytes | None) -> None:
        backend.put("gc", b"present")
        assert not backend.compare_and_swap("gc", expected, b"new")
        assert backend.read("gc") == b"present"

    @pytest.mark.parametrize("expected", [b"", b"1"])
    def test_compare_and_swap_of_what_is_missing_makes_nothing(self, backend: Backend, expected: bytes) -> None:
        assert not backend.compare_and_swap("gc", expected, b"new")
        with pytest.raises(ObjectMissing):
            backend.read("gc")

    def test_one_of_many_threads_wins_each_swap(self, backend: Backend) -> None:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda i: backend.compare_and_swap("gc", None, b"%d" % i), range(32))) == 1

    def test_no_swap_is_lost_between_threads(self, backend: Backend) -> None:
        backend.put("gc", b"0")

        def add(_: int) -> None:
            while True:
                now = backend.read("gc")
                if backend.compare_and_swap("gc", now, b"%d" % (int(now) + 1)):
                    return

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(24)))
        assert backend.read("gc") == b"24"

    # --- threads -----------------------------------------------------------------------------------------------------

    def test_a_reader_sees_the_old_object_or_the_new_one(self, backend: Backend) -> None:
        versions = [bytes([value]) * (20_000 + 1_000 * value) for value in range(8)]
        backend.put("gc", versions[0])

        def write() -> None:
            for data in versions * 2:
                backend.put("gc", data)

        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(write)
            seen = {backend.read("gc")}
            while not writing.done():
                seen.add(backend.read("gc"))
            writing.result()
        assert seen <= set(versions)
        assert backend.read("gc") == versions[-1]

    def test_threads_write_and_read_at_once(self, backend: Backend) -> None:
        def one(number: int) -> bool:
            data = b"%d" % number * 1000
            name = f"packs/{number % 4:02x}/{number % 4:02x}{number:062x}"
            spool = backend.spool()
            spool.write(data)
            backend.publish(spool, name, len(data))
            return backend.read(name) == data

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(one, range(48)))
        assert len(list(backend.list("packs/"))) == 48

    def test_every_error_is_one_of_ours(self, backend: Backend) -> None:
        """A name below an object: whatever the store makes of it, no foreign exception comes out."""
        backend.put("keyring", b"1")
        for call in (backend.read, backend.size, backend.delete):
            try:
                call("keyring/below")
            except VaultError:
                continue
            assert call == backend.delete
