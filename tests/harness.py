"""What tests share that is no fixture: the command line as a function, and the need for root."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest


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
