"""From the engine's events to the record of a job; pure.

Owns which event tells what, where a phase of a run begins and ends, and how samples are thinned.
The values are `batch_record`'s, the time of day is its caller's. Source: host behaviour, sections
1.6 to 1.10 and 6.6; the order of a run's steps is `engine.run`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vzdump_qemu import events
from vzdump_qemu.events import Event
from vzdump_qemu.plan.batch_record import (
    DiskRecord,
    FreezeRecord,
    JobRecord,
    Phase,
    PhaseRecord,
    ProgressSample,
    RunRecord,
    TransferRecord,
)
from vzdump_qemu.plan.notification import GuestState

SAMPLE_COUNT_MAX = 400
WARNING_COUNT_MAX = 200
LEFT_OVER_JOB_TEXT = "left-over backup job still running inside QEMU - canceling now"

_PHASES: Mapping[type[Event], Phase] = {
    events.LeftOverJobFound: Phase.PREPARING,
    events.VmNamed: Phase.PREPARING,
    events.DiskIncluded: Phase.PREPARING,
    events.DiskExcluded: Phase.PREPARING,
    events.ModeChosen: Phase.PREPARING,
    events.FreezeIssued: Phase.FREEZE,
    events.DisklessStarted: Phase.COPYING,
    events.TemplateStarted: Phase.COPYING,
    events.JobAccepted: Phase.COPYING,
    events.ServerFinishing: Phase.PROVING,
    events.TransferEnded: Phase.PROVING,
    events.ArchiveProved: Phase.PUBLISHING,
    events.GuestResuming: Phase.PUTTING_BACK,
    events.GuestRestarting: Phase.PUTTING_BACK,
    events.QemuStopping: Phase.PUTTING_BACK,
    events.ArchivePublished: Phase.PUTTING_BACK,
    events.PbsBackupPublished: Phase.PUTTING_BACK,
    events.NotesAdding: Phase.KEEPING,
    events.BackupProtecting: Phase.KEEPING,
    events.PruneStarted: Phase.KEEPING,
    events.ServerPruning: Phase.KEEPING,
    events.PruneEnded: Phase.PUTTING_BACK,
    events.JobAborting: Phase.PUTTING_BACK,
}
"""The phase that an event begins."""


class JobRecorder:
    """Hears every event of one job in its order; `record` may be asked for at any time.

    Args:
        host_name: of the node, as reports name it.
    """

    def __init__(self, *, host_name: str) -> None:
        self._job = JobRecord(host_name=host_name)
        self._runs: dict[int, _RunRecorder] = {}
        self._open: list[int] = []
        self._vmids: frozenset[int] = frozenset()
        self._lock_awaited_s: float | None = None
        self._heard_s: float | None = None

    def expect(self, vmids: Iterable[int]) -> None:
        """Name the VMs that the job is for: those that no run begins for were not reached."""
        self._vmids |= frozenset(vmids)

    def learn(self, *, host_name: str) -> None:
        """The node's own name, where that came to be known late."""
        self._job = replace(self._job, host_name=host_name)

    def add_hint(self, hint: str) -> None:
        """What to do about the job's own error; an empty hint changes nothing."""
        if hint:
            self._job = replace(self._job, hint=hint)

    def hear(self, event: Event, *, vmid: int | None, wall_s: float) -> None:
        """Take one event.

        Args:
            vmid: whose run said it. None for what the job says, or where runs follow each other:
                then the run that is open is meant, if it is the only one.
            wall_s: when it was heard, seconds since the epoch.
        """
        self._heard_s = wall_s = max(wall_s, self._heard_s or wall_s)
        if self._job.began_wall_s is None:
            self._job = replace(self._job, began_wall_s=wall_s)
        if isinstance(event, events.RunStarted):
            self._runs[event.vmid] = _RunRecorder(event.vmid)
            self._open.append(event.vmid)
        run = self._find_run(event, vmid)
        if run is None:
            self._take(event, wall_s)
        else:
            run.hear(event, wall_s)
        if isinstance(event, events.RunClosed) and event.vmid in self._open:
            self._open.remove(event.vmid)

    def record(self) -> JobRecord:
        """The job as far as it was heard."""
        begun = tuple(run.record() for run in self._runs.values())
        missing = sorted(self._vmids - self._runs.keys())
        return replace(self._job, runs=begun + tuple(RunRecord(vmid=vmid) for vmid in missing))

    def _find_run(self, event: Event, vmid: int | None) -> _RunRecorder | None:
        match event:
            case events.JobStarted() | events.JobEnded() | events.RecoveryNotNeeded():
                return None
            case events.GlobalLockAwaited() | events.GlobalLockTaken():
                return None
            case events.RunStarted() | events.RunFailed() | events.RunSucceeded():
                vmid = event.vmid
        if vmid is None and len(self._open) == 1:
            [vmid] = self._open
        return self._runs.get(vmid) if vmid is not None else None

    def _take(self, event: Event, wall_s: float) -> None:
        job = self._job
        match event:
            case events.GlobalLockAwaited():
                self._lock_awaited_s = wall_s
            case events.GlobalLockTaken() if self._lock_awaited_s is not None:
                self._job = replace(job, lock_wait_s=wall_s - self._lock_awaited_s)
            case events.JobStarted():
                self._job = replace(job, command_line=event.command_line)
            case events.JobEnded():
                self._job = replace(job, ended_wall_s=wall_s, error=event.error)
                for vmid in event.failed_vmids:
                    self._runs.setdefault(vmid, _RunRecorder(vmid)).fail()
            case _:
                text = _warning_text(event)
                if text:
                    self._job = replace(job, warnings=_append(job.warnings, text))


class _RunRecorder:
    """One run."""

    def __init__(self, vmid: int) -> None:
        self._vmid = vmid
        # By the record's own names; made into a record only for whoever asks for one.
        self._facts: dict[str, Any] = {}
        # Each with its begin: it lasts until the next one, the last until what is heard last.
        self._phases: list[tuple[Phase, float]] = []
        self._heard_s = 0.0
        self._samples = _Samples()
        self._target_bytes: int | None = None

    def record(self) -> RunRecord:
        ends = [began_wall_s for _, began_wall_s in self._phases[1:]] + [self._heard_s]
        return RunRecord(
            vmid=self._vmid,
            phases=tuple(
                PhaseRecord(phase=phase, began_wall_s=began_wall_s, ended_wall_s=ended_wall_s)
                for (phase, began_wall_s), ended_wall_s in zip(self._phases, ends, strict=False)
            ),
            samples=tuple(self._samples.kept),
            **self._facts,
        )

    def fail(self) -> None:
        """The job counts it as failed, whatever else was heard."""
        self._set(state=GuestState.FAILED)

    def hear(self, event: Event, wall_s: float) -> None:
        self._follow(event, wall_s)
        text = _warning_text(event)
        if text:
            self._set(warnings=_append(self._facts.get("warnings", ()), text))
        self._take_course(event, wall_s)
        self._take_facts(event)
        self._take_freeze(event, wall_s)
        self._take_transfer(event, wall_s)

    def _set(self, **changes: Any) -> None:
        self._facts |= changes

    def _add(self, **items: Any) -> None:
        """One more of what there are several of."""
        for name, item in items.items():
            self._facts[name] = (*self._facts.get(name, ()), item)

    def _follow(self, event: Event, wall_s: float) -> None:
        """Lengthen the phase the run is in, or begin the next one."""
        if isinstance(event, events.RunStarted):
            self._phases.append((Phase.LOCKING, wall_s))
        if not self._phases or "ended_wall_s" in self._facts:
            return
        self._heard_s = wall_s
        phase = _PHASES.get(type(event))
        if phase is not None and phase is not self._phases[-1][0]:
            self._phases.append((phase, wall_s))

    def _take_course(self, event: Event, wall_s: float) -> None:
        match event:
            case events.RunStarted():
                paths = {"log_path": event.log_path, "side_log_path": event.side_log_path}
                self._set(began_wall_s=wall_s, **paths)
            case events.RunSucceeded():
                consistency = event.consistency
                self._set(state=GuestState.OK, consistency=consistency, ended_wall_s=wall_s)
            case events.RunFailed():
                self._set(
                    state=GuestState.FAILED,
                    error=event.text,
                    hint=event.hint,
                    ended_wall_s=wall_s,
                )

    def _take_facts(self, event: Event) -> None:
        match event:
            case events.StatusSeen():
                self._set(was_running=event.running)
            case events.ModeChosen():
                self._set(mode=event.mode)
            case events.VmNamed():
                self._set(vm_name=event.vm_name)
            case events.DiskIncluded():
                disk = DiskRecord(key=event.key, volid=event.volid, size_text=event.size_text)
                self._add(disks=disk)
            case events.DiskExcluded():
                disk = DiskRecord(key=event.key, volid=event.volid, excluded_reason=event.reason)
                self._add(disks=disk)
            case events.DataPathChosen():
                self._set(data_path=event.name, data_path_reason=event.reason)
            case events.EncryptionEnabled():
                self._set(is_encrypted=True)
            case events.GuestOnlineAgain():
                self._set(downtime_s=event.downtime_s)
            case events.VmContinued() if event.downtime_s is not None:
                self._set(downtime_s=event.downtime_s)
            case events.BackupRemoving():
                self._add(removed_names=event.name)
            case events.BackupRemovalFailed() if "removed_names" in self._facts:
                self._set(removed_names=self._facts["removed_names"][:-1])

    def _take_freeze(self, event: Event, wall_s: float) -> None:
        freeze: FreezeRecord | None = self._facts.get("freeze")
        match event:
            case events.FreezeSkipped():
                self._set(freeze_skip=event.reason)
            case events.FreezeIssued():
                self._set(freeze=FreezeRecord(began_wall_s=wall_s))
            case events.FreezeFailed() | events.ThawFailed() if freeze is not None:
                failure = freeze.failure or event.text
                self._set(freeze=replace(freeze, failure=failure))
            case events.FreezeWindowClosed() if freeze is not None:
                window_s, own_s = event.freeze_window_s, event.own_s
                self._set(freeze=replace(freeze, window_s=window_s, own_s=own_s))

    def _take_transfer(self, event: Event, wall_s: float) -> None:
        match event:
            case events.ProgressMade():
                self._target_bytes = event.line.target_bytes
                self._samples.take(event.line, wall_s)
            case events.TransferEnded():
                self._set(transfer=self._sum_up(event.summary))
            case events.ArchiveCreating():
                self._set(location=event.archive_path)
            case events.PbsBackupCreating():
                self._set(location=event.backup_path)
            case events.ArchiveProved():
                self._set(proved_bytes=event.stream_bytes, size_bytes=event.stored_bytes)
            case events.ArchivePublished():
                self._set(location=event.archive_path, size_bytes=event.size_bytes)
            case events.PbsBackupPublished():
                self._set(
                    location=event.backup_path,
                    size_bytes=event.size_bytes,
                    sent_bytes=event.sent_bytes,
                )

    def _sum_up(self, summary: events.TransferSummary) -> TransferRecord:
        target_bytes = summary.total_bytes if self._target_bytes is None else self._target_bytes
        # As in a progress line: what need not be looked at counts as reused from the start.
        unread_bytes = summary.total_bytes - target_bytes
        saved_bytes = summary.zero_bytes
        if summary.reused_bytes:
            saved_bytes = summary.reused_bytes - unread_bytes
        return TransferRecord(
            total_bytes=summary.total_bytes,
            target_bytes=target_bytes,
            read_bytes=summary.transferred_bytes,
            written_bytes=max(0, summary.transferred_bytes - saved_bytes),
            zero_bytes=summary.zero_bytes,
            reused_bytes=summary.reused_bytes,
            duration_s=summary.duration_s,
        )


class _Samples:
    """Progress lines as samples, evenly spaced once they get too many."""

    def __init__(self) -> None:
        self.kept: list[ProgressSample] = []
        self._read_bytes = 0
        self._written_bytes = 0.0
        self._spacing_s = 0.0

    def take(self, line: events.ProgressLine, wall_s: float) -> None:
        # A line tells amounts read, but only the rate of writing; both rates are of one length.
        if line.read_bytes_per_s > 0:
            read_bytes = max(0, line.done_bytes - self._read_bytes)
            self._written_bytes += read_bytes * line.write_bytes_per_s / line.read_bytes_per_s
        self._read_bytes = line.done_bytes
        sample = ProgressSample(
            wall_s=wall_s,
            read_bytes=line.done_bytes,
            written_bytes=round(self._written_bytes),
            zero_bytes=line.zero_bytes,
        )
        kept = self.kept
        # The newest one is always kept, and gives way until it is far enough from the one before.
        if len(kept) > 1 and kept[-1].wall_s - kept[-2].wall_s < self._spacing_s:
            kept[-1] = sample
            return
        kept.append(sample)
        if len(kept) >= SAMPLE_COUNT_MAX:
            self._spacing_s = 2 * (wall_s - kept[0].wall_s) / len(kept)
            self.kept = kept[:-1:2] + kept[-1:]


def _warning_text(event: Event) -> str:
    match event:
        case events.Warned():
            return event.text
        case events.LeftOverJobFound():
            return LEFT_OVER_JOB_TEXT
        case events.UndoFailed():
            return f"unable to {event.what} - {event.text}"
        case events.BackupRemovalFailed():
            return f"error when removing backup '{event.name}' - {event.text}"
        case events.ServerPruneFailed():
            return f"prune '{event.group}': {event.text}"
        case events.NotificationFailed():
            return f"could not notify via {event.name} - {event.text}"
    return ""


def _append(texts: tuple[str, ...], text: str) -> tuple[str, ...]:
    return (*texts, text) if len(texts) < WARNING_COUNT_MAX else texts
