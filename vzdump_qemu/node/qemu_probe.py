"""Asking a QEMU program what it can do, without a VM: started for a moment, without a machine.

Owns that process from its start to its last file. Source: architecture, section 4.
"""

from __future__ import annotations

import os
import signal
import tempfile
from contextlib import suppress

from vzdump_qemu.errors import QmpClosed, QmpError
from vzdump_qemu.node.processes import ProcessHandle, ProcessTable
from vzdump_qemu.ports import CommandRunner
from vzdump_qemu.qemu.qmp_connection import connect_qmp
from vzdump_qemu.qemu.request_ids import RequestIds

BACKUP_COMMAND = "backup"
_TIMEOUT_S = 10.0


async def has_backup_command(
    binary: str, *, commands: CommandRunner, request_ids: RequestIds
) -> bool | None:
    """Whether that program knows Proxmox's `backup` command; None if it could not be asked."""
    with tempfile.TemporaryDirectory(prefix="vzq-") as directory:
        socket_path, pid_path = f"{directory}/q", f"{directory}/p"
        argv = [binary, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-S", "-chardev", f"socket,id=qmp,path={socket_path},server=on,wait=off"]
        argv += ["-mon", "chardev=qmp,mode=control", "-pidfile", pid_path, "-daemonize"]
        try:
            status, _ = await commands.run(argv)
            return None if status != 0 else await _ask(socket_path, request_ids)
        finally:
            await _end(pid_path)


async def _ask(socket_path: str, request_ids: RequestIds) -> bool | None:
    try:
        async with connect_qmp(
            socket_path, vmid=0, timeout_s=_TIMEOUT_S, request_ids=request_ids
        ) as qmp:
            known = await qmp.execute("query-commands", timeout_s=_TIMEOUT_S)
            with suppress(QmpClosed):
                await qmp.execute("quit", timeout_s=_TIMEOUT_S)
    except QmpError:
        return None
    return any(command.get("name") == BACKUP_COMMAND for command in known)


async def _end(pid_path: str) -> None:
    if not os.path.exists(pid_path):
        return
    handle = ProcessHandle.open(ProcessTable(any_program=True), pid_path)
    if handle is None:
        return
    try:
        if not await handle.wait(_TIMEOUT_S):
            handle.send_signal(signal.SIGKILL)
            await handle.wait(_TIMEOUT_S)
    finally:
        handle.close()
