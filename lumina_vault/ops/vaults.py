"""Make and open vaults: configuration, pins, keys, index."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lumina_vault import process
from lumina_vault.backends import Backend, local_path, open_backend
from lumina_vault.crypto import Keys, parse_key_file
from lumina_vault.errors import Damage, StoreFull, UsageError, VaultError
from lumina_vault.model import Config
from lumina_vault.settings import Settings
from lumina_vault.store import keystore
from lumina_vault.store.keystore import Secret
from lumina_vault.store.pins import Pins

if TYPE_CHECKING:
    from lumina_vault.index import Index
    from lumina_vault.store.rebuild import Rebuilt
    from lumina_vault.store.repository import Repository

INDEX_FILE = "index.db"

Warn = Callable[[str], None]


def secrets(settings: Settings) -> list[Secret]:
    """What the user offers to open a vault with. Raises `WrongKey`, `UsageError`."""
    offered: list[Secret] = []
    if settings.key_file:
        offered.append(read_key_file(settings.key_file))
    if settings.passphrase:
        offered.append(Secret("passphrase", settings.passphrase.encode(), settings.passphrase_source))
    return offered


def read_key_file(path: str) -> Secret:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(4096)
    except OSError as error:
        raise UsageError(f"key file {path}: {error.strerror}") from None
    return Secret("keyfile", parse_key_file(text, path), f"key file {path}")


def check_free(settings: Settings) -> None:
    """Raises `UsageError` if there is a vault already: better said before a passphrase is thought up."""
    backend = open_backend(settings.url)
    if backend.exists():
        raise UsageError(f"there is a vault at {backend.url} already")


def create_vault(settings: Settings, secret: Secret | None) -> Config:
    """A new vault at the settings' URL; encrypted if there is a secret. Raises if the place is taken."""
    from lumina_vault.index import Index

    check_free(settings)
    backend = open_backend(settings.url)
    config, _ = keystore.create(backend, secret)
    Index.create(index_file(settings), config.vault, 1).close()
    Pins(settings.state_directory).remember(backend.url, config)
    return config


def index_file(settings: Settings) -> str:
    return os.path.join(os.path.abspath(os.path.expanduser(local_path(settings.url))), INDEX_FILE)


def unlock(settings: Settings, ask: Callable[[], Sequence[Secret]] | None = None) -> tuple[Backend, Config, Keys]:
    """The backend, configuration and keys of a vault, without its index. `ask` is tried when nothing was offered."""
    backend = open_backend(settings.url)
    config, raw = keystore.load_config(backend)
    pins = Pins(settings.state_directory)
    pins.check(backend.url, config)
    if not config.encrypted and (settings.key_file or settings.passphrase):
        given = f"key file {settings.key_file}" if settings.key_file else settings.passphrase_source
        raise Damage(
            f"{given} was given, but the vault at {backend.url} is not encrypted: it is not the vault that you mean, "
            "or somebody replaced it. To use it all the same, run without a key"
        )

    def offered() -> Sequence[Secret]:
        return secrets(settings) or (ask() if ask else [])

    return backend, config, keystore.unlock(backend, config, raw, offered)


@contextlib.contextmanager
def open_vault(
    settings: Settings,
    *,
    write: bool = False,
    warn: Warn = lambda _text: None,
    ask: Callable[[], Sequence[Secret]] | None = None,
) -> Iterator[Repository]:
    """An open vault. Readers go on without an index, and on media that can't be written, and say so through `warn`.

    Raises `NoSuchVault`, `WrongKey`, `Damage`, `NewerFormat`, `VaultLocked`.
    """
    process.prepare()
    opened: list[tuple[Backend, Config, Keys]] = []
    failed: list[BaseException] = []

    def derive() -> None:
        try:
            opened.append(unlock(settings, ask))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            failed.append(error)

    # Deriving the key takes a processor for a tenth of a second and importing SQLAlchemy another: side by side.
    thread = threading.Thread(target=derive, name="unlock", daemon=True)
    thread.start()
    try:
        from lumina_vault.store.repository import Repository
    finally:
        thread.join()
    if failed:
        raise failed[0]
    backend, config, keys = opened[0]
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(_index(settings, backend, config, keys, write, warn))
        repository = stack.enter_context(Repository(backend, config, keys, index))
        repository.warn = warn
        yield repository


@contextlib.contextmanager
def _index(
    settings: Settings, backend: Backend, config: Config, keys: Keys, write: bool, warn: Warn
) -> Iterator[Index]:
    from lumina_vault.index import Index

    path = index_file(settings)
    if os.path.exists(path):
        if not backend.writable:
            if write:
                raise VaultError(f"the vault at {backend.url} can't be written")
            warn("the vault can't be written: reading without a session, and with its index as it is")
            yield Index(path, readonly=True)
            return
        try:
            index = Index(path)
        except StoreFull:
            if write:
                raise
            warn("the disk is full: reading without a session, and with the index as it is")
            index = Index(path, readonly=True)
        yield index
        return
    if write:
        raise Damage(f"the index {path} is missing; no data is lost, run: vault index rebuild")
    warn(f"the index {path} is missing: building a temporary one; vault index rebuild makes it anew")
    from lumina_vault.store.rebuild import temporary_index

    with tempfile.TemporaryDirectory(prefix="vault-index-") as directory:
        yield temporary_index(backend, config, keys, os.path.join(directory, INDEX_FILE))


def rebuild_index(
    settings: Settings,
    progress: Callable[[str, int], None],
    ask: Callable[[], Sequence[Secret]] | None = None,
) -> Rebuilt:
    """Make the index anew from packs, records and annotations."""
    from lumina_vault.store.rebuild import rebuild_in_place

    process.prepare()
    backend, config, keys = unlock(settings, ask)
    return rebuild_in_place(backend, config, keys, index_file(settings), progress)
