"""One job as a process runs it: options, screens, signals, engine, verdict.

Owns the order of these. Imported when a backup is really made, because it pulls in the engine
and the adapters. Source: host behaviour, sections 1.1 to 1.3 and 1.13.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TextIO

import click

from vzdump_qemu import events
from vzdump_qemu.api import fit_options, join_ports, open_node, open_socket_vm, prepare_node
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
from vzdump_qemu.cli.keeping import make_hook_options, make_keep_options, read_pool
from vzdump_qemu.cli.log_line import LineRenderer
from vzdump_qemu.cli.render_2020 import LogRenderer2020
from vzdump_qemu.cli.render_vzdump import LogRenderer
from vzdump_qemu.cli.request import Request
from vzdump_qemu.cli.run_log import RunLog
from vzdump_qemu.cli.server_target import ServerWords, make_server_target
from vzdump_qemu.cli.signals import cancelled_by_signals
from vzdump_qemu.cli.vzdump_arguments import CONTAINER_NAMES
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError, ConfigError
from vzdump_qemu.formats.vzdump_conf import CONF_PATH
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.socket_node import SocketNode
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions
from vzdump_qemu.ports import Node
from vzdump_qemu.stores.system import SystemClock, cpu_count

_NO_FILE = FileOptions(values={}, warnings=())


async def run_job(request: Request) -> bool:
    """Run one job; return whether every VM was backed up. What happened was told."""
    with cancelled_by_signals() as interruption:
        clock = SystemClock()
        # The node's own file says nothing about a VM that is none of the node's.
        of_file = _read_conf(request.root) if request.sockets is None else _NO_FILE
        merged = merge_options(request.given, of_file.values)
        to_stdout = bool(merged.get("stdout"))
        stdout_fd = _set_stdout_aside() if to_stdout else 1
        style = LogRenderer2020 if merged.get("log-style") == "2020" else LogRenderer
        renderer: LineRenderer = style(clock.local_time)
        console = Console(
            renderer=renderer,
            screens=_choose_screens(merged, clock),
            run_log=RunLog(clock.local_time),
            wall_s=clock.wall_s,
            on_broken_output=interruption.request,
        )
        outcome: bool | None = False
        failure = "internal error"
        try:
            for text in of_file.warnings:
                console.emit(events.Warned(text=text))
            outcome = await _run(request, merged, console, stdout_fd)
            ok, failure = outcome is not False, ""
        except asyncio.CancelledError:
            # All was undone by now, and nobody above waits for this task to be cancelled.
            ok, failure = False, INTERRUPTED_TEXT
        finally:
            if outcome is not None:
                console.close(otherwise=failure)
            _show_hints(console, merged)
        return ok


async def _run(
    request: Request, merged: dict[str, Any], console: Console, stdout_fd: int
) -> bool | None:
    """Whether all went well; None if there was nothing to do on this node."""
    try:
        async with _open(request) as node:
            if request.given.get("node") not in (None, "", node.name):
                return None
            vmids = await _select_vmids(node, request)
            if not (vmids or request.all_vms):
                return None
            layout = node.layout if isinstance(node, LocalNode) else None
            options = fit_options(node, _make_options(request, merged, vmids))
            settings = make_keep_options(merged, request.given, options, layout)
            options = replace(options, hook=make_hook_options(merged), keep=settings.keep)
            for name in CONTAINER_NAMES:
                if name in request.given:
                    console.emit(events.OptionIgnored(name=name))
            for text in settings.warnings:
                console.emit(events.Warned(text=text))
            ports = join_ports(node, emit=console.emit, stdout_fd=stdout_fd)
            await prepare_node(node, ports)
            result = await back_up_all(ports, options, vmids)
    except BackupError as error:
        # Before the first VM: what the engine raises later is in its result.
        console.emit(events.JobEnded(failed_vmids=(), error=str(error)))
        console.add_hint(error.hint)
        return False
    if result.error is not None:
        console.add_hint(result.error.hint)
    return result.ok


def _open(request: Request) -> AbstractAsyncContextManager[LocalNode | SocketNode]:
    return open_node(request.root) if request.sockets is None else open_socket_vm(request.sockets)


def _make_options(
    request: Request, merged: dict[str, Any], vmids: tuple[int, ...]
) -> BackupOptions:
    if merged.get("stdout") and len(vmids) != 1:
        raise ConfigError("you can only backup a single VM with option --stdout")
    options = make_backup_options(
        merged,
        server=_find_server(request, merged),
        root=request.root,
        command_line=rebuild_command_line(
            () if request.all_vms or request.pool else vmids, request.given
        ),
        cpu_count=cpu_count(),
    )
    temp_directory = options.target.temp_directory
    if temp_directory and not os.path.isdir(temp_directory):
        raise ConfigError(f"tmpdir '{temp_directory}' does not exist")
    return options


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


async def _select_vmids(node: Node, request: Request) -> tuple[int, ...]:
    if request.pool:
        assert isinstance(node, LocalNode)
        members = read_pool(node.layout, request.pool)
        here = await node.list_vmids()
        return tuple(vmid for vmid in here if vmid in members - set(request.excluded_vmids))
    if not (request.all_vms or request.sockets):
        return request.named_vmids
    return tuple(vmid for vmid in await node.list_vmids() if vmid not in request.excluded_vmids)


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
        case "auto" if log.isatty():
            from vzdump_qemu.cli.render_live import LiveScreen

            return (LiveScreen(log),)
    return (LineScreen(log),)


def _show_hints(console: Console, merged: dict[str, Any]) -> None:
    # For a person only: in a log the verdict is the last line.
    if merged.get("quiet") or not sys.stderr.isatty():
        return
    for hint in console.hints:
        click.echo(f"hint: {hint}", err=True)
