"""Vaults in memory with fixed keys, for tests of the engine alone: no key derivation, no directory, no settings."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from lumina_vault import crypto
from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.crypto import Keys
from lumina_vault.index import Index
from lumina_vault.model import Config, GcState, Keyring, encode
from lumina_vault.store.keystore import AES
from lumina_vault.store.repository import INDEX_FILE, Repository

VAULT = bytes(range(16))


def secret(name: str, size: int = 32) -> bytes:
    """Bytes that stand for a random secret, the same in every run."""
    return hashlib.shake_256(f"lumina-vault test secret: {name}".encode()).digest(size)


def make_keys(encrypted: bool, vault: bytes = VAULT) -> Keys:
    """Keys of a vault; encrypted ones have the epochs 1 and 2."""
    if not encrypted:
        return Keys(vault, None)
    epochs = [(1, secret("epoch 1"), 0), (2, secret("epoch 2"), 0)]
    return Keys(vault, Keyring(vault=vault, config=bytes(32), id_key=secret("id"), epochs=epochs), secret("master"))


@dataclass
class MemoryVault:
    """The parts of a vault whose objects lie in a dictionary and whose index lies in `directory`."""

    backend: MemoryBackend
    config: Config
    keys: Keys
    directory: str

    def create_index(self) -> Index:
        return Index.create_temporary(os.path.join(self.directory, INDEX_FILE), self.keys.vault, 1)

    @contextlib.contextmanager
    def open(self) -> Iterator[Repository]:
        """The vault; its index is made at the first time."""
        path = os.path.join(self.directory, INDEX_FILE)
        index = Index(path) if os.path.exists(path) else self.create_index()
        with Repository(self.backend, self.config, self.keys, index) as repository:
            yield repository


def memory_vault(directory: str | os.PathLike[str], encrypted: bool) -> MemoryVault:
    """A new vault without key slots; its keys come from `make_keys`."""
    backend, keys = MemoryBackend(), make_keys(encrypted)
    config = Config(vault=keys.vault, created=0, encryption=AES if encrypted else "none")
    backend.put("config", crypto.seal(Keys(keys.vault, None), crypto.CONFIG, encode(config)))
    backend.put("gc", crypto.seal(keys, crypto.GC, encode(GcState(vault=keys.vault, generation=1))))
    return MemoryVault(backend, config, keys, os.fspath(directory))
