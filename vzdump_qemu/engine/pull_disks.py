"""Which of a QEMU's disks can be pulled, and what stands in the way of the others.

Owns finding the guest's device and the node behind each disk, and every refusal by name; nothing
is changed here. Source: failure modes 27, 31 to 34, 96; measured on QEMU 7.2.22:

- an NBD client that leaves an export in an iothread ends QEMU there (assertion in
  ``nbd_blockdev_client_closed``); from 9.0 on clients are closed in the main loop;
- a job's own filter is invisible in ``query-block``: exchanging the device's node would cut it
  off, so a disk of a VM with a block job is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.errors import JobError, QmpCommandError
from vzdump_qemu.formats.query_block import device_path_of
from vzdump_qemu.ports import Qmp

QUERY_TIMEOUT_S = 60.0
# Before this version an NBD client that leaves ends a QEMU whose export runs in an iothread.
IOTHREAD_EXPORTS_SINCE = (9, 0)
_PASSTHROUGH_TYPES = frozenset({"scsi-block", "scsi-generic"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PullDisk:
    """One disk as QEMU has it.

    Attributes:
        device_path: QOM path of the guest's device; empty if nothing can write to the disk, so
            that it needs no protection.
        node_name: the block node that device uses.
    """

    disk: RunDisk
    device_path: str
    node_name: str
    size_bytes: int


async def find_pull_disks(qmp: Qmp, disks: Sequence[RunDisk]) -> tuple[PullDisk, ...]:
    """Find all disks, in the order given. Raises JobError naming the first that cannot be had."""
    backends = await qmp.execute("query-block", timeout_s=QUERY_TIMEOUT_S)
    found = tuple(_locate(backends, disk) for disk in disks)
    _refuse_twice(found)
    _refuse_jobs(await qmp.execute("query-block-jobs", timeout_s=QUERY_TIMEOUT_S))
    unsafe_iothreads = await _has_unsafe_iothreads(qmp)
    for each in found:
        if each.device_path:
            await _refuse_device(qmp, each, unsafe_iothreads=unsafe_iothreads)
    return found


async def query_version(qmp: Qmp) -> tuple[int, int, int]:
    """QEMU's version: major, minor, micro."""
    version = (await qmp.execute("query-version", timeout_s=QUERY_TIMEOUT_S))["qemu"]
    return int(version["major"]), int(version["minor"]), int(version["micro"])


def _belongs(backend: Mapping[str, Any], disk: RunDisk) -> bool:
    if disk.facts.device_path:
        return device_path_of(backend) == disk.facts.device_path
    if backend.get("device") == disk.device_id:
        return True
    device_path = device_path_of(backend)
    if device_path.removesuffix("/virtio-backend") == f"/machine/peripheral/{disk.key}":
        return True
    inserted = backend.get("inserted") or {}
    return inserted.get("node-name") == disk.device_id


def _locate(backends: Sequence[Mapping[str, Any]], disk: RunDisk) -> PullDisk:
    backend = next((each for each in backends if _belongs(each, disk)), None)
    if backend is None:
        raise JobError(
            f"Device '{disk.device_id}' not found",
            hint="the configuration was changed after the VM was started: restart the VM, "
            "or exclude the disk (backup=0, --exclude-disk)",
        )
    inserted = backend.get("inserted")
    if not inserted:
        raise JobError(f"Device '{disk.device_id}' has no medium")
    size_bytes = int(inserted["image"]["virtual-size"])
    if size_bytes == 0:
        raise JobError(f"Device '{disk.device_id}' has size 0")
    return PullDisk(
        disk=disk,
        device_path="" if inserted.get("ro") else device_path_of(backend),
        node_name=str(inserted["node-name"]),
        size_bytes=size_bytes,
    )


def _refuse_twice(found: Sequence[PullDisk]) -> None:
    for index, each in enumerate(found):
        for earlier in found[:index]:
            if each.node_name == earlier.node_name:
                raise JobError(
                    f"Device '{each.disk.device_id}' and '{earlier.disk.device_id}' share a node"
                )


def _refuse_jobs(jobs: Sequence[Mapping[str, Any]]) -> None:
    if jobs:
        job = jobs[0]
        raise JobError(
            f"block job '{job.get('device', '')}' ({job.get('type', '')}) is active in the VM",
            hint="wait for its end, or cancel it with the tool that started it",
        )


async def _has_unsafe_iothreads(qmp: Qmp) -> bool:
    if (await query_version(qmp))[:2] >= IOTHREAD_EXPORTS_SINCE:
        return False
    return bool(await qmp.execute("query-iothreads", timeout_s=QUERY_TIMEOUT_S))


async def _refuse_device(qmp: Qmp, found: PullDisk, *, unsafe_iothreads: bool) -> None:
    device_id = found.disk.device_id
    if await _property(qmp, found.device_path, "type") in _PASSTHROUGH_TYPES:
        raise JobError(
            f"Device '{device_id}' passes the guest's commands through to the host's device",
            hint="use a scsi-hd device, or exclude the disk (backup=0, --exclude-disk)",
        )
    if await _property(qmp, found.device_path, "share-rw") is True:
        raise JobError(
            f"Device '{device_id}' is shared with other writers",
            hint="they could change it unseen: exclude the disk (backup=0, --exclude-disk)",
        )
    if unsafe_iothreads and await _runs_in_iothread(qmp, found.device_path):
        major, minor = IOTHREAD_EXPORTS_SINCE
        raise JobError(
            f"Device '{device_id}' runs in an iothread, where this QEMU cannot be read safely",
            hint=f"QEMU {major}.{minor} can; until then take the iothread off the disk, "
            "or back it up while the VM is off",
        )


async def _runs_in_iothread(qmp: Qmp, device_path: str) -> bool:
    """A virtio disk has an iothread of its own, a SCSI disk that of its controller."""
    if await _property(qmp, device_path, "iothread"):
        return True
    bus = str(await _property(qmp, device_path, "parent_bus") or "")
    return bool(bus and await _property(qmp, bus.rpartition("/")[0], "iothread"))


async def _property(qmp: Qmp, device_path: str, name: str) -> object:
    """A property of a device; None if it has none of that name."""
    try:
        value: object = await qmp.execute(
            "qom-get", {"path": device_path, "property": name}, timeout_s=QUERY_TIMEOUT_S
        )
    except QmpCommandError:
        return None
    return value
