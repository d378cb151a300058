"""The `Node` and `Machine` ports on a directory tree laid out like a PVE node.

Owns configurations and their locks; power and storages are strategies handed in, and are what
makes it a PVE node or a folder. Source: host behaviour, sections 1.4, 3.1, 3.4, 4 and 6.1.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError, VmLocked, VmNotFound
from vzdump_qemu.formats.vm_config import (
    parse_vm_config,
    remove_lock_line,
    set_fleecing_images,
    set_lock_line,
)
from vzdump_qemu.node.bridge import PveBridge
from vzdump_qemu.node.event_daemon import hold_event_daemon
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.locks import hold_global_flock, hold_vm_flock, replace_file
from vzdump_qemu.node.processes import ProcessTable
from vzdump_qemu.node.upid import make_upid
from vzdump_qemu.node.vm_sockets import SocketedMachine, VmSockets
from vzdump_qemu.ports import Machine, Power, Storages
from vzdump_qemu.qemu.request_ids import RequestIds

BACKUP_LOCK = "backup"
# The cluster file system's own limit.
CONFIG_BYTES_MAX = 1024 * 1024
_NEAR_MAX = 10
_CONFIG_NAME = re.compile(r"([1-9][0-9]{2,8})\.conf")


class LocalMachine(SocketedMachine):
    """`ports.Machine` for one VM of the node."""

    def __init__(
        self,
        layout: NodeLayout,
        vmid: int,
        *,
        table: ProcessTable,
        request_ids: RequestIds,
        make_power: Callable[[LocalMachine], Power],
        has_backup_job: Callable[[], Awaitable[bool]],
    ) -> None:
        sockets = VmSockets(
            vmid=vmid,
            qmp_path=layout.qmp_socket(vmid),
            agent_path=layout.agent_socket(vmid),
            request_ids=request_ids,
        )
        super().__init__(sockets)
        self._power = make_power(self)
        self._layout = layout
        self._table = table
        self._has_backup_job = has_backup_job

    @property
    def power(self) -> Power:
        return self._power

    @property
    def private_directory(self) -> str:
        """See `ports.Machine.private_directory`."""
        return self._layout.private_directory(self.vmid)

    async def has_backup_job(self) -> bool:
        """See `ports.Machine.has_backup_job`."""
        return await self._has_backup_job()

    async def is_running(self) -> bool:
        """See `ports.Machine.is_running`."""
        return self._table.find_qemu(self._layout.pid_file(self.vmid)) is not None

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        """See `ports.Machine.keep_alive`."""
        return hold_event_daemon(self._layout.event_daemon_socket, vmid=self.vmid)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStrategies:
    """What tells one kind of node from another.

    Attributes:
        make_power: power of one VM.
        has_backup_job: whether the node's QEMU knows the `backup` command.
        close: lets go of what the strategies hold.
        bridge: to the platform's own library, where there is one.
    """

    storages: Storages
    make_power: Callable[[LocalMachine], Power]
    has_backup_job: Callable[[], Awaitable[bool]]
    close: Callable[[], Awaitable[None]]
    bridge: PveBridge | None = None


def name_nearest(vmid: int, known: Sequence[int]) -> str:
    """A hint for a VM that is not there: those that are, by how near their numbers are."""
    nearest = sorted(known, key=lambda other: abs(other - vmid))[:_NEAR_MAX]
    names = ", ".join(str(other) for other in sorted(nearest)) or "none"
    return f"VMs of this node, the nearest: {names}"


class LocalNode:
    """`ports.Node`; an asynchronous context manager that closes itself."""

    def __init__(
        self,
        layout: NodeLayout,
        strategies: NodeStrategies,
        *,
        table: ProcessTable,
        process_id: int,
    ) -> None:
        self._layout = layout
        self._strategies = strategies
        self._table = table
        self._process_id = process_id
        self._upid = ""
        self._request_ids = RequestIds(process_id)

    async def __aenter__(self) -> LocalNode:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End what the node runs beside this process; idempotent."""
        await self._strategies.close()

    @property
    def name(self) -> str:
        return self._layout.node_name

    @property
    def layout(self) -> NodeLayout:
        return self._layout

    @property
    def bridge(self) -> PveBridge | None:
        """To the platform's own library; None where there is none."""
        return self._strategies.bridge

    @property
    def journal_directory(self) -> str:
        return self._layout.journal_directory

    @property
    def log_directory(self) -> str:
        return self._layout.log_directory

    @property
    def address(self) -> tuple[str, ...]:
        """Words of a command line by which another process opens the same node."""
        return ("--root", self._layout.root)

    @property
    def storages(self) -> Storages:
        return self._strategies.storages

    async def list_vmids(self) -> Sequence[int]:
        """See `ports.Node.list_vmids`; ascending."""
        try:
            names = await asyncio.to_thread(os.listdir, self._layout.vm_config_directory)
        except OSError as error:
            text = f"unable to list the VMs of node '{self.name}' - {error.strerror}"
            raise ConfigError(text) from error
        matches = (_CONFIG_NAME.fullmatch(name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    async def read_vm_config(self, vmid: int) -> bytes:
        """See `ports.Node.read_vm_config`."""
        raw = await asyncio.to_thread(_read, self._layout.vm_config(vmid))
        if raw is None:
            raise VmNotFound(
                f"unable to find configuration file for VM {vmid} on node '{self.name}'",
                hint=name_nearest(vmid, await self.list_vmids()),
            )
        return raw

    async def read_firewall(self, vmid: int) -> bytes | None:
        """See `ports.Node.read_firewall`."""
        return await asyncio.to_thread(_read, self._layout.firewall(vmid))

    async def set_vm_lock(self, vmid: int) -> None:
        """See `ports.Node.set_vm_lock`."""
        async with self._editing(vmid) as edit:
            lock = parse_vm_config(edit.raw, vmid=vmid).lock
            if lock:
                raise VmLocked(f"VM is locked ({lock})")
            edit.raw = set_lock_line(edit.raw, BACKUP_LOCK)

    async def clear_vm_lock(self, vmid: int) -> None:
        """See `ports.Node.clear_vm_lock`."""
        async with self._editing(vmid) as edit:
            lock = parse_vm_config(edit.raw, vmid=vmid).lock
            if not lock:
                raise ConfigError(f"no lock found trying to remove '{BACKUP_LOCK}'  lock")
            if lock != BACKUP_LOCK:
                raise ConfigError(f"found lock '{lock}' trying to remove '{BACKUP_LOCK}' lock")
            edit.raw = remove_lock_line(edit.raw)

    async def record_fleecing(self, vmid: int, volids: Sequence[str]) -> None:
        """See `ports.Node.record_fleecing`."""
        async with self._editing(vmid) as edit:
            edit.raw = set_fleecing_images(edit.raw, volids)

    def machine(self, vmid: int) -> Machine:
        """See `ports.Node.machine`."""
        return LocalMachine(
            self._layout,
            vmid,
            table=self._table,
            request_ids=self._request_ids,
            make_power=self._strategies.make_power,
            has_backup_job=self._strategies.has_backup_job,
        )

    @asynccontextmanager
    async def hold_global_lock(self, *, timeout_s: float) -> AsyncIterator[None]:
        """See `ports.Node.hold_global_lock`; a job that holds it is told in the pid file."""
        async with hold_global_flock(self._layout.global_lock, timeout_s=timeout_s):
            if self._upid:
                with suppress(OSError):
                    replace_file(
                        self._layout.global_pid_file,
                        self._upid.encode(),
                        process_id=self._process_id,
                    )
            yield

    def announce_job(self, *, task_id: str = "") -> str:
        """Name the task that this process is; whoever takes the global lock next is that job.

        Only a job is one that ``--stop`` may end, and not who puts back what a dead one left.

        Returns:
            The task's UPID.
        """
        self._upid = make_upid(self.name, self._process_id, kind="vzdump", task_id=task_id)
        return self._upid

    async def forget_job(self) -> None:
        """The job ended without any error: nothing is left that the pid file could mean."""
        path = self._layout.global_pid_file
        # While another job holds the lock, the file is that one's.
        with suppress(VmLocked, OSError, ConfigError):
            async with hold_global_flock(self._layout.global_lock, timeout_s=0):
                if _read(path) == self._upid.encode():
                    os.unlink(path)

    @asynccontextmanager
    async def _editing(self, vmid: int) -> AsyncIterator[_ConfigEdit]:
        """Read under the VM's flock, and write if the body changed something."""
        async with hold_vm_flock(self._layout.vm_lock(vmid)):
            raw = await self.read_vm_config(vmid)
            edit = _ConfigEdit(raw)
            yield edit
            if edit.raw != raw:
                await asyncio.to_thread(self._write_config, vmid, edit.raw)

    def _write_config(self, vmid: int, raw: bytes) -> None:
        path = os.path.realpath(self._layout.vm_config(vmid))
        try:
            replace_file(path, raw, process_id=self._process_id)
        except OSError as error:
            text = f"unable to write the configuration of VM {vmid} - {error.strerror}"
            raise ConfigError(text) from error


class _ConfigEdit:
    """A configuration on its way from one content to the next."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"unable to read '{path}' - {error.strerror}") from error
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigError(f"'{path}' is larger than {CONFIG_BYTES_MAX} bytes")
    return raw
