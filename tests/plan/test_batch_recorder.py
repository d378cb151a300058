"""The record of a job, from the events of whole runs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vzdump_qemu import events
from vzdump_qemu.events import BackupMode, Consistency, Event, FreezeSkip
from vzdump_qemu.plan.batch_record import JobRecord, Phase, PhaseRecord, RunRecord
from vzdump_qemu.plan.batch_recorder import SAMPLE_COUNT_MAX, WARNING_COUNT_MAX, JobRecorder
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.plan.progress import ProgressTracker
from vzdump_qemu.ports import JobProgress, JobStatus
from vzdump_qemu.units import GIB, MIB

BEGAN_S = 1_790_000_000.0


class Tape:
    """Plays events to a recorder, each a while after the one before."""

    def __init__(self, *vmids: int) -> None:
        self.recorder = JobRecorder(host_name="pve1")
        self.recorder.expect(vmids)
        self.wall_s = BEGAN_S

    def play(self, *heard: Event, vmid: int | None = None, pause_s: float = 0.0) -> Tape:
        for event in heard:
            self.wall_s += pause_s
            self.recorder.hear(event, vmid=vmid, wall_s=self.wall_s)
        return self

    def record(self) -> JobRecord:
        return self.recorder.record()

    def run(self, vmid: int = 100) -> RunRecord:
        run = self.record().run_of(vmid)
        assert run is not None
        return run


def started(vmid: int = 100) -> events.RunStarted:
    return events.RunStarted(
        vmid=vmid, wall_s=BEGAN_S, log_path=f"/log/{vmid}", side_log_path=f"/dump/{vmid}.log"
    )


def succeeded(vmid: int = 100) -> tuple[Event, ...]:
    return (
        events.RunSucceeded(
            vmid=vmid, wall_s=BEGAN_S, duration_s=1.0, consistency=Consistency.FROZEN
        ),
        events.RunClosed(vmid=vmid),
    )


def failed(vmid: int = 100, text: str = "broken", hint: str = "") -> tuple[Event, ...]:
    return (
        events.RunFailed(vmid=vmid, wall_s=BEGAN_S, text=text, hint=hint),
        events.RunClosed(vmid=vmid),
    )


def progress(
    elapsed_s: float, *, done_bytes: int, written_share: float = 1.0, zero_bytes: int = 0
) -> events.ProgressMade:
    read_bytes_per_s = 100.0 * MIB
    return events.ProgressMade(
        line=events.ProgressLine(
            percent=1,
            done_bytes=done_bytes,
            target_bytes=GIB,
            zero_bytes=zero_bytes,
            elapsed_s=elapsed_s,
            read_bytes_per_s=read_bytes_per_s,
            write_bytes_per_s=read_bytes_per_s * written_share,
        )
    )


def ended(**changes: float) -> events.TransferEnded:
    fields = {
        "total_bytes": GIB,
        "transferred_bytes": GIB,
        "zero_bytes": 0,
        "reused_bytes": 0,
        "duration_s": 4.0,
    }
    return events.TransferEnded(summary=events.TransferSummary(**{**fields, **changes}))  # type: ignore[arg-type]


def frozen_and_whole() -> Tape:
    """A job of one VM that goes well, a second between any two events."""
    tape = Tape(100).play(events.JobStarted(command_line="vzdump 100"))
    tape.play(
        started(),
        events.StatusSeen(running=True),
        events.VmNamed(vm_name="db"),
        events.DiskIncluded(key="scsi0", volid="local:1", size_text="32G"),
        events.DiskExcluded(key="scsi1", volid="local:2", reason="backup=no"),
        events.ModeChosen(mode=BackupMode.SNAPSHOT),
        events.DataPathChosen(name="native", reason=""),
        events.ArchiveCreating(archive_path="/dump/a.vma"),
        events.FreezeIssued(),
        events.JobStartIssued(),
        events.ThawIssued(),
        events.FreezeWindowClosed(freeze_window_s=0.012, own_s=0.001),
        events.JobAccepted(uuid="u"),
        ended(),
        events.ArchiveProved(stream_bytes=9, vma_cluster_count=1, stored_bytes=8),
        events.ArchivePublished(archive_path="/dump/a.vma", size_bytes=8),
        events.NotesAdding(),
        events.PruneStarted(rule_text="keep-last=1"),
        events.BackupRemoving(storage_id="local", name="old.vma", path="/dump/old.vma"),
        events.PruneEnded(removed_count=1),
        *succeeded(),
        pause_s=1.0,
    )
    return tape.play(events.JobEnded(failed_vmids=(), error=""))


def test_run_frozen_and_whole_has_every_phase_in_order() -> None:
    run = frozen_and_whole().run()
    assert [(phase.phase, phase.length_s) for phase in run.phases] == [
        (Phase.LOCKING, 2.0),
        (Phase.PREPARING, 6.0),
        (Phase.FREEZE, 4.0),
        (Phase.COPYING, 1.0),
        (Phase.PROVING, 1.0),
        (Phase.PUBLISHING, 1.0),
        (Phase.PUTTING_BACK, 1.0),
        (Phase.KEEPING, 3.0),
        (Phase.PUTTING_BACK, 1.0),
    ]
    assert run.phases[0].began_wall_s == run.began_wall_s
    assert run.phases[-1].ended_wall_s == run.ended_wall_s


def test_run_frozen_and_whole_has_all_that_was_told_of_it() -> None:
    tape = frozen_and_whole()
    run = tape.run()
    assert run.state is GuestState.OK
    assert (run.vm_name, run.mode, run.consistency, run.data_path) == (
        "db",
        BackupMode.SNAPSHOT,
        Consistency.FROZEN,
        "native",
    )
    assert run.freeze is not None
    assert (run.freeze.window_s, run.freeze.own_s) == (0.012, 0.001)
    assert run.freeze.began_wall_s == run.phases[2].began_wall_s
    assert [(disk.key, disk.excluded_reason) for disk in run.disks] == [
        ("scsi0", ""),
        ("scsi1", "backup=no"),
    ]
    assert (run.location, run.size_bytes, run.proved_bytes) == ("/dump/a.vma", 8, 9)
    assert run.removed_names == ("old.vma",)
    assert (run.log_path, run.side_log_path) == ("/log/100", "/dump/100.log")
    assert run.verify_s == 1.0
    assert tape.record().ok


def test_transfer_of_everything_counts_zeros_as_not_written() -> None:
    tape = Tape().play(started(), progress(3.0, done_bytes=GIB), ended(zero_bytes=GIB // 4))
    transfer = tape.run().transfer
    assert transfer is not None
    assert transfer.written_bytes == 3 * GIB // 4
    assert transfer.read_bytes_per_s == GIB / 4
    assert transfer.written_bytes_per_s == 3 * GIB / 16


def test_transfer_of_an_increment_counts_what_was_found_known_as_not_written() -> None:
    # Of 10 GiB one had to be looked at, and a quarter of that was at the server already.
    summary = ended(total_bytes=10 * GIB, transferred_bytes=GIB, reused_bytes=9 * GIB + GIB // 4)
    tape = Tape().play(started(), progress(3.0, done_bytes=GIB), summary)
    transfer = tape.run().transfer
    assert transfer is not None
    assert transfer.target_bytes == GIB
    assert transfer.written_bytes == 3 * GIB // 4


def test_transfer_in_no_time_has_no_rate() -> None:
    transfer = Tape().play(started(), ended(duration_s=0.0)).run().transfer
    assert transfer is not None
    assert transfer.read_bytes_per_s is None
    assert transfer.written_bytes_per_s is None


def test_samples_add_up_what_the_lines_tell_as_rates() -> None:
    tape = Tape().play(started())
    tape.play(
        progress(3.0, done_bytes=300 * MIB),
        progress(5.0, done_bytes=500 * MIB, written_share=0.5, zero_bytes=100 * MIB),
        pause_s=2.5,
    )
    samples = tape.run().samples
    assert [sample.written_bytes for sample in samples] == [300 * MIB, 400 * MIB]
    assert [sample.read_bytes for sample in samples] == [300 * MIB, 500 * MIB]
    assert [sample.zero_bytes for sample in samples] == [0, 100 * MIB]
    assert samples[1].wall_s - samples[0].wall_s == 2.5


@pytest.mark.parametrize("count", [SAMPLE_COUNT_MAX - 1, SAMPLE_COUNT_MAX, 10_000])
def test_samples_too_many_stay_bounded_and_evenly_spaced(count: int) -> None:
    tape = Tape().play(started())
    for index in range(1, count + 1):
        tape.play(progress(2.0 * index, done_bytes=index), pause_s=2.0)
    samples = tape.run().samples
    assert len(samples) <= SAMPLE_COUNT_MAX
    assert len(samples) >= min(count, SAMPLE_COUNT_MAX // 4)
    assert (samples[0].read_bytes, samples[-1].read_bytes) == (1, count)
    assert samples[-1].written_bytes == count
    gaps = [after.wall_s - before.wall_s for before, after in pairwise(samples)][:-1]
    assert max(gaps) <= 2.5 * min(gaps)


def test_events_of_parallel_runs_go_to_the_vm_they_come_with() -> None:
    tape = Tape().play(started(100), started(101))
    tape.play(events.VmNamed(vm_name="web"), events.Warned(text="slow"), vmid=101)
    tape.play(events.VmNamed(vm_name="db"), vmid=100)
    tape.play(events.Warned(text="whose"))
    assert (tape.run(100).vm_name, tape.run(101).vm_name) == ("db", "web")
    assert tape.run(101).warnings == ("slow",)
    assert tape.record().warnings == ("whose",)
    assert tape.record().warning_count == 2


def test_events_without_a_vm_go_to_the_only_open_run() -> None:
    tape = Tape().play(events.Warned(text="before"), started(100), events.Warned(text="a"))
    tape.play(*succeeded(100), events.Warned(text="between"), started(101))
    tape.play(events.Warned(text="b"))
    assert tape.run(100).warnings == ("a",)
    assert tape.run(101).warnings == ("b",)
    assert tape.record().warnings == ("before", "between")


def test_run_failed_keeps_error_hint_and_what_it_reached() -> None:
    tape = Tape(100, 101, 99).play(started(), events.ArchiveCreating(archive_path="/dump/a.vma"))
    tape.play(events.JobAccepted(uuid="u"), progress(3, done_bytes=7))
    tape.play(events.JobAborting(text="No space left"), pause_s=2.0)
    tape.play(*failed(text="No space left", hint="make room"))
    tape.play(events.JobEnded(failed_vmids=(100,), error="interrupted"))
    run, job = tape.run(), tape.record()
    assert (run.state, run.error, run.hint) == (GuestState.FAILED, "No space left", "make room")
    assert run.transfer is None
    assert run.phases[-1] == PhaseRecord(
        phase=Phase.PUTTING_BACK, began_wall_s=tape.wall_s, ended_wall_s=tape.wall_s
    )
    assert run.phase_s(Phase.COPYING) == 2.0
    assert run.phase_s(Phase.FREEZE) is None
    assert [run.vmid for run in job.in_state(GuestState.NOT_REACHED)] == [99, 101]
    assert not job.ok
    assert job.error == "interrupted"
    assert job.duration_s == 2.0


def test_job_that_failed_before_any_vm_reached_none() -> None:
    tape = Tape(100, 101).play(events.JobEnded(failed_vmids=(), error="no such storage"))
    tape.recorder.add_hint("name one")
    tape.recorder.add_hint("")
    job = tape.record()
    assert (job.error, job.hint, job.began_wall_s) == ("no such storage", "name one", BEGAN_S)
    assert [run.state for run in job.runs] == [GuestState.NOT_REACHED] * 2


def test_job_waiting_for_the_nodes_lock_tells_how_long() -> None:
    tape = Tape().play(events.GlobalLockAwaited())
    tape.play(events.GlobalLockTaken(), pause_s=30.0)
    assert tape.record().lock_wait_s == 30.0


def test_clock_set_back_never_makes_a_negative_length() -> None:
    tape = Tape().play(started(), events.VmNamed(vm_name="a"))
    tape.play(events.JobAccepted(uuid="u"), *succeeded(), pause_s=-3600.0)
    run = tape.run()
    assert run.duration_s == 0.0
    assert all(phase.length_s >= 0 for phase in run.phases)


def test_freeze_that_failed_or_was_skipped_tells_why() -> None:
    tape = Tape().play(started(100), events.FreezeSkipped(reason=FreezeSkip.DISABLED))
    assert (tape.run().freeze, tape.run().freeze_skip) == (None, FreezeSkip.DISABLED)
    tape = Tape().play(
        started(), events.FreezeIssued(), events.FreezeFailed(text="no"), events.ThawIssued()
    )
    tape.play(events.ThawFailed(text="later"))
    freeze = tape.run().freeze
    assert freeze is not None
    assert (freeze.failure, freeze.window_s) == ("no", None)


def test_downtime_is_kept_of_whatever_told_it() -> None:
    tape = Tape().play(started(100), events.VmContinued(downtime_s=2.5))
    assert tape.run().downtime_s == 2.5
    tape = Tape().play(started(100), events.VmContinued(downtime_s=None))
    assert tape.run().downtime_s is None
    tape = Tape().play(started(100), events.GuestOnlineAgain(downtime_s=7.0))
    assert tape.run().downtime_s == 7.0


def test_backup_at_a_server_tells_what_was_sent() -> None:
    tape = Tape().play(
        started(),
        events.PbsBackupCreating(backup_path="vm/100/t"),
        events.EncryptionEnabled(has_master_key=False),
        events.PbsBackupPublished(backup_path="vm/100/t", size_bytes=9, sent_bytes=3),
        *succeeded(),
    )
    run = tape.run()
    assert (run.location, run.size_bytes, run.sent_bytes, run.is_encrypted) == (
        "vm/100/t",
        9,
        3,
        True,
    )
    assert tape.record().size_bytes == 9


def test_older_backup_that_would_not_go_is_a_warning_and_not_removed() -> None:
    tape = Tape().play(
        started(),
        events.BackupRemoving(storage_id="", name="a", path="/a"),
        events.BackupRemoving(storage_id="", name="b", path="/b"),
        events.BackupRemovalFailed(name="b", text="Permission denied"),
    )
    assert tape.run().removed_names == ("a",)
    assert tape.run().warnings == ("error when removing backup 'b' - Permission denied",)


def test_what_could_not_be_put_back_counts_as_a_warning() -> None:
    tape = Tape().play(started(), events.UndoFailed(what="thaw the guest", text="timeout"))
    tape.play(events.LeftOverJobFound())
    assert tape.run().warnings == (
        "unable to thaw the guest - timeout",
        "left-over backup job still running inside QEMU - canceling now",
    )


def test_what_failed_beside_the_backup_counts_as_a_warning() -> None:
    tape = Tape().play(started(), events.ServerPruning(group="vm/100"), pause_s=1.0)
    tape.play(events.ServerPruneFailed(group="vm/100", text="no permission"), pause_s=2.0)
    tape.play(*succeeded())
    tape.play(events.NotificationFailed(name="mail", text="got timeout", hint=""))
    assert tape.run().warnings == ("prune 'vm/100': no permission",)
    assert tape.run().phase_s(Phase.KEEPING) == 2.0
    assert tape.record().warnings == ("could not notify via mail - got timeout",)


def test_warnings_without_end_stay_bounded() -> None:
    tape = Tape().play(started())
    for index in range(WARNING_COUNT_MAX + 50):
        tape.play(events.Warned(text=str(index)))
    assert len(tape.run().warnings) == WARNING_COUNT_MAX


def test_record_of_a_run_going_on_is_neither_good_nor_bad() -> None:
    tape = Tape(100).play(started())
    assert tape.run().is_going_on
    assert tape.run().state is GuestState.NOT_REACHED
    assert not tape.record().ok


def test_samples_of_the_engines_own_lines_end_where_the_totals_do() -> None:
    tracker = ProgressTracker()
    tape = Tape().play(started(), events.JobAccepted(uuid="u"))
    for elapsed_s, share in ((0.05, 0.0), (2.1, 0.5), (4.3, 0.9), (4.4, 1.0)):
        line = tracker.take(
            JobProgress(
                status=JobStatus.DONE if share == 1.0 else JobStatus.ACTIVE,
                status_text="",
                total_bytes=GIB,
                transferred_bytes=int(GIB * share),
                zero_bytes=int(GIB * share) // 4,
                reused_bytes=0,
                dirty_bytes=GIB,
                error_text="",
                finishing=False,
            ),
            elapsed_s=elapsed_s,
        )
        if line is not None:
            tape.play(events.ProgressMade(line=line))
    run = tape.play(ended(zero_bytes=GIB // 4)).run()
    assert run.transfer is not None
    assert len(run.samples) == 3
    assert run.samples[-1].written_bytes == run.transfer.written_bytes == GIB * 3 // 4
