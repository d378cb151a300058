"""Jobs for the tests of the report page, made without events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.plan.batch_record import (
    FreezeRecord,
    JobRecord,
    Phase,
    PhaseRecord,
    ProgressSample,
    RunRecord,
    TransferRecord,
)
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.plan.report_table import PastBackup
from vzdump_qemu.units import GIB

BEGAN_S = datetime(2026, 11, 23, 2, 0, 1, tzinfo=UTC).timestamp()
COPY_S, PROVE_S = 40.0, 10.0
RUN_S = 1.0 + COPY_S + PROVE_S


def local_time(wall_s: float) -> datetime:
    """UTC, so that a test says the same everywhere."""
    return datetime.fromtimestamp(wall_s, UTC).replace(tzinfo=None)


def good_run(vmid: int = 100, *, began_s: float = BEGAN_S, name: str = "db") -> RunRecord:
    """Frozen, 40 GiB read at 1 GiB/s, a quarter of it zero."""
    copy_s = began_s + 1.0
    ends = [began_s, copy_s, copy_s + COPY_S, began_s + RUN_S]
    phases = (Phase.PREPARING, Phase.COPYING, Phase.PROVING)
    return RunRecord(
        vmid=vmid,
        vm_name=name,
        state=GuestState.OK,
        was_running=True,
        mode=BackupMode.SNAPSHOT,
        consistency=Consistency.FROZEN,
        data_path="native",
        began_wall_s=began_s,
        ended_wall_s=began_s + RUN_S,
        phases=tuple(
            PhaseRecord(phase=phase, began_wall_s=begin, ended_wall_s=end)
            for phase, begin, end in zip(phases, ends, ends[1:], strict=False)
        ),
        freeze=FreezeRecord(began_wall_s=began_s + 0.9, window_s=0.0124, own_s=0.001),
        samples=tuple(
            ProgressSample(
                wall_s=copy_s + second,
                read_bytes=second * GIB,
                written_bytes=second * GIB * 3 // 4,
                zero_bytes=second * GIB // 4,
            )
            for second in range(4, int(COPY_S), 4)
        ),
        transfer=TransferRecord(
            total_bytes=40 * GIB,
            target_bytes=40 * GIB,
            read_bytes=40 * GIB,
            written_bytes=30 * GIB,
            zero_bytes=10 * GIB,
            reused_bytes=0,
            duration_s=COPY_S,
        ),
        location=archive_path(vmid),
        size_bytes=15 * GIB,
        log_path=f"/var/log/vzdump/qemu-{vmid}.log",
    )


def failed_run(vmid: int, *, began_s: float = BEGAN_S, name: str = "web") -> RunRecord:
    """Without room while copying."""
    return RunRecord(
        vmid=vmid,
        vm_name=name,
        state=GuestState.FAILED,
        error="No space left on device",
        hint="make room",
        began_wall_s=began_s,
        ended_wall_s=began_s + 5,
        phases=(PhaseRecord(phase=Phase.COPYING, began_wall_s=began_s, ended_wall_s=began_s + 5),),
    )


def job(*runs: RunRecord, error: str = "", hint: str = "") -> JobRecord:
    """One that ended with its last run."""
    ends = [run.ended_wall_s for run in runs if run.ended_wall_s is not None]
    return JobRecord(
        host_name="pve1",
        command_line="vzdump --all 1",
        began_wall_s=BEGAN_S,
        ended_wall_s=max(ends, default=BEGAN_S + 1),
        error=error,
        hint=hint,
        runs=runs,
    )


def archive_path(vmid: int) -> str:
    """Where the backup of `good_run` is."""
    return f"/dump/{archive_name(vmid, days_ago=0)}"


def archive_name(vmid: int, *, days_ago: int) -> str:
    moment = local_time(BEGAN_S) - timedelta(days=days_ago)
    return f"vzdump-qemu-{vmid}-{moment:%Y_%m_%d-%H_%M_%S}.vma.zst"


def past_backup(vmid: int, *, days_ago: int, size_bytes: int) -> PastBackup:
    """One that stands beside that of `good_run`; of today's run for 0 days."""
    return PastBackup(
        name=archive_name(vmid, days_ago=days_ago),
        local_time=local_time(BEGAN_S) - timedelta(days=days_ago),
        size_bytes=size_bytes,
    )
