"""Runs that read the disks of a VM without a QEMU process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.world import World
from vzdump_qemu import events
from vzdump_qemu.events import Consistency
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.world.restore import restore_disks

SLOW_BYTES_PER_S = 2 << 20


def _options(**changes: Any) -> BackupOptions:
    return replace(BackupOptions(compressor=("zstd",), archive_extension=".zst"), **changes)


@pytest.fixture
def off() -> World:
    """A VM that is off, on a node with a stock QEMU."""
    world = World(dialect=Dialect.UPSTREAM, state=None)

    def arrange(world: World) -> None:
        world.packer.rules.bytes_per_s = SLOW_BYTES_PER_S

    world.arrange = arrange
    return world


def test_disks_of_a_vm_that_is_off_are_read_without_a_qemu(off: World) -> None:
    result = off.run()
    assert result is not None and result.error is None, result
    assert result.consistency is Consistency.STOPPED
    images = {
        f"drive-scsi{index}": bytes(disk.read(0, disk.size_bytes))
        for index, (_, disk) in enumerate(sorted(off.host.images.items()))
    }
    assert off.restored() == images
    assert off.machine.boot_count == 0
    [chosen] = off.told_of(events.DataPathChosen)
    assert chosen.name == "offline"
    assert "JobStartIssued" not in off.names()
    off.assert_nothing_left()


def test_patched_qemu_reads_offline_where_it_is_asked_for(off: World) -> None:
    off.dialect = Dialect.PVE
    off.options = _options(data_path=DataPathChoice.OFFLINE)
    result = off.run()
    assert result is not None and result.error is None, result
    assert off.machine.boot_count == 0
    [path] = off.archives()
    assert set(restore_disks(off.files.read(path))) == {"drive-scsi0", "drive-scsi1"}


def test_patched_qemu_does_its_own_job_for_a_vm_that_is_off(off: World) -> None:
    off.dialect = Dialect.PVE
    off.assert_good(off.run())
    assert off.machine.boot_count == 1


def test_vm_started_meanwhile_makes_the_run_fail(off: World) -> None:
    async def start(world: World) -> None:
        while "JobAccepted" not in world.names():
            await asyncio.sleep(0.05)
        world.machine.boot(RunState.RUNNING)

    off.meanwhile = start
    off.assert_failed_clean(off.run(), "VM 100 is running: its disks cannot be read offline")
    assert off.machine.run_state is RunState.RUNNING


def test_running_vm_is_not_read_offline(off: World) -> None:
    off.state = RunState.RUNNING
    off.options = _options(data_path=DataPathChoice.OFFLINE)
    off.assert_failed_clean(off.run(), "VM 100 is running: its disks cannot be read offline")
    assert off.machine.run_state is RunState.RUNNING
    assert "qom-set" not in off.qmp_log


def test_image_that_needs_the_daemon_is_refused_by_name_without_it(off: World) -> None:
    def arrange(world: World) -> None:
        describe = world.node.storages.describe

        async def describe_as_qcow2(volid: str) -> Any:
            return replace(await describe(volid), format="qcow2")

        world.node.storages.describe = describe_as_qcow2  # type: ignore[method-assign]

    off.arrange = arrange
    off.assert_failed_clean(off.run(), "needs 'qemu-storage-daemon' to be read offline")


@pytest.mark.parametrize("options", ["", ",format=raw"])
def test_row_5_7_format_of_a_disk_outside_storages_is_the_configured_one(
    off: World, options: str
) -> None:
    """Row 5.7, where a guest wrote a header of another format onto its own raw disk."""
    volid = "/var/lib/vz/images/100/vm-100-disk-0.raw"
    off.config = f"name: web\nscsi0: {volid}{options},size=8M\n"

    def arrange(world: World) -> None:
        describe = world.node.storages.describe

        async def describe_as_probed(volid: str) -> Any:
            return replace(await describe(volid), format="qcow2")

        world.node.storages.describe = describe_as_probed  # type: ignore[method-assign]

    off.arrange = arrange
    if not options:
        off.assert_failed_clean(off.run(), "'scsi0' looks like qcow2, and nothing says that it is")
        return
    result = off.run()
    assert result is not None and result.error is None, result
    [path] = off.archives()
    assert set(restore_disks(off.files.read(path))) == {"drive-scsi0"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nbd:unix:/x", "disk 'scsi0' reached over a network needs 'qemu-storage-daemon'"),
        ("rbd:p/i:id=a:keyring=/k", "the keyring of 'p/i' cannot be named to a block node"),
        ("nbd:nowhere", "unable to parse disk address 'nbd:nowhere'"),
        ("ssh://host/x", "cannot be read by its address 'ssh://host/x'"),
    ],
)
def test_disk_that_only_qemus_drivers_reach_is_refused_by_name_without_them(
    off: World, path: str, text: str
) -> None:
    def arrange(world: World) -> None:
        describe = world.node.storages.describe

        async def describe_as_address(volid: str) -> Any:
            return replace(await describe(volid), path=path)

        world.node.storages.describe = describe_as_address  # type: ignore[method-assign]

    off.arrange = arrange
    off.assert_failed_clean(off.run(), text)


@pytest.mark.parametrize("stage", [events.DataPathChosen, events.JobAccepted, events.ProgressMade])
def test_cancelled_reading_leaves_nothing(off: World, stage: type[events.Event]) -> None:
    off.cancel_on = stage
    assert off.run() is None
    assert off.archives() == []
    off.assert_nothing_left()
    assert off.machine.run_state is None
