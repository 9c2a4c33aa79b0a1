"""Fixtures for every test: a place of its own, nothing of the user's, and the command line as a function."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Cli


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, pin or vault of the user's is seen or touched."""
    for name in [n for n in os.environ if n.startswith("VAULT_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DEBUG", raising=False)
    for name in ("STATE", "DATA", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / ".home" / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path / ".home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capfd, monkeypatch)


@pytest.fixture
def plain(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new vault without encryption, and VAULT_URL naming it."""
    path = tmp_path / "vault"
    monkeypatch.setenv("VAULT_URL", str(path))
    cli("init", "--no-encrypt")
    return path


@pytest.fixture
def encrypted(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new vault that opens with a key file, which takes no time to derive."""
    path = tmp_path / "vault"
    monkeypatch.setenv("VAULT_URL", str(path))
    monkeypatch.setenv("VAULT_KEY_FILE", str(tmp_path / "vault.key"))
    cli("init")
    return path
