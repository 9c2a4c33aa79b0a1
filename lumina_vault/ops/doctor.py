"""Doctor: look at everything that a vault needs, and say how to mend what does not work."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lumina_vault import __version__
from lumina_vault.errors import VaultError
from lumina_vault.ops import vaults
from lumina_vault.settings import Settings
from lumina_vault.store.keystore import Secret
from lumina_vault.store.repository import Repository, read_gc


@dataclass(frozen=True)
class Finding:
    check: str
    ok: bool
    found: str
    mend: str = ""


def examine(settings: Settings, ask: Callable[[], Sequence[Secret]]) -> list[Finding]:
    """All findings, in the order in which one depends on another. Never raises for what it examines."""
    findings = [_environment(), _chunker(), _state(settings)]
    try:
        warnings: list[str] = []
        with vaults.open_vault(settings, ask=ask, warn=warnings.append) as repository:
            if not os.path.exists(vaults.index_file(settings)):
                findings.append(Finding("index file", False, "; ".join(warnings), "run: vault index rebuild"))
            findings.append(
                Finding(
                    "vault",
                    True,
                    f"{settings.url}, id {repository.config.vault.hex()[:12]}, {repository.config.encryption}",
                )
            )
            findings += _vault(settings, repository)
    except VaultError as error:
        findings.append(Finding("vault", False, str(error), "the message says what to do next"))
    return findings


def _environment() -> Finding:
    return Finding(
        "environment", True,
        f"vault {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )  # fmt: skip


def _chunker() -> Finding:
    try:
        import pyfastcdc.cy  # noqa: F401 (its presence is what is checked)
    except ImportError as error:
        return Finding(
            "chunker",
            False,
            f"the native build of pyfastcdc is missing ({error})",
            "reinstall: pip install --force-reinstall lumina-vault",
        )
    return Finding("chunker", True, "native")


def _state(settings: Settings) -> Finding:
    """Where this client remembers vaults."""
    directory = settings.state_directory
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if os.access(place, os.W_OK):
        return Finding("client state", True, directory)
    return Finding(
        "client state", False, f"{directory} can't be written: a vault that is replaced would not be noticed",
        "set XDG_STATE_HOME to a directory that this user may write",
    )  # fmt: skip


def _vault(settings: Settings, repository: Repository) -> Iterator[Finding]:
    root = os.path.dirname(vaults.index_file(settings))
    writable = repository.backend.writable
    yield Finding("access", True, "read and write" if writable else "read only: snapshots can't be taken")
    loose = [name for name in ("", "packs", "snapshots", "keys", "index.db") if _others_may(os.path.join(root, name))]
    yield Finding(
        "permissions", not loose,
        f"others have access to {', '.join(n or 'the directory' for n in loose)}" if loose else "only the owner's",
        f"chmod -R go= {root}" if loose else "",
    )  # fmt: skip
    free = shutil.disk_usage(root).free
    yield Finding(
        "space",
        free > 1 << 30,
        f"{free >> 20:,} MiB free",
        "" if free > 1 << 30 else "free some space: snapshots will fail soon",
    )
    totals = repository.index.totals()
    yield Finding("index", True, f"{totals['packs']:,} packs, {totals['chunks']:,} chunks")
    state, _ = read_gc(repository.backend, repository.keys)
    generation = repository.index.get_info("generation")
    same = str(state.generation) == generation
    yield Finding(
        "generation",
        same,
        f"index {generation}, store {state.generation}",
        "" if same else "run: vault index rebuild",
    )
    snapshots, unreadable = 0, 0
    for row in repository.index.snapshot_rows():
        snapshots += 1
        try:
            repository.find(row.id.hex())
        except VaultError:
            unreadable += 1
    yield Finding(
        "snapshots",
        not unreadable,
        f"{snapshots:,} in all, {unreadable:,} unreadable",
        "run: vault verify" if unreadable else "",
    )
    if writable:
        dead = repository.index.fence_dead_sessions()
        left = len(repository.index.adoptable())
        alive = len(repository.index.active_sessions())
        yield Finding(
            "sessions",
            True,
            f"{alive} running, {dead} dead ones fenced, {left} packs for the next snapshot to take over",
        )


def _others_may(path: str) -> bool:
    try:
        return bool(stat.S_IMODE(os.lstat(path).st_mode) & 0o077)
    except OSError:
        return False
