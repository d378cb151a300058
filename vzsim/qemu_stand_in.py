"""``vzsim-qemu``: stands in for qemu-system-x86_64 on a command line.

Owns the process's name (checks look for ``qemu-…`` in /proc/PID/cmdline) and its exit status; how a
process comes up and ends is `process`'s.
Source: host behaviour, sections 7.1 and 7.2.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.script import Script
from vzsim.launch import LaunchPlan, attach_disks, plan_launch
from vzsim.process import Channels, daemonize, serve_process
from vzsim.serve import Service, read_script

_PROGRAM = "qemu-vzsim"
_SCRIPT_VARIABLE = "VZSIM_SCRIPT"
_VERSION_TEXT = "QEMU emulator version 10.0.2 (vzsim)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Becomes ``qemu-vzsim …`` by running itself anew under that name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Python finds its environment by the folder of argv[0], so the name keeps that folder.
    name = os.path.join(os.path.dirname(sys.executable), _PROGRAM)
    os.execv(sys.executable, [name, "-P", "-m", "vzsim.qemu_stand_in", *given])


def run(arguments: Sequence[str]) -> int:
    """Be a QEMU with these arguments; return the exit status."""
    try:
        plan = plan_launch(arguments)
        if plan.show_version:
            print(_VERSION_TEXT)
            return 0
        script = read_script(plan.script_path or os.environ.get(_SCRIPT_VARIABLE, ""))
        ready_fd = daemonize() if plan.daemonize else -1
    except (ConfigError, OSError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    try:
        return asyncio.run(_serve(plan, script, ready_fd))
    except (ConfigError, OSError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr, flush=True)
        return 1


async def _serve(plan: LaunchPlan, script: Script, ready_fd: int) -> int:
    service = Service(
        plan.machine_config(),
        script,
        asyncio.get_running_loop(),
        attach=lambda machine: attach_disks(machine, plan),
    )
    return await serve_process(
        service,
        Channels(
            monitor_paths=tuple(plan.monitor_paths),
            agent_path=plan.agent_path,
            idle_paths=tuple(plan.idle_paths),
            pid_file=plan.pid_file,
            ready_fd=ready_fd,
        ),
    )


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
