"""Where bytes lie. A backend knows names and bytes; nothing of chunks, keys or snapshots."""

from __future__ import annotations

from lumina_vault.backends.base import Backend, Spool
from lumina_vault.errors import UsageError

__all__ = ["Backend", "Spool", "open_backend"]


def local_path(url: str) -> str:
    """The directory that a vault URL names: a path, `file:/path` or `file:///path`.

    Raises `UsageError` for a scheme that this version has no backend for.
    """
    if url.startswith("file:"):
        rest = url.removeprefix("file:")
        if rest.startswith("//"):
            if not rest.startswith("///"):
                raise UsageError(f"{url}: a file URL names no host; write file:///path or a plain path")
            rest = rest[2:]
        return rest
    scheme, separator, rest = url.partition("://")
    if separator and "/" not in scheme:
        if "@" in rest.partition("/")[0]:
            raise UsageError(
                f"the {scheme}: URL of the vault holds a password, which everybody on this machine could read in the "
                "process list; put it into VAULT_URL or the file that VAULT_URL_FILE names"
            )
        raise UsageError(
            f"{url}: this version keeps vaults in a directory (a path or file:/path); it has no {scheme}: backend"
        )
    return url


def open_backend(url: str) -> Backend:
    """The backend for a vault's URL; nothing is read or written yet."""
    from lumina_vault.backends.local import LocalBackend

    return LocalBackend(local_path(url))
