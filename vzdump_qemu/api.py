"""The public entry points: a node, and backups of its VMs, from Python.

Owns which adapter stands behind which port; `cli` takes it from here. Importing this module pulls
in the engine and the adapters. Source: architecture, sections 2 and 8.

    async with open_node("./lab") as node:
        result = await backup(node, 100, BackupOptions(...))
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import cached_property

from vzdump_qemu.disk_ports import DiskOrigin, DiskReader
from vzdump_qemu.engine.batch import back_up_all
from vzdump_qemu.engine.context import EnginePorts, RunResult
from vzdump_qemu.engine.recovery import recover_all
from vzdump_qemu.errors import ConfigError, VmLocked
from vzdump_qemu.events import BackupMode, Emit, EmitOfRun, Event, Warned
from vzdump_qemu.formats.pbs import BackupGroup, BackupRef
from vzdump_qemu.node import opening
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.socket_node import SocketNode, SocketVmOptions
from vzdump_qemu.outlet_ports import NOBODY, JobNotifier
from vzdump_qemu.pbs_ports import (
    DiskSize,
    PbsFinished,
    PbsManagement,
    PbsUpload,
    PbsUploads,
    ReadLog,
    no_log,
)
from vzdump_qemu.pbs_target import PbsTarget
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice
from vzdump_qemu.ports import Clock
from vzdump_qemu.stores.archive_directory import ArchiveDirectory
from vzdump_qemu.stores.commands import SystemCommandRunner
from vzdump_qemu.stores.guardian import Guardian
from vzdump_qemu.stores.run_journal import OWNER_TIMEOUT_S, FileJournals
from vzdump_qemu.stores.system import SystemClock, SystemIds, read_boot_id
from vzdump_qemu.stores.vma_packer import PumpedVmaPacker

# Run as a program of its own; `cli` is above this module and is not imported.
GUARDIAN_MODULE = "vzdump_qemu.cli.guard"


def open_node(root: str = "/") -> AbstractAsyncContextManager[LocalNode]:
    """A PVE node, or a folder laid out like one.

    Args:
        root: ``/`` for this host.
    Raises:
        ConfigError: the folder is no node.
    """
    return opening.open_node(root, commands=SystemCommandRunner())


def open_socket_vm(options: SocketVmOptions) -> SocketNode:
    """A VM of any QEMU, known by its monitor's socket alone; a node with this one VM.

    Raises:
        ConfigError: the options contradict each other.
    """
    return opening.open_socket_vm(options, commands=SystemCommandRunner())


def fit_options(node: LocalNode | SocketNode, options: BackupOptions) -> BackupOptions:
    """What was asked for, as far as this kind of node leaves a choice.

    Raises:
        ConfigError: a VM known by its sockets cannot be backed up in the way asked for.
    """
    if isinstance(node, LocalNode):
        return options
    hint = "what a monitor alone can do is --mode snapshot or suspend by --data-path pull"
    if options.mode is BackupMode.STOP:
        raise ConfigError("a VM known only by its sockets cannot be stopped", hint=hint)
    if options.data_path not in (DataPathChoice.AUTO, DataPathChoice.PULL):
        name = options.data_path.value
        raise ConfigError(f"a VM known only by its sockets has no data path '{name}'", hint=hint)
    if options.fleecing.storage_id:
        raise ConfigError(
            f"there is no storage '{options.fleecing.storage_id}' without a node",
            hint="--fleecing-dir names a directory for scratch images",
        )
    target = options.target
    if not (target.dump_directory or target.to_stdout or target.pbs):
        raise ConfigError(
            "it was not said where the archive goes",
            hint="use --dumpdir DIR, or --repository REPO for a backup server",
        )
    return replace(options, data_path=DataPathChoice.PULL, log_directory=node.log_directory)


async def prepare_node(node: LocalNode | SocketNode, ports: EnginePorts) -> None:
    """Before a job: on a VM known by its sockets, tell at once what is missing.

    What a killed run under another number left in that VM is put back, too.

    Raises:
        QmpError: the monitor cannot be had.
        ConfigError: it is another VM, or something is missing.
    """
    if isinstance(node, LocalNode):
        return
    for text in await node.check():
        ports.emit(Warned(text=text))
    if set(await ports.journals.list_vmids()) - {node.vmid}:
        with suppress(VmLocked):
            # One that runs still is no one's to put back, and not waited for here.
            async with node.hold_global_lock(timeout_s=0):
                pass
            await recover_all(ports)


async def backup(
    node: LocalNode | SocketNode,
    vmid: int,
    options: BackupOptions | None = None,
    *,
    emit: Emit | None = None,
) -> RunResult:
    """Back up one VM under the node's global lock.

    Args:
        emit: hears what happens; must neither block nor raise.
    Returns:
        How it ended; a failure of the VM's own run is in its `error`.
    Raises:
        BackupError: the job could not begin, e.g. the storage is not there.
        asyncio.CancelledError: the caller was cancelled; everything was undone first.
    """
    options = fit_options(node, options or BackupOptions())
    ports = join_ports(node, emit=emit or _ignore)
    await prepare_node(node, ports)
    if isinstance(node, LocalNode):
        node.announce_job(task_id=str(vmid))
    batch = await back_up_all(ports, options, (vmid,))
    if batch.ok and isinstance(node, LocalNode):
        await node.forget_job()
    if batch.error is not None:
        raise batch.error
    [result] = batch.runs
    return result


def join_ports(
    node: LocalNode | SocketNode,
    *,
    emit: Emit,
    emit_of_run: EmitOfRun | None = None,
    stdout_fd: int = 1,
    read_log: ReadLog = no_log,
    notifier: JobNotifier = NOBODY,
    guarded: bool = True,
    owner_timeout_s: float = OWNER_TIMEOUT_S,
) -> EnginePorts:
    """Everything that the engine is handed for one job on a node of this host.

    Args:
        emit_of_run: where a run's events go; None for the same as the job's.
        stdout_fd: where an archive for standard output goes.
        read_log: gives the logs that backup servers get.
        notifier: tells whoever is to know how the job ended.
        guarded: a guardian process watches over our death while a run goes on.
        owner_timeout_s: how long another run on the same VM is waited for.
    """
    clock = SystemClock()
    guardian = None
    if guarded:
        guardian = Guardian([sys.executable, "-m", GUARDIAN_MODULE, *node.address])
    return EnginePorts(
        node=node,
        store=ArchiveDirectory(stdout_fd=stdout_fd, guardian=guardian),
        packer=PumpedVmaPacker(clock=clock, open_nbd=lambda origin: _open_nbd(origin, clock)),
        pbs=_LateUploads(clock),
        journals=FileJournals(
            node.journal_directory,
            guardian.watch if guardian else None,
            owner_timeout_s=owner_timeout_s,
            boot_id=read_boot_id(),
        ),
        commands=SystemCommandRunner(),
        hooks=SystemCommandRunner(environment={}),
        clock=clock,
        ids=SystemIds(),
        emit=emit,
        emit_of_run=emit_of_run,
        read_log=read_log,
        notifier=notifier,
    )


def _ignore(_: Event) -> None:
    return


class _LateUploads:
    """`PbsUploads` whose client is loaded for the first backup that needs it.

    Loading it takes longer than reaching a VM, which runs to files should not wait for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def manage(self, target: PbsTarget) -> PbsManagement:
        """As the port says."""
        return self._client.manage(target)

    async def check(self, target: PbsTarget) -> None:
        """As the port says."""
        await self._client.check(target)

    async def last_time_s(self, target: PbsTarget, group: BackupGroup) -> int:
        """As the port says."""
        return await self._client.last_time_s(target, group)

    async def connect(self, target: PbsTarget, backup: BackupRef) -> PbsUpload:
        """As the port says."""
        return await self._client.connect(target, backup)

    async def prove(
        self,
        target: PbsTarget,
        backup: BackupRef,
        disks: Sequence[DiskSize],
        config_names: Sequence[str],
    ) -> PbsFinished:
        """As the port says."""
        return await self._client.prove(target, backup, disks, config_names)

    @cached_property
    def _client(self) -> PbsUploads:
        from vzdump_qemu.stores.pbs.uploads import ClientUploads

        clock = self._clock
        return ClientUploads(clock=clock, open_nbd=lambda origin: _open_nbd(origin, clock))


def _open_nbd(origin: DiskOrigin, clock: Clock) -> DiskReader:
    from vzdump_qemu.qemu.nbd_disk import NbdDisk

    return NbdDisk(origin, clock=clock)
