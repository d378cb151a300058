"""The texts of today's task log: one per event, and one whole log."""

from datetime import UTC, datetime

import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.render_vzdump import LogRenderer, render_verdict
from vzdump_qemu.events import (
    BackupMode,
    BitmapAction,
    Consistency,
    Event,
    FreezeSkip,
    ProgressLine,
    TransferSummary,
)
from vzdump_qemu.units import GIB, MIB

STARTED_S = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def local_time(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)


def render(*of: Event) -> list[str]:
    renderer = LogRenderer(local_time)
    return [line.render() for event in of for line in renderer.render(event)]


ARCHIVE_PATH = "/var/lib/vz/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
UUID = "6f1b2c3d-0000-4000-8000-000000000001"

WHOLE_RUN = (
    events.JobStarted(command_line="vzdump 100 --storage local --mode snapshot --compress zstd"),
    events.RunStarted(vmid=100, wall_s=STARTED_S, log_path="/l", side_log_path="/s"),
    events.StatusSeen(running=True),
    events.VmNamed(vm_name="web"),
    events.DiskIncluded(key="scsi0", volid="local-lvm:vm-100-disk-0", size_text="32G"),
    events.ModeChosen(mode=BackupMode.SNAPSHOT),
    events.IoPrioritySet(io_priority=7),
    events.ArchiveCreating(archive_path=ARCHIVE_PATH),
    events.FreezeIssued(),
    events.JobStartIssued(),
    events.ThawIssued(),
    events.FreezeWindowClosed(freeze_window_s=0.01, own_s=0.0),
    events.JobAccepted(uuid=UUID),
    events.VmContinued(downtime_s=None),
    events.ProgressMade(
        line=ProgressLine(
            percent=7,
            done_bytes=int(2.3 * GIB),
            target_bytes=32 * GIB,
            zero_bytes=0,
            elapsed_s=3.0,
            read_bytes_per_s=785.1 * MIB,
            write_bytes_per_s=310.0 * MIB,
        )
    ),
    events.ProgressMade(
        line=ProgressLine(
            percent=100,
            done_bytes=32 * GIB,
            target_bytes=32 * GIB,
            zero_bytes=20 * GIB,
            elapsed_s=64.9,
            read_bytes_per_s=1.1 * GIB,
            write_bytes_per_s=-1.0,
        )
    ),
    events.TransferEnded(
        summary=TransferSummary(
            total_bytes=32 * GIB,
            transferred_bytes=32 * GIB,
            zero_bytes=20 * GIB,
            reused_bytes=0,
            duration_s=64.2,
        )
    ),
    events.ArchiveProved(stream_bytes=1, vma_cluster_count=1, stored_bytes=1),
    events.ArchivePublished(archive_path=ARCHIVE_PATH, size_bytes=int(4.2 * GIB)),
    events.RunSucceeded(
        vmid=100, wall_s=STARTED_S + 67, duration_s=67.4, consistency=Consistency.FROZEN
    ),
    events.RunClosed(vmid=100),
    events.JobEnded(failed_vmids=(), error=""),
)

WHOLE_LOG = f"""\
INFO: starting new backup job: vzdump 100 --storage local --mode snapshot --compress zstd
INFO: Starting Backup of VM 100 (qemu)
INFO: Backup started at 2026-01-02 03:04:05
INFO: status = running
INFO: VM Name: web
INFO: include disk 'scsi0' 'local-lvm:vm-100-disk-0' 32G
INFO: backup mode: snapshot
INFO: ionice priority: 7
INFO: creating vzdump archive '{ARCHIVE_PATH}'
INFO: issuing guest-agent 'fs-freeze' command
INFO: starting backup via QMP command
INFO: issuing guest-agent 'fs-thaw' command
INFO: started backup task '{UUID}'
INFO: resuming VM again
INFO:   7% (2.3 GiB of 32.0 GiB) in 3s, read: 785.1 MiB/s, write: 310.0 MiB/s
INFO: 100% (32.0 GiB of 32.0 GiB) in 1m 4s, read: 1.1 GiB/s, write: 0 B/s
INFO: backup is sparse: 20.00 GiB (62%) total zero data
INFO: transferred 32.00 GiB in 64 seconds (512.0 MiB/s)
INFO: archive file size: 4.20GB
INFO: Finished Backup of VM 100 (00:01:07)
INFO: Backup finished at 2026-01-02 03:05:12
INFO: Backup job finished successfully
"""


def test_log_of_a_whole_run_is_vzdumps_to_the_letter() -> None:
    assert "".join(f"{line}\n" for line in render(*WHOLE_RUN)) == WHOLE_LOG


EVENT_TEXTS: tuple[tuple[Event, list[str]], ...] = (
    (
        events.OptionIgnored(name="size"),
        ["INFO: option 'size' is for containers and has no effect on VMs"],
    ),
    (events.NotesAdding(), ["INFO: adding notes to backup"]),
    (events.BackupProtecting(), ["INFO: marking backup as protected"]),
    (
        events.PruneStarted(rule_text="keep-last=2"),
        ["INFO: prune older backups with retention: keep-last=2"],
    ),
    (
        events.BackupRemoving(storage_id="nas", name="a.vma", path="/d/a.vma"),
        ["INFO: removing backup 'nas:backup/a.vma'"],
    ),
    (
        events.BackupRemoving(storage_id="", name="a.vma", path="/d/a.vma"),
        ["INFO: delete old backup '/d/a.vma'"],
    ),
    (
        events.BackupRemovalFailed(name="nas:backup/a.vma", text="no"),
        ["ERROR: error when removing backup 'nas:backup/a.vma' - no"],
    ),
    (events.PruneEnded(removed_count=0), ["INFO: pruned 0 backup(s)"]),
    (
        events.PruneEnded(removed_count=2),
        ["INFO: pruned 2 backup(s) not covered by keep-retention policy"],
    ),
    (events.JobEnded(failed_vmids=(102,), error=""), ["INFO: Backup job finished with errors"]),
    (
        events.JobEnded(failed_vmids=(1,), error="interrupted by signal"),
        ["ERROR: Backup job failed - interrupted by signal"],
    ),
    (events.ExternalVmsSkipped(vmids=(101, 200)), ["INFO: skip external VMs: 101, 200"]),
    (
        events.ServerPruning(group="vm/7"),
        ["INFO: running 'proxmox-backup-client prune' for 'vm/7'"],
    ),
    (events.ServerPruneFailed(group="vm/7", text="no"), ["ERROR: prune 'vm/7': no"]),
    (events.GlobalLockAwaited(), ["INFO: trying to get global lock - waiting..."]),
    (events.GlobalLockTaken(), ["INFO: got global lock"]),
    (events.StatusSeen(running=False), ["INFO: status = stopped"]),
    (events.ModeChosen(mode=BackupMode.STOP), ["INFO: backup mode: stop"]),
    (events.BandwidthLimited(limit_kib_per_s=1024), ["INFO: bandwidth limit: 1024 KiB/s"]),
    (
        events.DiskIncluded(key="scsi1", volid="/dev/sdx", size_text=""),
        ["INFO: include disk 'scsi1' '/dev/sdx'"],
    ),
    (
        events.DiskExcluded(key="scsi2", volid="local:2/x.raw", reason="backup=no"),
        ["INFO: exclude disk 'scsi2' 'local:2/x.raw' (backup=no)"],
    ),
    (
        events.LeftOverJobFound(),
        ["WARN: left-over backup job still running inside QEMU - canceling now"],
    ),
    (events.GuestStopping(), ["INFO: stopping virtual guest"]),
    (events.GuestSuspending(), ["INFO: suspending guest"]),
    (events.GuestResuming(), ["INFO: resume vm"]),
    (events.GuestRestarting(), ["INFO: restarting vm"]),
    (
        events.GuestOnlineAgain(downtime_s=0.4),
        ["INFO: guest is online again after <1 seconds"],
    ),
    (events.GuestOnlineAgain(downtime_s=21.7), ["INFO: guest is online again after 21 seconds"]),
    (
        events.UnusedDiskSkipped(volid="local:1/old.raw"),
        ["INFO: skip unused drive 'local:1/old.raw' (not included into backup)"],
    ),
    (
        events.ConfigSectionSkipped(kind="special"),
        ["INFO: special config section found (not included into backup)"],
    ),
    (
        events.ConfigSectionSkipped(kind="snapshot"),
        ["INFO: snapshots found (not included into backup)"],
    ),
    (
        events.ConfigSectionSkipped(kind="pending"),
        ["INFO: pending configuration changes found (not included into backup)"],
    ),
    (events.ArchiveToStdout(), ["INFO: sending archive to stdout"]),
    (events.DataPathChosen(name="native", reason="QEMU has a backup job of its own"), []),
    (
        events.DataPathChosen(name="pull", reason="QEMU 7.2.22 has no 'backup' command"),
        ["INFO: data path: pull (QEMU 7.2.22 has no 'backup' command)"],
    ),
    (events.DataPathChosen(name="offline", reason=""), ["INFO: data path: offline (asked for)"]),
    (events.NoDisksFound(), ["INFO: backup contains no disks"]),
    (events.DisklessStarted(), ["INFO: starting diskless backup"]),
    (events.TemplateStarted(), ["INFO: starting template backup"]),
    (events.CommandStarted(command_line="vma create -v x"), ["INFO: vma create -v x"]),
    (events.OutputSeen(line="progress 5%"), ["INFO: progress 5%"]),
    (events.OutputSeen(line=""), []),
    (events.QemuStarting(), ["INFO: starting kvm to execute backup task"]),
    (events.QemuStopping(), ["INFO: stopping kvm after backup task"]),
    (
        events.VmKeptRunning(run_state="running"),
        ["INFO: kvm status changed after backup ('running') - keep VM running"],
    ),
    (events.TpmAttaching(), ["INFO: attaching TPM drive to QEMU for backup"]),
    (
        events.FleecingAttaching(device_id="drive-scsi0", volid="local:1/vm-1-fleece-0.raw"),
        ["INFO: drive-scsi0: attaching fleecing image local:1/vm-1-fleece-0.raw to QEMU"],
    ),
    (
        events.IncrementPlanned(
            device_id="drive-scsi0", size_bytes=4 << 30, changed_bytes=8 << 20, reason=""
        ),
        ["INFO: drive-scsi0: dirty-bitmap status: OK (8.0 MiB of 4.0 GiB dirty)"],
    ),
    (
        events.IncrementPlanned(
            device_id="drive-scsi0", size_bytes=512, changed_bytes=512, reason="no bitmap"
        ),
        ["INFO: drive-scsi0: reading everything (no bitmap)"],
    ),
    (
        events.PbsBackupCreating(backup_path="vm/100/2026-01-02T02:05:12Z", storage_id="pbs1"),
        ["INFO: creating Proxmox Backup Server archive 'vm/100/2026-01-02T02:05:12Z'"],
    ),
    (events.EncryptionEnabled(has_master_key=False), ["INFO: enabling encryption"]),
    (
        events.EncryptionEnabled(has_master_key=True),
        ["INFO: enabling encryption with master key feature"],
    ),
    (
        events.FastIncrementBegun(dirty_bytes=8 << 20, total_bytes=4 << 30),
        [
            "INFO: using fast incremental mode (dirty-bitmap), 8.0 MiB dirty of 4.0 GiB total",
        ],
    ),
    (
        events.BitmapUsed(
            device_id="drive-virtio0",
            action=BitmapAction.NEW,
            size_bytes=8 << 30,
            dirty_bytes=8 << 30,
        ),
        ["INFO: virtio0: dirty-bitmap status: created new"],
    ),
    (events.PbsBackupPublished(backup_path="vm/1/x", size_bytes=5, sent_bytes=4), []),
    (events.FleecingRemoving(volid="s:f", old=False), ["INFO: removing fleecing image 's:f'"]),
    (
        events.FleecingRemoving(volid="s:f", old=True),
        ["INFO: removing (old) fleecing image 's:f'"],
    ),
    (
        events.FleecingSizeUnknown(key="scsi0"),
        [
            "INFO: could not determine block node size of drive 'scsi0' - using fallback",
        ],
    ),
    (
        events.FreezeSkipped(reason=FreezeSkip.DISABLED),
        ["INFO: skipping guest filesystem freeze - disabled in VM options"],
    ),
    (
        events.FreezeSkipped(reason=FreezeSkip.NOT_RUNNING),
        ["INFO: skipping guest filesystem freeze - agent configured but not running?"],
    ),
    (
        events.FreezeSkipped(reason=FreezeSkip.ALREADY_FROZEN),
        ["INFO: skipping guest filesystem freeze - already frozen"],
    ),
    (
        events.FreezeStillWaiting(minutes_left=50),
        ["still waiting on guest fs freeze - timeout in 50 minutes"],
    ),
    (
        events.FreezeFailed(text="unable to freeze guest fs - x"),
        ["ERROR: unable to freeze guest fs - x"],
    ),
    (events.ThawFailed(text="thaw: x"), ["ERROR: thaw: x"]),
    (events.ThawRetried(attempt_count=2), []),
    (events.VmContinued(downtime_s=21.9), ["INFO: resuming VM again after 21 seconds"]),
    (events.ServerFinishing(), ["INFO: Waiting for server to finish backup validation..."]),
    (
        events.JobAborting(text="got unexpected uuid"),
        ["ERROR: got unexpected uuid", "INFO: aborting backup job"],
    ),
    (
        events.UndoFailed(what="thaw the guest", text="no end within 5 seconds"),
        ["ERROR: unable to thaw the guest - no end within 5 seconds"],
    ),
    (
        events.UndoSucceeded(what="thaw the guest"),
        ["INFO: managed to thaw the guest after all"],
    ),
    (events.RecoveryNotNeeded(vmid=100), ["INFO: a backup of VM 100 is running"]),
    (
        events.NotificationFailed(name="mail", text="unable to find command 'sendmail'", hint=""),
        ["ERROR: could not notify via mail - unable to find command 'sendmail'"],
    ),
    (
        events.ArchivePublished(archive_path="/a", size_bytes=5 * MIB + 1),
        ["INFO: archive file size: 5MB"],
    ),
    (events.Warned(text="one\ntwo"), ["WARN: one", "WARN: two"]),
    (
        events.RunFailed(
            vmid=102, wall_s=STARTED_S, text="VM is locked (snapshot)", hint="qm unlock 102"
        ),
        [
            "ERROR: Backup of VM 102 failed - VM is locked (snapshot)",
            "INFO: Failed at 2026-01-02 03:04:05",
        ],
    ),
)


BITMAP_TEXTS = (
    ("drive-scsi0", BitmapAction.NOT_USED, 0, "disabled (no support)"),
    ("drive-scsi0", BitmapAction.NOT_USED_REMOVED, 0, "disabled (old bitmap cleared)"),
    ("drive-scsi0", BitmapAction.NEW, 4 << 30, "created new"),
    ("drive-scsi0", BitmapAction.USED, 0, "OK (drive clean)"),
    ("drive-scsi0", BitmapAction.USED, 8 << 20, "OK (8.0 MiB of 4.0 GiB dirty)"),
    (
        "drive-scsi0",
        BitmapAction.INVALID,
        4 << 30,
        "existing bitmap was invalid and has been cleared",
    ),
    (
        "drive-scsi0",
        BitmapAction.MISSING_RECREATED,
        4 << 30,
        "expected bitmap was missing and has been recreated",
    ),
    ("drive-tpmstate0-backup", BitmapAction.MISSING_RECREATED, 4 << 30, "created new"),
    ("drive-scsi0", BitmapAction.UNKNOWN, 0, "unknown"),
)


@pytest.mark.parametrize(("device_id", "action", "dirty_bytes", "text"), BITMAP_TEXTS)
def test_state_of_a_bitmap_renders_as_vzdumps_line(
    device_id: str, action: BitmapAction, dirty_bytes: int, text: str
) -> None:
    event = events.BitmapUsed(
        device_id=device_id, action=action, size_bytes=4 << 30, dirty_bytes=dirty_bytes
    )
    name = device_id.removeprefix("drive-")
    assert render(event) == [f"INFO: {name}: dirty-bitmap status: {text}"]


@pytest.mark.parametrize(("event", "texts"), EVENT_TEXTS, ids=lambda v: type(v).__name__)
def test_event_renders_as_vzdumps_line(event: Event, texts: list[str]) -> None:
    assert render(event) == texts


def test_every_event_has_a_text_or_is_known_to_have_none() -> None:
    tried = {type(event) for event, _ in EVENT_TEXTS} | {type(event) for event in WHOLE_RUN}
    known = {
        value
        for value in vars(events).values()
        if isinstance(value, type) and issubclass(value, Event) and value is not Event
    }
    assert known - tried == set()


def summary(**changes: float) -> TransferSummary:
    values: dict[str, float] = {
        "total_bytes": 8 * GIB,
        "transferred_bytes": 8 * GIB,
        "zero_bytes": 0,
        "reused_bytes": 0,
        "duration_s": 20.0,
    }
    return TransferSummary(**(values | changes))  # type: ignore[arg-type]


def test_incremental_summary_names_what_was_reused() -> None:
    assert render(events.TransferEnded(summary=summary(reused_bytes=6 * GIB))) == [
        "INFO: backup was done incrementally, reused 6.00 GiB (75%)",
        "INFO: transferred 8.00 GiB in 20 seconds (409.6 MiB/s)",
    ]


def test_summary_of_less_than_a_second_has_no_rate() -> None:
    assert render(events.TransferEnded(summary=summary(duration_s=0.9))) == [
        "INFO: transferred 8.00 GiB in <1 seconds"
    ]


def test_summary_of_nothing_transferred_says_nothing() -> None:
    assert render(events.TransferEnded(summary=summary(transferred_bytes=0))) == []


def test_verdict_is_the_first_that_applies() -> None:
    assert render_verdict(error_text="a\nb", failed=True, warning_count=1) == "TASK ERROR: a b"
    assert render_verdict(error_text="", failed=True, warning_count=1) == "TASK ERROR: job errors"
    assert render_verdict(error_text="", failed=False, warning_count=2) == "TASK WARNINGS: 2"
    assert render_verdict(error_text="", failed=False, warning_count=0) == "TASK OK"
