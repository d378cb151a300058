"""Stands in for qemu-storage-daemon on a command line.

Started as ``python -m vzsim.storage_daemon_stand_in``. Owns the exit status; the process is
`process`'s, the options are `launch_daemon`'s. Source: recorded session ``qsd-command-line``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.script import Script
from vzsim.launch_daemon import DaemonPlan, carry_out, plan_daemon
from vzsim.process import Channels, daemonize, serve_process
from vzsim.serve import Service

_PROGRAM = "qemu-storage-daemon"


def run(arguments: Sequence[str]) -> int:
    """Be a storage daemon with these arguments; return the exit status."""
    try:
        plan = plan_daemon(arguments)
        ready_fd = daemonize() if plan.daemonize else -1
        return asyncio.run(_serve(plan, ready_fd))
    except (ConfigError, OSError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr, flush=True)
        return 1


async def _serve(plan: DaemonPlan, ready_fd: int) -> int:
    service = Service(
        plan.machine_config(),
        Script(),
        asyncio.get_running_loop(),
        attach=lambda daemon: carry_out(daemon, plan),
    )
    channels = Channels(
        monitor_paths=tuple(plan.monitor_paths), pid_file=plan.pid_file, ready_fd=ready_fd
    )
    return await serve_process(service, channels)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
