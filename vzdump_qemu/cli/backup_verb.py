"""The verb ``backup``, the default one: vzdump's own command line, on any node.

Owns what the process does before and after a job: options, the choice of screens, signals, the
exit code. The job itself is the engine's. Source: host behaviour, sections 1.1, 1.2 and 1.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from vzdump_qemu.cli.request import Request
from vzdump_qemu.cli.usage_errors import WrongUse
from vzdump_qemu.cli.vzdump_arguments import OPTIONS, parse_vmids, rewrite_arguments

EXIT_OK = 0
EXIT_FAILED = 255
"""What vzdump ends with if anything failed; 0 covers warnings."""


# What belongs to a VM known by its sockets, and what to VMs of a node alone.
_SOCKET_NAMES = ("agent", "name", "vmid", "exclude-disk", "fleecing-dir", "state-dir")
_NODE_NAMES = ("root", "all", "exclude", "pool", "node", "storage", "fleecing", "stop")


class BackupCommand(click.Command):
    """Reads vzdump's way of writing options, and shows them under headings."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            words, order = rewrite_arguments(args)
        except click.UsageError as error:
            error.ctx = ctx
            raise
        ctx.meta["order"] = order
        return super().parse_args(ctx, words)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from vzdump_qemu.cli.main import write_option_sections

        write_option_sections(formatter)


def _make_command() -> BackupCommand:
    parameters: list[click.Parameter] = [click.Argument(["vmids"], nargs=-1, metavar="[VMID]...")]
    parameters += [
        click.Option(
            [f"--{spec.name}"],
            type=spec.type,
            metavar=spec.metavar,
            help=spec.help,
            multiple=spec.is_list,
        )
        for spec in OPTIONS
    ]
    return BackupCommand(
        "backup",
        params=parameters,
        callback=_back_up,
        help="Back up VMs. Options may be written -OPT or --OPT; a bare BOOL means 1.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _back_up(vmids: tuple[str, ...], **values: Any) -> int:
    order = click.get_current_context().meta["order"]
    given = {name: values[name.replace("-", "_")] for name in order}
    warnings: tuple[str, ...] = ()
    if "job" in given:
        from vzdump_qemu.cli.scheduled_job import find_job, join_job, refuse_disabled

        job = find_job(given.get("root") or "/", given["job"])
        if refuse_disabled(job, quiet=bool(given.get("quiet"))):
            return EXIT_OK
        words = join_job(job, vmids, given)
        vmids, given, warnings = words.vmids, words.given, words.warnings
    request = replace(_read_request(vmids, given), warnings=warnings)
    import asyncio

    from vzdump_qemu.cli.job import run_job

    return EXIT_OK if asyncio.run(run_job(request)) else EXIT_FAILED


def _read_request(vmids: tuple[str, ...], given: dict[str, Any]) -> Request:
    if "qmp" in given:
        return _read_socket_request(vmids, given)
    for name in _SOCKET_NAMES:
        if name in given:
            raise click.UsageError(f"{name}: needs option 'qmp'")
    _check_texts(given)
    excluded = parse_vmids(given.get("exclude", ()))
    if excluded:
        given["exclude"] = ",".join(str(vmid) for vmid in excluded)
    pool = given.get("pool", "")
    all_vms = not pool and (bool(given.get("all")) or bool(excluded))
    named = parse_vmids(vmids)
    if vmids:
        for name in ("all", "exclude", "pool"):
            if given.get(name):
                raise click.UsageError(f"{name}: option conflicts with option 'vmid'")
    if not (vmids or all_vms or pool or given.get("stop")):
        raise WrongUse(
            "vmid: property is missing", hint="name VMIDs, --all, --pool POOL, or --qmp SOCK"
        )
    if given.get("stdout") and vmids and len(named) != 1:
        raise click.UsageError("you can only backup a single VM with option --stdout")
    return Request(
        root=given.get("root") or "/",
        given=given,
        named_vmids=named,
        all_vms=all_vms,
        excluded_vmids=excluded,
        pool=pool,
    )


def _check_texts(given: Mapping[str, Any]) -> None:
    """Refuse what vzdump's schema does not allow, before anything is done."""
    from vzdump_qemu.cli.batch_arguments import check_batch_texts
    from vzdump_qemu.errors import ConfigError
    from vzdump_qemu.formats.vzdump_conf import check_option
    from vzdump_qemu.plan.notes import check_notes_template

    try:
        for name in ("prune-backups", "fleecing", "performance", "notes-template", "job-id"):
            if name in given:
                check_option(name, given[name])
        name = "notes-template"
        check_notes_template(given.get(name, ""))
    except ConfigError as error:
        raise WrongUse(f"{name}: {error}", hint=error.hint) from error
    try:
        check_batch_texts(given)
    except ConfigError as error:
        raise WrongUse(str(error), hint=error.hint) from error


def _read_socket_request(vmids: tuple[str, ...], given: dict[str, Any]) -> Request:
    from vzdump_qemu.node.socket_node import SocketVmOptions

    if vmids:
        raise click.UsageError("qmp: one VM, known by its socket; --vmid gives it a number")
    for name in _NODE_NAMES:
        if name in given:
            raise click.UsageError(f"{name}: option conflicts with option 'qmp'")
    _check_texts(given)
    excluded = (word for text in given.get("exclude-disk", ()) for word in text.split(","))
    return Request(
        root="/",
        given=given,
        named_vmids=(),
        all_vms=False,
        excluded_vmids=(),
        sockets=SocketVmOptions(
            qmp_socket=given["qmp"],
            agent_socket=given.get("agent", ""),
            name=given.get("name", ""),
            vmid=given.get("vmid", 0),
            fleecing_directory=given.get("fleecing-dir") or given.get("dumpdir", ""),
            excluded_disks=tuple(word for word in excluded if word),
            state_directory=given.get("state-dir", ""),
        ),
    )


backup_command = _make_command()
