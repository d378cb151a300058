"""One simulated QEMU process: its parts, its events and its end.

Pure: time, files and identifiers come from `outside`, bytes come and go through `monitor` and
`agent`. The same machine serves real sockets (`server`) and a virtual loop.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from vzsim.fakeqmp.agent import Agent, GuestActions
from vzsim.fakeqmp.backup_commands import BackupService
from vzsim.fakeqmp.block import BlockLayer
from vzsim.fakeqmp.block_jobs import BlockJobs
from vzsim.fakeqmp.commands import Commands
from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.exports import Exports
from vzsim.fakeqmp.fd_sets import FdSets
from vzsim.fakeqmp.guest_requests import GuestRequests
from vzsim.fakeqmp.jobs import Jobs
from vzsim.fakeqmp.migration import Migration
from vzsim.fakeqmp.monitor import Dispatcher, Monitor
from vzsim.fakeqmp.outside import Host, Timebase
from vzsim.fakeqmp.pbs_port import LoadLibrary
from vzsim.fakeqmp.replies import RuleBook
from vzsim.fakeqmp.run_state import RunControl, RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import Script
from vzsim.fakeqmp.storage_host import MemoryStorage, StorageHost

_PLAIN_VERSION = {
    "qemu": {"micro": 22, "minor": 2, "major": 7},
    "package": "Debian 1:7.2+dfsg-7+deb12u18+b3",
}
_VERSIONS: Mapping[Dialect, Mapping[str, Any]] = MappingProxyType(
    {
        Dialect.PVE: {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""},
        Dialect.UPSTREAM: _PLAIN_VERSION,
        Dialect.STORAGE_DAEMON: _PLAIN_VERSION,
    }
)
_INACTIVE_STATES = (RunState.INMIGRATE, RunState.POSTMIGRATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """What the command line fixes.

    Args:
        initial_state: PRELAUNCH with ``-S``, INMIGRATE with ``-incoming``, else RUNNING.
        agent_port_id: id of the agent's port device, may be empty; None without an agent port.
    """

    dialect: Dialect = Dialect.PVE
    name: str = ""
    initial_state: RunState = RunState.RUNNING
    no_shutdown: bool = False
    no_reboot: bool = False
    agent_port_id: str | None = None
    chardevs: tuple[tuple[str, str], ...] = field(default=())

    @property
    def version(self) -> dict[str, Any]:
        """Reply of ``query-version``."""
        return dict(_VERSIONS[self.dialect])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnd:
    """How the process ended: by a signal of its own making, or in order."""

    signal_name: str = ""


class Machine:
    """One QEMU.

    Args:
        on_end: called once when the process is gone; sockets must then be closed.
        load_pbs_library: without it the machine is a build whose library is a stub.
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        script: Script,
        timebase: Timebase,
        host: Host,
        on_end: Callable[[ProcessEnd], None],
        storage: StorageHost | None = None,
        load_pbs_library: LoadLibrary | None = None,
    ) -> None:
        self.config = config
        self.on_guest_freeze: Callable[[], None] = lambda: None
        self.script = script
        self.timebase = timebase
        self.host = host
        self.is_dead = False
        self._on_end = on_end
        self._ending = False
        self._exit_when_idle = False
        rule_book = RuleBook(script.command)
        self.storage = storage or MemoryStorage()
        self.block = BlockLayer(host, config.dialect, self.storage)
        self.jobs = Jobs(self.emit, config.dialect)
        self.block_jobs = BlockJobs(self)
        self.exports = Exports(
            block=self.block,
            jobs=self.jobs,
            emit=self.emit,
            storage=self.storage,
            time=timebase,
        )
        self.fd_sets = FdSets(host)
        self.backup = BackupService(self, load_pbs_library)
        self.monitors: list[Monitor] = []
        self.dispatcher = Dispatcher(self, rule_book)
        self.control = RunControl(
            initial=config.initial_state,
            no_shutdown=config.no_shutdown,
            no_reboot=config.no_reboot,
            emit=self.emit,
            jobs=self.jobs,
            timebase=timebase,
            on_change=self._state_changed,
            on_guest_reset=self._guest_was_reset,
            exit_process=self._exit_after_jobs,
        )
        self.requests = GuestRequests(self)
        self.migration = Migration(
            control=self.control, emit=self.emit, timebase=timebase, dialect=config.dialect
        )
        self.agent = self._make_agent(rule_book)
        self._commands = Commands(self)
        self._guest_has_booted = False

    def _make_agent(self, rule_book: RuleBook) -> Agent | None:
        if self.config.agent_port_id is None:
            return None
        return Agent(
            rules=self.script.agent,
            rule_book=rule_book,
            port_id=self.config.agent_port_id,
            emit=self.emit,
            timebase=self.timebase,
            is_guest_running=lambda: self.control.is_running,
            actions=GuestActions(
                power_off=self.ask_guest_to_shut_down,
                reboot=self.control.guest_resets,
                suspend=self.control.guest_suspends,
                die=lambda: self.die("SIGKILL"),
                freeze=self._guest_freezes,
            ),
        )

    def add_monitor(self) -> Monitor:
        """One more monitor."""
        monitor = Monitor(self)
        self.monitors.append(monitor)
        return monitor

    def start(self) -> None:
        """The process is up: scripted events and, unless paused, the guest begin."""
        for event in self.script.event:
            for _ in range(event.count):
                emit = partial(self.emit, event.name, dict(event.data))
                self.timebase.call_later(event.at_s, emit)
        if self.script.process.die_at_s is not None:
            self.timebase.call_later(self.script.process.die_at_s, lambda: self.die("SIGKILL"))
        self._state_changed()

    def emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        """Send an event to every monitor whose client has negotiated."""
        hearing = [monitor for monitor in self.monitors if monitor.negotiated]
        if self.is_dead or not hearing:
            return
        seconds, fraction = divmod(self.timebase.now_s(), 1)
        message: dict[str, Any] = {
            "timestamp": {"seconds": int(seconds), "microseconds": int(fraction * 1_000_000)},
            "event": name,
        }
        if data is not None:
            message["data"] = data
        for monitor in hearing:
            monitor.send(message)

    def carry_out(self, monitor: Monitor, name: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out one command; a value, or a `Pending`. Raises: CommandError."""
        return self._commands.carry_out(monitor, name, arguments)

    @property
    def simulated_commands(self) -> frozenset[str]:
        """Names of the commands that have an effect here; the others only say so."""
        return self._commands.simulated

    def ask_guest_to_shut_down(self) -> None:
        """The guest was asked to switch itself off; it does so as its rules say."""
        rules = self.script.guest
        if self.control.is_running and not rules.ignores_shutdown:
            self.timebase.call_later(rules.shutdown_delay_s, self._guest_shuts_down)

    def _guest_shuts_down(self) -> None:
        if self.control.is_running and not self.is_dead:
            self.control.guest_powers_off()

    def command_done(self) -> None:
        """A command's reply is out; a quit takes effect now."""
        if self._exit_when_idle:
            self._end(ProcessEnd())

    @property
    def disks_are_inactive(self) -> bool:
        """The images belong to the other side of a migration."""
        return self.control.state in _INACTIVE_STATES

    # -- disks ---------------------------------------------------------------------------------

    def guest_write(
        self, device_id: str, offset_bytes: int, data: bytes, done: Callable[[int], None]
    ) -> None:
        """A write of the guest (or of ``qemu-io``); `done` gets 0 or an errno, perhaps later."""
        run = self.backup.run
        self.backup.note_write(device_id, offset_bytes, len(data))
        backend = self.block.backend_of(device_id)
        node = None if backend is None else backend.node
        if node is None:
            done(errno.ENODEV)
        elif run is not None and run.covers(device_id):
            node.note_write(offset_bytes, len(data))
            if node.source is not node:
                node.source.note_write(offset_bytes, len(data))
            run.guest_write(device_id, offset_bytes, data, done)
        else:
            try:
                node.write(offset_bytes, data)
            except OSError as error:
                done(error.errno or errno.EIO)
                return
            done(0)

    def keep_point_in_time(self, disks: Sequence[tuple[str, Disk | None]]) -> None:
        """Store copies of the disks as a backup fixes them, if the script asks for it."""
        directory = self.script.guest.keep_point_in_time
        if directory is None:
            return
        for device_id, disk in disks:
            if disk is not None:
                self.host.keep_disk(directory, device_id, disk)

    # -- end -----------------------------------------------------------------------------------

    def quit(self) -> None:
        """``quit``: the process ends after the reply."""
        self._say_shutdown("host-qmp-quit")
        self._end_block_work()
        self._exit_when_idle = True

    def terminate(self) -> None:
        """SIGTERM: the process ends in order; a full target is waited for."""
        if self._ending:
            return
        self._say_shutdown("host-signal")
        self._exit_after_jobs()

    def _say_shutdown(self, reason: str) -> None:
        if self.config.dialect is not Dialect.STORAGE_DAEMON:
            self.emit("SHUTDOWN", {"guest": False, "reason": reason})

    def _end_block_work(self) -> None:
        self.jobs.drain()
        self.jobs.drain()
        self.exports.close()
        self.block_jobs.cancel_all()

    def die(self, signal_name: str) -> None:
        """The process is gone at once."""
        self.backup.die_quietly()
        self._end(ProcessEnd(signal_name=signal_name))

    def _exit_after_jobs(self) -> None:
        self._ending = True
        self._end_block_work()
        self.backup.stop_for_exit(lambda: self._end(ProcessEnd()))

    def _end(self, end: ProcessEnd) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        for monitor in self.monitors:
            monitor.fds.close()
        self.fd_sets.close()
        self.block_jobs.die_quietly()
        self.block.close()
        self._on_end(end)

    def dissolve(self) -> None:
        """Nobody looks at this process again: what its parts know of each other goes."""
        vars(self._commands).clear()
        vars(self).clear()

    # -- changes -------------------------------------------------------------------------------

    def _state_changed(self) -> None:
        if self.control.is_running:
            self.requests.machine_runs()
        if self.agent is None or not self.control.is_running:
            return
        if not self._guest_has_booted:
            self._guest_has_booted = True
            self.agent.boot()
        self.agent.serve()

    def _guest_freezes(self) -> None:
        if not self.is_dead:
            self.on_guest_freeze()

    def _guest_was_reset(self) -> None:
        if self.agent is None:
            return
        self.agent.guest_reset()
        self._guest_has_booted = False
        self._state_changed()
