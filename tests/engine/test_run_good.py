"""Runs that end well: every mode and every state a VM can be found in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.world import CONFIG, STDOUT, World
from vzdump_qemu import events
from vzdump_qemu.events import BackupMode, Consistency, FreezeSkip
from vzdump_qemu.plan.options import BackupOptions, FleecingOptions
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import AgentRules, BackupRules, GuestRules, Script
from vzsim.world.files import SimulatedFile
from vzsim.world.restore import restore_disks

STEPS = [
    "JobStarted",
    "RunStarted",
    "StatusSeen",
    "VmNamed",
    "DiskIncluded",
    "DiskIncluded",
    "ModeChosen",
    "IoPrioritySet",
    "ArchiveCreating",
    "DataPathChosen",
    "FreezeIssued",
    "JobStartIssued",
    "ThawIssued",
    "FreezeWindowClosed",
    "JobAccepted",
    "VmContinued",
    "ProgressMade",
    "TransferEnded",
    "ArchiveProved",
    "ArchivePublished",
    "RunSucceeded",
    "RunClosed",
    "JobEnded",
]


def _options(**changes: object) -> BackupOptions:
    return replace(BackupOptions(compressor=("zstd",), archive_extension=".zst"), **changes)  # type: ignore[arg-type]


def test_snapshot_of_running_vm_takes_the_steps_in_order(world: World) -> None:
    result = world.run()
    world.assert_good(result)
    assert world.names() == STEPS
    assert result is not None and result.consistency is Consistency.FROZEN
    assert world.machine.run_state is RunState.RUNNING


def test_freeze_window_holds_the_start_of_the_job_and_nothing_else(world: World) -> None:
    world.run()
    assert world.qmp_log.count("backup") == 1
    at = world.qmp_log.index("backup")
    assert world.qmp_log[at - 1] == "getfd"
    window = world.told_of(events.FreezeWindowClosed)[0]
    assert window.own_s <= 0.002


def test_archive_is_the_point_in_time_while_the_guest_writes(world: World) -> None:
    world.script = Script(
        guest=GuestRules(writes_per_s=200, write_bytes=16384, seed=3),
        backup=BackupRules(bytes_per_s=2 << 20),
    )
    world.assert_good(world.run())


def test_suspend_mode_stops_the_guest_until_the_job_has_started(world: World) -> None:
    world.options = _options(mode=BackupMode.SUSPEND)
    result = world.run()
    world.assert_good(result)
    names = world.names()
    assert names.index("GuestSuspending") < names.index("JobAccepted") < names.index("VmContinued")
    assert world.told_of(events.FreezeSkipped)[0].reason is FreezeSkip.NOT_RUNNING
    assert world.told_of(events.VmContinued)[0].downtime_s is not None
    assert "GuestResuming" not in names
    assert world.machine.run_state is RunState.RUNNING


def test_stop_mode_shuts_down_and_continues_in_the_new_process(world: World) -> None:
    world.options = _options(mode=BackupMode.STOP)
    result = world.run()
    world.assert_good(result)
    names = world.names()
    assert names.index("ModeChosen") < names.index("VmNamed") < names.index("GuestStopping")
    assert names.index("GuestStopping") < names.index("QemuStarting") < names.index("VmContinued")
    assert "FreezeIssued" not in names and "QemuStopping" not in names
    assert world.machine.run_state is RunState.RUNNING
    assert world.machine.boot_count == 2
    assert result is not None and result.consistency is Consistency.STOPPED


@pytest.mark.parametrize("mode", list(BackupMode))
def test_row_10_1_10_stopped_vm_is_backed_up_by_a_paused_qemu_and_stopped_again(
    world: World, mode: BackupMode
) -> None:
    world.state = None
    world.options = _options(mode=mode)
    result = world.run()
    world.assert_good(result)
    assert world.told_of(events.ModeChosen)[0].mode is BackupMode.STOP
    names = world.names()
    assert names.index("QemuStarting") < names.index("JobAccepted") < names.index("QemuStopping")
    assert names.index("QemuStopping") < names.index("ArchivePublished")
    assert "VmContinued" not in names
    assert world.machine.run_state is None


@pytest.mark.parametrize("mode", [BackupMode.SNAPSHOT, BackupMode.SUSPEND])
def test_row_10_1_10_vm_paused_before_is_not_frozen_and_stays_paused(
    world: World, mode: BackupMode
) -> None:
    world.state = RunState.PAUSED
    world.options = _options(mode=mode)
    world.assert_good(world.run())
    names = world.names()
    assert "FreezeIssued" not in names and "VmContinued" not in names
    assert "GuestSuspending" not in names
    assert world.machine.run_state is RunState.PAUSED


def test_vm_paused_by_its_operator_meanwhile_is_not_continued(world: World) -> None:
    def pause_at_thaw(event: events.Event) -> None:
        world.told.append(event)
        if isinstance(event, events.FreezeWindowClosed):
            world.machine.process.control.stop()

    world._emit = pause_at_thaw  # type: ignore[method-assign]
    world.assert_good(world.run())
    assert "VmContinued" not in world.names()
    assert world.machine.run_state is RunState.PAUSED


def test_row_10_1_10_vm_started_by_a_user_meanwhile_is_kept_running(world: World) -> None:
    world.state = None
    world.script = Script(backup=BackupRules(bytes_per_s=1 << 20))

    async def user(world: World) -> None:
        while not world.told_of(events.JobAccepted):
            await world.clock.sleep(0.5)
        world.machine.process.control.cont()

    world.meanwhile = user
    world.assert_good(world.run())
    assert world.told_of(events.VmKeptRunning)[0].run_state == "running"
    assert world.machine.run_state is RunState.RUNNING


def test_agent_not_asked_for_is_not_frozen(world: World) -> None:
    world.config = CONFIG.replace("agent: 1\n", "")
    result = world.run()
    world.assert_good(result)
    assert world.told_of(events.FreezeSkipped)[0].reason is FreezeSkip.DISABLED
    assert result is not None and result.consistency is Consistency.CRASH


def test_freeze_switched_off_in_the_configuration_is_skipped(world: World) -> None:
    world.config = CONFIG.replace("agent: 1", "agent: 1,freeze-fs=0")
    world.assert_good(world.run())
    assert world.told_of(events.FreezeSkipped)[0].reason is FreezeSkip.DISABLED


def test_row_10_1_9_guest_frozen_by_another_is_neither_frozen_nor_thawed(world: World) -> None:
    world.arrange = World.freeze_by_another
    result = world.run()
    assert result is not None and result.error is None
    assert world.told_of(events.FreezeSkipped)[0].reason is FreezeSkip.ALREADY_FROZEN
    assert "ThawIssued" not in world.names()


def test_standard_output_gets_the_stream_and_no_name(world: World) -> None:
    world.options = _options(target=STDOUT)
    result = world.run()
    assert result is not None and result.error is None and result.archive_path == ""
    assert restore_disks(bytes(world.store.stdout)) == world.host.points_in_time
    assert world.archives() == []
    assert "ArchiveToStdout" in world.names()


def test_rate_limit_reaches_qemu_and_the_log(world: World) -> None:
    world.options = _options(rate_limit_bytes_per_s=4 << 20)
    world.assert_good(world.run())
    assert world.told_of(events.BandwidthLimited)[0].limit_kib_per_s == 4096
    assert world.machine.process.backup.query()["end-time"] > 0


def test_left_over_job_of_a_killed_run_is_cancelled_first(world: World) -> None:
    world.script = Script(backup=BackupRules(bytes_per_s=1 << 18))

    def leave_job(world: World) -> None:
        from vzsim.world.pipes import SimulatedPipe

        pipe = SimulatedPipe()
        fd = world.host.descriptors.open(pipe)
        process = world.machine.process
        process.monitors[0].fds.name("backup", fd)
        process.backup.start(
            process.monitors[0], {"backup-file": "/dev/fdname/backup", "devlist": "drive-scsi0"}
        )
        pipe.close_reader()

    world.arrange = leave_job
    result = world.run()
    assert result is not None and result.error is None, result
    assert "LeftOverJobFound" in world.names()


def test_fleecing_images_are_recorded_attached_and_removed(world: World) -> None:
    world.options = _options(fleecing=FleecingOptions(enabled=True, storage_id="local"))
    world.assert_good(world.run())
    assert len(world.told_of(events.FleecingAttaching)) == 2
    assert len(world.told_of(events.FleecingRemoving)) == 2
    assert world.node.fleecing_records[100] == []
    assert not [path for path in world.host.images if "fleece" in path]


def test_tpm_state_is_attached_for_the_job_and_detached(world: World) -> None:
    world.config = CONFIG + "tpmstate0: local:100/vm-100-tpm.raw,size=4M,version=v2.0\n"

    def add_state(world: World) -> None:
        from vzsim.fakeqmp.disks import MemoryDisk

        world.host.images["/var/lib/vz/images/100/vm-100-tpm.raw"] = MemoryDisk(
            bytearray(b"state" * 1024).ljust(4 << 20, b"\0")
        )

    world.arrange = add_state
    result = world.run()
    assert result is not None and result.error is None, result
    assert "drive-tpmstate0-backup" in world.restored()
    world.assert_nothing_left()
    assert world.machine.process.block.node("drive-tpmstate0-backup") is None


def test_disk_less_vm_is_archived_without_starting_qemu(world: World) -> None:
    world.state = None
    world.config = "name: empty\n"
    world.images = {}
    result = world.run()
    assert result is not None and result.error is None, result
    names = world.names()
    assert "NoDisksFound" in names and "QemuStarting" not in names
    assert world.restored() == {}
    world.assert_nothing_left()


def test_exclude_rules_name_their_reasons(world: World) -> None:
    world.config = (
        CONFIG.replace("scsi1: local", "scsi1: local").replace("2097664", "2097664,backup=0")
        + "efidisk0: local:100/vm-100-efi.raw,size=528K\nide2: none,media=cdrom\n"
    )
    result = world.run()
    assert result is not None and result.error is None, result
    reasons = {event.key: event.reason for event in world.told_of(events.DiskExcluded)}
    assert reasons == {"scsi1": "backup=no", "efidisk0": "efidisk but no OVMF BIOS"}
    assert list(world.restored()) == ["drive-scsi0"]


def test_slow_agent_start_counts_as_no_agent(world: World) -> None:
    world.script = Script(agent=AgentRules(starts_after_s=60))
    world.assert_good(world.run())
    assert world.told_of(events.FreezeSkipped)[0].reason is FreezeSkip.NOT_RUNNING


def test_name_taken_in_the_same_second_waits_for_the_next_one(world: World) -> None:
    taken = "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_06.vma.zst"
    world.arrange = lambda world: world.files.files.update({taken: SimulatedFile()})
    result = world.run()
    assert result is not None and result.error is None, result
    assert result.archive_path == "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_07.vma.zst"
    assert taken in world.archives()
