"""Settings: flags > environment (`VAULT_*`) > `.env` > `vault.toml` > defaults. The only reader of the environment.

Any secret `X` can come from the file that `X_FILE` names. As root, settings files of another user are refused.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lumina_vault.errors import UsageError

SECRETS = ("VAULT_PASSPHRASE", "VAULT_PASSPHRASE_FILE", "VAULT_KEY_FILE")
_TOML_KEYS = {
    "url": "VAULT_URL",
    "level": "VAULT_LEVEL",
    "passphrase_file": "VAULT_PASSPHRASE_FILE",
    "key_file": "VAULT_KEY_FILE",
}


@dataclass(frozen=True)
class Settings:
    """What a command runs with."""

    url: str
    level: int
    debug: bool
    state_directory: str
    """Where this client remembers vaults (XDG state)."""
    passphrase: str | None = field(default=None, repr=False)
    passphrase_source: str = ""
    key_file: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For child processes: without vault's secrets."""


def load(
    *,
    url: str | None = None,
    level: int | None = None,
    key_file: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings for this process, flags given by name. Raises `UsageError` for one that can't be used."""
    env = dict(os.environ if environ is None else environ)
    found = _merged(_toml("vault.toml"), _dotenv(".env"), env)
    passphrase, source = _secret(found, "VAULT_PASSPHRASE")
    return Settings(
        url=url or _secret(found, "VAULT_URL")[0] or _default_url(env),
        level=level if level is not None else _number(found, "VAULT_LEVEL", 3, 1, 19),
        debug=found.get("DEBUG", "").lower() not in ("", "0", "false", "no"),
        state_directory=os.path.join(_xdg(env, "XDG_STATE_HOME", ".local/state"), "lumina-vault", "vaults"),
        passphrase=passphrase,
        passphrase_source=source,
        key_file=key_file or found.get("VAULT_KEY_FILE") or None,
        environment={key: value for key, value in env.items() if key not in SECRETS},
    )


def _merged(*layers: Mapping[str, str]) -> dict[str, str]:
    """The last layer wins. `X` and `X_FILE` are one setting: where one is given, both of a layer below are void."""
    found: dict[str, str] = {}
    for layer in layers:
        for name in ("VAULT_PASSPHRASE", "VAULT_URL"):
            pair = (name, f"{name}_FILE")
            if any(layer.get(key) for key in pair):
                for key in pair:
                    found.pop(key, None)
        found.update(layer)
    return found


def _xdg(env: Mapping[str, str], name: str, below_home: str) -> str:
    value = env.get(name, "")
    return value if os.path.isabs(value) else os.path.join(env.get("HOME") or os.path.expanduser("~"), below_home)


def _default_url(env: Mapping[str, str]) -> str:
    return "file:" + os.path.join(_xdg(env, "XDG_DATA_HOME", ".local/share"), "lumina-vault", "vault")


def _number(found: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = found.get(name, "")
    if not text:
        return default
    if not text.isdigit() or not low <= int(text) <= high:
        raise UsageError(f"{name} is {text!r}; it takes a whole number from {low} to {high}")
    return int(text)


def _secret(found: Mapping[str, str], name: str) -> tuple[str | None, str]:
    """The secret and where it came from; a file's trailing line end is not part of it."""
    if found.get(name):
        return found[name], name
    path = found.get(f"{name}_FILE", "")
    if not path:
        return None, ""
    try:
        with open(path, encoding="utf-8") as file:
            value = file.read(1 << 16)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{name}_FILE names {path}, which can't be read: {reason}") from None
    return value.rstrip("\r\n"), f"{name}_FILE ({path})"


def _own_text(path: str) -> str | None:
    """A settings file, None if there is none. Raises `UsageError` if this is root and it is another user's (law 9)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):  # a directory called .env is somebody's virtual environment
            return None
        if os.geteuid() == 0 and status.st_uid != 0:
            raise UsageError(
                f"{path} belongs to user {status.st_uid}; as root, settings are only read from root's own files"
            )
        try:
            return file.read(1 << 20).decode()
        except UnicodeDecodeError:
            raise UsageError(f"{path} can't be read: it is not UTF-8") from None


def _dotenv(path: str) -> dict[str, str]:
    text = _own_text(path)
    if not text:
        return {}
    import io

    from dotenv import dotenv_values

    values = dotenv_values(stream=io.StringIO(text), interpolate=False)
    return {key: value for key, value in values.items() if value and (key.startswith("VAULT_") or key == "DEBUG")}


def _toml(path: str) -> dict[str, str]:
    text = _own_text(path)
    if not text:
        return {}
    try:
        table: Any = tomllib.loads(text).get("vault", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} can't be read: {error}") from None
    if not isinstance(table, dict) or set(table) - set(_TOML_KEYS):
        unknown = sorted(set(table) - set(_TOML_KEYS)) if isinstance(table, dict) else ["vault"]
        raise UsageError(f"{path}: [vault] does not know {', '.join(unknown)}; it knows {', '.join(_TOML_KEYS)}")
    return {_TOML_KEYS[key]: str(value) for key, value in table.items()}
