"""`vault init` and `vault snapshot`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lumina_vault.cli import options
from lumina_vault.cli.render import Progress, emit, out, size, snapshot_json, warn


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: VAULT_PASSPHRASE_FILE=pass.txt vault init --vault /srv/vault")(init)
    app.command(epilog="Example: vault snapshot --path /srv/data --tag nightly")(snapshot)


def init(
    vault: options.Vault = None,
    encrypt: Annotated[bool, typer.Option("--encrypt/--no-encrypt", help="Encrypt everything that is stored.")] = True,
    key_file: Annotated[
        str | None,
        typer.Option("--key-file", metavar="FILE", help="Open with a key file; made if it is not there."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make a new vault. The passphrase comes from VAULT_PASSPHRASE, VAULT_PASSPHRASE_FILE or the terminal."""
    from lumina_vault.errors import UsageError
    from lumina_vault.ops import vaults

    settings = options.settings(vault)
    vaults.check_free(settings)
    secret = None
    if encrypt:
        path = key_file or settings.key_file
        if path:
            secret = options.make_key_file(path)
        else:
            offered = vaults.secrets(settings)
            secret = offered[0] if offered else options.new_passphrase("a new vault")
    elif key_file:
        raise UsageError("--no-encrypt and --key-file contradict each other")
    config = vaults.create_vault(settings, secret)
    if as_json:
        emit({"vault": config.vault.hex(), "url": settings.url, "encryption": config.encryption})
        return
    out(f"made vault {config.vault.hex()[:12]} at {settings.url} ({'encrypted' if secret else 'not encrypted'})")
    if secret is not None:
        out(f"it opens with {secret.source}; without that nobody can read it, so keep a copy elsewhere")


def snapshot(
    path: Annotated[list[str], typer.Option("--path", metavar="DIR", help="Save this directory; repeatable.")] = [],  # noqa: B006
    stdin: Annotated[
        str | None, typer.Option("--stdin", metavar="NAME", help="Save standard input as stream:NAME.")
    ] = None,
    from_command: Annotated[
        str | None,
        typer.Option("--from-command", metavar="NAME", help="Save what a command prints, given after --."),
    ] = None,
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND...]", show_default=False)] = None,
    tag: Annotated[list[str], typer.Option("--tag", help="Tag the snapshot; repeatable.")] = [],  # noqa: B006
    exclude: Annotated[
        list[str],
        typer.Option("--exclude", metavar="PATTERN", help="Leave out, by the rules of .gitignore; repeatable."),
    ] = [],  # noqa: B006
    exclude_file: Annotated[
        list[str], typer.Option("--exclude-file", metavar="FILE", help="Patterns, one a line.")
    ] = [],  # noqa: B006
    exclude_caches: Annotated[
        bool, typer.Option("--exclude-caches", help="Leave out what CACHEDIR.TAG marks.")
    ] = False,
    one_file_system: Annotated[
        bool, typer.Option("--one-file-system", help="Don't cross into other file systems.")
    ] = False,
    reread: Annotated[bool, typer.Option("--reread", help="Read every file, also those that look unchanged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be saved; store nothing.")] = False,
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    level: options.Level = None,
    as_json: options.Json = False,
) -> None:
    """Save directories and streams as one snapshot."""
    from lumina_vault.errors import UsageError
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file, level)
    command = command or []
    if bool(command) != bool(from_command):
        raise UsageError("--from-command NAME goes with a command after --, as in: --from-command db -- pg_dump shop")
    if stdin and sys.stdin.isatty():
        raise UsageError("--stdin reads standard input, which is this terminal: pipe something into it")
    patterns = tuple(exclude) + tuple(line for file in exclude_file for line in _lines(file))
    with vaults.open_vault(settings, write=not dry_run, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.components.base import Report
        from lumina_vault.model import Component
        from lumina_vault.ops.snapshot import Events, Filter, StreamSource, plan_snapshot

        streams = [StreamSource(stdin, stdin=sys.stdin.buffer)] if stdin else []
        if from_command:
            streams.append(StreamSource(from_command, command=tuple(command)))
        plan = plan_snapshot(
            path, streams, tags=tag, filter_=Filter(patterns, exclude_caches, one_file_system), level=settings.level,
            reread=reread, environment=settings.environment,
        )  # fmt: skip
        if dry_run:
            _show_plan(plan, as_json)
            return
        progress = Progress()

        def ended(component: Component, report: Report) -> None:
            progress.end()
            if not as_json:
                kept = f", {report.kept:,} unchanged" if report.kept else ""
                out(f"{component.id}  {report.files:,} files, {report.dirs:,} directories, {size(report.size)}{kept}")

        taken = plan.execute(repository, Events(progress.begin, progress.add, ended))
    record = taken.record
    if as_json:
        emit(snapshot_json(taken))
    else:
        new, stored = (sum(getattr(c, name) for c in record.components) for name in ("new_bytes", "stored_bytes"))
        out(
            f"snapshot {taken.short}  new {size(new)}, stored as {size(stored)}, "
            f"{(record.end - record.time) / 1e9:.1f} s"
        )
    left_out = 0
    for component in record.components:
        left_out += component.left_out
        for note in component.notes:
            warn(f"{component.id}: {note}")
    if left_out:
        warn(f"{left_out} things were left out or changed while they were read; the snapshot is marked incomplete")
        raise typer.Exit(3)


def _show_plan(plan: object, as_json: bool) -> None:
    from lumina_vault.ops.snapshot import DirSource, SnapshotPlan, estimate

    assert isinstance(plan, SnapshotPlan)
    rows = []
    for source in plan.sources:
        if isinstance(source, DirSource):
            files, total = estimate(source, plan.filter)
            rows.append({"component": f"dir:{source.name}", "source": source.path, "files": files, "size": total})
        else:
            shown = " ".join(source.command) or "standard input"
            rows.append({"component": f"stream:{source.name}", "source": shown, "files": None, "size": None})
    if as_json:
        emit({"plan": rows})
        return
    from lumina_vault.cli.render import table

    table(
        ("component", "source", "files", "size"),
        [
            (
                str(r["component"]),
                str(r["source"]),
                "" if r["files"] is None else f"{r['files']:,}",
                "" if r["size"] is None else size(int(str(r["size"]))),
            )
            for r in rows
        ],
        right=(2, 3),
    )  # fmt: skip
    out("nothing was stored: this was a dry run")


def _lines(path: str) -> list[str]:
    from lumina_vault.errors import UsageError

    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [line.rstrip("\n") for line in file]
    except OSError as error:
        raise UsageError(f"--exclude-file {path}: {error.strerror}") from None
