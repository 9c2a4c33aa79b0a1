"""Several processes on one vault: nobody waits for ever, nobody loses anything."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from harness import Cli
from trees import assert_same


def _start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lumina_vault", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err


def _fill(path: Path, seed: int) -> Path:
    shared, own = random.Random(0), random.Random(seed)
    path.mkdir()
    for i in range(200):
        (path / f"shared{i}").write_bytes(shared.randbytes(3000))
        (path / f"own{i}").write_bytes(own.randbytes(3000))
    (path / "large").write_bytes(shared.randbytes(20_000_000))
    return path


def test_two_snapshots_at_once_both_land(cli: Cli, encrypted: Path, tmp_path: Path) -> None:
    sources = [_fill(tmp_path / f"s{i}", i + 1) for i in range(2)]
    for running in [_start("snapshot", "--path", source) for source in sources]:
        _end(running)
    snapshots = cli.json("snapshots")
    assert {s["components"][0]["name"] for s in snapshots} == {"s0", "s1"}
    assert cli.json("verify", "--data", "all")["clean"]
    for snapshot in snapshots:
        cli("restore", snapshot["id"], "--to", "out")
    for source in sources:
        assert_same(source, tmp_path / "out" / "dir" / source.name)
    assert os.listdir(encrypted / "tmp") == []
    assert os.listdir(encrypted / "sessions") == []


def test_snapshot_restore_and_verify_side_by_side(cli: Cli, encrypted: Path, tmp_path: Path) -> None:
    source = _fill(tmp_path / "s", 1)
    cli("snapshot", "--path", source)
    first = cli.json("snapshots")[0]["id"]
    for i in range(200):
        (source / f"new{i}").write_bytes(os.urandom(5000))
    running = [
        _start("snapshot", "--path", source),
        _start("restore", first, "--to", tmp_path / "out"),
        _start("verify", first, "--data", "all"),
    ]
    for process in running:
        _end(process)
    assert len(list((tmp_path / "out" / "dir" / "s").iterdir())) == 401
    assert len(cli.json("snapshots")) == 2
    assert cli.json("verify", "--data", "all")["clean"]
