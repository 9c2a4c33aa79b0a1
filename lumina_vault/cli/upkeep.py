"""`vault verify`, `vault index rebuild`, `vault doctor`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lumina_vault.cli import options
from lumina_vault.cli.render import Progress, emit, out, size, warn

index_app = typer.Typer(help="The index: a cache of packs and records.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vault verify --data 10%")(verify)
    app.command(epilog="Example: vault doctor --vault /srv/vault")(doctor)
    index_app.command("rebuild", epilog="Example: vault index rebuild --vault /srv/vault")(rebuild)
    app.add_typer(index_app, name="index")


@index_app.callback()
def _index() -> None:
    pass


def verify(
    snapshot: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only what this snapshot needs.")] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="none|all|N%|SIZE",
            help="How much data to read: nothing, all, a share or a size.",
        ),
    ] = "none",
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Prove that snapshots can be restored: structure always, data as asked. Exit status 13 if not."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.components.directory import shown
        from lumina_vault.ops.verify import verify as run

        progress = Progress()
        progress.begin("verify")
        result = run(repository, snapshot, data, progress.set)
        progress.end()
    if as_json:
        emit({
            "snapshots": result.snapshots, "packs": result.packs, "packs_read": result.packs_read,
            "bytes_read": result.bytes_read, "chunks_read": result.chunks_read, "clean": result.clean,
            "problems": result.problems, "notes": result.notes,
            "affected": [
                {"snapshot": a.snapshot, "component": a.component, "path": os.fsdecode(a.path), "reason": a.reason}
                for a in result.affected
            ],
        })  # fmt: skip
    else:
        read = (
            f"read {size(result.bytes_read)} of data in {result.packs_read:,} packs"
            if result.packs_read
            else "no data read"
        )
        out(f"checked {result.snapshots:,} snapshots and {result.packs:,} packs; {read}")
        for note in result.notes:
            out(f"note: {note}")
        for problem in result.problems:
            out(f"damage: {problem}")
        for a in result.affected:
            out(f"affected: {a.snapshot}:{a.component}{'/' + shown(a.path) if a.path else ''}: {a.reason}")
        if result.clean:
            out("no damage found")
        elif result.affected:
            out("what is affected is mended by the next snapshot that reads the same bytes: vault snapshot --reread")
        else:
            out("no snapshot is affected: what is damaged is in good packs as well, or not needed")
    if not result.clean:
        raise typer.Exit(13)


def rebuild(vault: options.Vault = None, key_file: options.KeyFile = None, as_json: options.Json = False) -> None:
    """Make the index anew from packs, snapshot records and annotations."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    result = vaults.rebuild_index(settings, lambda _what, _count: None, options.ask_passphrase)
    if as_json:
        emit({
            "packs": result.packs, "chunks": result.chunks, "snapshots": result.snapshots,
            "annotations": result.annotations, "problems": result.problems,
        })  # fmt: skip
    else:
        out(f"indexed {result.packs:,} packs with {result.chunks:,} chunks and {result.snapshots:,} snapshots")
        for problem in result.problems:
            out(f"damage: {problem}")
    if result.problems:
        raise typer.Exit(13)


def doctor(vault: options.Vault = None, key_file: options.KeyFile = None, as_json: options.Json = False) -> None:
    """Check environment, vault, permissions and versions: what works, what does not, how to mend it."""
    from lumina_vault.ops.doctor import examine

    findings = examine(options.settings(vault, key_file), options.ask_passphrase)
    if as_json:
        emit([{"check": f.check, "ok": f.ok, "found": f.found, "mend": f.mend} for f in findings])
    else:
        for finding in findings:
            out(f"{'ok     ' if finding.ok else 'problem'}  {finding.check}: {finding.found}")
            if finding.mend:
                out(f"         {finding.mend}")
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
