"""How the nodes of one disk's point in time are opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from vzdump_qemu.engine.attachments import RunDisk
from vzdump_qemu.engine.pull_disks import PullDisk
from vzdump_qemu.engine.pull_nodes import PullNodes, add_fleecing
from vzdump_qemu.ports import QmpEvent, VolumeFacts


class Recording:
    """A monitor that does all that it is told."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        if command == "blockdev-add" and arguments is not None:
            self.nodes[arguments["node-name"]] = dict(arguments)

    async def execute_with_fd(
        self, command: str, arguments: Mapping[str, Any], fd: int, *, timeout_s: float
    ) -> Any:
        raise AssertionError("no descriptor is needed")

    def events(self, *names: str) -> AbstractAsyncContextManager[AsyncIterator[QmpEvent]]:
        raise AssertionError(f"nobody listens for {names} here")


def _facts(path: str) -> VolumeFacts:
    return VolumeFacts(
        volid=f"local:{path}",
        storage_id="local",
        path=path,
        size_bytes=1 << 20,
        format="qcow2",
        is_block_device=False,
    )


def test_fleecing_file_is_never_flushed_so_its_end_does_not_hold_up_the_guest() -> None:
    monitor, nodes = Recording(), PullNodes(index=0)
    disk = RunDisk(key="scsi0", device_id="drive-scsi0", facts=_facts("/disk"))
    found = PullDisk(disk=disk, device_path="/machine/x", node_name="#block1", size_bytes=1 << 20)
    asyncio.run(add_fleecing(monitor, nodes, found, _facts("/fleece"), limit_bytes=1 << 19))
    assert monitor.nodes[nodes.fleecing_file]["cache"] == {"no-flush": True}
    assert monitor.nodes[nodes.fleecing_file]["filename"] == "/fleece"
    assert monitor.nodes[nodes.fleecing]["file"] == nodes.fleecing_limit
    # What the guest wrote itself is flushed as ever: its own node is not opened anew.
    assert monitor.nodes[nodes.fleecing]["backing"] == "#block1"
