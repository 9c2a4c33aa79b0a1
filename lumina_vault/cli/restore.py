"""`vault restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lumina_vault.cli import options
from lumina_vault.cli.render import Progress, emit, out, size, table, warn

if TYPE_CHECKING:
    from lumina_vault.ops.restore import Outcome, RestorePlan


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vault restore latest --to /tmp/back --component dir:data --include 'conf/*'")(restore)


def restore(
    snapshot: Annotated[str, typer.Argument(metavar="ID", help="A snapshot's id, the beginning of one, or latest.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR", help="Restore below DIR, as DIR/<kind>/<name>/...")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Restore to the paths that were saved.")] = False,
    component: Annotated[
        list[str], typer.Option("--component", metavar="KIND[:NAME]", help="Only this component; repeatable.")
    ] = [],  # noqa: B006
    include: Annotated[
        list[str], typer.Option("--include", metavar="PATTERN", help="Only matching paths; repeatable.")
    ] = [],  # noqa: B006
    replace: Annotated[
        bool, typer.Option("--replace", help="Rewrite what differs in a target that is not empty.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="With --replace: remove what the snapshot does not hold.")
    ] = False,
    no_safety: Annotated[
        bool, typer.Option("--no-safety-snapshot", help="With --replace: don't save what is there first.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")] = False,
    vault: options.Vault = None,
    key_file: options.KeyFile = None,
    as_json: options.Json = False,
) -> None:
    """Bring a snapshot back, or a part of it. Never touches a target that is not empty unless told to."""
    from lumina_vault.ops import vaults

    settings = options.settings(vault, key_file)
    writes = replace and not no_safety and not dry_run
    with vaults.open_vault(settings, write=writes, warn=warn, ask=options.ask_passphrase) as repository:
        from lumina_vault.ops.restore import Events, plan_restore

        plan = plan_restore(
            repository.find(snapshot), to=to, in_place=in_place, components=component, include=include, replace=replace,
            delete=delete, safety=not no_safety, level=settings.level,
        )  # fmt: skip
        for note in plan.notes:
            warn(note)
        if dry_run:
            _show(plan, as_json)
            raise typer.Exit(1 if plan.refused else 0)
        progress = Progress()
        events = Events(
            begin=lambda item: progress.begin(item.component.id, item.component.size),
            progress=progress.add,
            end=lambda _outcome: progress.end(),
            safety=lambda saved: (
                None if as_json else out(f"saved what is there as snapshot {saved.short} (tag safety)")
            ),
        )
        outcomes = plan.execute(repository, events)
    missed = sum(outcome.report.left_out for outcome in outcomes)
    if as_json:
        emit(
            {
                "snapshot": plan.snapshot.id.hex(),
                "components": [_outcome_json(o) for o in outcomes],
                "left_out": missed,
            }
        )
    else:
        for outcome in outcomes:
            _tell(outcome)
    for item in plan.items:
        if item.action == "skip":
            warn(f"{item.component.id}: skipped: {item.reason}")
    if missed:
        warn(f"{missed} things were not restored as they were saved")
        raise typer.Exit(13 if any(outcome.report.damaged for outcome in outcomes) else 3)
    if any(item.action == "skip" for item in plan.items):
        raise typer.Exit(3)


def _show(plan: RestorePlan, as_json: bool) -> None:
    if as_json:
        emit({
            "snapshot": plan.snapshot.id.hex(),
            "plan": [
                {
                    "component": i.component.id,
                    "target": i.target,
                    "action": i.action,
                    "reason": i.reason,
                    "size": i.component.size,
                }
                for i in plan.items
            ],
        })  # fmt: skip
        return
    table(
        ("component", "action", "size", "target"),
        [
            (
                i.component.id,
                i.action,
                size(i.component.size),
                i.target + (f"  ({i.reason})" if i.reason else ""),
            )
            for i in plan.items
        ],
        right=(2,),
    )
    out("nothing was changed: this was a dry run")


def _tell(outcome: Outcome) -> None:
    report = outcome.report
    kept = f", {report.kept:,} were right already" if report.kept else ""
    out(
        f"{outcome.item.component.id}  {report.files:,} files, {report.dirs:,} directories, "
        f"{size(report.size)}{kept} -> {outcome.item.target}"
    )
    for note in report.notes:
        warn(f"{outcome.item.component.id}: {note}")


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    report = outcome.report
    return {
        "component": outcome.item.component.id, "target": outcome.item.target, "action": outcome.item.action,
        "files": report.files, "dirs": report.dirs, "size": report.size, "kept": report.kept,
        "left_out": report.left_out, "notes": report.notes,
    }  # fmt: skip
