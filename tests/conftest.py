"""Fixtures for every test: a place of its own, nothing of the user's, and the command line as a function."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


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


def needs_root() -> None:
    """Skip without root, which only a developer's own machine may lack: in CI it is a failure."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("this test needs root, and CI has to provide it")
        pytest.skip("needs root")


class Cli:
    """`vault` in this process. Call it with arguments; `status` is what it must end with."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capfd, self._monkeypatch = capfd, monkeypatch
        self.err = ""

    def __call__(self, *args: object, status: int = 0) -> str:
        from lumina_vault.cli.main import main

        self._monkeypatch.setattr(sys, "argv", ["vault", *map(str, args)])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        captured = self._capfd.readouterr()
        self.err = captured.err
        code = ended.value.code or 0
        assert code == status, f"vault {' '.join(map(str, args))} ended with {code}: {captured.err or captured.out}"
        assert "Traceback" not in captured.err
        return captured.out

    def json(self, *args: object, status: int = 0) -> Any:
        return json.loads(self(*args, "--json", status=status))


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
