"""One job as a process runs it: options, screens, signals, engine, verdict.

Owns the order of these. Imported when a backup is really made, because it pulls in the engine
and the adapters. Source: host behaviour, sections 1.1 to 1.3 and 1.13.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, TextIO

import click

from vzdump_qemu import events
from vzdump_qemu.api import fit_options, join_ports, open_node, open_socket_vm, prepare_node
from vzdump_qemu.cli.batch_arguments import read_batch_options
from vzdump_qemu.cli.console import Console, JsonScreen, LineScreen, Screen
from vzdump_qemu.cli.effective import (
    SERVER_NAMES,
    FileOptions,
    make_backup_options,
    merge_options,
    read_file_options,
    rebuild_command_line,
    refuse_beside_server,
)
from vzdump_qemu.cli.keeping import make_hook_options, make_keep_options
from vzdump_qemu.cli.log_line import LineRenderer
from vzdump_qemu.cli.render_2020 import LogRenderer2020
from vzdump_qemu.cli.render_vzdump import LogRenderer
from vzdump_qemu.cli.request import Request
from vzdump_qemu.cli.result_file import check_result_path, write_results
from vzdump_qemu.cli.run_log import RunLog
from vzdump_qemu.cli.server_target import ServerWords, make_server_target
from vzdump_qemu.cli.signals import cancelled_by_signals
from vzdump_qemu.cli.task_log import TaskLog
from vzdump_qemu.cli.tell_options import TellOptions, read_tell_options
from vzdump_qemu.cli.telling import JobTeller, TellPlan, find_place, open_teller
from vzdump_qemu.cli.terminal import can_draw
from vzdump_qemu.cli.vm_selection import VmSelection, find_refusals, select_vms
from vzdump_qemu.cli.vzdump_arguments import CONTAINER_NAMES
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import BatchResult
from vzdump_qemu.engine.job_target import DEFAULT_STORAGE_ID
from vzdump_qemu.engine.undo import run_shielded
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError, ConfigError
from vzdump_qemu.events import BackupMode
from vzdump_qemu.formats.vzdump_conf import CONF_PATH
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.local_node import LocalNode, name_nearest
from vzdump_qemu.node.running_job import stop_running_job
from vzdump_qemu.node.socket_node import SocketNode
from vzdump_qemu.outlets.report_file import check_report_path
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.stores.system import SystemClock, cpu_count

_NO_FILE = FileOptions(values={}, warnings=())


async def run_job(request: Request) -> bool:
    """Run one job; return whether every VM was backed up. What happened was told."""
    with cancelled_by_signals() as interruption:
        clock = SystemClock()
        # The node's own file says nothing about a VM that is none of the node's.
        of_file = _read_conf(request.root) if request.sockets is None else _NO_FILE
        merged = merge_options(request.given, of_file.values)
        stdout_fd = _set_stdout_aside() if merged.get("stdout") else 1
        style = LogRenderer2020 if merged.get("log-style") == "2020" else LogRenderer
        renderer: LineRenderer = style(clock.local_time)
        screens = _choose_screens(merged, clock)
        teller = open_teller(request.root, wall_s=clock.wall_s, shows_lines=bool(screens))
        task_log = TaskLog(names_vms=_names_vms(merged))
        console = Console(
            renderer=renderer,
            screens=(*screens, teller, task_log),
            make_run_log=lambda: RunLog(clock.local_time),
            wall_s=clock.wall_s,
            on_broken_output=interruption.request,
        )
        job = _Job(
            request=request,
            merged=merged,
            console=console,
            teller=teller,
            task_log=task_log,
            stdout_fd=stdout_fd,
            warnings=(*request.warnings, *of_file.warnings),
        )
        outcome: bool | None = False
        failure = "internal error"
        try:
            outcome = await _run(job)
            ok, failure = outcome is not False, ""
        except asyncio.CancelledError:
            # All was undone by now, and nobody above waits for this task to be cancelled.
            interruption.close()
            ok, failure = False, INTERRUPTED_TEXT
            await _tell_early_end(console, teller, failure)
        finally:
            interruption.close()
            await _write_results(job)
            if outcome is not None:
                await _write_report(job)
                console.close(otherwise=failure)
            _show_hints(console, merged)
        return ok


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What one job is, and who hears of it.

    Attributes:
        warnings: of what was read so far; told only where there is something to do.
    """

    request: Request
    merged: dict[str, Any]
    console: Console
    teller: JobTeller
    task_log: TaskLog
    stdout_fd: int
    warnings: tuple[str, ...]


async def _run(job: _Job) -> bool | None:
    """Whether all went well; None if there was nothing to do on this node."""
    request, console = job.request, job.console
    try:
        tell_options = read_tell_options(job.merged)
        if job.merged.get("report"):
            check_report_path(job.merged["report"])
        if job.merged.get("results"):
            check_result_path(job.merged["results"])
        async with _open(request) as node:
            if request.given.get("node") not in (None, "", node.name):
                return None
            selection = await select_vms(node, request)
            for vmid in selection.unknown_vmids:
                job.console.add_hint(f"VM {vmid}: {name_nearest(vmid, await node.list_vmids())}")
            if request.given.get("stop") and isinstance(node, LocalNode):
                await stop_running_job(node.layout.global_pid_file)
            if not (selection.vmids or request.all_vms):
                return None
            for text in job.warnings:
                console.emit(events.Warned(text=text))
            result = await _back_up(job, node, selection, tell_options)
            if result.ok and isinstance(node, LocalNode):
                await node.forget_job()
    except BackupError as error:
        # Before the first VM: what the engine raises later is in its result.
        await _tell_early_end(console, job.teller, str(error))
        console.add_hint(error.hint)
        job.teller.add_hint(error.hint)
        return False
    if result.error is not None:
        console.add_hint(result.error.hint)
        job.teller.add_hint(result.error.hint)
    return result.ok


async def _back_up(
    job: _Job,
    node: LocalNode | SocketNode,
    selection: VmSelection,
    tell_options: TellOptions,
) -> BatchResult:
    """The job on a node that has something to do; whatever its end, it is told of."""
    try:
        return await _begin_and_back_up(job, node, selection, tell_options)
    except BackupError as error:
        # Here, because telling may need the node, which is closed further up.
        await _tell_early_end(job.console, job.teller, str(error))
        raise
    except asyncio.CancelledError:
        await run_shielded(lambda: _tell_early_end(job.console, job.teller, INTERRUPTED_TEXT))
        raise


async def _begin_and_back_up(
    job: _Job,
    node: LocalNode | SocketNode,
    selection: VmSelection,
    tell_options: TellOptions,
) -> BatchResult:
    """As the engine does; raises what is wrong before it is reached."""
    request, merged, console, vmids = job.request, job.merged, job.console, selection.vmids
    layout = None
    if isinstance(node, LocalNode):
        layout = node.layout
        upid = node.announce_job(task_id=str(vmids[0]) if len(vmids) == 1 else "")
        job.task_log.begin(layout, upid)
    options = fit_options(node, _make_options(request, merged, selection, layout))
    job.teller.begin(
        TellPlan(
            options=tell_options,
            place=find_place(node),
            command_line=options.command_line,
            emit=console.emit,
        ),
        vmids,
    )
    _check_directories(options)
    settings = make_keep_options(merged, request.given, options, layout)
    options = replace(options, hook=make_hook_options(merged), keep=settings.keep)
    for name in CONTAINER_NAMES:
        if name in request.given:
            console.emit(events.OptionIgnored(name=name))
    for text in settings.warnings:
        console.emit(events.Warned(text=text))
    ports = join_ports(
        node,
        emit=console.emit,
        emit_of_run=console.emit_of_run,
        stdout_fd=job.stdout_fd,
        read_log=console.read_log,
        notifier=job.teller,
    )
    await prepare_node(node, ports)
    return await back_up_all(ports, options, vmids)


async def _write_report(job: _Job) -> None:
    """Write the page that was asked for; what goes wrong with it is a warning of the job."""
    request, merged = job.request, job.merged
    if not merged.get("report"):
        return
    # Loaded late, as what it asks for: most jobs have none.
    from vzdump_qemu.cli.report_writing import write_report

    problem = await write_report(
        merged["report"],
        job.teller.record,
        find_directories=lambda: _find_directories(request, merged),
        find_server=lambda: _find_report_server(request, merged),
    )
    if problem:
        job.console.emit(events.Warned(text=problem))


def _find_directories(request: Request, merged: dict[str, Any]) -> tuple[str, ...]:
    """Where archives of this job were to go, as far as the options tell. Raises BackupError."""
    if merged.get("dumpdir"):
        return (merged["dumpdir"],)
    if request.sockets is not None or merged.get("stdout"):
        return ()
    from vzdump_qemu.cli.list_verb import dump_directories

    return dump_directories(request.root, merged.get("storage", DEFAULT_STORAGE_ID))


def _find_report_server(request: Request, merged: dict[str, Any]) -> PbsTarget:
    """The backup server of this job, which has one. Raises BackupError."""
    from vzdump_qemu.cli.named_backups import storage_target

    storage_id = merged.get("storage", DEFAULT_STORAGE_ID)
    named = _find_server(request, merged)
    return named or storage_target(request.root, storage_id, ServerWords())


async def _tell_early_end(console: Console, teller: JobTeller, error_text: str) -> None:
    """The engine was not reached: what it tells at a job's end is told here."""
    if not teller.has_told:
        console.emit(events.JobEnded(failed_vmids=(), error=error_text))
        await teller.job_ended()


def _open(request: Request) -> AbstractAsyncContextManager[LocalNode | SocketNode]:
    return open_node(request.root) if request.sockets is None else open_socket_vm(request.sockets)


async def _write_results(job: _Job) -> None:
    path = job.merged.get("results", "")
    problem = await write_results(path, job.teller.record) if path else ""
    if problem:
        job.console.emit(events.Warned(text=problem))


def _make_options(
    request: Request,
    merged: dict[str, Any],
    selection: VmSelection,
    layout: NodeLayout | None,
) -> BackupOptions:
    vmids = selection.vmids
    if merged.get("stdout") and len(vmids) != 1:
        raise ConfigError("you can only backup a single VM with option --stdout")
    clock = SystemClock()
    batch = replace(
        read_batch_options(merged, now=clock.local_time(clock.wall_s())),
        external_vmids=selection.external_vmids,
        refusals=find_refusals(selection, layout, BackupMode(merged.get("mode", "snapshot"))),
    )
    return make_backup_options(
        merged,
        batch=batch,
        server=_find_server(request, merged),
        root=request.root,
        command_line=rebuild_command_line(
            () if request.all_vms or request.pool else vmids, request.given
        ),
        cpu_count=cpu_count(),
    )


def _check_directories(options: BackupOptions) -> None:
    """What else is wrong with the target is found by the engine."""
    temp_directory = options.target.temp_directory
    if temp_directory and not os.path.isdir(temp_directory):
        raise ConfigError(
            f"tmpdir '{temp_directory}' does not exist", hint="create it, or leave --tmpdir out"
        )
    directory = options.target.dump_directory
    if directory and os.path.exists(directory) and not os.path.isdir(directory):
        raise ConfigError(
            f"dumpdir '{directory}' is not a directory", hint="name one, or use --storage ID"
        )


def _find_server(request: Request, merged: dict[str, Any]) -> PbsTarget | None:
    """The server that backups go to, if it is no storage.

    PBS_REPOSITORY alone counts only for a VM known by its sockets and without another target: a
    node has one by itself, which a variable left in a shell must not change.
    """
    words = ServerWords(
        repository=merged.get("repository", ""),
        namespace=merged.get("ns", ""),
        key_path=merged.get("keyfile", ""),
        master_key_path=merged.get("master-pubkey-file", ""),
        fingerprint=merged.get("fingerprint", ""),
    )
    has_other = any(merged.get(name) for name in ("storage", "dumpdir", "stdout"))
    if SERVER_NAMES.isdisjoint(request.given):
        by_environment = words.is_named(os.environ) and request.sockets is not None
        if has_other or not by_environment:
            return None
    elif has_other and not words.repository:
        [name, *_] = (name for name in request.given if name in SERVER_NAMES)
        raise ConfigError(
            f"option '{name}' needs option 'repository'",
            hint="a storage has its own, in storage.cfg and beside it",
        )
    refuse_beside_server(merged)
    return make_server_target(words, os.environ)


def _read_conf(root: str) -> FileOptions:
    path = f"{root.rstrip('/')}{CONF_PATH}"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return read_file_options(file.read())
    except FileNotFoundError:
        return _NO_FILE
    except OSError as error:
        text = f"unable to read '{path}' - {error.strerror or error}"
        return FileOptions(values={}, warnings=(text,))


def _set_stdout_aside() -> int:
    """Keep standard output for the archive alone; what else is printed goes to stderr."""
    if os.isatty(1):
        raise click.UsageError("refusing to write an archive to a terminal: redirect --stdout")
    kept_fd = os.dup(1)
    os.dup2(2, 1)
    return kept_fd


def _choose_screens(merged: dict[str, Any], clock: SystemClock) -> tuple[Screen, ...]:
    if merged.get("quiet"):
        return ()
    log: TextIO = sys.stderr
    match merged.get("output", "auto"):
        case "json":
            # With --stdout this is stderr: the descriptor was exchanged before.
            return (JsonScreen(sys.stdout, clock.wall_s),)
        case "auto" if can_draw(log, os.environ):
            from vzdump_qemu.cli.render_live import LiveScreen

            return (LiveScreen(log),)
    return (LineScreen(log, names_vms=_names_vms(merged)),)


def _names_vms(merged: dict[str, Any]) -> bool:
    """Lines of VMs that are backed up at the same time must be told apart."""
    return bool(merged.get("max-parallel", 1) > 1)


def _show_hints(console: Console, merged: dict[str, Any]) -> None:
    # For a person only: in a log the verdict is the last line.
    if merged.get("quiet") or not sys.stderr.isatty():
        return
    for hint in console.hints:
        click.echo(f"hint: {hint}", err=True)
