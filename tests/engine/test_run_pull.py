"""Runs that pull from a QEMU without a backup job of its own: good, failing, cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.world import CONFIG, World
from vzdump_qemu import events
from vzdump_qemu.errors import StorageError
from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.plan.options import BackupOptions, DataPathChoice, FleecingOptions
from vzsim.fakeqmp.disks import FaultyDisk
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.schema import Dialect
from vzsim.fakeqmp.script import CommandRule, GuestRules, Script
from vzsim.world.machine import RUNTIME_DIRECTORY
from vzsim.world.restore import restore_disks

WRITING = Script(guest=GuestRules(writes_per_s=20, write_bytes=16384, seed=3))
READ_BYTES_PER_S = 2 << 20


@pytest.fixture
def pulled() -> World:
    """A VM of a stock QEMU."""
    world = World(dialect=Dialect.UPSTREAM)

    def arrange(world: World) -> None:
        world.packer.rules.bytes_per_s = READ_BYTES_PER_S

    world.arrange = arrange
    return world


def _options(**changes: Any) -> BackupOptions:
    return replace(BackupOptions(compressor=("zstd",), archive_extension=".zst"), **changes)


def _assert_let_go(world: World) -> None:
    """The guest's devices use their own nodes; nothing of ours is in QEMU or on the node."""
    world.assert_nothing_left()
    assert not [
        path for path in world.files.directories if path.startswith(RUNTIME_DIRECTORY + "/")
    ]
    assert not [path for path in world.host.images if "fleece" in path]
    assert world.node.fleecing_records.get(100, ()) in ((), [])
    if world.machine.run_state is not None:
        process = world.machine.process
        names = [reply["node-name"] for reply in process.block.describe_nodes()]
        assert not [name for name in names if name.startswith("vzdump-")]
        assert process.exports.describe() == []


def test_archive_is_the_point_in_time_while_the_guest_writes(pulled: World) -> None:
    pulled.script = WRITING
    result = pulled.run()
    pulled.assert_good(result)
    assert result is not None and result.consistency is Consistency.FROZEN
    [chosen] = pulled.told_of(events.DataPathChosen)
    assert (chosen.name, chosen.reason) == ("pull", "QEMU 7.2.22 has no 'backup' command")
    guest = pulled.machine.guest
    assert guest is not None and guest.write_count > 20
    assert guest.failed_write_count == 0
    assert pulled.machine.run_state is RunState.RUNNING
    _assert_let_go(pulled)


def test_freeze_window_holds_one_command_for_all_disks(pulled: World) -> None:
    pulled.run()
    window = pulled.told_of(events.FreezeWindowClosed)[0]
    assert window.own_s <= 0.002
    at = len(pulled.qmp_log) - 1 - pulled.qmp_log[::-1].index("nbd-server-start")
    # Between the server's start and the views there is the one reopen and nothing else.
    assert pulled.qmp_log[at + 1 : at + 3] == ["blockdev-reopen", "blockdev-add"]


def test_patched_qemu_is_pulled_from_where_it_is_asked_for(world: World) -> None:
    world.options = _options(data_path=DataPathChoice.PULL)
    result = world.run()
    world.assert_good(result)
    assert "backup" not in world.qmp_log
    assert world.told_of(events.DataPathChosen)[0].reason == ""
    _assert_let_go(world)


def test_native_path_is_refused_by_name_where_qemu_has_no_backup_command(pulled: World) -> None:
    pulled.options = _options(data_path=DataPathChoice.NATIVE)
    pulled.assert_failed_clean(pulled.run(), "QEMU 7.2.22 has no 'backup' command")


@pytest.mark.parametrize("mode", list(BackupMode))
def test_every_mode_pulls_and_leaves_the_guest_running(pulled: World, mode: BackupMode) -> None:
    pulled.options = _options(mode=mode)
    pulled.assert_good(pulled.run())
    assert pulled.machine.run_state is RunState.RUNNING
    _assert_let_go(pulled)


def test_paused_vm_is_pulled_and_stays_paused(pulled: World) -> None:
    pulled.state = RunState.PAUSED
    pulled.assert_good(pulled.run())
    assert pulled.machine.run_state is RunState.PAUSED
    _assert_let_go(pulled)


def test_tpm_state_is_read_from_its_volume(pulled: World) -> None:
    pulled.config = CONFIG + "tpmstate0: local:100/vm-100-tpm.raw,size=4M,version=v2.0\n"

    def arrange(world: World) -> None:
        image = world.host.images["/var/lib/vz/images/100/vm-100-disk-1.raw"]
        world.host.images["/var/lib/vz/images/100/vm-100-tpm.raw"] = image

    pulled.arrange = arrange
    result = pulled.run()
    assert result is not None and result.error is None
    [path] = pulled.archives()
    assert "drive-tpmstate0-backup" in restore_disks(pulled.files.read(path))
    _assert_let_go(pulled)


def test_full_fleecing_image_costs_the_backup_and_not_the_guest(pulled: World) -> None:
    pulled.script = WRITING
    pulled.options = _options(fleecing=FleecingOptions(enabled=True, storage_id="local"))

    def arrange(world: World) -> None:
        allocate = world.node.storages.allocate_fleecing

        async def allocate_small(*words: Any, **named: Any) -> Any:
            facts = await allocate(*words, **named)
            world.host.images[facts.path] = _Full(world.host.images[facts.path])
            return facts

        world.node.storages.allocate_fleecing = allocate_small  # type: ignore[method-assign]
        world.packer.rules.bytes_per_s = READ_BYTES_PER_S

    pulled.arrange = arrange
    result = pulled.run()
    pulled.assert_failed_clean(result, "the point in time of VM 100 cannot be read any more")
    guest = pulled.machine.guest
    assert guest is not None and guest.failed_write_count == 0
    assert pulled.machine.run_state is RunState.RUNNING
    _assert_let_go(pulled)


class _Full:
    """An image that takes no data."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, offset_bytes: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("command", "nth"),
    [("query-block", 1), ("query-qmp-schema", 1), ("nbd-server-start", 1),
     *(("blockdev-add", nth) for nth in range(1, 11)),
     *(("qom-set", nth) for nth in (1, 2)),
     *(("blockdev-reopen", nth) for nth in (1, 2, 3)),
     *(("block-export-add", nth) for nth in (1, 2))],
)  # fmt: skip
def test_refused_command_fails_the_run_and_everything_is_taken_out(
    pulled: World, command: str, nth: int
) -> None:
    rule = CommandRule(name=command, nth=nth, error="simulated refusal")
    pulled.script = replace(pulled.script, command=(rule,))
    result = pulled.run()
    pulled.assert_failed_clean(result, "simulated refusal")
    assert pulled.machine.run_state is RunState.RUNNING
    _assert_let_go(pulled)


def test_storage_without_room_fails_the_run_before_the_guest_is_touched(pulled: World) -> None:
    def arrange(world: World) -> None:
        async def refuse(*words: Any, **named: Any) -> Any:
            raise StorageError("no room")

        world.node.storages.allocate_fleecing = refuse  # type: ignore[method-assign]

    pulled.arrange = arrange
    pulled.assert_failed_clean(pulled.run(), "no room")
    assert "qom-set" not in pulled.qmp_log
    _assert_let_go(pulled)


def test_end_of_qemu_is_the_cause_that_is_told(pulled: World) -> None:
    async def end(world: World) -> None:
        while "TransferEnded" not in world.names() and "JobAccepted" not in world.names():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        world.machine.end_process()

    pulled.meanwhile = end
    pulled.assert_failed_clean(pulled.run(), "VM 100 not running: QEMU ended during the backup")


def test_read_error_of_a_disk_fails_the_run(pulled: World) -> None:
    def arrange(world: World) -> None:
        node = world.machine.process.block.backend("drive-scsi0")
        assert node is not None and node.node is not None and node.node.disk is not None
        node.node.disk = FaultyDisk(node.node.disk, bad_sector=4000, errno_code=5)

    pulled.arrange = arrange
    result = pulled.run()
    assert result is not None and result.error is not None
    assert pulled.archives() == []
    _assert_let_go(pulled)


@pytest.mark.parametrize(
    "stage",
    [events.DataPathChosen, events.FleecingAttaching, events.FreezeIssued, events.JobStartIssued,
     events.ThawIssued, events.JobAccepted, events.VmContinued, events.ProgressMade,
     events.TransferEnded, events.FleecingRemoving],
)  # fmt: skip
def test_cancelled_at_any_stage_everything_is_taken_out(
    pulled: World, stage: type[events.Event]
) -> None:
    pulled.cancel_on = stage
    assert pulled.run() is None
    assert pulled.archives() == []
    assert pulled.machine.run_state is RunState.RUNNING
    _assert_let_go(pulled)


def test_other_block_job_is_named_and_left_alone(pulled: World) -> None:
    rule = CommandRule(
        name="query-block-jobs", reply=[{"device": "mirror-scsi0", "type": "mirror"}]
    )
    pulled.script = replace(pulled.script, command=(rule,))
    pulled.assert_failed_clean(pulled.run(), "block job 'mirror-scsi0' (mirror) is active")
    assert "qom-set" not in pulled.qmp_log
