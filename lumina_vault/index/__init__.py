"""The catalogue of packs, chunks, snapshots and sessions: a cache that packs and records can rebuild."""

from lumina_vault.index.database import ChunkRow, Index, PackRow, SnapshotRow

__all__ = ["ChunkRow", "Index", "PackRow", "SnapshotRow"]
