"""Verify: a reader's session around the engine's verifier."""

from __future__ import annotations

from collections.abc import Callable

from lumina_vault.ops.browse import reading, reading_all
from lumina_vault.store.repository import Repository
from lumina_vault.store.verify import Result, Verifier


def verify(repository: Repository, snapshot: str | None, data: str, progress: Callable[[int, int], None]) -> Result:
    """Check one snapshot or everything; `data` as `store.verify.parse_amount` reads it."""
    if snapshot:
        wanted = repository.find(snapshot)
        with reading(repository, wanted):
            return Verifier(repository, progress).run([wanted], data)
    with reading_all(repository):
        return Verifier(repository, progress).run(None, data)
