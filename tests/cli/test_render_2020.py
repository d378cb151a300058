"""The texts of 2020, where they differ from today's."""

from datetime import UTC, datetime

import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.render_2020 import LogRenderer2020
from vzdump_qemu.events import Event, FreezeSkip, ProgressLine, TransferSummary


def render(event: Event) -> list[str]:
    renderer = LogRenderer2020(lambda wall_s: datetime.fromtimestamp(wall_s, UTC))
    return [line.render() for line in renderer.render(event)]


PROGRESS = ProgressLine(
    percent=3,
    done_bytes=1149108224,
    target_bytes=34359738368,
    zero_bytes=237568000,
    elapsed_s=3.2,
    read_bytes_per_s=383.9e6,
    write_bytes_per_s=303.0e6,
)
SUMMARY = TransferSummary(
    total_bytes=34359738368,
    transferred_bytes=34359738368,
    zero_bytes=5,
    reused_bytes=0,
    duration_s=210.4,
)


@pytest.mark.parametrize(
    ("event", "texts"),
    [
        (
            events.ProgressMade(line=PROGRESS),
            [
                "INFO: status: 3% (1149108224/34359738368), sparse 0% (237568000), "
                "duration 3, read/write 383/303 MB/s"
            ],
        ),
        (
            events.TransferEnded(summary=SUMMARY),
            ["INFO: transferred 34359 MB in 210 seconds (163 MB/s)"],
        ),
        (events.ArchiveCreating(archive_path="/d/a.vma"), ["INFO: creating archive '/d/a.vma'"]),
        (
            events.PbsBackupCreating(backup_path="vm/100/2026-01-02T02:05:12Z", storage_id="p1"),
            ["INFO: creating pbs archive on storage 'p1'"],
        ),
        (
            events.PbsBackupCreating(backup_path="vm/100/2026-01-02T02:05:12Z"),
            ["INFO: creating Proxmox Backup Server archive 'vm/100/2026-01-02T02:05:12Z'"],
        ),
        (
            events.PbsBackupPublished(backup_path="vm/1/x", size_bytes=5, sent_bytes=4),
            ["INFO: pbs upload finished"],
        ),
        (events.EncryptionEnabled(has_master_key=True), []),
        (events.GuestStopping(), ["INFO: stopping vm"]),
        (events.GuestSuspending(), ["INFO: suspend vm"]),
        (events.BandwidthLimited(limit_kib_per_s=5), ["INFO: bandwidth limit: 5 KB/s"]),
        (events.DisklessStarted(), ["INFO: starting template backup"]),
        (
            events.GuestOnlineAgain(downtime_s=0.2),
            ["INFO: guest is online again after 0 seconds"],
        ),
        (
            events.FreezeSkipped(reason=FreezeSkip.NOT_RUNNING),
            ["INFO: skipping guest-agent 'fs-freeze', agent configured but not running?"],
        ),
        (events.FreezeSkipped(reason=FreezeSkip.DISABLED), []),
        (
            events.DiskExcluded(
                key="efidisk0", volid="l:1/e.raw", reason="efidisk but no OVMF BIOS"
            ),
            ["INFO: exclude disk 'efidisk0' 'l:1/e.raw' (efidisk but no OMVF BIOS)"],
        ),
        (
            events.ConfigSectionSkipped(kind="special"),
            ["INFO: snapshots found (not included into backup)"],
        ),
        (events.FreezeIssued(), ["INFO: issuing guest-agent 'fs-freeze' command"]),
        (
            events.RunStarted(vmid=100, wall_s=0, log_path="", side_log_path=""),
            [
                "INFO: Starting Backup of VM 100 (qemu)",
                "INFO: Backup started at 1970-01-01 00:00:00",
            ],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_event_renders_as_in_2020(event: Event, texts: list[str]) -> None:
    assert render(event) == texts
