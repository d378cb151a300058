"""Events as the log lines that vzdump printed in 2020 (``--log-style 2020``).

Owns only what differs from today's texts; the rest is `render_vzdump`'s. Events that 2020 had
no notion of and that changed nothing for the VM render nothing. Source: host behaviour, section 8.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import LocalTime, LogLine, info
from vzdump_qemu.cli.render_vzdump import LINES_OF_TODAY, LineTable, LogRenderer
from vzdump_qemu.events import FreezeSkip, ProgressLine, TransferSummary

_MB = 10**6
_EFIDISK_REASON_TODAY = "efidisk but no OVMF BIOS"
_EFIDISK_REASON_2020 = "efidisk but no OMVF BIOS"


def _render_progress(line: ProgressLine) -> str:
    zero_percent = line.zero_bytes * 100 // line.target_bytes if line.target_bytes else 0
    return (
        f"status: {line.percent}% ({line.done_bytes}/{line.target_bytes}), "
        f"sparse {zero_percent}% ({line.zero_bytes}), duration {int(line.elapsed_s)}, "
        f"read/write {int(line.read_bytes_per_s) // _MB}/"
        f"{int(line.write_bytes_per_s) // _MB} MB/s"
    )


def _render_summary(summary: TransferSummary) -> tuple[LogLine, ...]:
    whole_s = int(summary.duration_s)
    if not summary.transferred_bytes or not whole_s:
        return ()
    amount_mb = summary.transferred_bytes // _MB
    return info(f"transferred {amount_mb} MB in {whole_s} seconds ({amount_mb // whole_s} MB/s)")


def _render_skip(event: events.FreezeSkipped) -> tuple[LogLine, ...]:
    if event.reason is not FreezeSkip.NOT_RUNNING:
        return ()
    return info("skipping guest-agent 'fs-freeze', agent configured but not running?")


def _render_excluded(event: events.DiskExcluded) -> tuple[LogLine, ...]:
    is_efidisk = event.reason == _EFIDISK_REASON_TODAY
    reason = _EFIDISK_REASON_2020 if is_efidisk else event.reason
    return info(f"exclude disk '{event.key}' '{event.volid}' ({reason})")


def _render_server(event: events.PbsBackupCreating) -> tuple[LogLine, ...]:
    if not event.storage_id:  # servers had to be storages then
        return LINES_OF_TODAY[events.PbsBackupCreating](event)
    return info(f"creating pbs archive on storage '{event.storage_id}'")


LINES_OF_2020: LineTable = {
    **LINES_OF_TODAY,
    events.BandwidthLimited: lambda e: info(f"bandwidth limit: {e.limit_kib_per_s} KB/s"),
    events.DiskExcluded: _render_excluded,
    events.ArchiveCreating: lambda e: info(f"creating archive '{e.archive_path}'"),
    events.PbsBackupCreating: _render_server,
    events.EncryptionEnabled: lambda _: (),
    events.BitmapUsed: lambda _: (),
    events.FastIncrementBegun: lambda _: (),
    events.PbsBackupPublished: lambda _: info("pbs upload finished"),
    events.DisklessStarted: lambda _: info("starting template backup"),
    events.GuestStopping: lambda _: info("stopping vm"),
    events.GuestSuspending: lambda _: info("suspend vm"),
    events.GuestOnlineAgain: lambda e: info(
        f"guest is online again after {int(e.downtime_s)} seconds"
    ),
    events.ConfigSectionSkipped: lambda e: LINES_OF_TODAY[events.ConfigSectionSkipped](
        # Special sections were unknown and counted as snapshots.
        events.ConfigSectionSkipped(kind="snapshot" if e.kind == "special" else e.kind)
    ),
    events.FreezeSkipped: _render_skip,
    events.ProgressMade: lambda e: info(_render_progress(e.line)),
    events.ServerFinishing: lambda _: (),
    events.TransferEnded: lambda e: _render_summary(e.summary),
}


class LogRenderer2020(LogRenderer):
    """The same events in the words of 2020; a `LineRenderer`."""

    def __init__(self, local_time: LocalTime) -> None:
        super().__init__(local_time, LINES_OF_2020)
