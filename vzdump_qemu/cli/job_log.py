"""What a job's message quotes of its logs: the files of the runs, and words of hook scripts.

Owns which lines belong to no run, and how much is read at most; what a message does with them is
`plan.notification`'s. Source: host behaviour, section 1.14.
"""

from __future__ import annotations

from vzdump_qemu import events
from vzdump_qemu.events import Event
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.job_message import JobLogs, RunLogText
from vzdump_qemu.units import MIB

# A message with more than this has no logs at all.
_LOG_BYTES_MAX = MIB + 1


class JobLogBook:
    """Hears every event of one job in its order."""

    def __init__(self) -> None:
        self._before: list[str] = []
        self._after: list[str] = []
        self._has_runs = False

    def take(self, event: Event, *, vmid: int | None) -> None:
        """Take one event. Args: vmid: whose run said it; None for the job itself."""
        match event:
            case events.RunStarted():
                self._has_runs = True
            case events.OutputSeen() if vmid is None:
                (self._after if self._has_runs else self._before).append(event.line)

    def read(self, record: JobRecord) -> JobLogs:
        """All logs, once every run was closed."""
        room_bytes = _LOG_BYTES_MAX
        by_vmid = {}
        for run in record.runs:
            if run.log_path:
                log = _read_log(run.log_path, room_bytes)
                by_vmid[run.vmid] = log
                room_bytes -= len((log.text or "").encode("utf-8", "surrogateescape"))
        return JobLogs(before=tuple(self._before), after=tuple(self._after), by_vmid=by_vmid)


def _read_log(path: str, bytes_max: int) -> RunLogText:
    try:
        with open(path, "rb") as file:
            return RunLogText(text=file.read(max(bytes_max, 0)).decode("utf-8", errors="replace"))
    except OSError:
        return RunLogText(text=None)
