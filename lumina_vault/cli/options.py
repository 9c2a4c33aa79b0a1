"""Options that several commands share, and how a passphrase is asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lumina_vault.settings import Settings
    from lumina_vault.store.keystore import Secret

Vault = Annotated[
    str | None,
    typer.Option(
        "--vault",
        metavar="URL",
        help="The vault: a directory or file:/path [VAULT_URL, else XDG data directory].",
    ),
]
KeyFile = Annotated[
    str | None, typer.Option("--key-file", metavar="FILE", help="Open with this key file [VAULT_KEY_FILE].")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]
Level = Annotated[int | None, typer.Option("--level", min=1, max=19, help="zstd level [VAULT_LEVEL, else 3].")]


def settings(vault: str | None, key_file: str | None = None, level: int | None = None) -> Settings:
    """Settings for this run, and logging as they say."""
    from lumina_vault.settings import load

    loaded = load(url=vault, key_file=key_file, level=level)
    if loaded.debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    return loaded


def ask_passphrase() -> list[Secret]:
    """From the terminal, when there is one."""
    if not sys.stdin.isatty():
        return []
    from getpass import getpass

    from lumina_vault.store.keystore import Secret

    text = getpass("Passphrase: ")
    return [Secret("passphrase", text.encode(), "the prompt")] if text else []


def new_passphrase(what: str) -> Secret:
    """Asked for twice. Raises `UsageError` without a terminal, or if the two differ."""
    from lumina_vault.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(
            f"{what} needs a passphrase and there is no terminal to ask on: "
            "give VAULT_PASSPHRASE, VAULT_PASSPHRASE_FILE or --key-file FILE"
        )
    from getpass import getpass

    from lumina_vault.store.keystore import Secret

    first = getpass("New passphrase: ")
    if not first:
        raise UsageError("an empty passphrase protects nothing; a vault without encryption is made with --no-encrypt")
    if getpass("Again: ") != first:
        raise UsageError("the two passphrases differ; nothing was changed")
    return Secret("passphrase", first.encode(), "the prompt")


def make_key_file(path: str) -> Secret:
    """A new 0600 key file; an existing one is read instead."""
    import os

    from lumina_vault.crypto import key_file_text
    from lumina_vault.errors import UsageError
    from lumina_vault.ops.vaults import read_key_file
    from lumina_vault.store.keystore import Secret

    if os.path.lexists(path):
        return read_key_file(path)
    secret = os.urandom(32)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(key_file_text(secret))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"key file {path}: {error.strerror}") from None
    return Secret("keyfile", secret, f"key file {path}")
