"""The verb ``prune``: which archives a rule keeps, as a calendar, and the removal of the rest.

Owns arguments and what is printed; the work is `prune_places`'. Source: host behaviour,
sections 2.6 to 2.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vzdump_qemu.cli.named_backups import key_option, server_options
from vzdump_qemu.cli.reporting import json_option, print_json
from vzdump_qemu.cli.server_target import ServerWords
from vzdump_qemu.cli.signals import interrupted_by_signals
from vzdump_qemu.cli.vzdump_arguments import parse_vmids

if TYPE_CHECKING:
    # The help is instant: nothing of a node is loaded for it.
    from vzdump_qemu.cli.pruning import PrunePlace, PrunePlan

_DEFAULT_STORAGE = "local"


@click.command("prune")
@click.argument("vmids", nargs=-1, metavar="[VMID]...")
@click.option("--storage", metavar="ID", help="a storage of the node.  [default: local]")
@click.option("--dumpdir", metavar="DIR", help="a directory instead of a storage.")
@click.option(
    "--root",
    default="/",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="the node: / for this host, or the folder of a lab.  [default: /]",
)
@click.option(
    "--prune-backups",
    metavar="RULE",
    help="keep-last=N,keep-hourly=N,keep-daily=N,keep-weekly=N,keep-monthly=N,keep-yearly=N or "
    "keep-all=1.  [default: the storage's own]",
)
@click.option("--dry-run", is_flag=True, help="remove nothing, show what stays and why.")
@click.option(
    "--verify",
    is_flag=True,
    help="read backups to their end before they count as whole (else the beginning, end and log "
    "of archives, and the word of a server).",
)
@key_option
@server_options
@json_option
def prune_command(
    vmids: tuple[str, ...],
    storage: str | None,
    dumpdir: str | None,
    root: str,
    prune_backups: str | None,
    *,
    words: ServerWords,
    dry_run: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Remove the backups of VMs that no keep option covers.

    Protected and renamed ones stay, and so does the last whole backup of a VM. Without VMIDs the
    rule is applied to every VM that has backups there, each by itself. A storage may be a backup
    server; another server is named by --repository.
    """
    _check_places(storage=storage, dumpdir=dumpdir, words=words, prune_backups=prune_backups)
    wanted = parse_vmids(vmids)
    if vmids and not wanted:
        # A variable of a script that was empty must not mean every VM.
        raise click.UsageError(f"strange VM ID '{vmids[0]}'")
    from vzdump_qemu.cli import prune_places

    with interrupted_by_signals():
        place: PrunePlace
        if dumpdir is not None:
            place = prune_places.find_directory(dumpdir, prune_backups or "")
        elif words.repository:
            place = prune_places.find_server(words, prune_backups or "")
        else:
            place = prune_places.find_storage(
                root, storage or _DEFAULT_STORAGE, prune_backups, words
            )
        for warning in place.found.warnings:
            _complain(f"WARN: {warning}")
        plan = place.plan(frozenset(wanted), verify=verify)
        for vmid in plan.vmids_without_archives:
            _complain(f"WARN: VM {vmid} has no backups in '{place.label}'")
        if as_json:
            print_json(
                [
                    {"name": decision.name, "keep": decision.keep, "reason": decision.reason}
                    for decision in plan.decisions
                ]
            )
        if dry_run:
            if not as_json:
                _show(place, plan)
            return
        _remove(place, plan, quiet=as_json)


def _check_places(
    *, storage: str | None, dumpdir: str | None, words: ServerWords, prune_backups: str | None
) -> None:
    """Raise UsageError unless one place is named, with a rule where it has none itself."""
    named = [
        name
        for name, value in (
            ("storage", storage),
            ("dumpdir", dumpdir),
            ("repository", words.repository or None),
        )
        if value is not None
    ]
    if len(named) > 1:
        raise click.UsageError(f"cannot use options '{named[0]}' and '{named[1]}' at the same time")
    if named in (["dumpdir"], ["repository"]) and prune_backups is None:
        raise click.UsageError("prune-backups: property is missing")
    if dumpdir is not None and words != ServerWords():
        raise click.UsageError("options of a server do not go with option 'dumpdir'")


def _show(place: PrunePlace, plan: PrunePlan) -> None:
    from vzdump_qemu.plan.retention_calendar import render_calendar
    from vzdump_qemu.plan.retention_rule import render_rule
    from vzdump_qemu.units import render_bytes

    click.echo(f"retention of '{place.label}': {render_rule(place.found.rule)}\n")
    if not plan.decisions:
        click.echo("no backups of VMs")
        return
    click.echo(render_calendar(plan.decisions, local_time=place.local_time))
    for reason in dict.fromkeys(decision.reason for decision in plan.going):
        click.echo(f"would remove, {reason}:")
        for decision in reversed(plan.going):
            if decision.reason == reason:
                click.echo(f"  {decision.name}")
    click.echo(
        f"would remove {len(plan.going)} of {len(plan.decisions)} backup(s), "
        f"{render_bytes(plan.freed_bytes)}{place.size_note if plan.going else ''}"
    )


def _remove(place: PrunePlace, plan: PrunePlan, *, quiet: bool) -> None:
    from vzdump_qemu.plan.retention_rule import render_rule

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line)

    tell(f"prune older backups with retention: {render_rule(place.found.rule)}")
    removed_count = place.remove(plan, tell=tell, complain=_complain)
    policy = " not covered by keep-retention policy" if removed_count else ""
    tell(f"pruned {removed_count} backup(s){policy}")


def _complain(line: str) -> None:
    click.echo(line, err=True)
