"""What this client remembers of each vault: its id and mode by URL (design, section 5).

An attacker who can write to the store could put a plain or foreign vault where an encrypted one was, and wait for the
next snapshot. A client that has seen the vault refuses. A fresh client can't know.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from lumina_vault import ids
from lumina_vault.errors import Damage
from lumina_vault.model import Config


@dataclass(frozen=True)
class Pins:
    """Pins in `directory`, one 0600 file for each URL."""

    directory: str

    def path(self, url: str) -> str:
        return os.path.join(self.directory, ids.object_hash(url.encode())[:16].hex() + ".json")

    def check(self, url: str, config: Config) -> None:
        """Remember a vault seen for the first time; raises `Damage` if another one stands at a known URL."""
        path = self.path(url)
        now = {"url": url, "vault": config.vault.hex(), "encryption": config.encryption}
        try:
            with open(path, encoding="utf-8") as file:
                known = json.load(file)
        except (OSError, ValueError):
            self.remember(url, config)
            return
        if known.get("vault") == now["vault"] and known.get("encryption") == now["encryption"]:
            return
        was, is_ = _describe(known), _describe(now)
        raise Damage(
            f"{url} held {was}; now it holds {is_}. Somebody replaced it. If that was you, remove {path} and run again"
        )

    def remember(self, url: str, config: Config) -> None:
        """A vault that this user has just made, whatever stood there before."""
        now = {"url": url, "vault": config.vault.hex(), "encryption": config.encryption}
        self._write(self.path(url), {**now, "first_seen": int(time.time())})

    def _write(self, path: str, value: Mapping[str, object]) -> None:
        """A pin that can't be written protects nobody, but must not stop a restore."""
        with contextlib.suppress(OSError):
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            temporary = f"{path}.{secrets.token_hex(4)}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(value, file)
            os.replace(temporary, path)


def _describe(pin: Mapping[str, object]) -> str:
    mode = "a plain" if pin.get("encryption") == "none" else "an encrypted"
    return f"{mode} vault with id {str(pin.get('vault'))[:12]}"
