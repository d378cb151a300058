"""A folder node with the simulated QEMU: the same code, a guest that reacts."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from vzdump_qemu.node import open_node
from vzdump_qemu.node.lab import LabDisk, create_lab, destroy_lab
from vzdump_qemu.node.lab_config import LabConfig

KEYS = ("scsi0", "virtio0", "ide0", "sata0", "efidisk0", "tpmstate0")
pytestmark = pytest.mark.slow


@pytest.fixture
async def node(short_directory):
    binary = shutil.which("vzsim-qemu") or os.path.join(
        os.path.dirname(sys.executable), "vzsim-qemu"
    )
    root = str(short_directory / "lab")
    await create_lab(
        root,
        vmids=[100],
        disks=[LabDisk(key=key, size_bytes=1024 * 1024) for key in KEYS],
        config=LabConfig(qemu=binary),
        has_agent=True,
    )
    async with open_node(root) as opened:
        yield opened
    await destroy_lab(root)


async def _run_state(machine):
    async with machine.connect_qmp(timeout_s=10) as qmp:
        return (await qmp.execute("query-status", timeout_s=10))["status"]


async def test_drives_are_named_as_backups_name_them(node):
    machine = node.machine(100)
    await machine.power.start_paused()
    assert await machine.is_running()
    assert await _run_state(machine) == "prelaunch"
    async with machine.connect_qmp(timeout_s=10) as qmp:
        blocks = await qmp.execute("query-block", timeout_s=10)
    names = {block["device"] for block in blocks}
    assert names == {f"drive-{key}" for key in KEYS if key != "tpmstate0"}


async def test_guest_is_frozen_and_thawed_by_its_agent(node):
    machine = node.machine(100)
    await machine.power.start()
    async with machine.connect_agent(timeout_s=10) as agent:
        assert await agent.execute("guest-fsfreeze-freeze", timeout_s=10) >= 1
        assert await agent.execute("guest-fsfreeze-status", timeout_s=10) == "frozen"
    async with machine.connect_agent(timeout_s=10) as agent:
        assert await agent.execute("guest-fsfreeze-thaw", timeout_s=10) >= 1
        assert await agent.execute("guest-fsfreeze-status", timeout_s=10) == "thawed"


async def test_guest_is_shut_down_by_its_agent(node):
    machine = node.machine(100)
    await machine.power.start()
    assert await machine.power.shut_down(timeout_s=30) == []
    assert not await machine.is_running()
    assert os.listdir(node.layout.runtime_directory) == []


async def test_guest_is_suspended_and_resumed(node):
    machine = node.machine(100)
    await machine.power.start()
    await machine.power.suspend()
    assert await _run_state(machine) == "paused"
    await machine.power.resume()
    assert await _run_state(machine) == "running"


async def test_descriptor_reaches_the_backup_of_the_same_connection(node):
    machine = node.machine(100)
    await machine.power.start_paused()
    read_fd, write_fd = os.pipe()
    async with machine.connect_qmp(timeout_s=10) as qmp:
        await qmp.execute_with_fd("getfd", {"fdname": "backup"}, write_fd, timeout_s=10)
        os.close(write_fd)
        arguments = {
            "backup-file": "/dev/fdname/backup",
            "format": "vma",
            "devlist": "drive-scsi0",
        }
        reply = await qmp.execute("backup", arguments, timeout_s=30)
    assert len(reply["UUID"]) == 36
    assert os.read(read_fd, 4) == b"VMA\0"
    while os.read(read_fd, 65536):
        pass
    os.close(read_fd)
