"""Runs in which something fails: the first cause is told, and nothing is left behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.engine.world import CONFIG, World
from vzdump_qemu import events
from vzdump_qemu.errors import VmLocked
from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.plan.options import BackupOptions
from vzsim.fakeqmp.run_state import RunState
from vzsim.fakeqmp.script import AgentRules, BackupRules, CommandRule, Moment, Script
from vzsim.world.journal import SimulatedJournal

SLOW = BackupRules(bytes_per_s=1 << 20)


def _scripted(*rules: CommandRule, backup: BackupRules | None = None) -> Script:
    return Script(command=rules, backup=backup or BackupRules())


def test_row_10_1_8_error_status_is_the_error_of_the_run(world: World) -> None:
    world.script = Script(backup=BackupRules(fail_at_bytes=1 << 20, fail_text="disk on fire"))
    world.assert_failed_clean(world.run(), "disk on fire")


def test_error_status_without_text_is_an_unknown_error(world: World) -> None:
    rule = CommandRule(name="query-backup", patch={"status": "error"}, drop=("errmsg",))
    world.script = _scripted(rule)
    world.assert_failed_clean(world.run(), "unknown error")


def test_unexpected_status_is_named(world: World) -> None:
    world.script = Script(backup=BackupRules(status="odd"))
    world.assert_failed_clean(world.run(), "got unexpected status 'odd'")


def test_row_10_1_8_foreign_uuid_ends_the_run_and_a_foreign_job_is_left_alone(world: World) -> None:
    foreign = {"uuid": "11111111-2222-4333-8444-555555555555", "backup-file": "/dev/fdname/x"}
    world.script = _scripted(CommandRule(name="query-backup", patch=foreign), backup=SLOW)
    result = world.run()
    assert result is not None and result.error is not None
    assert "got unexpected uuid" in str(result.error)
    assert "backup-cancel" not in world.qmp_log
    assert world.archives() == []


def test_job_into_our_own_descriptor_is_cancelled_whatever_its_uuid(world: World) -> None:
    world.script = Script(backup=replace(SLOW, uuid="11111111-2222-4333-8444-555555555555"))
    world.assert_failed_clean(world.run(), "got unexpected uuid")
    assert "backup-cancel" in world.qmp_log


def test_missing_uuid_in_the_reply_is_an_error_and_the_job_is_cancelled(world: World) -> None:
    world.script = _scripted(CommandRule(name="backup", drop=("UUID",)), backup=SLOW)
    world.assert_failed_clean(world.run(), "got no uuid for backup task")
    assert "backup-cancel" in world.qmp_log


def test_missing_uuid_in_the_status_is_unexpected(world: World) -> None:
    world.script = _scripted(CommandRule(name="query-backup", drop=("uuid",)), backup=SLOW)
    result = world.run()
    assert result is not None and "got unexpected uuid" in str(result.error)


def test_wrong_byte_count_is_refused(world: World) -> None:
    world.script = Script(backup=BackupRules(transferred_off_by=-65536))
    world.assert_failed_clean(world.run(), "got wrong number of transfered bytes")


def test_agent_configured_but_dead_is_skipped_within_seconds(world: World) -> None:
    world.has_agent = False
    result = world.run()
    world.assert_good(result)
    assert result is not None and result.consistency is Consistency.CRASH


def test_freeze_error_is_told_and_thaw_is_sent_all_the_same(world: World) -> None:
    world.script = Script(agent=AgentRules(freeze_error="hook failed"))
    result = world.run()
    world.assert_good(result)
    assert world.told_of(events.FreezeFailed)[0].text == "unable to freeze guest fs - hook failed"
    assert "ThawIssued" in world.names()
    assert result is not None and result.consistency is Consistency.CRASH


def test_row_10_1_9_agent_that_dies_at_the_freeze_is_told_within_the_hour(world: World) -> None:
    world.script = Script(agent=AgentRules(dies_at="guest-fsfreeze-freeze"))
    result = world.run()
    assert result is not None and result.error is None, result
    assert "timeout after 60 minutes" in world.told_of(events.FreezeFailed)[0].text
    assert result.duration_s < 3 * 3600


def test_slow_freeze_is_waited_for(world: World) -> None:
    world.script = Script(agent=AgentRules(freeze_delay_s=900))
    result = world.run()
    world.assert_good(result)
    assert result is not None and result.freeze_window_s == pytest.approx(900, abs=5)
    assert world.told_of(events.FreezeStillWaiting)[0].minutes_left == 50
    assert result.consistency is Consistency.FROZEN


def test_thaw_error_is_tried_again_until_the_guest_is_thawed(world: World) -> None:
    world.script = _scripted(CommandRule(name="guest-fsfreeze-thaw", nth=1, error="thaw failed"))
    result = world.run()
    world.assert_good(result)
    assert world.told_of(events.ThawFailed)
    assert world.told_of(events.ThawRetried)[0].attempt_count == 2


def test_guest_reset_inside_the_window_is_not_called_frozen(world: World) -> None:
    def reset(event: events.Event) -> None:
        world.told.append(event)
        if isinstance(event, events.JobStartIssued):
            world.machine.process.control.guest_resets()

    world._emit = reset  # type: ignore[method-assign]
    result = world.run()
    assert result is not None and result.error is None
    assert result.consistency is Consistency.CRASH
    assert "was not frozen any more" in result.warnings[0]


def test_vm_that_ended_meanwhile_is_not_started_again(world: World) -> None:
    def end(event: events.Event) -> None:
        world.told.append(event)
        if isinstance(event, events.ModeChosen):
            world.machine.end_process()

    world._emit = end  # type: ignore[method-assign]
    world.assert_failed_clean(world.run(), "VM 100 not running: QEMU ended meanwhile")
    assert world.machine.run_state is None
    assert world.machine.boot_count == 1


def test_suspended_vm_that_its_operator_stopped_is_not_started_again(world: World) -> None:
    def end(event: events.Event) -> None:
        world.told.append(event)
        if isinstance(event, events.ArchiveCreating):
            world.machine.end_process()

    world.options = replace(world.options, mode=BackupMode.SUSPEND)
    world._emit = end  # type: ignore[method-assign]
    world.assert_failed_clean(world.run(), "VM 100 not running: QEMU ended meanwhile")
    assert world.machine.run_state is None
    assert world.machine.boot_count == 1
    assert not world.told_of(events.UndoFailed)


def test_thaw_that_never_succeeds_is_an_alarm(world: World) -> None:
    world.script = Script(agent=AgentRules(thaw_error="no"))
    result = world.run()
    assert result is not None and result.error is None
    alarm = world.told_of(events.UndoFailed)[0]
    assert alarm.what == "thaw the guest" and "may still be frozen" in alarm.text


def test_late_thaw_reply_closes_the_window_late(world: World) -> None:
    world.script = Script(agent=AgentRules(thaw_delay_s=54))
    result = world.run()
    world.assert_good(result)
    assert result is not None and result.freeze_window_s == pytest.approx(54, abs=1)


def _compressor(world: World, **rules: int) -> None:
    def arrange(world: World) -> None:
        for name, value in rules.items():
            setattr(world.store.compressor, name, value)

    world.arrange = arrange


def test_compressor_exit_status_is_reported(world: World) -> None:
    _compressor(world, exit_status=3)
    world.assert_failed_clean(world.run(), "zstd failed - wrong exit status 3")


def test_compressor_killed_by_a_signal_is_reported(world: World) -> None:
    world.script = Script(backup=SLOW)
    _compressor(world, exit_status=-9, dies_at_bytes=1 << 20)
    world.assert_failed_clean(world.run(), "wrong exit status 0 (signal 9)")


def test_guest_writes_go_on_while_a_dead_compressor_is_noticed(world: World) -> None:
    world.script = Script(backup=SLOW)
    _compressor(world, exit_status=1, dies_at_bytes=1)
    errors: list[int] = []

    async def write(world: World) -> None:
        while not world.told_of(events.JobAccepted):
            await asyncio.sleep(0.1)
        for offset in range(0, 1 << 20, 65536):
            world.machine.process.guest_write("drive-scsi0", offset, b"x" * 4096, errors.append)
            await asyncio.sleep(0.01)

    world.meanwhile = write
    world.assert_failed_clean(world.run(), "wrong exit status 1")
    assert errors == [0] * 16


def test_compressor_that_is_missing_fails_before_the_guest_is_touched(world: World) -> None:
    _compressor(world, missing=True)
    world.assert_failed_clean(world.run(), "unable to find command 'zstd'")
    assert "FreezeIssued" not in world.names()


def test_full_disk_is_the_first_cause(world: World) -> None:
    def fill(world: World) -> None:
        world.files.capacity_bytes = 100 << 10

    world.arrange = fill
    world.assert_failed_clean(world.run(), "No space left on device")


@pytest.mark.parametrize("operation", ["create", "fsync", "rename"])
def test_file_operation_that_fails_leaves_no_archive(world: World, operation: str) -> None:
    def arrange(world: World) -> None:
        def fault(found: str, path: str) -> None:
            if found == operation and path.endswith(".dat"):
                raise OSError(5, "Input/output error", path)

        world.files.fault = fault

    world.arrange = arrange
    result = world.run()
    assert result is not None and result.error is not None
    assert world.archives() == []
    world.assert_nothing_left()


def test_qemu_that_dies_before_the_job_starts_fails_the_run(world: World) -> None:
    world.script = _scripted(CommandRule(name="backup", die=Moment.BEFORE))
    world.assert_failed_clean(world.run(), "executing QMP command to start backup failed")
    assert world.machine.run_state is None


def test_qemu_that_dies_after_the_job_started_fails_the_run(world: World) -> None:
    world.script = Script(backup=replace(SLOW, die_at_bytes=2 << 20))
    world.assert_failed_clean(world.run(), "QEMU ended during the backup")


def test_lost_reply_to_the_start_cancels_what_may_run(world: World) -> None:
    crawling = BackupRules(bytes_per_s=1 << 16)
    world.script = _scripted(CommandRule(name="backup", silent=True), backup=crawling)
    world.assert_failed_clean(world.run(), "start backup failed - got timeout")
    assert "backup-cancel" in world.qmp_log


def test_refused_start_takes_the_descriptor_back(world: World) -> None:
    world.script = _scripted(CommandRule(name="backup", error="no"))
    world.assert_failed_clean(world.run(), "executing QMP command to start backup failed - no")
    assert "closefd" in world.qmp_log


def test_refused_descriptor_does_not_wait_for_our_own_connection(world: World) -> None:
    world.options = BackupOptions(
        compressor=("zstd",), archive_extension=".zst", mode=BackupMode.SUSPEND
    )
    world.script = _scripted(CommandRule(name="getfd", error="no"))
    result = world.run()
    world.assert_failed_clean(result, "no")
    assert result is not None and result.duration_s < 5


def test_job_of_another_that_blocks_ours_is_not_cancelled(world: World) -> None:
    text = "previous backup for target 'Proxmox' not finished"
    world.script = _scripted(CommandRule(name="backup", error=text))
    world.assert_failed_clean(world.run(), text)
    assert "backup-cancel" not in world.qmp_log


def test_active_job_of_somebody_else_is_neither_cancelled_nor_joined(world: World) -> None:
    active = {"status": "active", "backup-file": "/mnt/mine.vma", "uuid": "x"}
    world.script = _scripted(CommandRule(name="query-backup", reply=active))
    result = world.run()
    assert result is not None
    assert "another backup job is active in VM 100 (target '/mnt/mine.vma')" in str(result.error)
    assert "backup-cancel" not in world.qmp_log and "backup" not in world.qmp_log


def test_cont_that_times_out_once_is_tried_again(world: World) -> None:
    world.options = BackupOptions(
        compressor=("zstd",), archive_extension=".zst", mode=BackupMode.SUSPEND
    )
    world.script = _scripted(CommandRule(name="cont", nth=1, error="busy"))
    world.assert_good(world.run())
    assert world.machine.run_state is RunState.RUNNING


@pytest.mark.parametrize("mode", [BackupMode.SUSPEND, BackupMode.STOP])
def test_failed_start_puts_the_guest_back_to_work(world: World, mode: BackupMode) -> None:
    world.options = BackupOptions(compressor=("zstd",), archive_extension=".zst", mode=mode)
    world.script = _scripted(CommandRule(name="backup", error="no"))
    world.assert_failed_clean(world.run(), "no")
    assert world.machine.run_state is RunState.RUNNING


def test_row_10_1_10_failed_start_of_a_stopped_vm_stops_its_qemu_again(world: World) -> None:
    world.state = None
    world.script = _scripted(CommandRule(name="backup", error="no"))
    world.assert_failed_clean(world.run(), "no")
    assert world.machine.run_state is None


def test_qemu_that_cannot_be_started_is_told(world: World) -> None:
    world.state = None
    world.start_error = "no memory"
    world.assert_failed_clean(world.run(), "start failed: no memory")


def test_shutdown_that_times_out_fails_and_leaves_the_guest_running(world: World) -> None:
    world.options = BackupOptions(
        compressor=("zstd",), archive_extension=".zst", mode=BackupMode.STOP
    )
    world.shutdown_s = -1
    world.assert_failed_clean(world.run(), "failed: exit code 255")
    assert world.machine.run_state is RunState.RUNNING


def test_locked_vm_is_refused_and_stays_locked(world: World) -> None:
    world.config = "lock: migrate\n" + CONFIG
    result = world.run()
    assert result is not None and str(result.error) == "VM is locked (migrate)"
    assert world.node.lock_of(100) == "migrate"
    assert "FreezeIssued" not in world.names()


def test_lock_of_another_is_never_noted_as_ours_to_remove(world: World) -> None:
    # Killed after such a note, the recovery would take a lock that a living backup holds.
    journal = world.journals.journals[100] = SimulatedJournal()
    world.config = "lock: backup\n" + CONFIG
    result = world.run()
    assert result is not None and str(result.error) == "VM is locked (backup)"
    assert journal.noted_count == 0
    assert world.node.lock_of(100) == "backup"


def test_lock_that_another_took_first_stays_though_the_job_is_cancelled(world: World) -> None:
    def arrange(world: World) -> None:
        async def come_second(vmid: int) -> None:
            world.node.configs[vmid] = b"lock: backup\n" + world.node.configs[vmid]
            world.cancel()
            await asyncio.sleep(0)
            raise VmLocked("VM is locked (backup)")

        world.node.set_vm_lock = come_second  # type: ignore[method-assign]

    world.arrange = arrange
    assert world.run() is None
    assert world.node.lock_of(100) == "backup"


def test_unknown_vm_is_told(world: World) -> None:
    def forget(world: World) -> None:
        del world.node.configs[100]

    world.arrange = forget
    result = world.run()
    assert result is not None
    assert str(result.error) == "unable to find configuration file for VM 100 on node 'node1'"


def test_monitor_held_by_another_client_is_waited_for(world: World) -> None:
    async def hold(world: World) -> None:
        async with world.machine.connect_qmp(timeout_s=5):
            await asyncio.sleep(40)

    world.meanwhile = hold
    world.assert_good(world.run())


def test_monitor_held_for_ever_fails_before_the_freeze(world: World) -> None:
    async def hold(world: World) -> None:
        while not world.told_of(events.ModeChosen):
            await asyncio.sleep(0.0001)
        async with world.machine.connect_qmp(timeout_s=5):
            await asyncio.sleep(3600)

    world.meanwhile = hold
    result = world.run()
    assert result is not None and "another client" in str(result.error)
    assert "FreezeIssued" not in world.names()
    assert result.duration_s < 600


def test_monitor_deaf_for_a_minute_does_not_end_the_run(world: World) -> None:
    world.script = _scripted(CommandRule(name="query-backup", nth=3, delay_s=60), backup=SLOW)
    world.assert_good(world.run())


def test_device_that_qemu_does_not_know_is_refused_before_it_sees_it(world: World) -> None:
    world.config = CONFIG + "scsi5: local:100/vm-100-disk-0.raw,size=8M\n"
    world.assert_failed_clean(world.run(), "Device 'drive-scsi5' not found")
    assert "backup" not in world.qmp_log


def test_missing_volume_names_it(world: World) -> None:
    world.config = CONFIG + "scsi2: local:100/gone.raw,size=1M\n"
    world.assert_failed_clean(
        world.run(), "cannot determine size of volume 'local:100/gone.raw' - volume"
    )


def test_stalled_target_is_drained_before_the_job_is_cancelled(world: World) -> None:
    _compressor(world, stall_at_bytes=0, stall_s=100_000)
    world.images["/var/lib/vz/images/100/vm-100-disk-0.raw"] = 64 << 20

    async def give_up(world: World) -> None:
        while not world.told_of(events.JobAccepted):
            await asyncio.sleep(0.1)
        await asyncio.sleep(20)
        world.cancel()
        ended_s = asyncio.get_running_loop().time()
        while not world.told_of(events.JobEnded):
            await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - ended_s < 5

    world.meanwhile = give_up
    assert world.run() is None
    world.assert_nothing_left()


CANCELLABLE = [
    events.RunStarted,
    events.StatusSeen,
    events.DiskIncluded,
    events.ModeChosen,
    events.ArchiveCreating,
    events.FreezeIssued,
    events.JobStartIssued,
    events.ThawIssued,
    events.FreezeWindowClosed,
    events.JobAccepted,
    events.VmContinued,
    events.ProgressMade,
    events.TransferEnded,
    events.ArchiveProved,
]


@pytest.mark.parametrize("kind", CANCELLABLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("mode", list(BackupMode), ids=lambda mode: mode.value)
def test_run_cancelled_at_each_stage_leaves_the_vm_as_it_was(
    world: World, kind: type[events.Event], mode: BackupMode
) -> None:
    world.options = BackupOptions(compressor=("zstd",), archive_extension=".zst", mode=mode)
    world.script = Script(backup=SLOW)
    world.cancel_on = kind
    assert world.run() is None or not world.told_of(kind)
    world.assert_nothing_left()
    assert world.machine.run_state is RunState.RUNNING
    if not world.told_of(kind):
        return
    assert world.told_of(events.JobEnded)[0].error == "interrupted by signal"
    if world.told_of(events.ArchivePublished):
        # Too late to stop this run: it ended well, and the job ends after it.
        assert world.told_of(events.RunSucceeded)
        assert world.restored() == world.host.points_in_time
    else:
        assert world.told_of(events.RunFailed)[0].text == "interrupted by signal"
        assert world.archives() == []
