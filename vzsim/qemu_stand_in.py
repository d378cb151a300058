"""``vzsim-qemu``: stands in for qemu-system-x86_64 on a command line.

Owns the process: its name (checks look for ``qemu-…`` in /proc/PID/cmdline), daemonizing as QEMU
does (the parent ends only when sockets listen and the pid file is written), signals and exit.
Source: host behaviour, sections 7.1 and 7.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence

from vzdump_qemu.errors import ConfigError
from vzsim.fakeqmp.guest import Guest
from vzsim.fakeqmp.host import LoopTimebase, RealHost
from vzsim.fakeqmp.machine import Machine, ProcessEnd
from vzsim.fakeqmp.script import Script, parse_script
from vzsim.fakeqmp.server import ChannelServer, serve_agent, serve_monitor
from vzsim.launch import LaunchPlan, attach_disks, plan_launch

_PROGRAM = "qemu-vzsim"
_SCRIPT_VARIABLE = "VZSIM_SCRIPT"
_VERSION_TEXT = "QEMU emulator version 10.0.2 (vzsim)"


class _Running:
    """A machine with its sockets."""

    def __init__(self, plan: LaunchPlan, script: Script, loop: asyncio.AbstractEventLoop) -> None:
        self._ended: asyncio.Future[ProcessEnd] = loop.create_future()
        self.machine = Machine(
            plan.machine_config(),
            script=script,
            timebase=LoopTimebase(loop),
            host=RealHost(loop),
            on_end=self._ended.set_result,
        )
        self._servers: list[ChannelServer] = []
        self._idle: list[socket.socket] = []
        attach_disks(self.machine, plan)
        self._listen(plan, loop)

    def _listen(self, plan: LaunchPlan, loop: asyncio.AbstractEventLoop) -> None:
        for path in plan.monitor_paths:
            self._servers.append(serve_monitor(path, self.machine.add_monitor(), loop))
        if plan.agent_path and self.machine.agent is not None:
            self._servers.append(serve_agent(plan.agent_path, self.machine.agent, loop))
        for path in plan.idle_paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(1)
            self._idle.append(listener)

    async def run(self) -> ProcessEnd:
        """Serve until the process ends."""
        self.machine.start()
        Guest(self.machine).start()
        end = await self._ended
        if not end.signal_name:
            for server in self._servers:
                server.close()
            for listener in self._idle:
                listener.close()
        return end


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Becomes ``qemu-vzsim …`` by running itself anew under that name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.execve(
        sys.executable,
        [_PROGRAM, "-m", "vzsim.qemu_stand_in", *given],
        {**os.environ, "PYTHONEXECUTABLE": sys.executable},
    )


def run(arguments: Sequence[str]) -> int:
    """Be a QEMU with these arguments; return the exit status."""
    try:
        plan = plan_launch(arguments)
        if plan.show_version:
            print(_VERSION_TEXT)
            return 0
        script = _read_script(plan.script_path or os.environ.get(_SCRIPT_VARIABLE, ""))
        ready_fd = _daemonize() if plan.daemonize else -1
    except (ConfigError, OSError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    try:
        return asyncio.run(_serve(plan, script, ready_fd))
    except (ConfigError, OSError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr, flush=True)
        return 1


def _read_script(path: str) -> Script:
    if not path:
        return Script()
    with open(path, encoding="utf-8") as file:
        return parse_script(file.read())


async def _serve(plan: LaunchPlan, script: Script, ready_fd: int) -> int:
    loop = asyncio.get_running_loop()
    running = _Running(plan, script, loop)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, _terminate, running, number)
    if plan.pid_file:
        with open(plan.pid_file, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    _tell_parent(ready_fd)
    end = await running.run()
    if end.signal_name:
        # A crash: no clean-up, the pid file and the sockets stay behind.
        number = signal.Signals[end.signal_name]
        signal.signal(number, signal.SIG_DFL) if number is not signal.SIGKILL else None
        os.kill(os.getpid(), number)
    if plan.pid_file:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(plan.pid_file)
    return 0


def _terminate(running: _Running, number: int) -> None:
    print(f"{_PROGRAM}: terminating on signal {int(number)}", file=sys.stderr, flush=True)
    running.machine.terminate()


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
