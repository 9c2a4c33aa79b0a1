"""A vault in a scratch directory, used as the commands use it, within this process: for tests of whole histories."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from lumina_vault import crypto, ids
from lumina_vault.backends import Backend, open_backend
from lumina_vault.ops import vaults
from lumina_vault.ops.restore import Outcome, plan_restore
from lumina_vault.ops.snapshot import StreamSource, plan_snapshot
from lumina_vault.ops.verify import verify
from lumina_vault.settings import Settings
from lumina_vault.store.keystore import Secret
from lumina_vault.store.pack import Table, check_pack
from lumina_vault.store.rebuild import Rebuilt
from lumina_vault.store.repository import Repository, Snapshot
from lumina_vault.store.verify import Result
from lumina_vault.testing.faults import Faults, FaultyBackend

TreeState = dict[str, tuple[int, int, bytes]]
"""Path -> (mode, mtime in ns, contents of a file or target of a symlink)."""

_KEY = bytes(range(32))


class Sandbox:
    """A vault at `root/vault`, plain or opened by a key file, and what remembers it. Each call opens it anew."""

    def __init__(self, root: Path, encrypted: bool) -> None:
        self.root, self.encrypted = root, encrypted
        self.vault = root / "vault"
        self.key_file = root / "key"
        self.key_file.write_text(crypto.key_file_text(_KEY))
        self.settings = Settings(
            url=str(self.vault), level=1, debug=False, state_directory=str(root / "state"),
            key_file=str(self.key_file) if encrypted else None,
        )  # fmt: skip

    def init(self, faults: Faults | None = None) -> None:
        secret = Secret("keyfile", _KEY, "the key file") if self.encrypted else None
        with _process(faults):
            vaults.create_vault(self.settings, secret)

    @contextlib.contextmanager
    def open(self, faults: Faults | None = None, *, write: bool = False) -> Iterator[Repository]:
        with _process(faults), vaults.open_vault(self.settings, write=write) as repository:
            yield repository

    def snapshot(
        self,
        *paths: Path,
        stream: bytes | None = None,
        faults: Faults | None = None,
        reread: bool = False,
        tags: Sequence[str] = (),
    ) -> Snapshot:
        """Save directories, and `stream` as `stream:data`."""
        with self.open(faults, write=True) as repository:
            streams = [] if stream is None else [StreamSource("data", stdin=io.BytesIO(stream))]
            return plan_snapshot([str(p) for p in paths], streams, tags=tags, level=1, reread=reread).execute(
                repository
            )

    def restore(self, snapshot: str, to: Path) -> list[Outcome]:
        with self.open() as repository:
            return plan_restore(repository.find(snapshot), to=str(to)).execute(repository)

    def verify(self, data: str = "all", snapshot: str | None = None) -> Result:
        with self.open() as repository:
            return verify(repository, snapshot, data, lambda _done, _total: None)

    def rebuild(self, faults: Faults | None = None) -> Rebuilt:
        with _process(faults):
            return vaults.rebuild_index(self.settings, lambda _what, _count: None)

    def ids(self) -> list[str]:
        """All snapshots, in the order of their commits."""
        with self.open() as repository:
            return [snapshot.id.hex() for snapshot in repository.snapshots()]

    def copy(self, root: Path) -> Sandbox:
        """Another vault of the same bytes; a client that has never seen it."""
        root.mkdir(parents=True)
        shutil.copytree(self.vault, root / "vault", copy_function=_reflink)
        return Sandbox(root, self.encrypted)

    def packs(self) -> dict[str, Table]:
        """Every pack that is whole, by name, with its table."""
        backend, _, keys = vaults.unlock(self.settings)
        found: dict[str, Table] = {}
        for info in backend.list("packs/"):
            name = info.name.rsplit("/", 1)[1]
            if ids.object_hash(self.object(info.name).read_bytes()).hex() == name:
                found[name] = check_pack(backend, keys, bytes.fromhex(name), info.size)
        return found

    def object(self, name: str) -> Path:
        return self.vault / name

    def scratch(self) -> list[str]:
        """What stands in `tmp/` and `sessions/`."""
        return [
            f"{directory}/{name}"
            for directory in ("tmp", "sessions")
            if (self.vault / directory).is_dir()
            for name in sorted(os.listdir(self.vault / directory))
        ]


def _reflink(source: str, target: str) -> None:
    """Immutable objects need no copy of their own."""
    if stat.S_IMODE(os.stat(source).st_mode) == 0o400:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@contextlib.contextmanager
def _process(faults: Faults | None) -> Iterator[None]:
    if faults is None:
        yield
        return

    def faulty(url: str) -> Backend:
        return FaultyBackend(open_backend(url), faults)

    with faults.process(), mock.patch.object(vaults, "open_backend", faulty):
        yield


def tree_state(root: Path) -> TreeState:
    """Everything below a directory, and the directory itself as `.`."""
    found: TreeState = {}
    for directory, names, files in os.walk(root):
        for path in [Path(directory), *(Path(directory, n) for n in files), *(Path(directory, n) for n in names)]:
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                data = os.fsencode(os.readlink(path))
            else:
                data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, data)
    return found
