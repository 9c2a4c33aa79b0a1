"""`vault key add`, `list`, `remove`."""

from __future__ import annotations

from typing import Annotated

import typer

from lumina_vault.cli import options
from lumina_vault.cli.render import emit, local_time, out, table

key_app = typer.Typer(
    help="Passphrases and key files that open an encrypted vault.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    key_app.command("add", epilog="Example: vault key add --new-key-file /root/vault.key")(add)
    key_app.command("list", epilog="Example: vault key list")(list_keys)
    key_app.command("remove", epilog="Example: vault key remove 1f3c")(remove)
    app.add_typer(key_app, name="key")


@key_app.callback()
def _key() -> None:
    pass


def add(
    new_key_file: Annotated[
        str | None,
        typer.Option("--new-key-file", metavar="FILE", help="Add this key file; made if it is not there."),
    ] = None,
    new_passphrase_file: Annotated[
        str | None,
        typer.Option("--new-passphrase-file", metavar="FILE", help="Add the passphrase in this file."),
    ] = None,
    label: Annotated[str, typer.Option("--label", help="A word to know it by.")] = "",
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Add a further passphrase (asked for, or from a file) or key file."""
    from lumina_vault.errors import UsageError
    from lumina_vault.ops import vaults
    from lumina_vault.store import keystore

    backend, _, keys = vaults.unlock(options.settings(vault, key_file), options.ask_passphrase)
    if not keys.encrypted:
        raise UsageError("this vault is not encrypted: it has no keys to add or remove")
    if new_key_file:
        secret = options.make_key_file(new_key_file)
    elif new_passphrase_file:
        try:
            with open(new_passphrase_file, encoding="utf-8") as file:
                text = file.read(1 << 16).rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"{new_passphrase_file} can't be read as text") from None
        if not text:
            raise UsageError(f"{new_passphrase_file} is empty")
        secret = keystore.Secret("passphrase", text.encode(), new_passphrase_file)
    else:
        secret = options.new_passphrase("another key slot")
    slot = keystore.add_slot(backend, keys, secret, label)
    if as_json:
        emit({"slot": slot.slot, "kind": slot.kind, "label": slot.label})
    else:
        out(f"added key slot {slot.slot} ({slot.kind})")


def list_keys(vault: options.Vault = None, key_file: options.KeyFile = None, as_json: options.Json = False) -> None:
    """List key slots. Takes no key: slots hold nothing secret by themselves."""
    from lumina_vault.backends import open_backend
    from lumina_vault.store import keystore

    backend = open_backend(options.settings(vault, key_file).url)
    config, _ = keystore.load_config(backend)
    slots = keystore.list_slots(backend, config.vault) if config.encrypted else []
    if as_json:
        emit([{"slot": s.slot, "kind": s.kind, "label": s.label, "created": local_time(s.created)} for s in slots])
    elif not config.encrypted:
        out("this vault is not encrypted: it has no keys")
    else:
        table(
            ("slot", "kind", "created", "label"),
            [(s.slot, s.kind, local_time(s.created), s.label) for s in slots],
        )


def remove(
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="The slot's id, or the beginning of it.")],
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Remove a key slot; never the last one. A copy of the slot made before still opens the vault."""
    from lumina_vault.ops import vaults
    from lumina_vault.store import keystore

    backend, _, keys = vaults.unlock(options.settings(vault, key_file), options.ask_passphrase)
    gone = keystore.remove_slot(backend, keys, slot)
    if as_json:
        emit({"removed": gone.slot})
    else:
        out(f"removed key slot {gone.slot} ({gone.kind}); a copy of it made before still opens the vault")
