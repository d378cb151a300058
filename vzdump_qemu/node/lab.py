"""Labs: folder nodes made from nothing, with VMs whose disks hold known data.

Owns their making, their end and the state of their VMs; what runs in them is the production code.
Behind ``vzdump-qemu lab``. Source: architecture, section 5; host behaviour, 3.1 and 5.1.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError, QmpError, StorageError
from vzdump_qemu.formats.vm_config import parse_vm_config
from vzdump_qemu.node.folder_node import find_layout
from vzdump_qemu.node.images import convert_raw_image, create_image, remove_image
from vzdump_qemu.node.lab_config import LabConfig, read_lab_config
from vzdump_qemu.node.layout import NodeLayout
from vzdump_qemu.node.local_node import LocalNode
from vzdump_qemu.node.opening import open_node
from vzdump_qemu.ports import CommandRunner
from vzdump_qemu.qemu.unix_socket import SOCKET_PATH_BYTES_MAX
from vzdump_qemu.stores.commands import SystemCommandRunner
from vzdump_qemu.units import render_config_size

LAB_NODE_NAME = "lab"
_LONGEST_VMID = 999_999_999
_STATUS_TIMEOUT_S = 5.0
_STORAGE_CONFIG = """dir: local
\tpath /var/lib/vz
\tcontent images,backup,iso,snippets,vztmpl,rootdir
"""
_STORAGE_SUBDIRECTORIES = ("images", "dump", "template/iso", "template/cache", "snippets")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabDisk:
    """One disk of a new VM.

    Attributes:
        key: drive key of the configuration, e.g. ``scsi0``.
        format: ``raw`` or ``qcow2``.
    """

    key: str
    size_bytes: int
    format: str = "raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabVmStatus:
    """One VM of a lab.

    Attributes:
        run_state: as QMP tells it; empty if the VM is off or does not answer.
    """

    vmid: int
    name: str
    is_running: bool
    run_state: str
    lock: str


async def create_lab(
    root: str,
    *,
    vmids: Sequence[int],
    disks: Sequence[LabDisk],
    config: LabConfig,
    has_agent: bool = False,
    fill_seed: int | None = None,
    commands: CommandRunner | None = None,
) -> None:
    """Make a lab, or add VMs to one; every VM gets the same disks, each its own content.

    Args:
        config: written anew also in an existing lab.
        fill_seed: fill about half of each disk from this seed; None leaves them empty.
    Raises:
        ConfigError: the folder holds something else, or a VM is there already.
        StorageError: an image could not be made; that VM is then not there at all.
    """
    commands = commands or SystemCommandRunner()
    root = os.path.abspath(root)
    _refuse_other_folder(root)
    layout = NodeLayout(root=root, node_name=LAB_NODE_NAME)
    if os.path.isdir(layout.pve_directory):
        layout = find_layout(root)
    if len(os.fsencode(layout.serial_socket(_LONGEST_VMID))) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"the path '{root}' is too long for the sockets of a lab",
            hint="choose a folder with a shorter path",
        )
    try:
        _make_tree(layout, config)
    except OSError as error:
        raise ConfigError(f"unable to create lab '{root}' - {error.strerror}") from error
    for vmid in vmids:
        if os.path.exists(layout.vm_config(vmid)):
            raise ConfigError(f"VM {vmid} already exists on node '{layout.node_name}'")
    for vmid in vmids:
        await _create_vm(
            layout, vmid, disks, has_agent=has_agent, fill_seed=fill_seed, commands=commands
        )


async def start_vm(root: str, vmid: int, *, commands: CommandRunner | None = None) -> None:
    """Start one VM of a lab. Raises ConfigError, PowerError."""
    async with _open_lab(root, commands) as node:
        await node.machine(vmid).power.start()


async def stop_vm(root: str, vmid: int, *, commands: CommandRunner | None = None) -> None:
    """End one VM of a lab, as by its power plug. Raises ConfigError, PowerError."""
    async with _open_lab(root, commands) as node:
        await node.read_vm_config(vmid)
        await node.machine(vmid).power.stop()


async def read_status(root: str, *, commands: CommandRunner | None = None) -> Sequence[LabVmStatus]:
    """All VMs of a lab, by number. Raises ConfigError."""
    async with _open_lab(root, commands) as node:
        return [await _read_vm_status(node, vmid) for vmid in await node.list_vmids()]


async def destroy_lab(root: str, *, commands: CommandRunner | None = None) -> None:
    """Stop all VMs of a lab and remove the folder. Raises ConfigError, PowerError."""
    async with _open_lab(root, commands) as node:
        for vmid in {*await node.list_vmids(), *_vmids_of_pid_files(node.layout)}:
            await node.machine(vmid).power.stop()
    try:
        await asyncio.to_thread(shutil.rmtree, os.path.abspath(root))
    except OSError as error:
        raise ConfigError(f"unable to remove '{root}' - {error.strerror}") from error


def _vmids_of_pid_files(layout: NodeLayout) -> set[int]:
    """VMs that run although somebody removed their configuration."""
    try:
        names = os.listdir(layout.runtime_directory)
    except OSError:
        return set()
    stems = (name.removesuffix(".pid") for name in names if name.endswith(".pid"))
    return {int(stem) for stem in stems if stem.isdecimal()}


def _open_lab(root: str, commands: CommandRunner | None) -> LocalNode:
    path = os.path.abspath(root)
    layout = NodeLayout(root=path, node_name=LAB_NODE_NAME)
    # A real node has no such file, and a link to a lab is not ours to remove.
    if os.path.realpath(path) == "/" or os.path.islink(path):
        raise ConfigError(f"'{root}' is not a lab")
    if read_lab_config(layout.lab_config) is None:
        raise ConfigError(
            f"'{root}' is not a lab", hint=f"'vzdump-qemu lab create {root}' makes one"
        )
    return open_node(path, commands=commands)


def _refuse_other_folder(root: str) -> None:
    layout = NodeLayout(root=root, node_name=LAB_NODE_NAME)
    try:
        is_empty = not os.listdir(root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"unable to create lab '{root}' - {error.strerror}") from error
    if not is_empty and read_lab_config(layout.lab_config) is None:
        raise ConfigError(
            f"'{root}' is not empty and not a lab", hint="choose a new folder for the lab"
        )


def _make_tree(layout: NodeLayout, config: LabConfig) -> None:
    directories = [
        layout.vm_config_directory,
        os.path.dirname(layout.firewall(100)),
        os.path.dirname(layout.lab_config),
        layout.runtime_directory,
        layout.vm_lock_directory,
        os.path.join(layout.root, "var/log/vzdump"),
    ]
    directories += [
        os.path.join(layout.default_storage_path, name) for name in _STORAGE_SUBDIRECTORIES
    ]
    for directory in directories:
        os.makedirs(directory, exist_ok=True)
    for name, target in (
        ("local", f"nodes/{layout.node_name}"),
        ("qemu-server", f"nodes/{layout.node_name}/qemu-server"),
    ):
        link = os.path.join(layout.pve_directory, name)
        if not os.path.lexists(link):
            os.symlink(target, link)
    if not os.path.exists(layout.storage_config):
        with open(layout.storage_config, "w", encoding="utf-8") as file:
            file.write(_STORAGE_CONFIG)
    # Last: from here on the folder counts as a lab.
    with open(layout.lab_config, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(config.render())


async def _create_vm(
    layout: NodeLayout,
    vmid: int,
    disks: Sequence[LabDisk],
    *,
    has_agent: bool,
    fill_seed: int | None,
    commands: CommandRunner,
) -> None:
    lines = [f"agent: {int(has_agent)}", "cores: 1", "memory: 64", f"name: lab-{vmid}"]
    directory = os.path.join(layout.default_storage_path, "images", str(vmid))
    made: list[str] = []
    try:
        for index, disk in enumerate(disks):
            name = f"vm-{vmid}-disk-{index}.{disk.format}"
            path = os.path.join(directory, name)
            if os.path.exists(path):
                raise StorageError(f"image '{path}' exists already")
            made.append(path)
            await _create_disk(
                path, disk, seed=fill_seed, stream_index=vmid * 256 + index, commands=commands
            )
            size = render_config_size(disk.size_bytes)
            lines.append(f"{disk.key}: local:{vmid}/{name},size={size}")
        _write_config(layout, vmid, lines)
    except BaseException:
        for path in made:
            remove_image(path)
        with suppress(OSError):
            os.rmdir(directory)
        raise


def _write_config(layout: NodeLayout, vmid: int, lines: Sequence[str]) -> None:
    try:
        with open(layout.vm_config(vmid), "x", encoding="utf-8") as file:
            file.write("\n".join(sorted(lines)) + "\n")
    except OSError as error:
        raise ConfigError(f"unable to create VM {vmid} - {error.strerror}") from error


async def _create_disk(
    path: str, disk: LabDisk, *, seed: int | None, stream_index: int, commands: CommandRunner
) -> None:
    if seed is None:
        await create_image(
            path, size_bytes=disk.size_bytes, image_format=disk.format, commands=commands
        )
        return
    from vzdump_qemu.node.lab_fill import fill_raw_file

    raw_path = path if disk.format == "raw" else f"{path}.fill"
    await create_image(raw_path, size_bytes=disk.size_bytes, image_format="raw", commands=commands)
    try:
        await asyncio.to_thread(fill_raw_file, raw_path, seed=seed, stream_index=stream_index)
        if raw_path != path:
            await convert_raw_image(raw_path, path, image_format=disk.format, commands=commands)
    finally:
        if raw_path != path:
            remove_image(raw_path)


async def _read_vm_status(node: LocalNode, vmid: int) -> LabVmStatus:
    config = parse_vm_config(await node.read_vm_config(vmid), vmid=vmid)
    machine = node.machine(vmid)
    is_running = await machine.is_running()
    run_state = ""
    if is_running:
        with suppress(QmpError):
            async with machine.connect_qmp(timeout_s=_STATUS_TIMEOUT_S) as qmp:
                reply = await qmp.execute("query-status", timeout_s=_STATUS_TIMEOUT_S)
                run_state = str(reply.get("status", "")) if isinstance(reply, dict) else ""
    return LabVmStatus(
        vmid=vmid, name=config.name, is_running=is_running, run_state=run_state, lock=config.lock
    )
