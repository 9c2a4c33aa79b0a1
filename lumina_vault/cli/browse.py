"""`vault snapshots`, `show`, `ls`, `diff`, `find`, `cat`, `stats`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from lumina_vault.cli import options
from lumina_vault.cli.render import (
    component_json,
    emit,
    entry_json,
    local_time,
    out,
    size,
    snapshot_json,
    table,
    warn,
)  # fmt: skip

Id = Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, the beginning of one, or latest.")]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vault snapshots --json | jq '.[-1].id'")(snapshots)
    app.command(epilog="Example: vault show latest")(show)
    app.command(epilog="Example: vault ls latest:dir:data/conf")(ls)
    app.command(epilog="Example: vault diff 3f2a latest")(diff)
    app.command(epilog="Example: vault find '*.conf'")(find)
    app.command(epilog="Example: vault cat latest:dir:data/conf/app.toml > app.toml")(cat)
    app.command(epilog="Example: vault stats")(stats)


def snapshots(vault: options.Vault = None, key_file: options.KeyFile = None, as_json: options.Json = False) -> None:
    """List snapshots, oldest first."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        found = list(repository.snapshots())
    if as_json:
        emit([snapshot_json(s) for s in found])
        return
    if not found:
        out("no snapshots yet; take one with: vault snapshot --path DIR")
        return
    table(
        ("id", "time", "host", "components", "size", "stored", "tags"),
        [
            (
                s.short, local_time(s.record.time), s.record.host, ", ".join(c.id for c in s.record.components),
                size(sum(c.size for c in s.record.components)), size(sum(c.stored_bytes for c in s.record.components)),
                ", ".join([*s.record.tags, *([] if s.record.complete else ["(incomplete)"])]),
            )
            for s in found
        ],
        right=(4, 5),
    )  # fmt: skip


def show(
    snapshot: Id, vault: options.Vault = None, key_file: options.KeyFile = None, as_json: options.Json = False
) -> None:
    """Everything that one snapshot's record says."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        found = repository.find(snapshot)
    if as_json:
        emit(snapshot_json(found))
        return
    record = found.record
    out(f"snapshot  {found.id.hex()}")
    out(f"time      {local_time(record.time)} ({(record.end - record.time) / 1e9:.1f} s)")
    out(f"host      {record.host}, user {record.user}, {record.program}")
    out(f"parent    {record.parent.hex()[:12] or 'none'}")
    out(f"tags      {', '.join(record.tags) or 'none'}")
    out(f"complete  {'yes' if record.complete else 'no'}")
    for component in record.components:
        values = component_json(component)
        out(f"\n{component.id}  {component.status}{': ' + component.reason if component.reason else ''}")
        out(f"  from   {values['source']} ({component.consistency})")
        out(f"  holds  {component.files:,} files, {component.dirs:,} directories, {size(component.size)}")
        out(f"  new    {size(component.new_bytes)}, stored as {size(component.stored_bytes)}")
        for note in component.notes:
            out(f"  note   {note}")
        if component.left_out > len(component.notes):
            out(f"  note   {component.left_out} things were left out in all")


def ls(
    place: Annotated[str, typer.Argument(metavar="ID[:COMPONENT[/PATH]]", help="What to list.")],
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """List the components of a snapshot, or what lies in one of them."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.ops import browse

        found = browse.resolve(repository, place)
        component = found.component
        if component is None or component.tree is None:
            shown = found.snapshot.record.components if component is None else [component]
            if as_json:
                emit([component_json(c) for c in shown])
            else:
                table(
                    ("component", "files", "size"),
                    [(c.id, f"{c.files:,}", size(c.size)) for c in shown],
                    right=(1, 2),
                )
            return
        with repository.reading(found.snapshot.id):
            if as_json:
                _stream_json(entry_json(component.id, entry) for entry in browse.listing(repository, found))
                return
            from lumina_vault.components.directory import shown as printable
            from lumina_vault.model import LINKED

            for entry in browse.listing(repository, found):
                arrow = f" {'link to' if entry.flags & LINKED else '->'} {printable(entry.link)}" if entry.link else ""
                out(
                    f"{stat.filemode(entry.mode)} {entry.uid:>5} {entry.gid:>5} {entry.size:>12,} "
                    f"{local_time(entry.mtime)} {printable(entry.path)}{arrow}"
                )


def _stream_json(values: Iterable[object]) -> bool:
    """An array, written element by element: a tree is never held whole. True if there was any."""
    import json

    first = True
    sys.stdout.write("[")
    for value in values:
        sys.stdout.write(("\n  " if first else ",\n  ") + json.dumps(value))
        first = False
    sys.stdout.write("]\n" if first else "\n]\n")
    return not first


def diff(
    before: Annotated[str, typer.Argument(metavar="A")],
    after: Annotated[str, typer.Argument(metavar="B")],
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """What changed from snapshot A to B: + added, - removed, M contents, m metadata, T type."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.components.directory import shown
        from lumina_vault.ops import browse

        a, b = repository.find(before), repository.find(after)
        with repository.reading(a.id, b.id):
            changes = browse.diff(repository, a, b)
            if as_json:
                _stream_json(
                    {
                        "change": c.sign, "component": c.component, "path": os.fsdecode(c.path),
                        "size_before": c.before.size if c.before else None,
                        "size_after": c.after.size if c.after else None,
                    }
                    for c in changes
                )  # fmt: skip
                return
            count: dict[str, int] = {}
            for change in changes:
                count[change.sign] = count.get(change.sign, 0) + 1
                out(f"{change.sign} {change.component}{'/' + shown(change.path) if change.path else ''}")
        names = {
            "+": "added",
            "-": "removed",
            "M": "changed",
            "m": "with other metadata",
            "T": "of another type",
        }
        out(", ".join(f"{count[sign]:,} {name}" for sign, name in names.items() if sign in count) or "no differences")


def find(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="A shell pattern for a name or a path.")],
    snapshot: Annotated[
        list[str], typer.Option("--snapshot", metavar="ID", help="Only in this snapshot; repeatable.")
    ] = [],  # noqa: B006
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Find files by name in all snapshots, newest first. Exit status 1 if there are none."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    nothing = True
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.components.directory import shown
        from lumina_vault.ops import browse

        among = [repository.find(s) for s in snapshot] or list(repository.snapshots())[::-1]
        with repository.reading(*(s.id for s in among)):
            found = browse.find(repository, pattern, among)
            if as_json:
                nothing = not _stream_json(
                    {"snapshot": f.snapshot.id.hex(), **entry_json(f.component.id, f.entry)} for f in found
                )
            for match in found:
                nothing = False
                entry, at = match.entry, f"{match.snapshot.short}:{match.component.id}"
                out(f"{at}/{shown(entry.path)}  {size(entry.size)}  {local_time(entry.mtime)}")
    if nothing:
        warn(f"nothing matches {pattern}")
        raise typer.Exit(1)


def cat(
    place: Annotated[str, typer.Argument(metavar="ID:COMPONENT[/PATH]", help="A file, or a stream.")],
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
) -> None:
    """Write one file or stream to stdout, every chunk checked before it is written."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.ops import browse
        from lumina_vault.store.fetch import Fetcher

        found = browse.resolve(repository, place)
        with Fetcher(repository.reader) as fetcher, repository.reading(found.snapshot.id):
            for block in browse.contents(repository, fetcher, found):
                view = memoryview(block)
                while len(view):
                    view = view[os.write(1, view) :]


def stats(
    snapshot: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this snapshot.")] = None,
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Sizes by component: logical, distinct after deduplication, and stored."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    with vaults.open_vault(settings, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.ops.stats import component_sizes

        among = [repository.find(snapshot)] if snapshot else list(repository.snapshots())
        with repository.reading(*(s.id for s in among)):
            rows = component_sizes(repository, among)
        totals = repository.index.totals()
    if as_json:
        emit({
            "components": [
                {
                    "component": r.name,
                    "snapshots": r.snapshots,
                    "logical": r.logical,
                    "distinct": r.distinct,
                    "stored": r.stored,
                }
                for r in rows
            ],
            "snapshots": len(among),
            "vault": totals,
        })  # fmt: skip
        return
    table(
        ("component", "snapshots", "logical", "distinct", "stored"),
        [(r.name, str(r.snapshots), size(r.logical), size(r.distinct), size(r.stored)) for r in rows],
        right=(1, 2, 3, 4),
    )
    out(
        f"\nvault: {totals['packs']:,} packs of {size(totals['pack_bytes'])}, "
        f"{totals['chunks']:,} chunks of {size(totals['plain_bytes'])}"
    )
