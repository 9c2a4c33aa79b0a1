"""Packs and sealed objects byte by byte: what is changed, cut, swapped or taken from elsewhere is found."""

import struct

import pytest
from golden import reference as ref

from lumina_vault import codec, crypto, ids
from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.crypto import Keys
from lumina_vault.errors import Damage, NewerFormat, VaultError
from lumina_vault.index import ChunkRow
from lumina_vault.model import Keyring
from lumina_vault.store import pack
from lumina_vault.store.pack import PackWriter, check_pack, open_chunk, read_table
from lumina_vault.store.uploader import Counter, Uploader
from lumina_vault.testing.memory import VAULT, make_keys, memory_vault, secret

PLAINTEXTS = [b"one", b"two " * 30, secret("noise", 70), b""]


def write(keys, plaintexts=tuple(PLAINTEXTS), type_=crypto.DATA):
    """(backend, sealed pack) of a small pack."""
    backend = MemoryBackend()
    writer = PackWriter(backend, keys, type_)
    for plain in plaintexts:
        codec_, payload = codec.compress(plain, 3)
        writer.add(keys.chunk_id(plain), codec_, payload, len(plain))
    sealed = writer.seal()
    backend.publish(writer.spool, ids.pack_path(sealed.name), sealed.length)
    return backend, sealed


def read_all(keys, data):
    """Every chunk of a pack's bytes, through its table and without its name, as a restore trusts it."""
    backend = MemoryBackend()
    backend.put("packs/it", data)
    table = read_table(backend, keys, "packs/it", len(data))
    cipher = keys.cipher(table.header)
    found = []
    for row in table.rows:
        plain = open_chunk(cipher, table.header.type, row, data[row.offset : row.offset + row.stored])
        if keys.chunk_id(plain) != row.chunk:
            raise Damage("not what its id says")
        found.append(bytes(plain))
    return found


def check(keys, name, data):
    backend = MemoryBackend()
    backend.put(ids.pack_path(name), data)
    return check_pack(backend, keys, name, len(data))


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def keys(request):
    return make_keys(request.param)


@pytest.mark.parametrize("type_", [crypto.DATA, crypto.META])
def test_what_is_written_is_read(keys, type_):
    backend, sealed = write(keys, type_=type_)
    data = backend.read(ids.pack_path(sealed.name))
    assert len(data) == sealed.length
    assert ids.object_hash(data) == sealed.name
    table = check_pack(backend, keys, sealed.name, sealed.length)
    assert table.rows == sealed.rows
    assert table.header.type == type_
    assert read_all(keys, data) == PLAINTEXTS


def test_an_empty_pack_is_a_pack(keys):
    backend, sealed = write(keys, ())
    assert check_pack(backend, keys, sealed.name, sealed.length).rows == []


def test_no_two_packs_have_one_name(keys):
    assert len({write(keys)[1].name for _ in range(20)}) == 20


def test_every_flipped_bit_is_found_by_the_pack_s_name(keys):
    backend, sealed = write(keys)
    data = backend.read(ids.pack_path(sealed.name))
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(Damage, match="not what its name says"):
                check(keys, sealed.name, bytes(changed))


def test_every_flipped_byte_is_found_by_those_who_read_only_what_they_need(keys):
    """A restore reads the index's rows or a pack's table, and chunks; never the pack as a whole."""
    backend, sealed = write(keys)
    data = backend.read(ids.pack_path(sealed.name))
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= flip
            with pytest.raises((Damage, NewerFormat)):
                read_all(keys, bytes(changed))


def test_every_cut_and_every_addition_is_found(keys):
    backend, sealed = write(keys)
    data = backend.read(ids.pack_path(sealed.name))
    for other in [*(data[:length] for length in range(len(data))), data + b"\0", b"\0" + data, data + data]:
        with pytest.raises(Damage):
            check(keys, sealed.name, other)
        with pytest.raises(Damage):
            read_all(keys, other)
        backend.put(ids.pack_path(sealed.name), other[: sealed.length - 1])
        with pytest.raises(Damage):  # of the length that the index remembers
            check_pack(backend, keys, sealed.name, sealed.length)


def test_a_pack_under_another_s_name_is_found(keys):
    first, second = write(keys), write(keys)
    with pytest.raises(Damage, match="not what its name says"):
        check(keys, first[1].name, second[0].read(ids.pack_path(second[1].name)))


def test_an_encrypted_chunk_opens_at_its_own_place_only():
    """Its number, lengths, codec, type and id are bound to it; so is its pack's salt."""
    keys = make_keys(True)
    plaintexts = (b"a" * 40, b"b" * 40, secret("x", 40))
    backend, sealed = write(keys, plaintexts)
    data = backend.read(ids.pack_path(sealed.name))
    table = read_table(backend, keys, ids.pack_path(sealed.name), sealed.length)
    cipher = keys.cipher(table.header)
    row = table.rows[2]
    stored = data[row.offset : row.offset + row.stored]
    assert open_chunk(cipher, crypto.DATA, row, stored) == plaintexts[2]
    others = [
        (crypto.META, row),
        *((crypto.DATA, row._replace(**{field: value})) for field, value in
          (("number", 1), ("codec", codec.ZSTD), ("plain", 41), ("chunk", table.rows[0].chunk))),
    ]  # fmt: skip
    for type_, other in others:
        with pytest.raises(Damage, match="does not authenticate"):
            open_chunk(cipher, type_, other, stored)
    again = write(keys, plaintexts)
    there = read_table(again[0], keys, ids.pack_path(again[1].name), again[1].length)
    with pytest.raises(Damage, match="does not authenticate"):
        open_chunk(keys.cipher(there.header), crypto.DATA, row, stored)


def test_keys_and_modes_of_other_vaults_do_not_open_a_pack():
    plain, encrypted = make_keys(False), make_keys(True)
    elsewhere = bytes(16)
    unknown = Keys(VAULT, Keyring(vault=VAULT, config=b"", id_key=secret("id"), epochs=[(7, secret("7"), 0)]))
    other_key = Keys(VAULT, Keyring(vault=VAULT, config=b"", id_key=secret("id"), epochs=[(2, secret("other"), 0)]))
    for writer, reader, said in (
        (plain, encrypted, "a plain object stands in an encrypted vault"),
        (encrypted, plain, "an encrypted object stands in a plain vault"),
        (plain, make_keys(False, elsewhere), "belongs to vault"),
        (encrypted, make_keys(True, elsewhere), "belongs to vault"),
        (encrypted, unknown, "epoch 2"),
        (encrypted, other_key, "does not authenticate"),
    ):
        backend, sealed = write(writer)
        with pytest.raises(Damage, match=said):
            check_pack(backend, reader, sealed.name, sealed.length)


def test_an_older_epoch_s_packs_stay_readable():
    old = Keys(VAULT, Keyring(vault=VAULT, config=b"", id_key=secret("id"), epochs=[(1, secret("epoch 1"), 0)]))
    backend, sealed = write(old)
    table = check_pack(backend, make_keys(True), sealed.name, sealed.length)
    assert table.header.epoch == 1
    assert table.rows == sealed.rows
    assert make_keys(True).new_header(crypto.DATA).epoch == 2


def test_a_later_format_is_told_from_damage(keys):
    backend, sealed = write(keys)
    data = bytearray(backend.read(ids.pack_path(sealed.name)))
    data[7] = 2
    with pytest.raises(NewerFormat):
        read_all(keys, bytes(data))
    data[0] ^= 1
    with pytest.raises(Damage):
        read_all(keys, bytes(data))


def test_a_chunk_twice_in_one_table_is_damage(keys):
    backend, sealed = write(keys, (b"same", b"same"))
    with pytest.raises(Damage, match="twice"):
        check_pack(backend, keys, sealed.name, sealed.length)


ROW = struct.Struct("<32sIIBBHI")


@pytest.mark.parametrize(
    ("said", "change"),
    [
        ("does not allow", {"reserved": 1}),
        ("does not allow", {"reserved two": 1}),
        ("does not allow", {"dictionary": 1}),
        ("does not allow", {"plain": codec.MAX_PLAIN + 1}),
        ("does not allow", {"stored": codec.MAX_PLAIN + 17}),
        ("do not fill it", {"stored": -1}),
        ("do not fill it", {"stored": 1}),
        ("damaged footer", {"rows": 2}),
        ("wrong length|damaged footer", {"rows": 0}),
        (None, {}),
    ],
)
def test_a_table_that_format_1_does_not_allow_is_damage(keys, said, change):
    """Behind valid checksums and tags: what a faulty writer, or an attacker with a key, would make."""
    plain = b"sixteen bytes..."
    encrypted = keys.encrypted
    head = ref.header(crypto.DATA, encrypted, keys.epoch, VAULT, bytes(32))
    entry = plain + bytes(16 if encrypted else 0)
    row = ROW.pack(
        keys.chunk_id(plain), len(entry) + change.get("stored", 0), change.get("plain", 16), 0,
        change.get("reserved", 0), change.get("reserved two", 0), change.get("dictionary", 0),
    )  # fmt: skip
    tag = 16 if encrypted else 0
    start = struct.pack("<QII", 64 + len(entry), len(row) + tag, change.get("rows", 1))
    table = row
    if encrypted:
        key = ref.derive(secret("epoch 2"), bytes(32), b"pack-data", VAULT)
        table = ref.encrypt(key, bytes(8) + b"\xff" * 4, row, head + start)
    data = head + entry + table + start + ids.object_hash(head + table + start) + b"LVTAIL\0\1"
    backend = MemoryBackend()
    backend.put("packs/it", data)
    if said is None:
        assert len(read_table(backend, keys, "packs/it", len(data)).rows) == 1
        return
    with pytest.raises(Damage, match=said):
        read_table(backend, keys, "packs/it", len(data))


def test_a_sealed_object_is_no_pack(keys):
    data = crypto.seal(keys, crypto.GC, bytes(200))
    with pytest.raises(Damage):
        read_all(keys, data)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "entries", "age"), [(200, 1000, 1e9), (1 << 30, 3, 1e9), (1 << 30, 1000, 0.0)])
def test_a_pack_is_full_by_size_by_count_and_by_age(monkeypatch, keys, size, entries, age):
    monkeypatch.setattr(pack, "TARGET_SIZE", size)
    monkeypatch.setattr(pack, "TARGET_ENTRIES", entries)
    monkeypatch.setattr(pack, "TARGET_AGE", age)
    writer = PackWriter(MemoryBackend(), keys, crypto.DATA)
    added = 0
    while not writer.full:
        writer.add(bytes([added]) * 32, codec.ZSTD, bytes(50), 50)
        added += 1
    assert added == (1 if age == 0 else 3)
    assert len(writer.chunks) == added


def test_what_does_not_decrypt_is_not_kept(monkeypatch):
    """Law 5: a bit that flips between the cipher and the spool file is found before the pack is sealed."""
    keys = make_keys(True)

    class Faulty:
        def __init__(self, real):
            self.real = real

        def encrypt(self, nonce, data, context):
            return self.real.encrypt(nonce, bytes(data)[:-1] + b"?", context)

        def decrypt(self, nonce, data, context):
            return self.real.decrypt(nonce, data, context)

    for codec_ in (codec.NONE, codec.ZSTD):
        writer = PackWriter(MemoryBackend(), keys, crypto.DATA)
        writer._cipher = Faulty(writer._cipher)
        with pytest.raises(Damage, match="memory or processor"):
            writer.add(keys.chunk_id(b"plain"), codec_, b"plain", 5)
        assert writer.chunks == []


@pytest.mark.parametrize("fault", ["source", "frame"])
def test_what_does_not_decode_to_what_was_read_is_not_stored(monkeypatch, tmp_path, keys, fault):
    """Law 5, from the source's buffer to the frame: the chunk is compared by its id, and the snapshot stops."""
    vault = memory_vault(tmp_path, keys.encrypted)
    good = bytes(5000) if fault == "frame" else secret("incompressible", 5000)
    real = codec.compress
    monkeypatch.setattr(codec, "compress", lambda data, level: real(b"1" + bytes(data)[1:], level))
    with vault.open() as repository:
        before = dict(vault.backend.objects)
        with repository.session("writer") as session, pytest.raises(Damage, match="memory or processor"):
            _store(vault, session, good)
        assert vault.backend.objects == before
        assert repository.index.totals()["chunks"] == 0


def _store(vault, session, plain):
    with Uploader(vault.backend, vault.keys, session) as uploader:
        uploader.submit([plain], crypto.DATA, Counter())
        uploader.finish()


@pytest.mark.parametrize("data", [b"", b"a", bytes(100), secret("noise", 5000), bytes(codec.MAX_PLAIN)])
def test_compression_never_expands(data):
    codec_, payload = codec.compress(data, 3)
    assert len(payload) <= len(data)
    assert (codec_ == codec.NONE) == (len(payload) == len(data))
    assert codec.decompress(codec_, payload, len(data)) == data


@pytest.mark.parametrize(
    ("codec_", "payload", "plain"),
    [
        (0, b"abc", 2),
        (0, b"abc", 4),
        (1, b"", 0),
        (1, b"abc", 3),
        (2, b"abc", 3),
        (255, b"", 0),
        (0, b"", codec.MAX_PLAIN + 1),
    ],
)
def test_what_is_no_chunk_is_damage(codec_, payload, plain):
    with pytest.raises(Damage):
        codec.decompress(codec_, payload, plain)
    with pytest.raises(Damage):
        open_chunk(None, crypto.DATA, ChunkRow(bytes(32), 0, 0, 64, len(payload), plain, codec_), payload)


def test_bytes_after_a_frame_are_damage():
    frame = bytes(codec.compress(bytes(500), 3)[1])
    for payload in (frame + b"\0", frame + frame, frame[:-1]):
        with pytest.raises(Damage):
            codec.decompress(codec.ZSTD, payload, 500)


def test_a_record_that_no_reader_would_take_is_not_written(keys):
    for payload in (bytes(codec.MAX_PLAIN + 1), secret("noise", codec.MAX_PLAIN)):
        with pytest.raises(VaultError, match="more than the format allows"):
            crypto.seal(keys, crypto.SNAPSHOT, payload)
    fits = secret("noise", codec.MAX_PLAIN - 4096)
    assert crypto.unseal(keys, crypto.SNAPSHOT, crypto.seal(keys, crypto.SNAPSHOT, fits), "it") == fits


# --- sealed objects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [crypto.CONFIG, crypto.SLOT, crypto.SNAPSHOT, crypto.ANNOTATION, crypto.GC])
def test_every_flip_and_cut_of_a_sealed_object_is_found(keys, type_):
    data = crypto.seal(keys, type_, b"payload " * 9)
    assert crypto.unseal(keys, type_, data, "it") == b"payload " * 9
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= flip
            with pytest.raises((Damage, NewerFormat)):
                crypto.unseal(keys, type_, bytes(changed), "it")
        with pytest.raises(Damage):
            crypto.unseal(keys, type_, data[:at], "it")
    with pytest.raises(Damage):
        crypto.unseal(keys, type_, data + b"\0", "it")


def test_a_sealed_object_is_of_one_kind_and_one_vault(keys):
    data = crypto.seal(keys, crypto.GC, b"payload")
    for type_ in (crypto.SNAPSHOT, crypto.ANNOTATION, crypto.CONFIG, crypto.SLOT):
        with pytest.raises(Damage, match="another kind"):
            crypto.unseal(keys, type_, data, "it")
    for other in (make_keys(not keys.encrypted), make_keys(keys.encrypted, bytes(16))):
        with pytest.raises(Damage):
            crypto.unseal(other, crypto.GC, data, "it")


def test_two_sealed_objects_never_repeat_a_key():
    keys = make_keys(True)
    made = [crypto.seal(keys, crypto.GC, b"payload") for _ in range(20)]
    assert len({data[32:64] for data in made}) == 20
    assert len({data[68:] for data in made}) == 20


def test_keys_are_not_shown():
    keys = make_keys(True)
    shown = (
        f"{keys!r} {keys} {Keyring(vault=VAULT, config=b'', id_key=secret('id'), epochs=[(1, secret('epoch 1'), 0)])!r}"
    )
    for name in ("id", "epoch 1", "epoch 2", "master"):
        assert secret(name).hex()[:8] not in shown
        assert repr(secret(name))[2:10] not in shown
