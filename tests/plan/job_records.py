"""A job of three VMs, each with another end, as tests tell of it."""

from __future__ import annotations

from vzdump_qemu.events import BackupMode, Consistency
from vzdump_qemu.plan.batch_record import (
    FreezeRecord,
    JobRecord,
    Phase,
    PhaseRecord,
    RunRecord,
    TransferRecord,
)
from vzdump_qemu.plan.notification import GuestState

BEGAN_S = 1_790_000_000.0

GOOD_RUN = RunRecord(
    vmid=100,
    vm_name="web",
    state=GuestState.OK,
    mode=BackupMode.SNAPSHOT,
    consistency=Consistency.FROZEN,
    data_path="pull",
    began_wall_s=BEGAN_S,
    ended_wall_s=BEGAN_S + 70,
    phases=(
        PhaseRecord(phase=Phase.COPYING, began_wall_s=BEGAN_S, ended_wall_s=BEGAN_S + 40),
        PhaseRecord(phase=Phase.PROVING, began_wall_s=BEGAN_S + 40, ended_wall_s=BEGAN_S + 65),
        PhaseRecord(phase=Phase.PUTTING_BACK, began_wall_s=BEGAN_S + 65, ended_wall_s=BEGAN_S + 70),
    ),
    freeze=FreezeRecord(began_wall_s=BEGAN_S, window_s=0.025, own_s=0.002),
    transfer=TransferRecord(
        total_bytes=1000,
        target_bytes=1000,
        read_bytes=1000,
        written_bytes=600,
        zero_bytes=400,
        reused_bytes=0,
        duration_s=40.0,
    ),
    location="/dump/vzdump-qemu-100.vma",
    size_bytes=4096,
    proved_bytes=8192,
    warnings=("careful",),
    log_path="/log/qemu-100.log",
    side_log_path="/dump/vzdump-qemu-100.log",
)
BAD_RUN = RunRecord(
    vmid=101,
    state=GuestState.FAILED,
    error="VM is locked (backup)",
    hint="qm unlock 101",
    began_wall_s=BEGAN_S + 70,
    ended_wall_s=BEGAN_S + 71,
    location="/dump/vzdump-qemu-101.vma",
    size_bytes=17,
    log_path="/log/qemu-101.log",
)
UNREACHED_RUN = RunRecord(vmid=102)
JOB = JobRecord(
    host_name="pve1",
    command_line="vzdump 100 101 102",
    began_wall_s=BEGAN_S - 5,
    ended_wall_s=BEGAN_S + 72,
    lock_wait_s=4.0,
    error="interrupted by signal",
    runs=(GOOD_RUN, BAD_RUN, UNREACHED_RUN),
)
