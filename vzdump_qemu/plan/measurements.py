"""What a monitoring system keeps of a job: figures per VM and per phase of its run; pure.

Owns names, units and help texts; where figures go is an adapter's. A figure that is not known is
left out. Source: the naming rules of Prometheus (base units, one meaning per name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vzdump_qemu.outlet_ports import Measurement
from vzdump_qemu.plan.batch_record import JobRecord, Phase, RunRecord
from vzdump_qemu.plan.notification import GuestState

_PREFIX = "vzdump_"
_TEXTS: Mapping[str, str] = {
    "backup_info": "What the last backup of the VM was; always 1.",
    "backup_success": "Whether the last backup of the VM ended well.",
    "backup_end_timestamp_seconds": "When the last backup of the VM ended.",
    "backup_last_success_timestamp_seconds": "When a backup of the VM last ended well.",
    "backup_last_success_size_bytes": "Size of the VM's last good backup.",
    "backup_duration_seconds": "How long the last backup of the VM took.",
    "backup_phase_seconds": "How long a phase of the last backup took.",
    "backup_freeze_window_seconds": "From sending freeze to the guest agent's answer to thaw.",
    "backup_freeze_own_seconds": "The part of the freeze window in which nobody was waited for.",
    "backup_downtime_seconds": "How long the guest was off or stood still for the backup.",
    "backup_total_bytes": "Size of all disks that took part.",
    "backup_read_bytes": "What was read of the disks.",
    "backup_zero_bytes": "What was found to be zero.",
    "backup_written_bytes": "What was given to the target, before compression.",
    "backup_reused_bytes": "What the target had already.",
    "backup_sent_bytes": "What went over the wire to a backup server.",
    "backup_read_bytes_per_second": "Mean rate of reading while the disks were copied.",
    "backup_written_bytes_per_second": "Mean rate of writing while the disks were copied.",
    "backup_verify_seconds": "How long the finished backup was proved.",
    "backup_warnings": "Warnings of the last backup of the VM.",
    "job_success": "Whether the last job ended well.",
    "job_end_timestamp_seconds": "When the last job ended.",
    "job_last_success_timestamp_seconds": "When a job last ended well.",
    "job_duration_seconds": "How long the last job took.",
    "job_lock_wait_seconds": "How long the last job waited for another one of the node.",
    "job_vms": "VMs of the last job, by how far it came with them.",
    "job_warnings": "Warnings of the last job, those of its VMs included.",
}
LASTING_NAMES = frozenset(
    f"{_PREFIX}{name}"
    for name in (
        "backup_last_success_timestamp_seconds",
        "backup_last_success_size_bytes",
        "job_last_success_timestamp_seconds",
    )
)
"""Figures that a failure does not take back."""


def measure_job(record: JobRecord, *, job_id: str = "") -> Sequence[Measurement]:
    """All figures of a job that has ended, and of every VM that it reached."""
    figures = [_figure(name, value, {"job_id": job_id}) for name, value in _job_values(record)]
    for state in GuestState:
        labels = {"job_id": job_id, "state": state.value}
        figures.append(_figure("job_vms", len(record.in_state(state)), labels))
    for run in record.in_state(GuestState.OK, GuestState.FAILED):
        figures += _measure_run(run)
    return figures


def _job_values(record: JobRecord) -> Iterator[tuple[str, float]]:
    yield "job_success", float(record.ok)
    yield "job_duration_seconds", record.duration_s
    yield "job_lock_wait_seconds", record.lock_wait_s
    yield "job_warnings", record.warning_count
    if record.ended_wall_s is not None:
        yield "job_end_timestamp_seconds", record.ended_wall_s
        if record.ok:
            yield "job_last_success_timestamp_seconds", record.ended_wall_s


def _measure_run(run: RunRecord) -> Iterator[Measurement]:
    vmid = {"vmid": str(run.vmid)}
    yield _figure(
        "backup_info",
        1,
        {
            **vmid,
            "name": run.vm_name,
            "mode": run.mode.value if run.mode else "",
            "data_path": run.data_path,
            "consistency": run.consistency.value if run.consistency else "",
        },
    )
    for name, value in {**_run_values(run), **_transfer_values(run)}.items():
        if value is not None:
            yield _figure(name, value, vmid)
    for phase in Phase:
        length_s = run.phase_s(phase)
        if length_s is not None:
            label = phase.value.replace(" ", "_")
            yield _figure("backup_phase_seconds", length_s, {**vmid, "phase": label})


def _run_values(run: RunRecord) -> Mapping[str, float | None]:
    is_ok = run.state is GuestState.OK
    freeze = run.freeze
    return {
        "backup_success": float(is_ok),
        "backup_end_timestamp_seconds": run.ended_wall_s,
        "backup_last_success_timestamp_seconds": run.ended_wall_s if is_ok else None,
        "backup_last_success_size_bytes": run.size_bytes if is_ok else None,
        "backup_duration_seconds": run.duration_s,
        "backup_freeze_window_seconds": freeze.window_s if freeze else None,
        "backup_freeze_own_seconds": freeze.own_s if freeze else None,
        "backup_downtime_seconds": run.downtime_s,
        "backup_verify_seconds": run.verify_s,
        "backup_warnings": len(run.warnings),
    }


def _transfer_values(run: RunRecord) -> Mapping[str, float | None]:
    transfer = run.transfer
    if transfer is None:
        return {"backup_sent_bytes": run.sent_bytes}
    return {
        "backup_sent_bytes": run.sent_bytes,
        "backup_total_bytes": transfer.total_bytes,
        "backup_read_bytes": transfer.read_bytes,
        "backup_zero_bytes": transfer.zero_bytes,
        "backup_written_bytes": transfer.written_bytes,
        "backup_reused_bytes": transfer.reused_bytes,
        "backup_read_bytes_per_second": transfer.read_bytes_per_s,
        "backup_written_bytes_per_second": transfer.written_bytes_per_s,
    }


def _figure(name: str, value: float, labels: Mapping[str, str]) -> Measurement:
    return Measurement(name=f"{_PREFIX}{name}", text=_TEXTS[name], value=value, labels=labels)
