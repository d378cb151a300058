"""A machine alone on UNIX sockets, for any QMP client.

Owns running one `Machine` on the real clock: sockets, signals, the guest's activity, the end. Used
by ``vzsim serve`` and by the stand-in for qemu-system-x86_64.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.units import GIB, KIB, MIB
from vzsim.fakeqmp.disks import Disk, MemoryDisk, RawFileDisk
from vzsim.fakeqmp.guest import Guest
from vzsim.fakeqmp.host import LoopTimebase, RealHost
from vzsim.fakeqmp.machine import Machine, MachineConfig, ProcessEnd
from vzsim.fakeqmp.pbs_port import PbsLibrary
from vzsim.fakeqmp.real_storage import RealStorage
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import Script, parse_script
from vzsim.fakeqmp.server import ChannelServer, serve_agent, serve_monitor

_SCALE = {"": 1, "K": KIB, "M": MIB, "G": GIB}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What ``vzsim serve`` was asked for; disks as ``ID=SIZE`` or ``ID=PATH``."""

    qmp_paths: tuple[str, ...]
    agent_path: str
    disks: tuple[str, ...]
    script_path: str
    dialect: str
    paused: bool


class Service:
    """One machine with its sockets on a running loop.

    Args:
        attach: opens the machine's disks. Raises: ConfigError, OSError.
    """

    def __init__(
        self,
        config: MachineConfig,
        script: Script,
        loop: asyncio.AbstractEventLoop,
        *,
        attach: Callable[[Machine], None],
    ) -> None:
        self._loop = loop
        self._ended: asyncio.Future[ProcessEnd] = loop.create_future()
        self.machine = Machine(
            config,
            script=script,
            timebase=LoopTimebase(loop),
            host=RealHost(loop),
            on_end=self._ended.set_result,
            storage=RealStorage(loop),
            load_pbs_library=_load_pbs_library,
        )
        self._servers: list[ChannelServer] = []
        self._idle: list[tuple[str, socket.socket]] = []
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.machine.terminate)
        attach(self.machine)

    def listen(
        self, monitor_paths: Sequence[str], agent_path: str, idle_paths: Sequence[str] = ()
    ) -> None:
        """Open the sockets; ``idle_paths`` accept connections and say nothing. Raises: OSError."""
        for path in monitor_paths:
            self._servers.append(serve_monitor(path, self.machine.add_monitor(), self._loop))
        if agent_path and self.machine.agent is not None:
            self._servers.append(serve_agent(agent_path, self.machine.agent, self._loop))
        for path in idle_paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(1)
            self._idle.append((path, listener))

    async def run(self) -> ProcessEnd:
        """Serve until the process ends; after a crash the sockets' files stay behind."""
        self.machine.start()
        Guest(self.machine).start()
        end = await self._ended
        if not end.signal_name:
            for server in self._servers:
                server.close()
            for path, listener in self._idle:
                listener.close()
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        return end


def _load_pbs_library() -> PbsLibrary:
    # The client and its protocols take longer to load than a QEMU may take to start.
    from vzsim.pbs_client import system_library

    return system_library()


def read_script(path: str) -> Script:
    """The script in that file; without a path a well-behaved one. Raises: ConfigError, OSError."""
    if not path:
        return Script()
    with open(path, encoding="utf-8") as file:
        return parse_script(file.read())


def serve_machine(options: ServeOptions) -> int:
    """Serve one machine; returns the exit status. Raises: ConfigError, OSError."""
    return asyncio.run(_serve(options, read_script(options.script_path)))


async def _serve(options: ServeOptions, script: Script) -> int:
    config = MachineConfig(
        dialect=Dialect(options.dialect),
        initial_state=RunState.PRELAUNCH if options.paused else RunState.RUNNING,
        no_shutdown=True,
        agent_port_id="" if options.agent_path else None,
    )

    def attach(machine: Machine) -> None:
        for text in options.disks:
            device_id, disk = _make_disk(text)
            machine.block.add_disk(device_id, disk)

    service = Service(config, script, asyncio.get_running_loop(), attach=attach)
    service.listen(options.qmp_paths, options.agent_path)
    end = await service.run()
    return 1 if end.signal_name else 0


def _make_disk(text: str) -> tuple[str, Disk]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--disk {text}: ID=SIZE or ID=PATH is expected")
    device_id = name if name.startswith("drive-") else f"drive-{name}"
    size = re.fullmatch(r"(\d+)([KMG]?)", value)
    if size is None:
        return device_id, RawFileDisk(value)
    return device_id, MemoryDisk(bytes(int(size.group(1)) * _SCALE[size.group(2)]))
