"""Verify: a reader's session around the engine's verifier."""

from __future__ import annotations

from collections.abc import Callable

from lumina_vault.store.repository import Repository
from lumina_vault.store.verify import Result, Verifier


def verify(repository: Repository, snapshot: str | None, data: str, progress: Callable[[int, int], None]) -> Result:
    """Check one snapshot or everything; `data` as `store.verify.parse_amount` reads it."""
    if snapshot:
        wanted = repository.find(snapshot)
        with repository.reading(wanted.id):
            return Verifier(repository, progress).run([wanted], data)
    with repository.reading(*(row.id for row in repository.index.snapshot_rows())):
        return Verifier(repository, progress).run(None, data)
