"""What a system under test is: a backup tool on simulated ports, found by its entry point.

Owns these shapes (group ``vzsim.systems``); nothing here knows which system it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.journal_ports import Journals
from vzdump_qemu.ports import ArchiveStore, Clock, CommandRunner, Ids, Node, VmaPacker

if TYPE_CHECKING:
    from vzsim.faults.pbs import FaultyServer

SYSTEMS_GROUP = "vzsim.systems"
DEFAULT_SYSTEM = "vzdump-qemu"


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPorts:
    """What a system under test gets to work with.

    Attributes:
        hooks: runs the operator's hook script.
        server: reaches a backup server, if there is one in this world.
        tell: takes one line of the tool's log.
        tell_end: takes whether the backup ended well, as its operator is told; a tool that is
            cancelled after that tells no other end.
    """

    node: Node
    store: ArchiveStore
    packer: VmaPacker
    journals: Journals
    commands: CommandRunner
    hooks: CommandRunner
    clock: Clock
    ids: Ids
    server: FaultyServer | None
    tell: Callable[[str], None]
    tell_end: Callable[[bool], None]


class Outcome(Protocol):
    """What a system says about its backup: `error` is empty for a good end."""

    @property
    def error(self) -> str: ...

    @property
    def archive_path(self) -> str: ...

    @property
    def says_frozen(self) -> bool: ...


class System(Protocol):
    """A backup tool on simulated ports."""

    async def back_up(self, ports: SystemPorts, options: Mapping[str, Any]) -> Outcome:
        """Back up one VM; cancelled when a signal comes."""
        ...

    async def recover(self, ports: SystemPorts, vmid: int) -> bool:
        """Put back what a killed `back_up` (or a killed `recover`) left; whether it was all.

        Called as well when a `back_up` ended with open lines in its journal, as a process that
        watches over it would.
        """
        ...


def load_system(name: str = DEFAULT_SYSTEM) -> System:
    """The system registered under that name. Raises ConfigError."""
    found = entry_points(group=SYSTEMS_GROUP)
    for entry in found:
        if entry.name == name:
            system: System = entry.load()
            return system
    names = ", ".join(sorted(entry.name for entry in found)) or "none"
    raise ConfigError(f"no system '{name}' to test", hint=f"there are: {names}")
