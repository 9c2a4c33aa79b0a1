"""Every error that reaches a user, grouped by what the caller does about it.

    VaultError                     1   something failed; the message says what, where and what to do next
    ├── UsageError                 2   the command was wrong; nothing was touched
    ├── NoSuchVault               10   nothing at that URL
    ├── VaultLocked               11   somebody else holds what is needed
    ├── WrongKey                  12   wrong passphrase, wrong key file or damaged key slot
    ├── Damage                    13   bytes are not what was recorded
    ├── NewerFormat               14   written by a later version
    ├── BackendError               1   the store could not be read or written
    │   ├── ObjectMissing          1   no object of that name
    │   └── StoreFull              1   no space left
    ├── SourceError                1   what was to be saved could not be read
    ├── TargetError                1   the place to restore to can't be used
    └── SessionFenced              1   another process declared this one dead

The number is the command's exit status (`cli.main` alone turns one into the other).
"""

from __future__ import annotations


class VaultError(Exception):
    """Something failed. `str(error)` is one or two sentences: what, where, what to do next."""

    exit_code = 1


class UsageError(VaultError):
    """The command or a setting is wrong; nothing was touched."""

    exit_code = 2


class NoSuchVault(VaultError):
    """There is no vault at that URL."""

    exit_code = 10


class VaultLocked(VaultError):
    """Somebody else holds what this command needs alone."""

    exit_code = 11


class WrongKey(VaultError):
    """No key slot opens with what was given."""

    exit_code = 12


class Damage(VaultError):
    """Stored bytes are not what was recorded: a flipped bit, a truncated or a missing object."""

    exit_code = 13


class NewerFormat(VaultError):
    """The vault uses something that this version does not know."""

    exit_code = 14


class BackendError(VaultError):
    """The store could not be read or written."""


class ObjectMissing(BackendError):
    """No object of that name in the store."""


class StoreFull(BackendError):
    """No space left where the vault lies."""


class SourceError(VaultError):
    """What was to be saved could not be read, or ended before its time."""


class TargetError(VaultError):
    """The place to restore to can't be used as it is."""


class SessionFenced(VaultError):
    """Another process found this session dead and fenced it: it may not commit."""
