"""Programs of the platform that make a backup by themselves, run in sight of the operator.

Owns what is told of them, and when they count as failed; their arguments are the callers'.
Source: host behaviour, section 1.10.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

from vzdump_qemu import events
from vzdump_qemu.engine.context import EnginePorts
from vzdump_qemu.errors import BackupError


async def run_told(
    ports: EnginePorts,
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    clean: Callable[[str], str] = str,
) -> BackupError | None:
    """Run a program to its end and tell its command line and lines; its failure, or None.

    Args:
        pass_fds: descriptors it keeps.
        environment: variables of its own.
        clean: strikes out what is in them and must not be seen, should the program print it.
    """
    command_line = shlex.join(argv)
    ports.emit(events.CommandStarted(command_line=command_line))
    status, lines = await ports.commands.run(argv, pass_fds=pass_fds, environment=environment)
    for line in lines:
        ports.emit(events.OutputSeen(line=clean(line)))
    if status == 0:
        return None
    kind = f"got signal {-status}" if status < 0 else f"exit code {status}"
    return BackupError(f"command '{command_line}' failed: {kind}")
