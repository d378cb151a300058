"""The block nodes that keep one disk's point in time: their names, options and removal.

Owns how a copy-before-write filter gets under a running device and out again. Measured on QEMU
7.2.22 (``-drive``, ``-blockdev``, virtio-blk, virtio-scsi, IDE, pflash; raw and qcow2):

- A device's node can be exchanged at run time (``qom-set`` of ``drive``, 0.7 ms), but only one
  device at a time. ``blockdev-reopen`` exchanges the children of any number of nodes in one
  step, all of them drained before it and released after it (3 disks: 1.5 ms): one point in
  time, with or without an agent, and no vCPU is stopped.
- So every disk first gets a ``raw`` node in between that passes everything on (the *pass* node);
  one reopen of all of them puts the filters in. The filters exist by then, but nothing reads
  them: a filter with a user would forbid the device to write beside it.
- A reopen flushes, under the drain: 48 ms after 256 MiB of unflushed writes, 0.7 ms the second
  time. Hence one without effect goes ahead, outside the window.
- ``blockdev-backup sync=none`` in a transaction is one point in time too, but its filter fails
  the *guest's* write when the fleecing image is full (before 10.1), so it is used nowhere.
- A ``snapshot-access`` node must not be read for its data: where a request begins in what was
  copied and ends beyond it, 7.2.22 returns the *new* data (93 of 715 reads while a guest wrote).
  Read is the fleecing image with the disk as its backing, as after ``blockdev-backup``: the
  filter's copies and the reads wait for each other (0 of 1117). That image does not know a lost
  point in time; the view does, for ever, so it is asked whenever something is believed.
- ``raw`` with ``size`` in the chain of a fleecing image limits it: the write beyond fails inside
  the filter, the guest's own write went on in 21 ms, the VM ran on, reads of the view failed.
- After a crash a fleecing image is worth nothing, so its file is never flushed. Deleting its
  node flushed it, and the guest waited: its longest write during a backup, at 500 writes of
  64 KiB per second, was 95 ms (median of 6), without that flush 39 ms.
- Taking out: the device onto the filter, the passing node away, the device onto its own node. By
  ``blockdev-reopen`` it must not be done: with a fleecing image based on the disk 7.2.22 dies of
  ``bdrv_parent_drained_end_single_no_poll``; past the filter QEMU refuses, because the filter
  forbids other writers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vzdump_qemu.engine.pull_disks import QUERY_TIMEOUT_S, PullDisk
from vzdump_qemu.errors import JobError, QmpCommandError
from vzdump_qemu.formats.query_block import device_path_of
from vzdump_qemu.journal_ports import Reversal, ReversalKind
from vzdump_qemu.ports import Qmp, VolumeFacts

CHANGE_TIMEOUT_S = 60.0
DELETE_TIMEOUT_S = 600.0
# Above 4.29 s the limit overflows before 9.1: 45 s acted as 2 s.
CBW_TIMEOUT_S = 4
CBW_TIMEOUT_LONG_S = 20
CBW_TIMEOUT_LONG_SINCE = (9, 1)
NODE_PREFIX = "vzdump-"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullNodes:
    """Names of the nodes of disk number `index`; QEMU allows 31 characters."""

    index: int

    @property
    def passing(self) -> str:
        """Between the device and what it uses."""
        return f"{NODE_PREFIX}pass-{self.index}"

    @property
    def filter(self) -> str:
        """Copies old data away before a write goes on."""
        return f"{NODE_PREFIX}cbw-{self.index}"

    @property
    def view(self) -> str:
        """Cannot be read any more once the point in time is lost."""
        return f"{NODE_PREFIX}view-{self.index}"

    @property
    def fleecing(self) -> str:
        """Takes the old data."""
        return f"{NODE_PREFIX}fleece-{self.index}"

    @property
    def fleecing_limit(self) -> str:
        return f"{NODE_PREFIX}fleece-limit-{self.index}"

    @property
    def fleecing_file(self) -> str:
        return f"{NODE_PREFIX}fleece-file-{self.index}"

    @property
    def deletion_order(self) -> tuple[str, ...]:
        """What is to be deleted once the device uses its own node again; users first."""
        return (self.filter, self.fleecing, self.fleecing_limit, self.fleecing_file)


def release_reversal(index: int, found: PullDisk) -> Reversal:
    """What has to be known to take the nodes of one disk out, by another process as well."""
    names = (str(index), found.device_path, found.node_name)
    return Reversal(kind=ReversalKind.RELEASE_DISK, names=names)


async def add_fleecing(
    qmp: Qmp, nodes: PullNodes, found: PullDisk, facts: VolumeFacts, *, limit_bytes: int
) -> None:
    """Attach a fleecing image: what it does not hold is read from the disk itself.

    Args:
        facts: of a qcow2 image in a file, as large as the disk.
        limit_bytes: what it may grow to; 0 means no limit.
    """
    file_options = {"filename": facts.path, "discard": "unmap", "cache": {"no-flush": True}}
    await _add(qmp, nodes.fleecing_file, "file", **file_options)
    below = nodes.fleecing_file
    if limit_bytes:
        await qmp.execute(
            "block_resize", {"node-name": below, "size": limit_bytes}, timeout_s=CHANGE_TIMEOUT_S
        )
        await _add(qmp, nodes.fleecing_limit, "raw", file=below, size=limit_bytes)
        below = nodes.fleecing_limit
    await _add(qmp, nodes.fleecing, "qcow2", file=below, backing=found.node_name, discard="unmap")


async def insert_passing_node(qmp: Qmp, nodes: PullNodes, found: PullDisk) -> None:
    """Make the filter, without effect yet, and put the passing node under the device."""
    await _add_filter(qmp, nodes, found)
    await _add(qmp, nodes.passing, "raw", file=found.node_name)
    await _set_drive(qmp, found.device_path, nodes.passing)
    await reopen_passing(qmp, [(nodes, found.node_name)], timeout_s=CHANGE_TIMEOUT_S)


async def reopen_passing(qmp: Qmp, below: list[tuple[PullNodes, str]], *, timeout_s: float) -> None:
    """Put all these passing nodes onto other nodes, at one instant."""
    options = [{"driver": "raw", "node-name": nodes.passing, "file": name} for nodes, name in below]
    await qmp.execute("blockdev-reopen", {"options": options}, timeout_s=timeout_s)


async def add_view(qmp: Qmp, nodes: PullNodes) -> None:
    """Make it known whether the point in time still stands."""
    await _add(qmp, nodes.view, "snapshot-access", file=nodes.filter)


async def release_disk(qmp: Qmp, *, index: int, device_path: str, node_name: str) -> None:
    """Take out what is there of one disk's nodes; idempotent.

    Raises: JobError if the device cannot be given its node back now.
    """
    nodes = PullNodes(index=index)
    names = await node_names(qmp)
    if nodes.view in names:
        await _delete(qmp, nodes.view)
    used = await _used_node(qmp, device_path)
    if used in (nodes.passing, nodes.filter):
        await _refuse_block_job(qmp)
    if used == nodes.passing:
        await _set_drive(qmp, device_path, nodes.filter)
    if nodes.passing in names:
        await _delete(qmp, nodes.passing)
    if used in (nodes.passing, nodes.filter):
        await _set_drive(qmp, device_path, node_name)
    for name in nodes.deletion_order:
        if name in names:
            await _delete(qmp, name)


async def node_names(qmp: Qmp) -> set[str]:
    """Names of all block nodes."""
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=QUERY_TIMEOUT_S)
    return {str(node.get("node-name", "")) for node in nodes}


async def _used_node(qmp: Qmp, device_path: str) -> str:
    """The node that a device uses; empty if it is gone."""
    for backend in await qmp.execute("query-block", timeout_s=QUERY_TIMEOUT_S):
        if device_path_of(backend) == device_path:
            return str((backend.get("inserted") or {}).get("node-name", ""))
    return ""


async def _refuse_block_job(qmp: Qmp) -> None:
    if await qmp.execute("query-block-jobs", timeout_s=QUERY_TIMEOUT_S):
        # Its filter stands above our node, unseen, and would be cut off.
        raise JobError("a block job was started meanwhile: its disk is released after its end")


async def _add_filter(qmp: Qmp, nodes: PullNodes, found: PullDisk) -> None:
    version = (await qmp.execute("query-version", timeout_s=QUERY_TIMEOUT_S))["qemu"]
    is_exact = (int(version["major"]), int(version["minor"])) >= CBW_TIMEOUT_LONG_SINCE
    options = {
        "target": nodes.fleecing,
        "on-cbw-error": "break-snapshot",
        "cbw-timeout": CBW_TIMEOUT_LONG_S if is_exact else CBW_TIMEOUT_S,
    }
    await _add(qmp, nodes.filter, "copy-before-write", file=found.node_name, **options)


async def _add(qmp: Qmp, name: str, driver: str, **options: Any) -> None:
    node = {"driver": driver, "node-name": name, **options}
    await qmp.execute("blockdev-add", node, timeout_s=CHANGE_TIMEOUT_S)


async def _delete(qmp: Qmp, name: str) -> None:
    try:
        await qmp.execute("blockdev-del", {"node-name": name}, timeout_s=DELETE_TIMEOUT_S)
    except QmpCommandError as error:
        if "Failed to find" not in error.description:
            raise


async def _set_drive(qmp: Qmp, device_path: str, node_name: str) -> None:
    arguments = {"path": device_path, "property": "drive", "value": node_name}
    await qmp.execute("qom-set", arguments, timeout_s=CHANGE_TIMEOUT_S)
