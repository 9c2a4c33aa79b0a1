"""Configuration, key slots and keyring: made, opened, damaged, swapped. Argon2id runs with little memory here."""

import pytest

from lumina_vault import crypto, ids
from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.crypto import Keys
from lumina_vault.errors import BackendError, Damage, NewerFormat, NoSuchVault, UsageError, VaultError, WrongKey
from lumina_vault.model import Config, Kdf, Keyring, KeySlot, decode, encode
from lumina_vault.store import keystore
from lumina_vault.store.keystore import Secret, add_slot, list_slots, load_config, remove_slot, unlock
from lumina_vault.store.pins import Pins
from lumina_vault.store.repository import read_gc

PASSPHRASE = Secret("passphrase", "pässphrase".encode(), "VAULT_PASSPHRASE")
KEY_FILE = Secret("keyfile", bytes(range(32)), "key file k")
WRONG = Secret("passphrase", b"wrong", "VAULT_PASSPHRASE")


def kdf(name, time=0, memory=0, lanes=0):
    return Kdf(name=name, time=time, memory=memory, lanes=lanes)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """The parameters of new slots are pinned by the format's tests; here they cost next to nothing."""
    monkeypatch.setattr(crypto, "Kdf", lambda name, **_: kdf(name, 1, 64, 1) if name == "argon2id" else kdf(name))


def open_with(backend, *secrets):
    config, raw = load_config(backend)
    return unlock(backend, config, raw, lambda: list(secrets))


@pytest.fixture
def backend():
    """An encrypted vault with a passphrase."""
    backend = MemoryBackend()
    keystore.create(backend, PASSPHRASE)
    return backend


def reseal_slot(backend, **changes):
    """Change fields of the only key slot, as somebody who can write to the store may."""
    (info,) = backend.list("keys/")
    config, _ = load_config(backend)
    plain = Keys(config.vault, None)
    slot = decode(crypto.unseal(plain, crypto.SLOT, backend.read(info.name), "it"), KeySlot, "it")
    for name, value in changes.items():
        setattr(slot, name, value)
    backend.put(info.name, crypto.seal(plain, crypto.SLOT, encode(slot)))
    return info.name


# --- made and opened --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [PASSPHRASE, KEY_FILE])
def test_an_encrypted_vault_opens_with_its_secret(secret):
    backend = MemoryBackend()
    config, made = keystore.create(backend, secret)
    keys = open_with(backend, secret)
    assert config.encrypted
    assert (keys.id_key, keys.master, keys.epoch) == (made.id_key, made.master, 1)
    assert sorted(name.split("/")[0] for name in backend.objects) == ["config", "gc", "keyring", "keys"]
    assert read_gc(backend, keys)[0].generation == 1


def test_a_plain_vault_opens_with_nothing():
    backend = MemoryBackend()
    config, _ = keystore.create(backend, None)
    assert not config.encrypted
    assert not open_with(backend).encrypted
    assert sorted(backend.objects) == ["config", "gc"]
    read_gc(backend, open_with(backend))


def test_a_plain_vault_asks_for_no_secret():
    backend = MemoryBackend()
    keystore.create(backend, None)
    config, raw = load_config(backend)

    def ask():
        raise AssertionError("asked")

    assert not unlock(backend, config, raw, ask).encrypted


def test_no_two_vaults_share_a_secret():
    vaults = [keystore.create(MemoryBackend(), PASSPHRASE)[1] for _ in range(5)]
    assert len({keys.vault for keys in vaults}) == len({keys.id_key for keys in vaults}) == 5
    assert len({keys.master for keys in vaults}) == 5


@pytest.mark.parametrize("secrets", [[WRONG], [WRONG, KEY_FILE], [KEY_FILE], [Secret("keyfile", PASSPHRASE.data, "x")]])
def test_a_wrong_secret_is_told_as_such(backend, secrets):
    with pytest.raises(WrongKey, match="none of the 1 key slots") as told:
        open_with(backend, *secrets)
    for secret in secrets:
        assert secret.source in str(told.value)
        assert secret.data.hex() not in str(told.value)


def test_one_right_secret_of_several_is_enough(backend):
    assert open_with(backend, WRONG, KEY_FILE, PASSPHRASE).encrypted


def test_no_secret_is_told_as_such(backend):
    with pytest.raises(WrongKey, match="is encrypted: give"):
        open_with(backend)


def test_a_secret_does_not_show_itself():
    assert "pässphrase" not in repr(PASSPHRASE)
    assert str(PASSPHRASE.data) not in repr(PASSPHRASE)


def test_no_vault_is_told_as_such():
    with pytest.raises(NoSuchVault, match="vault init"):
        load_config(MemoryBackend())


def test_a_place_that_is_taken_is_left_as_it_is(backend):
    before = dict(backend.objects)
    with pytest.raises(BackendError):
        keystore.create(backend, PASSPHRASE)
    assert backend.objects == before


@pytest.mark.parametrize("secret", [None, PASSPHRASE])
def test_a_vault_exists_only_once_it_is_whole(monkeypatch, secret):
    """An init that dies at any of its writes leaves no vault, and certainly none that can't be opened."""
    writes = len(MemoryBackend().objects)
    whole = MemoryBackend()
    keystore.create(whole, secret)
    writes = len(whole.objects)
    for survived in range(writes):
        backend = MemoryBackend()
        real, count = backend.put, iter(range(survived))

        def put(name, data, real=real, count=count):
            if next(count, None) is None:
                raise BackendError("the disk was pulled out")
            real(name, data)

        monkeypatch.setattr(backend, "put", put)
        with pytest.raises(BackendError):
            keystore.create(backend, secret)
        assert len(backend.objects) == survived
        assert not backend.exists()


# --- slots ------------------------------------------------------------------------------------------------------------


def test_slots_are_added_and_removed(backend):
    keys = open_with(backend, PASSPHRASE)
    first = list_slots(backend, keys.vault)[0]
    second = add_slot(backend, keys, KEY_FILE, "the safe")
    assert [slot.slot for slot in list_slots(backend, keys.vault)] == [first.slot, second.slot]
    assert (second.kind, second.label) == ("keyfile", "the safe")
    assert open_with(backend, KEY_FILE).master == keys.master
    assert remove_slot(backend, keys, first.slot[:8]).slot == first.slot
    with pytest.raises(WrongKey):
        open_with(backend, PASSPHRASE)
    assert open_with(backend, KEY_FILE).master == keys.master


def test_the_last_slot_stays(backend):
    keys = open_with(backend, PASSPHRASE)
    (slot,) = list_slots(backend, keys.vault)
    with pytest.raises(UsageError, match="last key slot"):
        remove_slot(backend, keys, slot.slot)
    assert open_with(backend, PASSPHRASE).encrypted


def test_a_slot_that_can_not_be_read_does_not_count_as_one_that_is_left(backend):
    """Removing the only good slot because a damaged one is there would lock everybody out."""
    keys = open_with(backend, PASSPHRASE)
    (slot,) = list_slots(backend, keys.vault)
    backend.put("keys/" + "0" * 16, b"damaged")
    with pytest.raises(UsageError, match="last key slot"):
        remove_slot(backend, keys, slot.slot)


@pytest.mark.parametrize("prefix", ["", "x", "zz"])
def test_a_prefix_names_one_slot(backend, prefix):
    keys = open_with(backend, PASSPHRASE)
    add_slot(backend, keys, KEY_FILE, "")
    with pytest.raises(UsageError, match="key slots begin with"):
        remove_slot(backend, keys, prefix)
    assert len(list_slots(backend, keys.vault)) == 2


def test_an_ambiguous_prefix_removes_nothing(backend, monkeypatch):
    keys = open_with(backend, PASSPHRASE)
    numbers = iter(range(16))
    real = ids.random_id
    monkeypatch.setattr(
        ids, "random_id", lambda size=32: b"\xab" * 7 + bytes([next(numbers)]) if size == 8 else real(size)
    )
    for _ in range(2):
        add_slot(backend, keys, KEY_FILE, "")
    with pytest.raises(UsageError, match="2 key slots begin with 'abab'"):
        remove_slot(backend, keys, "abab")


def test_a_plain_vault_has_no_slots():
    backend = MemoryBackend()
    _, keys = keystore.create(backend, None)
    for call in (lambda: add_slot(backend, keys, KEY_FILE, ""), lambda: remove_slot(backend, keys, "0")):
        with pytest.raises(UsageError, match="not encrypted"):
            call()


def test_damaged_and_foreign_slots_are_passed_over(backend):
    keys = open_with(backend, PASSPHRASE)
    (info,) = backend.list("keys/")
    good = backend.read(info.name)
    backend.put("keys/" + "0" * 16, good[:-1] + b"?")
    backend.put("keys/" + "1" * 16, b"")
    backend.put("keys/" + "2" * 16, good)  # under a name that is not its own
    other = MemoryBackend()
    keystore.create(other, PASSPHRASE)
    (foreign,) = other.list("keys/")
    backend.put(foreign.name, other.read(foreign.name))
    assert [f"keys/{slot.slot}" for slot in list_slots(backend, keys.vault)] == [info.name]
    assert open_with(backend, PASSPHRASE).master == keys.master


@pytest.mark.parametrize(
    "hostile",
    [
        kdf("argon2id", 17, 64, 1), kdf("argon2id", 1, (1 << 20) + 1, 1), kdf("argon2id", 1, 1024, 17),
        kdf("argon2id", 0, 64, 1), kdf("argon2id", 1, 64, 0), kdf("argon2id", 1, 15, 2), kdf("argon2i", 1, 64, 1),
        kdf("scrypt", 1, 64, 1), kdf("none"), kdf("argon2id", -1, 64, 1), kdf("argon2id", 1, 1 << 62, 1),
    ],
)  # fmt: skip
def test_a_hostile_key_derivation_is_refused_before_it_begins(backend, hostile, monkeypatch):
    reseal_slot(backend, kdf=hostile)
    monkeypatch.setattr("cryptography.hazmat.primitives.kdf.argon2.Argon2id", None)
    with pytest.raises(WrongKey, match="outside the allowed bounds"):
        open_with(backend, PASSPHRASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf": kdf("argon2id", 2, 64, 1)},
        {"kdf": kdf("argon2id", 1, 128, 1)},
        {"salt": bytes(32)},
        {"salt": b""},
        {"nonce": bytes(12)},
        {"nonce": b""},
        {"nonce": bytes(500)},
        {"wrapped": bytes(48)},
        {"wrapped": b""},
    ],
)
def test_a_changed_slot_does_not_open(backend, changes):
    reseal_slot(backend, **changes)
    with pytest.raises(WrongKey):
        open_with(backend, PASSPHRASE)


@pytest.mark.parametrize("changes", [{"slot": "0" * 16}, {"vault": bytes(16)}, {"slot": "../../config"}])
def test_a_slot_that_says_it_is_another_does_not_count(backend, changes):
    reseal_slot(backend, **changes)
    config, _ = load_config(backend)
    assert list_slots(backend, config.vault) == []
    with pytest.raises(WrongKey):
        open_with(backend, PASSPHRASE)


@pytest.mark.parametrize("kind", ["hpke", "keyfile", ""])
def test_a_slot_of_another_kind_is_not_tried_with_a_passphrase(backend, kind):
    reseal_slot(backend, kind=kind)
    with pytest.raises(WrongKey):
        open_with(backend, PASSPHRASE)


def test_a_label_may_change_without_a_key(backend):
    """It is not bound: it names a slot for people."""
    reseal_slot(backend, label="renamed")
    assert open_with(backend, PASSPHRASE).encrypted


# --- swapped and damaged ----------------------------------------------------------------------------------------------


def test_a_swapped_config_is_found_by_whoever_has_a_key(backend):
    config, _ = load_config(backend)
    for other in (
        Config(vault=config.vault, created=config.created + 1, encryption=config.encryption),
        Config(vault=config.vault, created=config.created, encryption=config.encryption),
    ):
        backend.put("config", crypto.seal(Keys(config.vault, None), crypto.CONFIG, encode(other)))
        with pytest.raises(Damage, match="it was replaced"):
            open_with(backend, PASSPHRASE)


def test_a_config_that_turns_a_vault_plain_is_refused_by_those_who_know_it(backend, tmp_path):
    """The first time nobody can know; after that the client remembers. Nothing that is sealed opens either."""
    pins = Pins(str(tmp_path / "pins"))
    config, raw = load_config(backend)
    pins.check("memory:", config)
    backend.put(
        "config",
        crypto.seal(
            Keys(config.vault, None), crypto.CONFIG, encode(Config(vault=config.vault, created=0, encryption="none"))
        ),
    )
    plain, _ = load_config(backend)
    with pytest.raises(Damage, match=r"an encrypted vault .* now it holds a plain vault"):
        pins.check("memory:", plain)
    with pytest.raises(Damage, match="stands in a plain vault"):
        read_gc(backend, open_with(backend))
    backend.put("config", raw)
    pins.check("memory:", load_config(backend)[0])


def test_a_swapped_keyring_does_not_open(backend):
    other = MemoryBackend()
    keystore.create(other, PASSPHRASE)
    backend.put("keyring", other.read("keyring"))
    with pytest.raises(Damage):
        open_with(backend, PASSPHRASE)


def test_a_missing_keyring_is_damage(backend):
    backend.delete("keyring")
    with pytest.raises(VaultError, match="keyring"):
        open_with(backend, PASSPHRASE)


@pytest.mark.parametrize("epochs", [[], [(1, b"short", 0)], [(1, bytes(32), 0), (2, b"", 0)]])
def test_a_keyring_without_usable_keys_is_damage(backend, epochs):
    keys = open_with(backend, PASSPHRASE)
    _, raw = load_config(backend)
    keyring = Keyring(vault=keys.vault, config=ids.object_hash(raw), id_key=bytes(32), epochs=epochs)
    backend.put("keyring", crypto.seal(keys, crypto.KEYRING, encode(keyring)))
    with pytest.raises(Damage, match="usable keys"):
        open_with(backend, PASSPHRASE)


@pytest.mark.parametrize("name", ["config", "keyring", "gc"])
def test_every_flipped_byte_of_the_vault_s_own_objects_is_found(backend, name):
    good = backend.read(name)
    keys = open_with(backend, PASSPHRASE)
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 0x20
        backend.put(name, bytes(changed))
        with pytest.raises((Damage, NewerFormat, WrongKey)):
            read_gc(backend, keys) if name == "gc" else open_with(backend, PASSPHRASE)


@pytest.mark.parametrize("encryption", ["aes-128-gcm", "", "NONE"])
def test_an_encryption_that_nobody_knows_is_refused(encryption):
    backend = MemoryBackend()
    keystore.create(backend, None)
    config, _ = load_config(backend)
    made = Config(vault=config.vault, created=0, encryption=encryption)
    backend.put("config", crypto.seal(Keys(config.vault, None), crypto.CONFIG, encode(made)))
    with pytest.raises(Damage):
        load_config(backend)


def test_a_config_of_a_later_version_is_told_as_such():
    backend = MemoryBackend()
    keystore.create(backend, None)
    config, raw = load_config(backend)
    for made in (Config(version=2, vault=config.vault, created=0, encryption="none"),
                 Config(requires=["hpke"], vault=config.vault, created=0, encryption="none")):  # fmt: skip
        backend.put("config", crypto.seal(Keys(config.vault, None), crypto.CONFIG, encode(made)))
        with pytest.raises(NewerFormat):
            load_config(backend)
    backend.put("config", raw[:7] + b"\2" + raw[8:])
    with pytest.raises(NewerFormat):
        load_config(backend)


# --- key files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "lumina-vault-key-1", "lumina-vault-key-1 ", "lumina-vault-key-1 00", "0" * 64,
     "lumina-vault-key-2 " + "0" * 64, "lumina-vault-key-1 " + "g" * 64,
     "lumina-vault-key-1 " + "0" * 63, "lumina-vault-key-1 " + "0" * 66,
     "-----BEGIN OPENSSH PRIVATE KEY-----", "lumina-vault-key-1 " + "\ufffd" * 64],
)  # fmt: skip
def test_what_is_no_key_file_is_refused_without_showing_it(text):
    with pytest.raises(WrongKey, match="is not a vault key file") as told:
        crypto.parse_key_file(text, "path/k")
    assert not text.strip() or text.strip() not in str(told.value).replace("lumina-vault-key-1", "", 1)


def test_a_key_file_may_end_as_editors_end_files():
    text = crypto.key_file_text(KEY_FILE.data)
    for form in (
        text,
        text.strip(),
        text + "\n",
        text.replace("\n", "\r\n"),
        text.upper().replace("LUMINA-VAULT-KEY-1", "lumina-vault-key-1"),
    ):
        assert crypto.parse_key_file(form, "k") == KEY_FILE.data
