"""``vzsim-qemu``: stands in for qemu-system-x86_64 on a command line.

Owns the process: its name (checks look for ``qemu-…`` in /proc/PID/cmdline), daemonizing as QEMU
does (the parent ends only when sockets listen and the pid file is written), signals and exit.
Source: host behaviour, sections 7.1 and 7.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Sequence

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.script import Script
from vzsim.launch import LaunchPlan, attach_disks, plan_launch
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
        ready_fd = _daemonize() if plan.daemonize else -1
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
    service.listen(plan.monitor_paths, plan.agent_path, plan.idle_paths)
    if plan.pid_file:
        _write_pid_file(plan.pid_file)
    _tell_parent(ready_fd)
    end = await service.run()
    if end.signal_name:
        _die(signal.Signals[end.signal_name])
    if plan.pid_file:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(plan.pid_file)
    return 0


def _write_pid_file(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")


def _die(number: signal.Signals) -> None:
    """A crash: no clean-up, the pid file and the sockets stay behind."""
    if number is not signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)


def _daemonize() -> int:
    """Fork away; the parent waits for word and ends. Returns the descriptor to give word on."""
    read_fd, write_fd = os.pipe()
    if os.fork():
        os.close(write_fd)
        word = os.read(read_fd, 1)
        os._exit(0 if word == b"\0" else 1)
    os.close(read_fd)
    os.setsid()
    if os.fork():
        os._exit(0)
    return write_fd


def _tell_parent(ready_fd: int) -> None:
    """Everything is up: the parent may end, and standard streams are let go."""
    if ready_fd < 0:
        return
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null_fd, fd)
    os.close(null_fd)
    os.write(ready_fd, b"\0")
    os.close(ready_fd)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
