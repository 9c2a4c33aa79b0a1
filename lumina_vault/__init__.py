"""Lumina Vault: incremental, deduplicated, verifiable snapshots of a whole stack."""

__version__ = "0.1.0"
