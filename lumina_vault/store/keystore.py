"""A vault's configuration, key slots and keyring: made by `init`, opened by everything else (format.md section 7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lumina_vault import crypto, ids
from lumina_vault.backends import Backend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, NoSuchVault, ObjectMissing, UsageError, WrongKey
from lumina_vault.model import Config, GcState, Keyring, KeySlot, decode, encode

AES = "aes-256-gcm"


@dataclass(frozen=True)
class Secret:
    """A passphrase or the 32 bytes of a key file, and where it came from (for messages; never the secret)."""

    kind: str
    data: bytes = field(repr=False)
    source: str


def create(backend: Backend, secret: Secret | None) -> tuple[Config, Keys]:
    """Write a new vault's configuration; encrypted if there is a secret.

    The config comes last: with it the vault exists.
    """
    backend.prepare()
    vault = ids.random_id(ids.VAULT_ID_BYTES)
    now = time.time_ns()
    config = Config(vault=vault, created=now, encryption=AES if secret else "none")
    plain = Keys(vault, None)
    raw = crypto.seal(plain, crypto.CONFIG, encode(config))
    keys = plain
    if secret is not None:
        master = ids.random_id()
        keyring = Keyring(
            vault=vault,
            config=ids.object_hash(raw),
            id_key=ids.random_id(),
            epochs=[(1, ids.random_id(), now)],
        )
        keys = Keys(vault, keyring, master)
        add_slot(backend, keys, secret, "")
        backend.put("keyring", crypto.seal(keys, crypto.KEYRING, encode(keyring)))
    backend.put("gc", crypto.seal(keys, crypto.GC, encode(GcState(vault=vault, generation=1))))
    backend.put("config", raw)
    return config, keys


def load_config(backend: Backend) -> tuple[Config, bytes]:
    """(config, its object's bytes). Raises `NoSuchVault`, `Damage`, `NewerFormat`."""
    try:
        raw = backend.read("config")
    except ObjectMissing:
        if next(backend.list("packs/"), None) is not None:
            raise Damage(
                f"{backend.url} holds packs but no config: put back config and keyring from a copy of the vault"
            ) from None
        raise NoSuchVault(
            f"there is no vault at {backend.url}; make one with: vault init --vault {backend.url}"
        ) from None
    header = crypto.Header.parse(raw, "config")
    config = decode(crypto.unseal(Keys(header.vault, None), crypto.CONFIG, raw, "config"), Config, "config")
    if config.vault != header.vault or config.encryption not in ("none", AES):
        raise Damage("config does not describe a vault that this version knows")
    return config, raw


def unlock(backend: Backend, config: Config, raw: bytes, secrets: Callable[[], Sequence[Secret]]) -> Keys:
    """The vault's keys. `secrets` is asked only if the vault is encrypted. Raises `WrongKey`, `Damage`."""
    if not config.encrypted:
        return Keys(config.vault, None)
    offered = secrets()
    if not offered:
        raise WrongKey(
            f"the vault at {backend.url} is encrypted: give VAULT_PASSPHRASE, VAULT_PASSPHRASE_FILE or --key-file FILE"
        )
    slots = list_slots(backend, config.vault)
    master = next(
        (
            key
            for secret in offered
            for slot in slots
            if slot.kind == secret.kind and (key := crypto.open_slot(slot, secret.data))
        ),
        None,
    )
    if master is None:
        given = " and ".join(secret.source for secret in offered)
        kinds = sorted({slot.kind for slot in slots})
        raise WrongKey(
            "wrong passphrase or key, or a damaged key slot: "
            f"none of the {len(slots)} key slots ({', '.join(kinds) or 'none'}) opens with what came from {given}"
        )
    try:
        sealed = backend.read("keyring")
    except ObjectMissing:
        raise Damage(
            f"the keyring of {backend.url} is missing, and nothing can be read without it: "
            "put it back from a copy of the vault"
        ) from None
    keyring = decode(
        crypto.unseal(
            Keys(
                config.vault,
                Keyring(vault=config.vault, config=b"", id_key=b"", epochs=[(0, b"", 0)]),
                master,
            ),
            crypto.KEYRING,
            sealed,
            "keyring",
        ),
        Keyring,
        "keyring",
    )
    if keyring.vault != config.vault or keyring.config != ids.object_hash(raw):
        raise Damage("config is not the one that this vault's keyring was made with: it was replaced")
    if not keyring.epochs or len(keyring.id_key) != 32 or any(len(key) != 32 for _, key, _ in keyring.epochs):
        raise Damage("keyring does not hold usable keys")
    return Keys(config.vault, keyring, master)


def list_slots(backend: Backend, vault: bytes) -> list[KeySlot]:
    """Key slots of a vault, oldest first; a slot that can't be read is passed over."""
    slots: list[KeySlot] = []
    for info in backend.list("keys/"):
        try:
            data = crypto.unseal(Keys(vault, None), crypto.SLOT, backend.read(info.name), info.name)
            slot = decode(data, KeySlot, info.name)
        except (Damage, ObjectMissing):
            continue
        if slot.vault == vault and info.name == f"keys/{slot.slot}":
            slots.append(slot)
    return sorted(slots, key=lambda slot: (slot.created, slot.slot))


def add_slot(backend: Backend, keys: Keys, secret: Secret, label: str) -> KeySlot:
    """A further way to open an encrypted vault."""
    if keys.master is None:
        raise UsageError("this vault is not encrypted: it has no keys to add or remove")
    slot = crypto.make_slot(keys.vault, keys.master, secret.kind, secret.data, label, time.time_ns())
    backend.put(f"keys/{slot.slot}", crypto.seal(Keys(keys.vault, None), crypto.SLOT, encode(slot)))
    return slot


def remove_slot(backend: Backend, keys: Keys, prefix: str) -> KeySlot:
    """Remove the one slot whose id begins so; never the last one."""
    if not keys.encrypted:
        raise UsageError("this vault is not encrypted: it has no keys to add or remove")
    slots = list_slots(backend, keys.vault)
    matching = [slot for slot in slots if slot.slot.startswith(prefix)] if prefix else []
    if len(matching) != 1:
        raise UsageError(f"{len(matching)} key slots begin with {prefix!r}; see: vault key list")
    if len(slots) == 1:
        raise UsageError("this is the last key slot: without it nobody could open the vault; add another one first")
    backend.delete(f"keys/{matching[0].slot}")
    return matching[0]
