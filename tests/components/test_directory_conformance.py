"""The `dir` component against the conformance suite."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lumina_vault.components.base import Report, TreeSink, TreeSource
from lumina_vault.components.directory import DirectoryExporter, Options
from lumina_vault.components.place import Placing, TreeRestorer
from lumina_vault.model import BUNDLE_BELOW
from lumina_vault.testing.components import TreeConformance


class TestDirectory(TreeConformance):
    def make(self, place: Path) -> Path:
        (place / "d").mkdir(parents=True)
        (place / "small").write_bytes(b"small")
        (place / "large").write_bytes(os.urandom(BUNDLE_BELOW * 3))
        (place / "empty").write_bytes(b"")
        (place / "d" / "below").write_bytes(b"below")
        (place / "link").symlink_to("small")
        return place

    def export(self, source: Path, sink: TreeSink, report: Report, *, trust: bool = False) -> None:
        before = time.time_ns() + 10**12 if trust else 0
        DirectoryExporter(str(source), sink, report, Options(trust_before=before)).export()

    def restore(self, target: Path, source: TreeSource, report: Report) -> None:
        root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            TreeRestorer(root, source, report, Placing()).restore()
        finally:
            os.close(root)
