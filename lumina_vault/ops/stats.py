"""Sizes: what snapshots hold, what of it is distinct, what it takes in the store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lumina_vault.model import Component, Record
from lumina_vault.store.rebuild import reachable
from lumina_vault.store.repository import Repository, Snapshot

_BATCH = 4096


@dataclass
class Sizes:
    """Bytes of a component over the snapshots asked for."""

    name: str
    snapshots: int = 0
    logical: int = 0
    """What restoring every one of them would write."""
    distinct: int = 0
    """Plaintext bytes of the distinct chunks it needs."""
    stored: int = 0
    """Bytes those chunks take in packs."""


def component_sizes(repository: Repository, snapshots: Iterable[Snapshot]) -> list[Sizes]:
    """One row for each component name; a chunk that two components share counts in both."""
    rows: dict[str, Sizes] = {}
    seen: dict[str, set[bytes]] = {}
    for snapshot in snapshots:
        for component in snapshot.record.components:
            row = rows.setdefault(component.id, Sizes(component.id))
            row.snapshots += 1
            row.logical += component.size
            _add(repository, row, component, snapshot.record, seen.setdefault(component.id, set()))
    return sorted(rows.values(), key=lambda row: row.name)


def _add(repository: Repository, row: Sizes, component: Component, record: Record, seen: set[bytes]) -> None:
    single = Record(vault=record.vault, time=0, end=0, host="", user="", program="", components=[component])
    batch: set[bytes] = set()

    def flush() -> None:
        for places in repository.index.locate(list(batch)).values():
            row.distinct += places[0].plain
            row.stored += places[0].stored
        seen.update(chunk[:8] for chunk in batch)
        batch.clear()

    for chunk in reachable(repository.reader, single):
        if chunk[:8] not in seen:
            batch.add(chunk)
            if len(batch) >= _BATCH:
                flush()
    flush()
