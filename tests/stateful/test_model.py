"""Random histories against a dict: whatever happened, every snapshot gives back what the model says."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from lumina_vault import process
from lumina_vault import settings as vault_settings
from lumina_vault.components.base import Report
from lumina_vault.errors import VaultError
from lumina_vault.ops import browse, vaults
from lumina_vault.ops.restore import plan_restore
from lumina_vault.ops.snapshot import plan_snapshot
from lumina_vault.ops.verify import verify
from lumina_vault.store.keystore import Secret

NAMES = ["a", "b/c", "b/d", "b/e/f", "z"]
Model = dict[str, bytes]


class History(RuleBasedStateMachine):
    """Writes, deletes, snapshots, failed snapshots, rebuilds and restores in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="vault-history-"))
        self.source = self.root / "src"
        self.source.mkdir()
        self.files: Model = {}
        self.taken: list[tuple[bytes, Model]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @initialize(encrypted=st.booleans())
    def init(self, encrypted: bool) -> None:
        environ = {"HOME": str(self.root), "VAULT_URL": str(self.root / "vault")}
        secret = None
        if encrypted:
            from lumina_vault.crypto import key_file_text

            (self.root / "key").write_text(key_file_text(bytes(range(32))))
            environ["VAULT_KEY_FILE"] = str(self.root / "key")
            secret = Secret("keyfile", bytes(range(32)), "test")
        self.settings = vault_settings.load(environ=environ)
        vaults.create_vault(self.settings, secret)

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 9), size=st.sampled_from([0, 1, 700, 140_000, 900_000]))
    def write(self, name: str, seed: int, size: int) -> None:
        data = (bytes([seed]) * 7 + b"x" * seed + bytes(range(256))) * (size // 256 + 1)
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[:size])
        self.files[name] = data[:size]

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.source / name).unlink()
        del self.files[name]

    @rule()
    def snapshot(self) -> None:
        with vaults.open_vault(self.settings, write=True) as repository:
            taken = plan_snapshot([str(self.source)], []).execute(repository)
        assert taken.record.complete
        self.taken.append((taken.id, dict(self.files)))

    @rule(step=st.integers(0, 12), when=st.sampled_from(["before", "after"]))
    def failed_snapshot(self, step: int, when: str) -> None:
        """A snapshot whose index fails at some transaction. It may have committed only if it says so afterwards."""
        count = 0

        def observe(moment: str) -> None:
            nonlocal count
            count += moment.startswith(when)
            if count == step + 1:
                raise VaultError("injected")

        committed = True
        try:
            with vaults.open_vault(self.settings, write=True) as repository:
                repository.index.observer = observe
                plan_snapshot([str(self.source)], []).execute(repository)
        except VaultError:
            committed = False
        with vaults.open_vault(self.settings) as repository:
            now = [s.id for s in repository.snapshots()]
        before = [snapshot for snapshot, _ in self.taken]
        assert now[: len(before)] == before
        assert len(now) <= len(before) + 1
        if committed:
            assert len(now) == len(before) + 1
        self.taken += [(snapshot, dict(self.files)) for snapshot in now[len(before) :]]

    @rule(lost=st.booleans())
    def rebuild(self, lost: bool) -> None:
        if lost:
            for path in (self.root / "vault").glob("index.db*"):
                path.unlink()
        result = vaults.rebuild_index(self.settings, lambda _what, _count: None)
        assert not result.problems
        known = [snapshot for snapshot, _ in self.taken]
        with vaults.open_vault(self.settings) as repository:
            found = [s.id for s in repository.snapshots()]
            assert set(known) <= set(found)
            # A lone record of a failed commit may become a snapshot here; it must then be whole.
            for extra in set(found) - set(known):
                for item in plan_restore(repository.find(extra.hex()), to=str(self.root / "extra")).execute(repository):
                    assert not item.report.left_out
                self.taken.append((extra, _read(self.root / "extra" / "dir" / "src")))
                shutil.rmtree(self.root / "extra")

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        snapshot, expected = data.draw(st.sampled_from(self.taken))
        with vaults.open_vault(self.settings) as repository:
            for outcome in plan_restore(repository.find(snapshot.hex()), to=str(self.root / "out")).execute(repository):
                assert isinstance(outcome.report, Report)
                assert not outcome.report.left_out, outcome.report.notes
        assert _read(self.root / "out" / "dir" / "src") == expected
        shutil.rmtree(self.root / "out")

    @precondition(lambda self: len(self.taken) > 1)
    @rule(data=st.data())
    def diff(self, data: st.DataObject) -> None:
        a, old = data.draw(st.sampled_from(self.taken))
        b, new = data.draw(st.sampled_from(self.taken))
        with vaults.open_vault(self.settings) as repository:
            changes = list(browse.diff(repository, repository.find(a.hex()), repository.find(b.hex())))
        files = {(c.sign, os.fsdecode(c.path)) for c in changes if os.fsdecode(c.path) in old.keys() | new.keys()}
        assert {p for sign, p in files if sign == "+"} == new.keys() - old.keys()
        assert {p for sign, p in files if sign == "-"} == old.keys() - new.keys()
        assert {p for sign, p in files if sign == "M"} == {p for p in old.keys() & new.keys() if old[p] != new[p]}

    @rule()
    def verify(self) -> None:
        with vaults.open_vault(self.settings) as repository:
            result = verify(repository, None, "all", lambda _done, _total: None)
        assert result.clean, result
        assert result.snapshots == len(self.taken)


def _read(root: Path) -> Model:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _run(examples: int, steps: int) -> None:
    process.prepare()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        History,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None,
            suppress_health_check=list(HealthCheck), derandomize=True,
        ),
    )  # fmt: skip


def test_histories() -> None:
    _run(12, 15)


@pytest.mark.slow
def test_long_histories() -> None:
    _run(60, 40)
