"""benchmarks/compare.py at toy scale: its own parts, then a whole run of `vault` alone."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script, loaded by path: benchmarks/ is not a package."""
    spec = importlib.util.spec_from_file_location("vault_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two days: of the files one stays, one grows, one goes, one comes, one becomes a directory."""
    day1, day2 = tmp_path / "data/day1", tmp_path / "data/day2"
    (day1 / "sub").mkdir(parents=True)
    for name in ("stays", "grows", "goes", "turns"):
        (day1 / "sub" / name).write_bytes(name.encode() * 5000)
    (day1 / "link").symlink_to("sub/stays")
    shutil.copytree(day1, day2, symlinks=True)
    with (day2 / "sub/grows").open("ab") as f:
        f.write(b"more")
    (day2 / "sub/goes").unlink()
    (day2 / "sub/comes").write_bytes(os.urandom(100_000))
    (day2 / "sub/turns").unlink()
    (day2 / "sub/turns").mkdir()
    (day2 / "sub/turns/inner").write_text("inner")
    (day2 / "link").unlink()
    (day2 / "link").symlink_to("sub/comes")
    return day1.parent


def test_update_rewrites_only_what_differs(bench: ModuleType, data: Path, tmp_path: Path) -> None:
    live = tmp_path / "live"
    bench.replace_tree(data / "day1", live)
    before = {name: (live / "sub" / name).stat() for name in ("stays", "grows")}

    bench.update_tree(data / "day2", live)

    assert list(bench.differences(data / "day2", live)) == []
    assert (live / "sub/stays").stat().st_ctime_ns == before["stays"].st_ctime_ns
    assert (live / "sub/grows").stat().st_ino == before["grows"].st_ino


def test_differences_are_found(bench: ModuleType, data: Path, tmp_path: Path) -> None:
    got = tmp_path / "got"
    bench.replace_tree(data / "day1", got)
    stays, grows = got / "sub/stays", got / "sub/grows"
    when = stays.stat().st_mtime_ns
    stays.write_bytes(stays.read_bytes()[:-1] + b"!")
    os.utime(stays, ns=(when, when))
    grows.chmod(0o600)
    os.utime(got / "sub/turns", ns=(when, when + 1))
    (got / "sub/goes").unlink()
    (got / "link").unlink()
    (got / "link").symlink_to("elsewhere")
    (got / "extra").touch()

    found = {line.replace(f"{got}/", "") for line in bench.differences(data / "day1", got)}

    assert found >= {
        "content sub/stays",
        "mode sub/grows",
        "mtime sub/turns",
        "missing sub/goes",
        "target link",
        "extra extra",
    }


def test_stream_blocks_have_the_length_asked(bench: ModuleType) -> None:
    assert sum(map(len, bench.blocks(3_000_001))) == 3_000_001


def test_missing_tool_is_named(bench: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", str(data), "--tools", "borg", "--borg", "/no/such/borg"]

    assert bench.main(argv) == 2
    assert "/no/such/borg: not found. Give --borg PATH" in capsys.readouterr().err


def test_vault_alone_comes_back_equal(
    bench: ModuleType,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.1)
    raw = tmp_path / "raw.json"
    argv = ["--data", str(data), "--tools", "vault", "--rounds", "1", "--stream-gib", "0.005"]

    code = bench.main([*argv, "--work", str(tmp_path), "--json", str(raw)])

    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "Restored by vault: equal." in shown.out
    report = json.loads(raw.read_text())
    assert [run["phase"] for run in report["runs"]] == list(bench.PHASES)
    assert [stream["equal"] for stream in report["streams"]] == [True]
