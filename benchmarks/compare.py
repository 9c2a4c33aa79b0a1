#!/usr/bin/env python3
"""Measure `vault` beside restic and borg: same data, same machine, same run.

    compare.py --data DIR [--rounds 3] [--json FILE]    DIR holds day1/ and day2/
    compare.py --make 0.1 --tools vault                 generate the data first; narrow the tools
    compare.py --stream-gib 2,20                        peak memory of long streams through `vault`

Within a round every phase runs for each tool before the next phase begins, and the order of the
tools rotates from round to round, so that drift of the machine falls on all alike. All tools
encrypt, compress at their usual level, and read one source path. A restored tree is compared with
its source, outside the timing; a difference fails the run. See README.md for what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import random
import resource
import shlex
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("vault", "restic", "borg")
PHASES = ("init", "first", "unchanged", "day2", "help", "list", "verify", "restore")
STREAM_STEPS = ("snapshot", "cat", "verify", "restore")
# Targets: wall over the fastest peer's, CPU seconds, stored bytes over the smallest peer's, peak RSS.
RATIO_LIMITS = {"first": 0.5, "unchanged": 0.5, "day2": 0.4, "verify": 0.5, "restore": 0.5}
CPU_LIMITS = {"help": 0.15, "list": 0.7}
SIZE_LIMIT, RSS_LIMIT_MIB = 1.01, 200
MIB = 1 << 20
# A file touched in the last seconds is too new for a stat cache to trust: let its ctime age.
SETTLE_SECONDS = 3.5
PASSPHRASE = "a passphrase for benchmarks only"


class BenchError(Exception):
    """The run cannot go on: a tool is missing, failed, or was given unusable input."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """One command's cost: seconds, seconds of user+system CPU, MiB of its largest process."""

    wall: float
    cpu: float
    rss: float


@dataclasses.dataclass(frozen=True)
class Tool:
    """A backup tool: its version, environment, directories, and a command line per phase."""

    name: str
    version: str
    env: dict[str, str]
    repo: Path
    state: Path
    out: Path
    commands: dict[str, list[str]]
    restored: Path  # where the restore phase lays the source directory

    def run(self, phase: str) -> Figures:
        """Run one phase; a restore gets a fresh directory."""
        if phase == "restore":
            self.out.mkdir()
        return self.start(self.commands[phase]).finish()

    def start(self, argv: list[str], **pipes: int) -> Run:
        """Start any command of the tool, with nothing left to write by those before it."""
        self.state.mkdir(exist_ok=True)
        os.sync()
        return Run(argv, self.env, self.out.parent, **pipes)

    def clear(self) -> None:
        """Remove what the tool wrote."""
        for path in (self.repo, self.state, self.out):
            if path.exists():
                shutil.rmtree(path)


class Run:
    """A started command; `finish` waits for it and gives its figures, or raises BenchError."""

    def __init__(self, argv: list[str], env: dict[str, str], home: Path, **pipes: int) -> None:
        self.argv, self.log = argv, home / "log"
        with self.log.open("wb") as sink:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": sink, **pipes}
            self.began = time.perf_counter()
            self.child = subprocess.Popen(argv, env=env, cwd=home, stderr=sink, **streams)

    def finish(self) -> Figures:
        """Reap the child with its resource usage, which includes descendants it waited for."""
        try:
            _, status, usage = os.wait4(self.child.pid, 0)
        except BaseException:
            self.child.kill()
            raise
        wall = time.perf_counter() - self.began
        self.child.returncode = os.waitstatus_to_exitcode(status)
        if self.child.returncode != 0:
            tail = self.log.read_text(errors="replace")[-1500:]
            raise BenchError(f"`{shlex.join(self.argv)}` ended with {self.child.returncode}:\n{tail}")
        return Figures(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


# --- The tools ----------------------------------------------------------------


def find_executable(name: str, given: str | None) -> list[str]:
    """The tool's command line: as given, beside this Python, or on PATH."""
    words = shlex.split(given) if given else [name]
    beside = None if given else shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(words[0])
    if found is None:
        option = "--vault-cmd" if name == "vault" else f"--{name}"
        raise BenchError(f"{words[0]}: not found. Give {option} PATH, or leave it out by --tools.")
    return [str(Path(found).absolute()), *words[1:]]


def vault_commands(exe: list[str], repo: str, live: str, out: str) -> dict[str, list[str]]:
    """Vault at its defaults: encryption on, default level."""
    snapshot = [*exe, "snapshot", "--vault", repo, "--path", live]
    return {
        "init": [*exe, "init", "--vault", repo],
        "first": snapshot, "unchanged": snapshot, "day2": snapshot,
        "help": [*exe, "--help"],
        "list": [*exe, "snapshots", "--vault", repo],
        "verify": [*exe, "verify", "--vault", repo, "--data", "all"],
        "restore": [*exe, "restore", "latest", "--vault", repo, "--to", out],
    }  # fmt: skip


def restic_commands(exe: list[str], repo: str, live: str, out: str) -> dict[str, list[str]]:
    """Restic with repository format 2 and its default compression, `auto`."""
    exe_repo = [*exe, "--repo", repo]
    backup = [*exe_repo, "backup", live]
    return {
        "init": [*exe_repo, "init", "--repository-version", "2"],
        "first": backup, "unchanged": backup, "day2": backup,
        "help": [*exe, "--help"],
        "list": [*exe_repo, "snapshots"],
        "verify": [*exe_repo, "check", "--read-data"],
        "restore": [*exe_repo, "restore", "latest", "--target", out],
    }  # fmt: skip


def borg_commands(exe: list[str], repo: str, live: str, out: str) -> dict[str, list[str]]:
    """Borg with repokey-blake2 and zstd level 3. `extract` writes into its working directory."""
    create = [*exe, "create", "--compression", "zstd,3"]
    return {
        "init": [*exe, "init", "--encryption", "repokey-blake2", repo],
        **{phase: [*create, f"{repo}::{phase}", live] for phase in ("first", "unchanged", "day2")},
        "help": [*exe, "--help"],
        "list": [*exe, "list", repo],
        "verify": [*exe, "check", "--verify-data", repo],
        "restore": ["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", out,
                    *exe, "extract", f"{repo}::day2"],
    }  # fmt: skip


COMMANDS = {"vault": vault_commands, "restic": restic_commands, "borg": borg_commands}


def isolated_env(state: Path) -> dict[str, str]:
    """This environment without any tool's settings; passphrase given, caches under `state`."""
    prefixes = ("VAULT_", "RESTIC_", "BORG_", "XDG_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
    env |= {f"XDG_{kind}_HOME": str(state / kind) for kind in ("CACHE", "CONFIG", "DATA", "STATE")}
    env |= {"BORG_BASE_DIR": str(state), "RESTIC_CACHE_DIR": str(state / "restic")}
    return env | dict.fromkeys(("VAULT_PASSPHRASE", "RESTIC_PASSWORD", "BORG_PASSPHRASE"), PASSPHRASE)


def make_tool(name: str, given: str | None, work: Path) -> Tool:
    """Find a tool and lay out its directories: `work/NAME/{repo,state,out}`."""
    exe, home = find_executable(name, given), work / name
    home.mkdir(exist_ok=True)
    repo, state, out, live = home / "repo", home / "state", home / "out", work / "live"
    env = isolated_env(state)
    asked = "version" if name == "restic" else "--version"
    Run([*exe, asked], env, home).finish()
    version = (home / "log").read_text().strip().partition("\n")[0]
    restored = out / "dir" / live.name if name == "vault" else out / live.relative_to("/")
    commands = COMMANDS[name](exe, str(repo), str(live), str(out))
    return Tool(name, version, env, repo, state, out, commands, restored)


# --- The data -----------------------------------------------------------------


def make_data(a: argparse.Namespace, out: Path) -> Path:
    """Run the generator (it needs numpy: hence a choice of interpreter)."""
    argv = [a.generator_python, str(a.generator), str(out), "--scale", str(a.make)]
    if subprocess.run(argv, check=False).returncode != 0:
        raise BenchError(f"`{shlex.join(argv)}` failed. Is --generator-python a Python with numpy?")
    return out


def is_real_dir(path: Path) -> bool:
    """A directory, not a symlink to one."""
    return path.is_dir() and not path.is_symlink()


def replace_tree(source: Path, live: Path) -> None:
    """Make `live` a fresh copy: every inode is new."""
    if is_real_dir(live):
        shutil.rmtree(live)
    else:
        live.unlink(missing_ok=True)
    subprocess.run(["cp", "-a", str(source), str(live)], check=True)


def update_tree(source: Path, live: Path) -> None:
    """Make directory `live` equal `source` in place; a file whose size and times agree is left alone."""
    names = os.listdir(source)
    for gone in set(os.listdir(live)).difference(names):
        shutil.rmtree(live / gone) if is_real_dir(live / gone) else (live / gone).unlink()
    for want, got in ((source / name, live / name) for name in sorted(names)):
        if is_real_dir(want) and is_real_dir(got):
            update_tree(want, got)
        elif not os.path.lexists(got):
            replace_tree(want, got)
        elif word := metadata_difference(want, got):
            update_file(want, got) if word in ("size", "mtime") else replace_tree(want, got)
    if metadata_difference(source, live):
        shutil.copystat(source, live)


def update_file(source: Path, target: Path) -> None:
    """Rewrite a regular file in the inode it has, when that can be written."""
    if target.is_symlink() or not target.is_file() or not os.access(target, os.W_OK):
        return replace_tree(source, target)
    shutil.copyfile(source, target)
    shutil.copystat(source, target)
    return None


def metadata_difference(want: Path, got: Path) -> str:
    """How two entries differ without a look at their contents, in a word; empty when they do not."""
    a, b = want.lstat(), got.lstat()
    if a.st_mode != b.st_mode:
        return "mode"
    if os.geteuid() == 0 and (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        return "owner"
    if want.is_symlink() and want.readlink() != got.readlink():
        return "target"
    if stat.S_ISREG(a.st_mode) and a.st_size != b.st_size:
        return "size"
    return "mtime" if a.st_mtime_ns != b.st_mtime_ns else ""


def same_content(a: Path, b: Path) -> bool:
    """Whether two files of one size hold the same bytes."""
    with a.open("rb", buffering=0) as f, b.open("rb", buffering=0) as g:
        while block := f.read(MIB):
            if g.read(MIB) != block:
                return False
    return True


def differences(want: Path, got: Path) -> Iterator[str]:
    """Every difference of type, mode, owner, mtime, symlink target and content of two trees."""
    if not os.path.lexists(got):
        yield f"missing {got}"
        return
    if word := metadata_difference(want, got):
        yield f"{word} {got}"
    elif stat.S_ISREG(want.lstat().st_mode) and not same_content(want, got):
        yield f"content {got}"
    if is_real_dir(want) and is_real_dir(got):
        names = os.listdir(want)
        yield from (f"extra {got / name}" for name in set(os.listdir(got)).difference(names))
        for name in sorted(names):
            yield from differences(want / name, got / name)


def files_of(top: Path) -> Iterator[os.stat_result]:
    """Regular files under a directory."""
    for folder, _, names in os.walk(top):
        found = (os.lstat(os.path.join(folder, name)) for name in names)
        yield from (s for s in found if stat.S_ISREG(s.st_mode))


def sizes(tool: Tool) -> dict[str, int]:
    """Bytes and disk space of the repository, and bytes of the caches kept outside it."""
    found = list(files_of(tool.repo))
    return {
        "bytes": sum(s.st_size for s in found),
        "disk": sum(s.st_blocks * 512 for s in found),
        "cache": sum(s.st_size for s in files_of(tool.state)),
    }


# --- The runs -----------------------------------------------------------------


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def check_restored(tool: Tool, live: Path) -> list[str]:
    """What differs after a restore, the first few of it; the restored tree is then removed."""
    found = differences(live, tool.restored)
    first = [line for line, _ in zip(found, range(10), strict=False)]
    for line in first:
        say(f"  {tool.name} restored differently: {line}")
    shutil.rmtree(tool.out)
    return first


def run_round(number: int, tools: list[Tool], data: Path, mode: str, report: dict[str, Any]) -> None:
    """One round: every phase for every tool, in the order given."""
    live = tools[0].repo.parents[1] / "live"
    replace_tree(data / "day1", live)
    time.sleep(SETTLE_SECONDS)
    for phase in PHASES:
        if phase == "day2":
            (update_tree if mode == "rsync" else replace_tree)(data / "day2", live)
            time.sleep(SETTLE_SECONDS)
        for tool in tools:
            figures = tool.run(phase)
            say(f"  {phase:9} {tool.name:6} {cell(figures)}")
            where = {"round": number, "phase": phase, "tool": tool.name}
            report["runs"].append(where | dataclasses.asdict(figures))
            if phase in ("first", "day2"):
                report["sizes"].append(where | sizes(tool))
            if phase == "restore":
                report["restored"].append(where | {"differences": check_restored(tool, live)})
    for tool in tools:
        tool.clear()


def blocks(total: int) -> Iterator[bytes]:
    """Bytes that never repeat: by turns random, and random as hexadecimal (half compressible)."""
    source, odd = random.Random(total), True
    while total > 0:
        size, odd = min(total, MIB // 2), not odd
        block = source.randbytes(size // 2 + 1).hex().encode() if odd else source.randbytes(size)
        yield block[:size]
        total -= size


def sha256_of(stream: Any) -> str:
    """SHA-256 of everything a stream gives, in bounded memory."""
    digest = hashlib.sha256()
    while block := stream.read(MIB):
        digest.update(block)
    return digest.hexdigest()


def feed(sink: Any, data: Iterable[bytes]) -> str:
    """Write blocks to a command's stdin; give their SHA-256. A command that left is not ours."""
    digest = hashlib.sha256()
    try:
        with sink:
            for block in data:
                digest.update(block)
                sink.write(block)
    except BrokenPipeError:
        pass  # Run.finish reports why the command ended
    return digest.hexdigest()


def run_stream(vault: Tool, gib: float) -> dict[str, Any]:
    """Send one long stream in and out of a new vault; figures per step, and whether it came back equal."""
    exe, repo = vault.commands["help"][:-1], str(vault.repo)
    vault.run("init")
    run = vault.start([*exe, "snapshot", "--vault", repo, "--stdin", "big"], stdin=subprocess.PIPE)
    sent = feed(run.child.stdin, blocks(int(gib * 2**30)))
    figures = {"snapshot": run.finish()}
    run = vault.start([*exe, "cat", "latest:stream:big", "--vault", repo], stdout=subprocess.PIPE)
    received = [sha256_of(run.child.stdout)]
    figures |= {"cat": run.finish(), "verify": vault.run("verify"), "restore": vault.run("restore")}
    for path in (p for p in vault.out.rglob("*") if p.is_file()):
        with path.open("rb") as f:
            received.append(sha256_of(f))
    steps = {step: dataclasses.asdict(found) for step, found in figures.items()}
    result = steps | {"gib": gib, "stored": sizes(vault)["bytes"], "equal": received == [sent, sent]}
    vault.clear()
    return result


# --- The report ---------------------------------------------------------------


def table(*header: str) -> Iterator[str]:
    """The head of a Markdown table."""
    yield "\n" + row(*header)
    yield row(*["---"] * len(header))


def row(*cells: str) -> str:
    """A Markdown table row."""
    return "| " + " | ".join(cells) + " |"


def cell(f: Figures) -> str:
    """Wall, CPU and memory as one table cell."""
    return f"{f.wall:.2f} s · {f.cpu:.2f} s · {f.rss:.0f} MiB"


def verdict(value: float | None, limit: float, unit: str = "") -> str:
    """A limit and whether it is met."""
    return "" if value is None else f"{unit} ≤ {limit:g}: {'met' if value <= limit else 'MISSED'}".strip()


def medians(rows: list[dict[str, Any]], phase: str, tool: str, keys: tuple[str, ...]) -> list[float]:
    """Median of each figure over the rounds."""
    mine = [r for r in rows if (r["phase"], r["tool"]) == (phase, tool)]
    return [statistics.median(r[key] for r in mine) for key in keys]


def ratio_to_peers(values: dict[str, float]) -> float | None:
    """Vault's figure over the smallest of its peers'."""
    peers = [value for name, value in values.items() if name != "vault"]
    return values["vault"] / min(peers) if peers and "vault" in values else None


def phase_row(phase: str, names: list[str], runs: list[dict[str, Any]]) -> str:
    """One phase: every tool's medians, vault's ratio to the fastest peer, and its target."""
    found = {name: Figures(*medians(runs, phase, name, ("wall", "cpu", "rss"))) for name in names}
    ratio, judged = ratio_to_peers({name: f.wall for name, f in found.items()}), ""
    if phase in CPU_LIMITS and "vault" in found:
        judged = verdict(found["vault"].cpu, CPU_LIMITS[phase], "CPU s")
    elif phase in RATIO_LIMITS:
        judged = verdict(ratio, RATIO_LIMITS[phase])
    return row(phase, *map(cell, found.values()), "" if ratio is None else f"{ratio:.2f}", judged)


def size_row(phase: str, names: list[str], found: list[dict[str, Any]]) -> str:
    """Stored sizes after a phase, vault's ratio to the smallest peer."""
    middle = {name: medians(found, phase, name, ("bytes", "disk", "cache")) for name in names}
    cells = [" · ".join(f"{n / MIB:.1f}" for n in figures) for figures in middle.values()]
    ratio = ratio_to_peers({name: figures[0] for name, figures in middle.items()})
    return row(f"after {phase}", *cells, "" if ratio is None else f"{ratio:.3f}", verdict(ratio, SIZE_LIMIT))


def compare_report(report: dict[str, Any]) -> Iterator[str]:
    """The tables of the tool comparison."""
    names, runs = report["order"], report["runs"]
    yield from table("wall · CPU · peak RSS", *names, "vault / fastest", "target")
    yield from (phase_row(phase, names, runs) for phase in PHASES)
    yield from table("stored MiB: bytes · on disk · cache outside", *names, "vault / smallest", "target")
    yield from (size_row(phase, names, report["sizes"]) for phase in ("first", "day2"))
    if "vault" in names:
        worst = max((r for r in runs if r["tool"] == "vault"), key=lambda r: r["rss"])
        judged = verdict(worst["rss"], RSS_LIMIT_MIB)
        yield f"\nHighest peak of vault in any run: {worst['rss']:.0f} MiB ({worst['phase']}); {judged}."
    for name in names:
        bad = sum(bool(r["differences"]) for r in report["restored"] if r["tool"] == name)
        yield f"\nRestored by {name}: " + (f"DIFFERENT in {bad} rounds." if bad else "equal.")


def stream_report(streams: list[dict[str, Any]]) -> Iterator[str]:
    """The table of long streams through `vault`."""
    yield from table("wall · CPU · peak RSS", *STREAM_STEPS, "stored MiB", "equal", "target")
    for s in streams:
        figures = [Figures(**s[step]) for step in STREAM_STEPS]
        judged = verdict(max(f.rss for f in figures), RSS_LIMIT_MIB, "RSS MiB")
        stored, equal = f"{s['stored'] / MIB:.0f}", "yes" if s["equal"] else "NO"
        yield row(f"stream of {s['gib']:g} GiB", *map(cell, figures), stored, equal, judged)


def machine() -> str:
    """The machine in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {platform.platform()}"


def heading(report: dict[str, Any]) -> Iterator[str]:
    """What was run, on what, and how."""
    yield "- " + "; ".join(report["tools"].values())
    yield f"- {report['machine']}; {report['time']}"
    if report["runs"]:
        data = f"{report['files']:,} files, {report['size'] / 2**30:.2f} GiB on day 1"
        yield f"- medians of {report['rounds']} rounds; {data}; day 2 by `{report['mode']}`"
    yield "- all encrypted; warm page cache (nothing dropped), `sync` before each command"
    yield f"- peak RSS is the largest process's; readings under {report['rss_floor']:.0f} MiB are ours"


# --- The command line ---------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    raw = argparse.RawDescriptionHelpFormatter
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    source = ap.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="directory with day1/ and day2/")
    source.add_argument("--make", type=float, metavar="SCALE", help="generate the data first")
    generator = ROOT / "../shared/bench/make_stack_data.py"
    ap.add_argument("--generator", type=Path, default=generator, help="default: %(default)s")
    ap.add_argument("--generator-python", default=sys.executable, help="a Python with numpy")
    ap.add_argument("--tools", default=",".join(TOOLS), help="default: %(default)s")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--day2", choices=("rsync", "replace"), default="rsync",
                    help="update live in place, or replace it so that every inode is new")  # fmt: skip
    ap.add_argument("--stream-gib", default="", metavar="N[,M]", help="streams through vault")
    ap.add_argument("--vault-cmd", metavar="PATH")
    ap.add_argument("--restic", metavar="PATH")
    ap.add_argument("--borg", metavar="PATH")
    ap.add_argument("--work", type=Path, help="where to make the work directory; default: TMPDIR")
    ap.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures too")
    a = ap.parse_args(argv)
    a.names = [name.strip() for name in a.tools.split(",")]
    try:
        a.gibs = [float(n) for n in a.stream_gib.split(",") if n]
    except ValueError:
        ap.error(f"--stream-gib: not numbers: {a.stream_gib}")
    if unknown := set(a.names) - set(TOOLS):
        ap.error(f"--tools: unknown {', '.join(sorted(unknown))}")
    if (a.data, a.make, a.gibs) == (None, None, []):
        ap.error("give --data, --make or --stream-gib")
    if a.rounds < 1 or len(set(a.names)) != len(a.names):
        ap.error("at least one round, and each tool once")
    return a


def compare(a: argparse.Namespace, work: Path, report: dict[str, Any]) -> None:
    """Run all the rounds."""
    given = {"vault": a.vault_cmd, "restic": a.restic, "borg": a.borg}
    tools = [make_tool(name, given[name], work) for name in a.names]
    report |= {"tools": {tool.name: tool.version for tool in tools}, "order": a.names}
    data = make_data(a, work / "data") if a.data is None else a.data
    if not all((data / day).is_dir() for day in ("day1", "day2")):
        raise BenchError(f"{data}: must hold day1/ and day2/ (make_stack_data.py writes them).")
    found = [s.st_size for s in files_of(data / "day1")]
    report |= {"files": len(found), "size": sum(found)}
    for number in range(a.rounds):
        say(f"round {number + 1} of {a.rounds}")
        turn = number % len(tools)
        run_round(number, tools[turn:] + tools[:turn], data, a.day2, report)


def main(argv: list[str] | None = None) -> int:
    """Run, print the tables, and give 1 if anything came back different, 2 if it could not run."""
    a = parse(argv)
    report: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M %Z"), "machine": machine(), "tools": {},
        "rounds": a.rounds, "mode": a.day2, "runs": [], "sizes": [], "restored": [], "streams": [],
    }  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix="vault-compare-", dir=a.work) as folder:
            work = Path(folder).resolve()
            if (a.data, a.make) != (None, None):
                compare(a, work, report)
            for gib in a.gibs:
                vault = make_tool("vault", a.vault_cmd, work)
                report["tools"].setdefault("vault", vault.version)
                say(f"stream of {gib:g} GiB")
                report["streams"].append(run_stream(vault, gib))
    except (BenchError, OSError, subprocess.CalledProcessError) as error:
        say(f"compare: {error}")
        return 2
    finally:  # a run that ended early keeps the figures that it has
        report["rss_floor"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if a.json:
            a.json.write_text(json.dumps(report, indent=1) + "\n")
    print(*heading(report), sep="\n")
    if report["runs"]:
        print(*compare_report(report), sep="\n")
    if report["streams"]:
        print(*stream_report(report["streams"]), sep="\n")
    equal = all(s["equal"] for s in report["streams"])
    return 0 if equal and not any(r["differences"] for r in report["restored"]) else 1


if __name__ == "__main__":
    sys.exit(main())
