"""What a client remembers of the vaults that it has seen."""

import os
import stat

import pytest

from lumina_vault.errors import Damage
from lumina_vault.model import Config
from lumina_vault.store.pins import Pins

URL = "file:/srv/vault"
ENCRYPTED = Config(vault=bytes(16), created=0, encryption="aes-256-gcm")
PLAIN = Config(vault=bytes(16), created=0, encryption="none")
OTHER = Config(vault=b"\1" * 16, created=0, encryption="aes-256-gcm")


@pytest.fixture
def pins(tmp_path):
    return Pins(str(tmp_path / "state" / "vaults"))


def test_a_vault_seen_again_is_the_same(pins):
    for _ in range(3):
        pins.check(URL, ENCRYPTED)
    pins.check(URL, Config(vault=bytes(16), created=5, encryption="aes-256-gcm"))
    assert stat.S_IMODE(os.stat(pins.path(URL)).st_mode) == 0o600
    assert os.listdir(pins.directory) == [os.path.basename(pins.path(URL))]


@pytest.mark.parametrize(
    ("first", "then"), [(ENCRYPTED, PLAIN), (ENCRYPTED, OTHER), (PLAIN, ENCRYPTED), (PLAIN, OTHER)]
)
def test_another_vault_at_a_known_url_is_refused_every_time(pins, first, then):
    pins.check(URL, first)
    for _ in range(3):
        with pytest.raises(Damage, match="Somebody replaced it") as told:
            pins.check(URL, then)
        assert pins.path(URL) in str(told.value)
    pins.check(URL, first)


def test_urls_are_apart(pins):
    pins.check(URL, ENCRYPTED)
    pins.check(URL + "2", PLAIN)
    pins.check(URL, ENCRYPTED)


def test_a_vault_just_made_takes_the_place_of_what_stood_there(pins):
    pins.check(URL, ENCRYPTED)
    pins.remember(URL, OTHER)
    pins.check(URL, OTHER)
    with pytest.raises(Damage):
        pins.check(URL, ENCRYPTED)


def test_a_place_that_can_not_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    Pins(str(tmp_path / "file" / "below")).check(URL, ENCRYPTED)


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b"[" * 100])
def test_a_pin_cut_short_is_made_anew(pins, content):
    pins.check(URL, ENCRYPTED)
    with open(pins.path(URL), "wb") as file:
        file.write(content)
    pins.check(URL, ENCRYPTED)
    with pytest.raises(Damage):
        pins.check(URL, PLAIN)
