"""The smallest kind of node: one VM that is known by its sockets alone.

Owns who the VM is, that one job at a time works on it, and its description as a configuration.
Nothing is written where a node of the platform would have its files. Source: architecture,
section 5.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    nullcontext,
)
from dataclasses import dataclass, replace

from vzdump_qemu.errors import ConfigError, QmpUnreachable, VmNotFound
from vzdump_qemu.formats.described_vm import DescribedVm, render_described_vm
from vzdump_qemu.node.locks import hold_flock
from vzdump_qemu.node.socket_layout import VMID_MAX, VMID_MIN, SocketLayout, state_directory
from vzdump_qemu.node.socket_power import SocketPower
from vzdump_qemu.node.socket_storages import SocketStorages
from vzdump_qemu.node.vm_description import describe_vm
from vzdump_qemu.node.vm_sockets import SocketedMachine, VmSockets
from vzdump_qemu.ports import CommandRunner, Machine, Power, Storages
from vzdump_qemu.qemu.request_ids import RequestIds
from vzdump_qemu.qemu.unix_socket import connect_to_path

DESCRIBE_TIMEOUT_S = 10.0
_PEER = struct.Struct("3i")
_NODE_NAME = "sockets"
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketVmOptions:
    """Which VM is meant.

    Attributes:
        agent_socket: of the guest agent; empty for none.
        name: the VM must be named so, or have this UUID; a VM without a name gets it. Empty for
            any.
        vmid: the number its archives bear; 0 for one made from the socket's path.
        fleecing_directory: for scratch images; empty for beside the journal.
        excluded_disks: left out, by drive key, device id or node name.
        state_directory: for journals and logs; empty for this user's own.
    """

    qmp_socket: str
    agent_socket: str = ""
    name: str = ""
    vmid: int = 0
    fleecing_directory: str = ""
    excluded_disks: tuple[str, ...] = ()
    state_directory: str = ""


class SocketMachine(SocketedMachine):
    """`ports.Machine` behind two sockets."""

    def __init__(self, layout: SocketLayout, vmid: int, request_ids: RequestIds) -> None:
        sockets = VmSockets(
            vmid=vmid,
            qmp_path=layout.qmp_socket,
            agent_path=layout.agent_socket,
            request_ids=request_ids,
        )
        super().__init__(sockets)
        self._power = SocketPower(lambda timeout_s: self.connect_qmp(timeout_s=timeout_s))
        self._layout = layout

    @property
    def power(self) -> Power:
        return self._power

    @property
    def private_directory(self) -> str:
        """See `ports.Machine.private_directory`."""
        return self._layout.private_directory

    async def has_backup_job(self) -> bool:
        """See `ports.Machine.has_backup_job`; no QEMU is started for this VM."""
        return False

    async def is_running(self) -> bool:
        """Whether somebody listens at the monitor's socket."""
        return peer_user_id(self._layout.qmp_socket) is not None

    def keep_alive(self) -> AbstractAsyncContextManager[None]:
        """See `ports.Machine.keep_alive`; no such daemon is here."""
        return nullcontext()


class SocketNode:
    """`ports.Node` with one VM; an asynchronous context manager."""

    def __init__(
        self,
        layout: SocketLayout,
        options: SocketVmOptions,
        *,
        commands: CommandRunner,
        process_id: int,
    ) -> None:
        self._layout = layout
        self._options = options
        self._vmid = options.vmid or layout.derived_vmid
        self._request_ids = RequestIds(process_id)
        self._described: DescribedVm | None = None
        self._storages = SocketStorages(layout, self._require_description, commands=commands)
        self._commands = commands

    async def __aenter__(self) -> SocketNode:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing runs beside this process."""

    @property
    def name(self) -> str:
        return _NODE_NAME

    @property
    def vmid(self) -> int:
        """The number of the one VM."""
        return self._vmid

    @property
    def journal_directory(self) -> str:
        return self._layout.own_directory

    @property
    def log_directory(self) -> str:
        return self._layout.log_directory

    @property
    def address(self) -> tuple[str, ...]:
        """Words of a command line by which another process opens the same."""
        words = ["--qmp", self._layout.qmp_socket, "--state-dir", self._layout.state_directory]
        if self._layout.agent_socket:
            words += ["--agent", self._layout.agent_socket]
        return tuple(words)

    @property
    def storages(self) -> Storages:
        return self._storages

    async def list_vmids(self) -> Sequence[int]:
        """See `ports.Node.list_vmids`."""
        return (self._vmid,)

    async def check(self) -> tuple[str, ...]:
        """Ask for what a backup will need, before anything is done; texts of warnings.

        Raises:
            QmpUnreachable: nobody answers as a monitor.
            ConfigError: it is another VM, or something is missing.
        """
        require_socket(self._layout.qmp_socket, "QMP")
        user_id = peer_user_id(self._layout.qmp_socket)
        if user_id is None:
            raise QmpUnreachable(
                f"nobody listens at QMP socket '{self._layout.qmp_socket}'",
                hint="the QEMU that made it has ended: start the VM",
            )
        if user_id != os.geteuid():
            raise ConfigError(
                f"QEMU was started by user {user_id}, this is user {os.geteuid()}:"
                " they cannot share files",
                hint=f"sudo -u '#{user_id}' vzdump-qemu …",
            )
        if self._layout.agent_socket:
            require_socket(self._layout.agent_socket, "agent")
        if self._commands.find("qemu-img") is None:
            raise ConfigError("unable to find command 'qemu-img'", hint="install qemu-utils")
        self._layout.require_short_path()
        try:
            await self.read_vm_config(self._vmid)
        except QmpUnreachable as error:
            raise QmpUnreachable(
                f"QMP socket '{self._layout.qmp_socket}' gives no greeting:"
                " another client holds it, or it is no QMP socket",
                hint="QEMU serves one client per monitor: give it a second -qmp for backups",
            ) from error
        described = self._require_description()
        plain = tuple(
            f"disk '{drive.key}' ('{drive.label}') is encrypted: its archive holds plain data"
            for drive in described.drives
            if drive.encrypted and not drive.excluded
        )
        return (*(f"{text}: left out" for text in described.left_out), *plain)

    async def read_vm_config(self, vmid: int) -> bytes:
        """The VM as its monitor describes it now.

        Raises: QmpError; VmNotFound for another number or another VM behind the socket.
        """
        if vmid != self._vmid:
            raise VmNotFound(f"VM {vmid} is not known by these sockets")
        async with self.machine(vmid).connect_qmp(timeout_s=DESCRIBE_TIMEOUT_S) as qmp:
            described = await describe_vm(
                qmp,
                has_agent=bool(self._layout.agent_socket),
                excluded=self._options.excluded_disks,
            )
        self._described = self._identify(described)
        return render_described_vm(self._described)

    def _identify(self, described: DescribedVm) -> DescribedVm:
        wanted = self._options.name
        if not wanted or wanted == described.name or wanted.lower() == described.uuid:
            return described
        if not described.name and not _UUID.fullmatch(wanted):
            return replace(described, name=wanted)
        raise VmNotFound(
            f"the VM behind '{self._layout.qmp_socket}' is '{described.name}', not '{wanted}'",
            hint=f"its UUID is {described.uuid}" if described.uuid else "it has no UUID",
        )

    async def read_firewall(self, vmid: int) -> bytes | None:
        """See `ports.Node.read_firewall`; there is none."""
        return None

    async def set_vm_lock(self, vmid: int) -> None:
        """Nothing to write: no other tool knows this VM by a file."""

    async def clear_vm_lock(self, vmid: int) -> None:
        """See `set_vm_lock`."""

    async def record_fleecing(self, vmid: int, volids: Sequence[str]) -> None:
        """Nothing to write: the journal keeps what could not be removed."""

    def machine(self, vmid: int) -> Machine:
        """See `ports.Node.machine`; of whatever number a killed run gave the VM."""
        return SocketMachine(self._layout, vmid, self._request_ids)

    @asynccontextmanager
    async def hold_global_lock(self, *, timeout_s: float) -> AsyncIterator[None]:
        """See `ports.Node.hold_global_lock`; one job at a time on this VM."""
        beside, own = self._layout.lock_paths
        path = beside if os.access(os.path.dirname(beside), os.W_OK) else own
        text = f"another backup of the VM behind '{self._layout.qmp_socket}' is running"
        async with AsyncExitStack() as stack:
            try:
                os.makedirs(self._layout.own_directory, mode=0o700, exist_ok=True)
                lock = hold_flock(path, timeout_s=timeout_s, busy_text=text)
                await stack.enter_async_context(lock)
            except OSError as error:
                raise ConfigError(f"unable to lock '{path}' - {error.strerror}") from error
            yield

    def _require_description(self) -> DescribedVm:
        if self._described is None:
            raise ConfigError("the VM was not described yet")
        return self._described


def open_socket_node(
    options: SocketVmOptions, *, commands: CommandRunner, process_id: int
) -> SocketNode:
    """The node of one VM; nothing is connected yet.

    Raises: ConfigError for a number that no VM can have, or without a state directory.
    """
    if options.vmid and not VMID_MIN <= options.vmid <= VMID_MAX:
        raise ConfigError(f"VM ID {options.vmid} is not between {VMID_MIN} and {VMID_MAX}")
    layout = SocketLayout(
        qmp_socket=os.path.realpath(options.qmp_socket),
        agent_socket=os.path.realpath(options.agent_socket) if options.agent_socket else "",
        state_directory=os.path.realpath(
            options.state_directory or state_directory(os.environ, user_id=os.geteuid())
        ),
        fleecing_directory=(
            os.path.realpath(options.fleecing_directory) if options.fleecing_directory else ""
        ),
    )
    return SocketNode(layout, options, commands=commands, process_id=process_id)


def require_socket(path: str, kind: str) -> None:
    """Raise ConfigError unless that path is a socket."""
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as error:
        raise ConfigError(
            f"there is no {kind} socket '{path}' - {error.strerror}",
            hint=_SOCKET_HINTS[kind],
        ) from error
    if not is_socket:
        raise ConfigError(f"'{path}' is not a socket", hint=_SOCKET_HINTS[kind])


_SOCKET_HINTS = {
    "QMP": "QEMU makes one with -qmp unix:PATH,server=on,wait=off",
    "agent": "QEMU makes one with -chardev socket,path=PATH,server=on,wait=off,id=A"
    " and -device virtserialport,chardev=A,name=org.qemu.guest_agent.0",
}


def peer_user_id(path: str) -> int | None:
    """User who listens at a socket; None if nobody does.

    A server whose queue is full listens as well, though it cannot be asked who it is: it counts as
    this process's own user.
    """
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.setblocking(False)
        try:
            connect_to_path(connection, path)
        except BlockingIOError:
            return os.geteuid()
        except OSError:
            return None
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        user_id: int = _PEER.unpack(peer)[1]
        return user_id
