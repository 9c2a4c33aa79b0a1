"""Vaults small enough to break at every place: many packs of few bytes, made by one worker, so that runs repeat."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lumina_vault import process
from lumina_vault.cli.main import main
from lumina_vault.store import pack
from lumina_vault.testing.sandbox import Sandbox

DATABASE = b"SQLite format 3\0"
"""First bytes of a file that gets the small chunk profile: some 64 KiB a chunk."""


@pytest.fixture(scope="module", autouse=True)
def _small_packs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "TARGET_SIZE", 64 << 10)
        patch.setattr(process, "workers", lambda: 1)
        yield


def write_source(root: Path, seed: int) -> None:
    """A tree of some 400 KB: a database of several chunks, bundled files, links."""
    rng = random.Random(seed)
    (root / "sub/empty").mkdir(parents=True)
    (root / "sub/deep").mkdir()
    (root / "one.db").write_bytes(DATABASE + rng.randbytes(220_000))
    for number in range(12):
        (root / f"sub/f{number}").write_bytes(rng.randbytes(700))
    (root / "sub/deep/text").write_text("words\n" * 40)
    (root / "sub/link").symlink_to("f1")
    os.link(root / "sub/f2", root / "sub/deep/same")
    (root / "sub/nothing").touch()


def change_source(root: Path, seed: int) -> None:
    """New bytes for several packs, small changes, a removal."""
    rng = random.Random(seed)
    (root / "two.db").write_bytes(DATABASE + rng.randbytes(260_000))
    (root / "sub/f3").write_bytes(rng.randbytes(900))
    (root / f"sub/f{seed + 2}").unlink()
    (root / "sub/new").write_bytes(rng.randbytes(100))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: thousands of fsyncs prove nothing on a disk that loses no power."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="vault-test-", dir="/dev/shm") as directory:
        yield Path(directory)


MakeSandbox = Callable[[bool], Sandbox]


@pytest.fixture
def make_sandbox(tmp_path: Path) -> MakeSandbox:
    def make(encrypted: bool) -> Sandbox:
        root = tmp_path / ("encrypted" if encrypted else "plain")
        root.mkdir()
        sandbox = Sandbox(root, encrypted)
        sandbox.init()
        return sandbox

    return make


def needed(there: bool, what: str) -> None:
    """Skip a test whose tool is missing here; where `CI` is set, everything must be there."""
    if not there:
        if os.environ.get("CI"):
            pytest.fail(f"{what}: CI must be able to do this")
        pytest.skip(what)


@dataclass(frozen=True)
class Ran:
    """One run of the command line."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def vault(sandbox: Sandbox, *arguments: str | Path) -> Ran:
    """Run a command in this process, as `vault` would be run; a traceback fails the test that asked."""
    out, err = io.StringIO(), io.StringIO()
    environment = {"VAULT_URL": str(sandbox.vault), "XDG_STATE_HOME": str(sandbox.root / "state"), "VAULT_LEVEL": "1"}
    if sandbox.encrypted:
        environment["VAULT_KEY_FILE"] = str(sandbox.key_file)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    status: object = 0
    try:
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(sys, "argv", ["vault", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as end:
        status = end.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(status, int)
    return Ran(status, out.getvalue(), err.getvalue())
