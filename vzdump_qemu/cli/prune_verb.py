"""The verb ``prune``: which archives a rule keeps, as a calendar, and the removal of the rest.

Owns arguments and what is printed; the work is `pruning`'s. Source: host behaviour, sections 2.6
to 2.8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vzdump_qemu.cli.reporting import json_option, print_json
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
    help="read archives to their end before they count as whole (else their beginning).",
)
@json_option
def prune_command(
    vmids: tuple[str, ...],
    storage: str | None,
    dumpdir: str | None,
    root: str,
    prune_backups: str | None,
    *,
    dry_run: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Remove the archives of VMs that no keep option covers.

    Protected and renamed archives stay, and so does the last whole archive of a VM. Without
    VMIDs the rule is applied to every VM that has archives there, each by itself.
    """
    if storage is not None and dumpdir is not None:
        raise click.UsageError("cannot use options 'storage' and 'dumpdir' at the same time")
    if dumpdir is not None and prune_backups is None:
        raise click.UsageError("prune-backups: property is missing")
    wanted = parse_vmids(vmids)
    if vmids and not wanted:
        # A variable of a script that was empty must not mean every VM.
        raise click.UsageError(f"strange VM ID '{vmids[0]}'")
    from vzdump_qemu.cli import pruning

    with interrupted_by_signals():
        if dumpdir is not None:
            place = pruning.find_directory(dumpdir, prune_backups or "")
        else:
            place = pruning.find_storage(root, storage or _DEFAULT_STORAGE, prune_backups)
        for warning in place.warnings:
            _complain(f"WARN: {warning}")
        plan = pruning.plan_pruning(place, frozenset(wanted), verify=verify)
        for vmid in plan.vmids_without_archives:
            _complain(f"WARN: VM {vmid} has no backups in '{place.directory}'")
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


def _show(place: PrunePlace, plan: PrunePlan) -> None:
    from vzdump_qemu.plan.retention import local_time_as_named
    from vzdump_qemu.plan.retention_calendar import render_calendar
    from vzdump_qemu.plan.retention_rule import render_rule
    from vzdump_qemu.units import render_bytes

    click.echo(f"retention of '{place.directory}': {render_rule(place.rule)}\n")
    if not plan.decisions:
        click.echo("no backups of VMs")
        return
    click.echo(render_calendar(plan.decisions, local_time=local_time_as_named))
    for reason in dict.fromkeys(decision.reason for decision in plan.going):
        click.echo(f"would remove, {reason}:")
        for decision in reversed(plan.going):
            if decision.reason == reason:
                click.echo(f"  {decision.name}")
    click.echo(
        f"would remove {len(plan.going)} of {len(plan.decisions)} backup(s), "
        f"{render_bytes(plan.freed_bytes)}"
    )


def _remove(place: PrunePlace, plan: PrunePlan, *, quiet: bool) -> None:
    from vzdump_qemu.cli.pruning import remove_archives
    from vzdump_qemu.plan.retention_rule import render_rule

    def tell(line: str) -> None:
        if not quiet:
            click.echo(line)

    tell(f"prune older backups with retention: {render_rule(place.rule)}")
    removed_count = remove_archives(place, plan, tell=tell, complain=_complain)
    policy = " not covered by keep-retention policy" if removed_count else ""
    tell(f"pruned {removed_count} backup(s){policy}")


def _complain(line: str) -> None:
    click.echo(line, err=True)
