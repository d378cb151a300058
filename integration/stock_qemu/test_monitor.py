"""Monitor connections to the real server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from integration.real_lab import RealLab
from vzdump_qemu.errors import QmpCommandError, QmpUnreachable
from vzdump_qemu.node.opening import open_node
from vzdump_qemu.ports import Machine


@pytest.fixture
async def vm(real_lab: RealLab) -> AsyncIterator[Machine]:
    real_lab.create("--disk", "scsi0=8M", "--disk", "virtio1=8M,format=qcow2")
    async with open_node(str(real_lab.root)) as node:
        machine = node.machine(100)
        await machine.power.start()
        yield machine


async def test_connections_follow_one_another(vm: Machine) -> None:
    for _ in range(20):
        async with vm.connect_qmp(timeout_s=5) as qmp:
            assert (await qmp.execute("query-status", timeout_s=5))["running"] is True


async def test_disks_have_the_names_that_a_backup_asks_for(vm: Machine) -> None:
    async with vm.connect_qmp(timeout_s=5) as qmp:
        backends = await qmp.execute("query-block", timeout_s=5)
        nodes = await qmp.execute("query-named-block-nodes", {"flat": True}, timeout_s=5)
    sizes = {
        backend["device"]: backend["inserted"]["image"]["virtual-size"] for backend in backends
    }
    assert sizes == {"drive-scsi0": 8 << 20, "drive-virtio1": 8 << 20}
    assert {node["drv"] for node in nodes} == {"raw", "qcow2", "file"}


async def test_error_of_the_server_keeps_its_class_and_text(vm: Machine) -> None:
    async with vm.connect_qmp(timeout_s=5) as qmp:
        with pytest.raises(QmpCommandError) as caught:
            await qmp.execute("backup", {"backup-file": "/x"}, timeout_s=5)
        assert caught.value.error_class == "CommandNotFound"
        assert caught.value.description == "The command backup has not been found"
        assert (await qmp.execute("query-status", timeout_s=5))["status"] == "running"


async def test_descriptor_is_handed_over_and_taken_back(vm: Machine) -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    try:
        async with vm.connect_qmp(timeout_s=5) as qmp:
            await qmp.execute_with_fd("getfd", {"fdname": "backup"}, write_fd, timeout_s=5)
            os.close(write_fd)
            # QEMU's own copy keeps the pipe open.
            with pytest.raises(BlockingIOError):
                os.read(read_fd, 1)
            await qmp.execute("closefd", {"fdname": "backup"}, timeout_s=5)
            assert os.read(read_fd, 1) == b""
            with pytest.raises(QmpCommandError) as caught:
                await qmp.execute("closefd", {"fdname": "backup"}, timeout_s=5)
        assert "File descriptor named 'backup' not found" in caught.value.description
    finally:
        os.close(read_fd)


async def test_descriptor_stays_in_the_monitor_when_its_connection_ends(vm: Machine) -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    try:
        async with vm.connect_qmp(timeout_s=5) as qmp:
            await qmp.execute_with_fd("getfd", {"fdname": "backup"}, write_fd, timeout_s=5)
        os.close(write_fd)
        async with vm.connect_qmp(timeout_s=5) as qmp:
            with pytest.raises(BlockingIOError):
                os.read(read_fd, 1)
            await qmp.execute("closefd", {"fdname": "backup"}, timeout_s=5)
        assert os.read(read_fd, 1) == b""
    finally:
        os.close(read_fd)


async def test_second_client_waits_and_is_told_who_is_in_the_way(vm: Machine) -> None:
    async with vm.connect_qmp(timeout_s=5):
        with pytest.raises(QmpUnreachable) as caught:
            async with vm.connect_qmp(timeout_s=0.5):
                pass
    assert "another client" in caught.value.hint
    async with vm.connect_qmp(timeout_s=5) as qmp:
        assert await qmp.execute("query-version", timeout_s=5)


async def test_events_of_stopping_and_continuing_are_heard(vm: Machine) -> None:
    async with vm.connect_qmp(timeout_s=5) as qmp, qmp.events("STOP", "RESUME") as heard:
        await qmp.execute("stop", timeout_s=5)
        await qmp.execute("cont", timeout_s=5)
        names = [(await anext(heard)).name, (await anext(heard)).name]
    assert names == ["STOP", "RESUME"]
