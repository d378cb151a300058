"""What is shown of a backup that another program sent: all of it is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from tests.engine.pbs_world import TARGET, PbsWorld
from vzdump_qemu.errors import PbsCorrupt, PbsError, PbsKeyError
from vzdump_qemu.formats.pbs import BackupRef, EncryptionKey, bare_key_file, encode_key_file
from vzdump_qemu.pbs_ports import DiskSize
from vzdump_qemu.units import NS_PER_S
from vzsim.fakepbs import Fault, FaultKind
from vzsim.world.files import SimulatedFile

MIB = 1 << 20
DISKS = (
    DiskSize(device_id="drive-scsi0", size_bytes=8 * MIB),
    DiskSize(device_id="drive-scsi1", size_bytes=2 * MIB + 512),
)
CONFIGS = ("qemu-server.conf",)
Scene = Callable[[PbsWorld], Awaitable[None]]


def _put_key(world: PbsWorld, first_byte: int) -> None:
    key = EncryptionKey(bytes([first_byte]) * 32)
    content = encode_key_file(bare_key_file(key, created_s=1, modified_s=1))
    world.files.files["/k.enc"] = SimulatedFile(bytearray(content))


async def _sent(world: PbsWorld) -> BackupRef:
    result = await world.back_up()
    assert result.error is None, result
    return BackupRef.parse(result.archive_path)


def test_whole_backup_is_measured_and_named() -> None:
    async def scene(world: PbsWorld) -> None:
        backup = await _sent(world)
        first = await world.uploads().prove(TARGET, backup, DISKS, CONFIGS)
        assert first.size_bytes > 10 * MIB + 512
        assert 0 < first.sent_bytes < first.size_bytes
        assert first.backup_id == (await world.uploads().prove(TARGET, backup, (), ())).backup_id
        second = await world.uploads().prove(TARGET, await _sent(world), DISKS, CONFIGS)
        assert second.backup_id != first.backup_id

    PbsWorld().play(scene)


@pytest.mark.parametrize(
    ("disks", "configs", "text"),
    [
        (DISKS, (*CONFIGS, "fw.conf"), "lacks file 'fw.conf.blob'"),
        (
            (*DISKS, DiskSize(device_id="drive-scsi2", size_bytes=512)),
            CONFIGS,
            "lacks file 'drive-scsi2.img.fidx'",
        ),
        (
            (DISKS[0], replace(DISKS[1], size_bytes=2 * MIB)),
            CONFIGS,
            "has 2097664 bytes instead of 2097152",
        ),
    ],
)
def test_backup_that_lacks_something_is_corrupt(
    disks: Sequence[DiskSize], configs: Sequence[str], text: str
) -> None:
    async def scene(world: PbsWorld) -> None:
        backup = await _sent(world)
        with pytest.raises(PbsCorrupt, match=text):
            await world.uploads().prove(TARGET, backup, disks, configs)

    PbsWorld().play(scene)


def test_plain_backup_is_none_where_a_key_was_configured() -> None:
    async def scene(world: PbsWorld) -> None:
        backup = await _sent(world)
        _put_key(world, 1)
        with pytest.raises(PbsError):
            keyed = replace(TARGET, key_path="/k.enc")
            await world.uploads().prove(keyed, backup, DISKS, CONFIGS)

    PbsWorld().play(scene)


def test_backup_of_another_key_is_told_as_that() -> None:
    target = replace(TARGET, key_path="/k.enc")

    async def scene(world: PbsWorld) -> None:
        _put_key(world, 1)
        backup = await _sent(world)
        _put_key(world, 2)
        with pytest.raises(PbsKeyError):
            await world.uploads().prove(target, backup, DISKS, CONFIGS)

    PbsWorld(target=target).play(scene)


def test_backup_that_is_not_there_is_looked_for_a_while() -> None:
    async def scene(world: PbsWorld) -> None:
        backup = await _sent(world)
        began_ns = world.clock.now_ns()
        absent = replace(backup, backup_time_s=backup.backup_time_s + 60)
        with pytest.raises(PbsError):
            await world.uploads().prove(TARGET, absent, DISKS, CONFIGS)
        assert 15 <= (world.clock.now_ns() - began_ns) / NS_PER_S < 60

    PbsWorld().play(scene)


def test_server_that_comes_back_in_time_is_believed() -> None:
    async def scene(world: PbsWorld) -> None:
        backup = await _sent(world)
        fault = Fault(kind=FaultKind.REPLY, endpoint="GET /download", status=503, count=2)
        world.pbs.faults.add(fault)
        assert (await world.uploads().prove(TARGET, backup, DISKS, CONFIGS)).backup_id

    PbsWorld().play(scene)


def test_backup_in_the_making_is_not_final() -> None:
    async def scene(world: PbsWorld) -> None:
        upload = await world.uploads().connect(
            TARGET, replace(await _sent(world), backup_time_s=int(world.clock.wall_s()) + 60)
        )
        await upload.begin_indexes((), (("qemu-server.conf", b"name: x\n"),))
        newest = world.backups()[-1]
        with pytest.raises(PbsError):
            await world.uploads().prove(TARGET, newest, (), CONFIGS)
        await upload.abort()

    PbsWorld().play(scene)
