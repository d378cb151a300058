"""Events as the log lines that vzdump prints today, to the letter.

Owns the texts; events that vzdump has no line for render nothing. Where the lines go is left to
`console` and `run_log`. Source: host behaviour, sections 1.6 to 1.10, 6.6 to 6.8, 7.3, 7.4, 10.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import (
    Level,
    LocalTime,
    LogLine,
    error,
    info,
    lines,
    render_clock_length,
    render_clock_time,
    warn,
)
from vzdump_qemu.events import BitmapAction, Event, FreezeSkip, ProgressLine, TransferSummary
from vzdump_qemu.units import render_archive_size, render_bytes, render_duration

LineTable = Mapping[type[Event], Callable[[Any], tuple[LogLine, ...]]]

_SECTION_TEXTS = {
    "special": "special config section found (not included into backup)",
    "snapshot": "snapshots found (not included into backup)",
    "pending": "pending configuration changes found (not included into backup)",
}


def _render_progress(line: ProgressLine) -> str:
    return (
        f"{line.percent:3d}% ({render_bytes(line.done_bytes)} of "
        f"{render_bytes(line.target_bytes)}) in {render_duration(line.elapsed_s)}, "
        f"read: {_render_rate(line.read_bytes_per_s)}, "
        f"write: {_render_rate(line.write_bytes_per_s)}"
    )


def _render_rate(bytes_per_s: float) -> str:
    return f"{render_bytes(bytes_per_s)}/s" if bytes_per_s > 0 else "0 B/s"


def _render_summary(summary: TransferSummary) -> tuple[LogLine, ...]:
    texts = []
    if summary.zero_bytes:
        share = _percent(summary.zero_bytes, summary.total_bytes)
        size = render_bytes(summary.zero_bytes, 2)
        texts.append(f"backup is sparse: {size} ({share}%) total zero data")
    if summary.reused_bytes:
        share = _percent(summary.reused_bytes, summary.total_bytes)
        size = render_bytes(summary.reused_bytes, 2)
        texts.append(f"backup was done incrementally, reused {size} ({share}%)")
    if summary.transferred_bytes:
        size = render_bytes(summary.transferred_bytes, 2)
        whole_s = int(summary.duration_s)
        if whole_s:
            rate = render_bytes(summary.transferred_bytes / whole_s)
            texts.append(f"transferred {size} in {whole_s} seconds ({rate}/s)")
        else:
            texts.append(f"transferred {size} in <1 seconds")
    return info(*texts)


def _percent(part: int, whole: int) -> int:
    return part * 100 // whole if whole else 100


def _render_included(event: events.DiskIncluded) -> tuple[LogLine, ...]:
    return info(f"include disk '{event.key}' '{event.volid}' {event.size_text}".rstrip())


def _render_data_path(event: events.DataPathChosen) -> tuple[LogLine, ...]:
    # What vzdump itself does needs no word; its log has none.
    if event.name == "native":
        return ()
    why = event.reason or "asked for"
    return info(f"data path: {event.name} ({why})")


def _render_continued(event: events.VmContinued) -> tuple[LogLine, ...]:
    if event.downtime_s is None:
        return info("resuming VM again")
    return info(f"resuming VM again after {int(event.downtime_s)} seconds")


def _render_online(event: events.GuestOnlineAgain) -> tuple[LogLine, ...]:
    whole_s = int(event.downtime_s)
    return info(f"guest is online again after {whole_s or '<1'} seconds")


def _render_skip(event: events.FreezeSkipped) -> tuple[LogLine, ...]:
    match event.reason:
        case FreezeSkip.DISABLED | FreezeSkip.NOT_RUNNING | FreezeSkip.ALREADY_FROZEN:
            return info(f"skipping guest filesystem freeze - {event.reason.value}")


def _render_job_end(event: events.JobEnded) -> tuple[LogLine, ...]:
    if event.error:
        return error(f"Backup job failed - {event.error}")
    if event.failed_vmids:
        return info("Backup job finished with errors")
    return info("Backup job finished successfully")


def _render_increment(event: events.IncrementPlanned) -> tuple[LogLine, ...]:
    if event.reason:
        return info(f"{event.device_id}: reading everything ({event.reason})")
    changed, size = render_bytes(event.changed_bytes), render_bytes(event.size_bytes)
    return info(f"{event.device_id}: dirty-bitmap status: OK ({changed} of {size} dirty)")


def _render_encryption(event: events.EncryptionEnabled) -> tuple[LogLine, ...]:
    return info(f"enabling encryption{' with master key feature' * event.has_master_key}")


def _render_bitmap(event: events.BitmapUsed) -> tuple[LogLine, ...]:
    name = event.device_id.removeprefix("drive-")
    return info(f"{name}: dirty-bitmap status: {_render_action(event)}")


def _render_action(event: events.BitmapUsed) -> str:
    match event.action:
        case BitmapAction.NOT_USED:
            return "disabled (no support)"
        case BitmapAction.NOT_USED_REMOVED:
            return "disabled (old bitmap cleared)"
        case BitmapAction.NEW:
            return "created new"
        case BitmapAction.USED if not event.dirty_bytes:
            return "OK (drive clean)"
        case BitmapAction.USED:
            dirty, size = render_bytes(event.dirty_bytes), render_bytes(event.size_bytes)
            return f"OK ({dirty} of {size} dirty)"
        case BitmapAction.INVALID:
            return "existing bitmap was invalid and has been cleared"
        case BitmapAction.MISSING_RECREATED if event.device_id.startswith("drive-tpmstate"):
            # Its node is attached for each backup anew: nothing is missing.
            return "created new"
        case BitmapAction.MISSING_RECREATED:
            return "expected bitmap was missing and has been recreated"
        case BitmapAction.UNKNOWN:
            return "unknown"


def _render_fast_increment(event: events.FastIncrementBegun) -> tuple[LogLine, ...]:
    dirty, total = render_bytes(event.dirty_bytes), render_bytes(event.total_bytes)
    return info(f"using fast incremental mode (dirty-bitmap), {dirty} dirty of {total} total")


def _render_removal(event: events.FleecingRemoving) -> tuple[LogLine, ...]:
    old = "(old) " if event.old else ""
    return info(f"removing {old}fleecing image '{event.volid}'")


_JOB_LINES: LineTable = {
    events.JobStarted: lambda e: info(f"starting new backup job: {e.command_line}"),
    events.JobEnded: _render_job_end,
    events.ExternalVmsSkipped: lambda e: info(
        f"skip external VMs: {', '.join(str(vmid) for vmid in e.vmids)}"
    ),
    events.GlobalLockAwaited: lambda _: info("trying to get global lock - waiting..."),
    events.GlobalLockTaken: lambda _: info("got global lock"),
    events.StatusSeen: lambda e: info(f"status = {'running' if e.running else 'stopped'}"),
    events.ModeChosen: lambda e: info(f"backup mode: {e.mode.value}"),
    events.BandwidthLimited: lambda e: info(f"bandwidth limit: {e.limit_kib_per_s} KiB/s"),
    events.IoPrioritySet: lambda e: info(f"ionice priority: {e.io_priority}"),
    events.Warned: lambda e: warn(e.text),
    events.UndoFailed: lambda e: error(f"unable to {e.what} - {e.text}"),
    events.UndoSucceeded: lambda e: info(f"managed to {e.what} after all"),
    events.OptionIgnored: lambda e: info(
        f"option '{e.name}' is for containers and has no effect on VMs"
    ),
    events.NotificationFailed: lambda e: error(f"could not notify via {e.name} - {e.text}"),
    events.RecoveryNotNeeded: lambda e: info(f"a backup of VM {e.vmid} is running"),
}

_PREPARE_LINES: LineTable = {
    events.VmNamed: lambda e: info(f"VM Name: {e.vm_name}"),
    events.DiskIncluded: _render_included,
    events.DiskExcluded: lambda e: info(f"exclude disk '{e.key}' '{e.volid}' ({e.reason})"),
    events.LeftOverJobFound: lambda _: warn(
        "left-over backup job still running inside QEMU - canceling now"
    ),
    events.UnusedDiskSkipped: lambda e: info(
        f"skip unused drive '{e.volid}' (not included into backup)"
    ),
    events.ConfigSectionSkipped: lambda e: info(_SECTION_TEXTS[e.kind]),
    events.ArchiveToStdout: lambda _: info("sending archive to stdout"),
    events.ArchiveCreating: lambda e: info(f"creating vzdump archive '{e.archive_path}'"),
    events.PbsBackupCreating: lambda e: info(
        f"creating Proxmox Backup Server archive '{e.backup_path}'"
    ),
    events.EncryptionEnabled: _render_encryption,
    events.DataPathChosen: _render_data_path,
    events.NoDisksFound: lambda _: info("backup contains no disks"),
    events.DisklessStarted: lambda _: info("starting diskless backup"),
    events.TemplateStarted: lambda _: info("starting template backup"),
    events.CommandStarted: lambda e: info(e.command_line),
    events.OutputSeen: lambda e: info(e.line),
}

_GUEST_LINES: LineTable = {
    events.GuestStopping: lambda _: info("stopping virtual guest"),
    events.GuestSuspending: lambda _: info("suspending guest"),
    events.GuestResuming: lambda _: info("resume vm"),
    events.GuestRestarting: lambda _: info("restarting vm"),
    events.GuestOnlineAgain: _render_online,
    events.QemuStarting: lambda _: info("starting kvm to execute backup task"),
    events.QemuStopping: lambda _: info("stopping kvm after backup task"),
    events.VmKeptRunning: lambda e: info(
        f"kvm status changed after backup ('{e.run_state}') - keep VM running"
    ),
    events.TpmAttaching: lambda _: info("attaching TPM drive to QEMU for backup"),
    events.FleecingAttaching: lambda e: info(
        f"{e.device_id}: attaching fleecing image {e.volid} to QEMU"
    ),
    events.IncrementPlanned: _render_increment,
    events.FleecingRemoving: _render_removal,
    events.FleecingSizeUnknown: lambda e: info(
        f"could not determine block node size of drive '{e.key}' - using fallback"
    ),
    events.FreezeSkipped: _render_skip,
    events.FreezeIssued: lambda _: info("issuing guest-agent 'fs-freeze' command"),
    events.FreezeStillWaiting: lambda e: lines(
        Level.PLAIN,
        f"still waiting on guest fs freeze - timeout in {e.minutes_left} minutes",
    ),
    events.FreezeFailed: lambda e: error(e.text),
    events.ThawIssued: lambda _: info("issuing guest-agent 'fs-thaw' command"),
    events.ThawFailed: lambda e: error(e.text),
    events.VmContinued: _render_continued,
}

_JOB_IN_QEMU_LINES: LineTable = {
    events.JobStartIssued: lambda _: info("starting backup via QMP command"),
    events.JobAccepted: lambda e: info(f"started backup task '{e.uuid}'"),
    events.BitmapUsed: _render_bitmap,
    events.FastIncrementBegun: _render_fast_increment,
    events.ProgressMade: lambda e: info(_render_progress(e.line)),
    events.ServerFinishing: lambda _: info("Waiting for server to finish backup validation..."),
    events.TransferEnded: lambda e: _render_summary(e.summary),
    events.JobAborting: lambda e: error(e.text) + info("aborting backup job"),
    events.ArchivePublished: lambda e: info(
        f"archive file size: {render_archive_size(e.size_bytes)}"
    ),
}

_KEEPING_LINES: LineTable = {
    events.NotesAdding: lambda _: info("adding notes to backup"),
    events.BackupProtecting: lambda _: info("marking backup as protected"),
    events.PruneStarted: lambda e: info(f"prune older backups with retention: {e.rule_text}"),
    events.BackupRemoving: lambda e: info(
        f"removing backup '{e.storage_id}:backup/{e.name}'"
        if e.storage_id
        else f"delete old backup '{e.path}'"
    ),
    events.BackupRemovalFailed: lambda e: error(
        f"error when removing backup '{e.name}' - {e.text}"
    ),
    events.ServerPruning: lambda e: info(f"running 'proxmox-backup-client prune' for '{e.group}'"),
    events.ServerPruneFailed: lambda e: error(f"prune '{e.group}': {e.text}"),
    events.PruneEnded: lambda e: info(
        f"pruned {e.removed_count} backup(s)"
        + " not covered by keep-retention policy" * (e.removed_count > 0)
    ),
}

LINES_OF_TODAY: LineTable = {
    **_JOB_LINES,
    **_PREPARE_LINES,
    **_GUEST_LINES,
    **_JOB_IN_QEMU_LINES,
    **_KEEPING_LINES,
}
"""Texts that depend on the event alone; the four with a time of day are in `LogRenderer`."""


class LogRenderer:
    """Renders events by a table of texts; a `LineRenderer`.

    Args:
        local_time: for the lines that name a time of day.
        table: which events have which lines.
    """

    def __init__(self, local_time: LocalTime, table: LineTable = LINES_OF_TODAY) -> None:
        self._local_time = local_time
        self._table = table

    def render(self, event: Event) -> tuple[LogLine, ...]:
        """The lines of one event, none if the style has no line for it."""
        match event:
            case events.RunStarted():
                return info(
                    f"Starting Backup of VM {event.vmid} (qemu)",
                    f"Backup started at {self._render_time(event.wall_s)}",
                )
            case events.RunFailed():
                return error(f"Backup of VM {event.vmid} failed - {event.text}") + info(
                    f"Failed at {self._render_time(event.wall_s)}"
                )
            case events.RunSucceeded():
                return info(
                    f"Finished Backup of VM {event.vmid} ({render_clock_length(event.duration_s)})",
                    f"Backup finished at {self._render_time(event.wall_s)}",
                )
        render = self._table.get(type(event))
        return render(event) if render is not None else ()

    def _render_time(self, wall_s: float) -> str:
        return render_clock_time(self._local_time(wall_s))


def render_verdict(*, error_text: str, failed: bool, warning_count: int) -> str:
    """The last line of a task log.

    Args:
        error_text: why the job as a whole failed, or empty.
        failed: whether any VM failed.
    """
    if error_text:
        return f"TASK ERROR: {' '.join(error_text.split())}"
    if failed:
        return "TASK ERROR: job errors"
    return f"TASK WARNINGS: {warning_count}" if warning_count else "TASK OK"
