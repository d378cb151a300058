"""A simulated QEMU that tells what is asked of it and what it says.

Owns no behaviour: a watcher hears of commands, events and points in time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from vzsim.fakeqmp.disks import Disk
from vzsim.fakeqmp.machine import Machine, MachineConfig, ProcessEnd
from vzsim.fakeqmp.monitor import Monitor
from vzsim.fakeqmp.outside import Host, Timebase
from vzsim.fakeqmp.pbs_port import LoadLibrary
from vzsim.fakeqmp.script import Script
from vzsim.fakeqmp.storage_host import StorageHost


class Watcher(Protocol):
    """Hears what happens in one VM's QEMU."""

    def command_came(self, name: str, arguments: Mapping[str, Any]) -> None:
        """A command is about to be carried out."""

    def event_was_sent(self, name: str, data: Mapping[str, Any]) -> None:
        """QEMU says something by itself."""

    def point_in_time_came(self) -> None:
        """A backup fixed what it stands for."""


class WatchedQemu(Machine):
    """One QEMU process with somebody listening."""

    def __init__(
        self,
        config: MachineConfig,
        *,
        watcher: Watcher | None,
        script: Script,
        timebase: Timebase,
        host: Host,
        storage: StorageHost | None = None,
        load_pbs_library: LoadLibrary | None = None,
        on_end: Callable[[ProcessEnd], None],
    ) -> None:
        self._watcher = watcher
        super().__init__(
            config,
            script=script,
            timebase=timebase,
            host=host,
            storage=storage,
            load_pbs_library=load_pbs_library,
            on_end=on_end,
        )

    def carry_out(self, monitor: Monitor, name: str, arguments: Mapping[str, Any]) -> Any:
        """As the machine does."""
        if self._watcher is not None:
            self._watcher.command_came(name, arguments)
        return super().carry_out(monitor, name, arguments)

    def emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        """As the machine does."""
        if self._watcher is not None and not self.is_dead:
            self._watcher.event_was_sent(name, data or {})
        super().emit(name, data)

    def keep_point_in_time(self, disks: Sequence[tuple[str, Disk | None]]) -> None:
        """As the machine does."""
        super().keep_point_in_time(disks)
        if self._watcher is not None:
            self._watcher.point_in_time_came()
